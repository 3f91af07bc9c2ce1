#!/bin/sh
# Promotes a staged bundle: verify it, move it to <version>/, flip `current` to it, tell the server.
#
#   /models/staging/...     a bundle that somebody puts there, and when it is whole, an empty file READY
#   /models/<version>/      versions; each appears by one rename, whole and verified
#   /models/current         link to the live one, flipped by one rename
#   /models/.sidecar/       work of the sidecar, all on the file system of the versions
#
# Killed at any step, it goes on from where it was: READY travels with the bundle (staging/READY,
# .sidecar/incoming/READY, .sidecar/build/.promoting, <version>/.promoting) and is removed when everything is done.
# Runs under dash and busybox; needs awk, od, sha256sum, flock, readlink, stat; for /reload curl or wget; jq for the
# interval of a manifest.
set -u
umask 022
LC_ALL=C
export LC_ALL

usage() {
    cat <<'HELP'
usage: sidecar.sh [--poll-interval SECONDS] [--once]

  --poll-interval SECONDS   look for READY this often, whatever POLL_DEFAULT or the manifest say
  --once                    look once; exit with 1 if a bundle was refused, still changes, or could not be moved

Environment (default):
  MODELS_ROOT (/models)                   where the versions are
  STAGING_DIR ($MODELS_ROOT/staging)      where bundles are put; on the file system of MODELS_ROOT
  CURRENT_LINK ($MODELS_ROOT/current)     link to the live version
  MANIFEST_NAME (manifest.json)
  POLL_DEFAULT (30)                       seconds between looks, where the live manifest (read with jq) says nothing
  RELOAD_URL (http://127.0.0.1:8000/reload)   asked after a promotion; empty: nobody is asked
  RELOAD_TOKEN ()                         sent as x-reload-token, never logged
  RELOAD_TRIES (5), RELOAD_RETRY_SECONDS (2), RELOAD_TIMEOUT_SECONDS (60)
  KEEP_VERSIONS (5)                       versions that stay, the live one always among them; 0: all
  KEEP_REJECTED (3)                       refused bundles that stay in staging/rejected-...; 0: all
  SETTLE_SECONDS (10)                     a bad bundle is refused once nothing in it has changed for so long
  MAX_BUNDLE_BYTES (4294967296)           of all listed files together
HELP
}

here=$(cd -P "$(dirname "$0")" && pwd -P)
# shellcheck source-path=SCRIPTDIR source=bundle.sh
. "$here/bundle.sh"
# shellcheck source-path=SCRIPTDIR source=reload.sh
. "$here/reload.sh"

# --- what it says -----------------------------------------------------------------------------------------------------

# log LEVEL EVENT [key=value ...]: one line of logfmt. Free text goes through `quoted`.
log() {
    log_line="time=$(date -u +%Y-%m-%dT%H:%M:%SZ) level=$1 event=$2"
    shift 2
    [ "$#" -eq 0 ] || log_line="$log_line $*"
    printf '%s\n' "$log_line"
}

quoted() {
    printf '"%s"' "$(printf '%s' "$1" | tr '\n\r\t' '   ' | sed 's/["\\]/\\&/g')"
}

misused() {
    log error misused "reason=$(quoted "$1")" >&2
    exit 2
}

# Better to be started anew than to go round and round.
gives_up() {
    log error stopped "reason=$(quoted "$1")" >&2
    exit 1
}

blocked() {
    log error blocked "reason=$(quoted "$1")"
    return 2
}

# --- the steps of a promotion; each is one rename, or is done again harmlessly ----------------------------------------

# From staging to .sidecar/incoming: the manifest last but one, READY last; with that, staging is free for the next one.
claim() {
    mkdir -p "$work/incoming" || return 2
    for entry in "$STAGING_DIR"/* "$STAGING_DIR"/.[!.]* "$STAGING_DIR"/..?*; do
        case ${entry##*/} in
            READY | rejected-* | "$MANIFEST_NAME") ;;
            *) take "$entry" || return 2 ;;
        esac
    done
    take "$STAGING_DIR/$MANIFEST_NAME" && take "$STAGING_DIR/READY"
}

take() {
    [ -e "$1" ] || [ -L "$1" ] || return 0
    rm -rf "$work/incoming/${1##*/}" && mv -T "$1" "$work/incoming/${1##*/}"
}

# From incoming to .sidecar/build: the listed files alone. What a link points to is copied first, then files are moved.
build() {
    mkdir -p "$work/build" || return 2
    holder=$work/incoming
    [ -e "$work/build/$MANIFEST_NAME" ] && holder=$work/build
    read_listing "$holder" || return
    printf '%s\n' "manifest $MANIFEST_NAME" >>"$work/listing" || return 2
    for step in copy move; do
        while IFS= read -r line; do
            put "$step" "${line#* }" || return 2
        done <"$work/listing" 8>"$work/problems"
    done
    [ ! -s "$work/problems" ] || return 1
}

put() {
    [ ! -e "$work/build/$2" ] || return 0
    check_file "$work/incoming" "$2"
    if [ -n "$problem" ]; then
        [ "$1" = copy ] || printf '%s: %s\n' "$2" "$problem" >&8
        return
    fi
    case $2 in */*) mkdir -p "$work/build/${2%/*}" || return 2 ;; esac
    if [ "$real" != "$work/incoming/$2" ]; then
        cp "$real" "$work/copy" && mv -T "$work/copy" "$work/build/$2"
    elif [ "$1" = move ]; then
        mv -T "$real" "$work/build/$2"
    fi
}

# From build to <version>, which never changes once it is there. Sets `version`.
place() {
    if [ ! -e "$MODELS_ROOT/$version" ] && [ ! -L "$MODELS_ROOT/$version" ]; then
        flush "$work/build"
        mv -T "$work/build" "$MODELS_ROOT/$version" || return 2
        return
    fi
    if ! cmp -s "$work/build/$MANIFEST_NAME" "$MODELS_ROOT/$version/$MANIFEST_NAME"; then
        echo "expected a new version, found $version with another manifest; a version never changes" >"$work/problems"
        return 1
    fi
    placed=$(cd -P "$MODELS_ROOT/$version" && pwd -P) || return 2
    verify "$placed" again || {
        echo "expected $version, which exists, to be sound; give the bundle a new version" >>"$work/problems"
        return 1
    }
    mv -T "$work/build/.promoting" "$MODELS_ROOT/$version/.promoting" || return 2
}

flip() {
    target=$version
    [ "${CURRENT_LINK%/*}" = "$MODELS_ROOT" ] || target=$MODELS_ROOT/$version
    previous=$(readlink "$CURRENT_LINK") || previous=none
    [ "$previous" != "$target" ] || return 0
    next=${CURRENT_LINK%/*}/.${CURRENT_LINK##*/}.next
    rm -f "$next" && ln -s "$target" "$next" && mv -T "$next" "$CURRENT_LINK"
}

# All that follows once <version>/.promoting is there.
finish() {
    flip || { blocked "expected to flip $CURRENT_LINK to $version, failed"; return; }
    flush "$MODELS_ROOT"
    rm -rf "$work/incoming" "$work/build"
    log info promoted "version=$version" "previous=$(quoted "${previous##*/}")"
    reload
    rm -f "$MODELS_ROOT/$version/.promoting"
    prune
}

# Moves what was claimed to staging/rejected-<stamp>-<version> with the reason; $work/problems says it.
reject() {
    mkdir -p "$work/incoming" || return 2
    if [ -e "$work/build" ]; then
        [ ! -e "$work/build/.promoting" ] || mv -T "$work/build/.promoting" "$work/incoming/READY" || return 2
        beside=$work/incoming/build
        [ ! -e "$beside" ] || beside=$beside.$$
        mv -T "$work/build" "$beside" || return 2
    fi
    cp "$work/problems" "$work/incoming/reason.txt" || return 2
    stamped=$STAGING_DIR/rejected-$(date -u +%Y%m%dT%H%M%SZ)-${version:-unknown}
    rejected=$stamped
    number=1
    while [ -e "$rejected" ]; do
        number=$((number + 1))
        rejected=$stamped-$number
    done
    mv -T "$work/incoming" "$rejected" || return 2
    rm -f "$rejected/READY"
    log error rejected "version=${version:-unknown}" "directory=${rejected##*/}" \
        "problems=$(wc -l <"$rejected/reason.txt" | tr -d ' ')" "reason=$(quoted "$(head -n 3 "$rejected/reason.txt")")"
    keep_newest "$KEEP_REJECTED" "$STAGING_DIR" rejected-
}

flush() {
    sync -f "$1" 2>/dev/null || sync
}

prune() {
    rm -rf "$work/trash"
    keep_newest "$KEEP_VERSIONS" "$MODELS_ROOT" ''
}

# keep_newest N DIRECTORY PREFIX: of the bundles in it whose names begin so, removes all but the N that changed last.
# Never the live one; nothing that has neither manifest nor reason, no link, no odd name; each at once out of sight.
keep_newest() {
    left=$1
    parent=$2
    [ "$left" -gt 0 ] || return 0
    live=$(readlink -f "$CURRENT_LINK") || live=
    for directory in "$parent/$3"*; do
        name=${directory##*/}
        case $name in staging | current | *[!A-Za-z0-9._-]*) continue ;; *) ;; esac
        [ -d "$directory" ] && [ ! -L "$directory" ] || continue
        [ -f "$directory/$MANIFEST_NAME" ] || [ -f "$directory/reason.txt" ] || continue
        stat -c "%y/$name" "$directory"
    done | sort -r >"$work/aged"
    while IFS= read -r line; do
        left=$((left - 1))
        name=${line##*/}
        [ "$left" -lt 0 ] && [ "$parent/$name" != "$live" ] || continue
        rm -rf "$work/trash" && mv -T "$parent/$name" "$work/trash" && rm -rf "$work/trash" &&
            log info pruned "directory=$name"
    done <"$work/aged"
    return 0
}

# --- looking, again and again -----------------------------------------------------------------------------------------

has_work() {
    for mark in "$STAGING_DIR/READY" "$work/incoming/READY" "$work/build/.promoting" "$MODELS_ROOT"/*/.promoting; do
        [ ! -e "$mark" ] && [ ! -L "$mark" ] || return 0
    done
    return 1
}

# One look, alone: what was begun is finished first. Returns 0, 1 (refused, or still changing) or 2 (cannot go on).
look() {
    [ -L "$CURRENT_LINK" ] || [ ! -e "$CURRENT_LINK" ] || {
        blocked "expected $CURRENT_LINK to be a link, found a directory or a file of that name"
        return
    }
    for mark in "$MODELS_ROOT"/*/.promoting; do
        version=${mark%/.promoting}
        [ -e "$mark" ] && [ ! -L "$version" ] || continue # a link is `current`, say
        version=${version##*/}
        log info resumed "version=$version" step=flip
        finish || return
    done
    if [ -e "$work/build/.promoting" ]; then
        log info resumed step=place
        verify "$work/build" again || { refused_or_blocked $?; return; }
        place_and_finish || return
    fi
    if [ -e "$work/incoming/READY" ] || [ -L "$work/incoming/READY" ]; then
        log info resumed step=build
        build || { refused_or_blocked $?; return; }
        verify "$work/build" again || { refused_or_blocked $?; return; }
        mark_and_finish || return
    fi
    [ -e "$STAGING_DIR/READY" ] || [ -L "$STAGING_DIR/READY" ] || return 0
    promote
}

promote() {
    staged=$(cd -P "$STAGING_DIR" && pwd -P) || return 2
    is_resumed=no
    [ ! -e "$work/incoming" ] || is_resumed=yes # a claim that was interrupted: staging holds but a part
    if [ "$is_resumed" = no ]; then
        verify "$staged" seals
        case $? in
            0) ;;
            1) if still_changes; then
                    log info waiting "reason=$(quoted "$(head -n 1 "$work/problems")")"
                    return 1
                fi
                cp "$work/problems" "$work/verdict" || return 2
                claim || { blocked "expected to move the staged files, failed"; return; }
                mv -T "$work/verdict" "$work/problems" && refused_or_blocked 1
                return ;;
            *) blocked "expected to read the bundle in $STAGING_DIR, failed"; return ;;
        esac
    fi
    claim || { blocked "expected to move the staged files, failed"; return; }
    build || { refused_or_blocked $?; return; }
    # The bytes were verified where they lay. Those that moved without a change need no second look.
    if [ "$is_resumed" = yes ] || ! is_sealed; then
        verify "$work/build" again || { refused_or_blocked $?; return; }
    fi
    mark_and_finish
}

is_sealed() {
    while IFS= read -r line; do
        [ "$line" != "manifest $MANIFEST_NAME" ] || continue
        check_file "$work/build" "${line#* }"
        [ -z "$problem" ] && printf '%s %s\n' "${line#* }" "$seal" || return 1
    done <"$work/listing" >"$work/again"
    cmp -s "$work/seals" "$work/again"
}

mark_and_finish() {
    mv -T "$work/incoming/READY" "$work/build/.promoting" || { blocked "expected to move READY, failed"; return; }
    place_and_finish
}

place_and_finish() {
    place || { refused_or_blocked $?; return; }
    finish
}

refused_or_blocked() {
    if [ "$1" -eq 1 ] && reject; then return 1; fi
    blocked "expected to move the bundle on, found a step that fails; it is tried again"
}

# Waits for a child so that a signal is heard at once.
wait_for() {
    child=$1
    wait "$child"
    waited=$?
    child=
    return "$waited"
}

rest() {
    sleep "$1" 9>&- &
    wait_for $!
}

stop() {
    trap '' TERM INT HUP
    [ -z "$child" ] || kill "$child" 2>/dev/null
    log info stopped
    exit 0
}

# Sets `interval`. The manifest is read again only when `current` has moved.
find_interval() {
    interval=$poll_interval
    [ -z "$interval" ] || return 0
    cd -P "$CURRENT_LINK" 2>/dev/null || cd /
    if [ "$PWD" != "$seen" ]; then
        seen=$PWD
        told=
        if [ "$PWD" != / ] && command -v jq >/dev/null; then
            told=$(jq -r '.sidecar.poll_interval_seconds | numbers |
                if . < 0.2 then 0.2 elif . > 86400 then 86400 else . end' "$PWD/$MANIFEST_NAME" 2>/dev/null)
        fi
        log info interval "seconds=${told:-$POLL_DEFAULT}"
    fi
    cd /
    interval=${told:-$POLL_DEFAULT}
}

# expect_number NAME VALUE: a plain number above 0, or with a third argument a whole one from 0 on.
expect_number() {
    case $2 in
        '' | *[!0-9.]* | *.*.* | . | ????????????*) misused "$1: expected a number, found '$2'" ;;
        *.*) [ "${3-}" != whole ] || misused "$1: expected a whole number, found '$2'" ;;
        *) ;;
    esac
    case $2 in *[1-9]*) ;; *) [ "${3-}" = whole ] || misused "$1: expected more than 0, found '$2'" ;; esac
}

mount_of() {
    df -P "$1" 2>/dev/null | awk 'NR == 2 { $1 = $2 = $3 = $4 = $5 = ""; print }'
}

prepare() {
    for tool in awk cmp flock od readlink sha256sum stat; do
        command -v "$tool" >/dev/null || misused "expected the command $tool, found none"
    done
    mv --help 2>&1 | grep -q -e '-[a-z]*T' || misused "expected a mv that knows -T, as busybox 1.33; found none"
    MODELS_ROOT=${MODELS_ROOT:-/models}
    [ -d "$MODELS_ROOT" ] || misused "expected a directory at MODELS_ROOT=$MODELS_ROOT, found none"
    MODELS_ROOT=$(cd -P "$MODELS_ROOT" && pwd -P)
    STAGING_DIR=${STAGING_DIR:-$MODELS_ROOT/staging}
    CURRENT_LINK=${CURRENT_LINK:-$MODELS_ROOT/current}
    [ -d "${CURRENT_LINK%/*}" ] || misused "expected CURRENT_LINK in a directory that exists, found $CURRENT_LINK"
    CURRENT_LINK=$(cd -P "${CURRENT_LINK%/*}" && pwd -P)/${CURRENT_LINK##*/}
    MANIFEST_NAME=${MANIFEST_NAME:-manifest.json}
    case $MANIFEST_NAME in
        *[!A-Za-z0-9._-]* | .* | READY) misused "expected a plain name as MANIFEST_NAME, found $MANIFEST_NAME" ;;
        *) ;;
    esac
    POLL_DEFAULT=${POLL_DEFAULT:-30}
    RELOAD_URL=${RELOAD_URL-http://127.0.0.1:8000/reload}
    token=${RELOAD_TOKEN-}
    unset RELOAD_TOKEN # the commands it starts need not know
    case $token in *[[:cntrl:]]*) misused "expected RELOAD_TOKEN in one line, found a control character" ;; *) ;; esac
    for setting in POLL_DEFAULT=30 RELOAD_RETRY_SECONDS=2 RELOAD_TRIES=5 RELOAD_TIMEOUT_SECONDS=60 KEEP_VERSIONS=5 \
        KEEP_REJECTED=3 SETTLE_SECONDS=10 MAX_BUNDLE_BYTES=4294967296; do
        name=${setting%%=*}
        eval "$name=\${$name:-${setting#*=}}" # names and defaults are those of the line above
        case $name in
            POLL_DEFAULT | RELOAD_RETRY_SECONDS) eval "expect_number $name \"\$$name\"" ;;
            *) eval "expect_number $name \"\$$name\" whole" ;;
        esac
    done
    work=$MODELS_ROOT/.sidecar
    if ! mkdir -p "$work" "$STAGING_DIR" || [ ! -w "$work" ] || [ ! -w "$STAGING_DIR" ]; then
        misused "expected to write to $work and $STAGING_DIR as user $(id -u), failed"
    fi
    STAGING_DIR=$(cd -P "$STAGING_DIR" && pwd -P)
    [ "$(mount_of "$MODELS_ROOT")" = "$(mount_of "$STAGING_DIR")" ] ||
        misused "expected $STAGING_DIR on the file system of $MODELS_ROOT, found another; a move would copy"
}

main() {
    poll_interval=
    is_once=no
    child=
    told=
    seen=
    while [ "$#" -gt 0 ]; do
        case $1 in
            --poll-interval)
                [ "$#" -gt 1 ] || misused "--poll-interval: expected seconds, found nothing"
                poll_interval=$2
                shift
                ;;
            --poll-interval=*) poll_interval=${1#*=} ;;
            --once) is_once=yes ;;
            -h | --help) usage; exit 0 ;;
            *) misused "expected --poll-interval or --once, found $1" ;;
        esac
        [ -z "${poll_interval}" ] || expect_number --poll-interval "$poll_interval"
        shift
    done
    trap stop TERM INT HUP
    prepare
    log info started "root=$(quoted "$MODELS_ROOT")"
    while :; do
        outcome=0
        if has_work; then
            exec 9>"$work/lock"
            flock 9 &
            if wait_for $!; then look || outcome=1; else blocked "expected a lock on $work/lock, found none" || outcome=1; fi
            exec 9>&-
        fi
        [ "$is_once" = no ] || exit "$outcome"
        find_interval
        rest "$interval" || gives_up "expected sleep to wait $interval s, found that it fails"
    done
}

main "$@"
