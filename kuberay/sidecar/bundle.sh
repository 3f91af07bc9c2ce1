#!/bin/sh
# Reads and verifies a bundle, as the server does (serve_app/adapters/bundle_reader.py). Part of sidecar.sh, which sets
# `here`, `work`, MANIFEST_NAME and MAX_BUNDLE_BYTES and has `wait_for`.
# shellcheck disable=SC2154,SC2034  # both sides see the other's variables

# Reads the manifest of $1: sets `version`, fills $work/listing with "<sha256> <path>" lines, $work/problems with what
# speaks against it. Returns 1 where there are problems, 2 where it cannot tell.
read_listing() {
    version=
    printf '' >"$work/listing" && printf '' >"$work/problems" || return 2
    check_file "$1" "$MANIFEST_NAME"
    if [ -z "$problem" ] && [ "$size" -gt 4194304 ]; then problem="expected at most 4194304 bytes, found $size"; fi
    if [ -n "$problem" ]; then
        printf '%s: %s\n' "$MANIFEST_NAME" "$problem" >"$work/problems" || return 2
        return 1
    fi
    od -An -v -tu1 <"$real" | awk -v manifest_name="$MANIFEST_NAME" -f "$here/manifest.awk" >"$work/facts"
    last=
    while IFS= read -r fact; do
        last=${fact%% *}
        fact=${fact#* }
        case $last in
            version) version=$fact ;;
            file) printf '%b\n' "$fact" >&7 || return 2 ;;
            problem) printf '%s: %b\n' "$MANIFEST_NAME" "$fact" >&8 || return 2 ;;
            *) ;;
        esac
    done <"$work/facts" 7>"$work/listing" 8>"$work/problems"
    [ ! -s "$work/problems" ] || return 1
    [ "$last" = end ] || return 2
}

# Looks at the file $2 of the bundle in $1: sets `problem`, empty where there is none, else `real` (its path without
# links), `size` and `seal` (what changes when its content does).
check_file() {
    problem=
    seal=
    real=$(readlink -f "$1/$2") || real=
    case $real in
        "$1"/*) ;;
        '') problem="expected a file, found none" ;;
        *) problem="expected a file inside the bundle, found a link to $real" ;;
    esac
    [ -z "$problem" ] || return 0
    if [ ! -e "$real" ]; then
        problem="expected a file, found none"
    elif [ ! -f "$real" ]; then
        problem="expected a regular file, found something else"
    elif [ ! -r "$real" ]; then
        problem="expected a readable file, found one that user $(id -u) may not read"
    else
        seal=$(stat -c '%s %i %y' "$real") || problem="expected a file, found none"
        size=${seal%% *}
    fi
}

# Verifies the bundle in $1 against its manifest: problems as in `read_listing`, and the files' seals in $work/$2.
verify() {
    read_listing "$1" || return
    total=0
    while IFS= read -r line; do
        path=${line#* }
        check_file "$1" "$path"
        if [ -z "$problem" ]; then
            total=$((total + size))
            [ "$total" -le "$MAX_BUNDLE_BYTES" ] || problem="expected at most $MAX_BUNDLE_BYTES bytes, found more"
        fi
        if [ -z "$problem" ]; then
            sha256sum <"$real" >"$work/digest" 2>/dev/null &
            wait_for $! && read -r found _ <"$work/digest" || return 2
            [ "$found" = "${line%% *}" ] || problem="expected sha256 ${line%% *}, found $found ($size bytes)"
        fi
        printf '%s %s\n' "$path" "$seal" >&7 || return 2
        [ -z "$problem" ] || printf '%s: %s\n' "$path" "$problem" >&8 || return 2
    done <"$work/listing" 7>"$work/$2" 8>"$work/problems"
    [ ! -s "$work/problems" ] || return 1
    [ "$(wc -l <"$work/$2")" = "$(wc -l <"$work/listing")" ] || return 2 # a full disk, say, must not pass for a verdict
}

# Says whether something in the staging directory has changed a moment ago, so that a verdict on it would be early.
still_changes() {
    changed=$(find "$STAGING_DIR" -name 'rejected-*' -prune -o -exec stat -c %Z {} + 2>/dev/null | sort -n | tail -n 1)
    age=$(($(date +%s) - ${changed:-0}))
    [ "$age" -ge 0 ] && [ "$age" -lt "$SETTLE_SECONDS" ]
}
