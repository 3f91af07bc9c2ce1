#!/bin/sh
# Writes manifest.json for the model files that lie in a directory, without Python:
#   MODELS_TYPE=regression ./generate_manifest.sh
# The result is that of `serve-app bundle manifest --models-type regression`, byte for byte. For dash and busybox.
set -u
LC_ALL=C # sorts by bytes, as the order of the manifest is
export LC_ALL
here=$(cd -P "$(dirname "$0")" && pwd -P)

usage() {
    cat <<'HELP'
usage: MODELS_TYPE=regression generate_manifest.sh [--base-dir DIRECTORY] [--model-version VERSION] [--dry-run]

  --base-dir DIRECTORY      holds models/<target>/<MODELS_TYPE>/... and scalers/... (here)
  --model-version VERSION   (the present minute: v2026-01-30T0900Z)
  --dry-run                 print the manifest, write nothing

The section "sidecar" of a manifest that is there already is kept, for it is written by hand.
HELP
}

refuse() {
    printf 'refused: %s\n' "$1" >&2
    exit 1
}

# Lists the files of a bundle, sorted: of models/ those of the type, all of scalers/, nothing hidden.
list_files() {
    for directory in models/*/"$MODELS_TYPE"/ scalers/; do
        case $directory in models/.*) continue ;; *) ;; esac
        [ -d "$directory" ] || continue
        find "$directory" -name '.*' ! -name . -prune -o ! -type d -print
    done | while IFS= read -r path; do
        [ ! -f "$path" ] || printf '%s\n' "$path"
    done | sed 's|//*|/|g' | sort
}

# Prints one line of the manifest for each file, and refuses a link that leaves the directory.
describe_files() {
    separator=
    while IFS= read -r path; do
        real=$(readlink -f "./$path")
        case $real in "$base"/*) ;; *) refuse "$path: expected a file inside the bundle, found a link to $real" ;; esac
        digest=$(sha256sum <"./$path") || refuse "$path: expected a readable file, found one that cannot be read"
        name=$(printf '%s' "$path" | sed 's/"/\\"/g')
        printf '%s    "%s": "%s"' "$separator" "$name" "${digest%% *}"
        separator=',
'
    done
}

print_manifest() {
    printf '{\n  "model_version": "%s",\n  "models_type": "%s",\n  "created_at": "%s",\n' \
        "$model_version" "$MODELS_TYPE" "$created_at"
    printf '  "sha256": {\n%s\n  },\n' "$1"
    [ -z "$interval" ] || printf '  "sidecar": {\n    "poll_interval_seconds": %s\n  },\n' "$interval"
    printf '  "format_version": 1\n}\n'
}

flush() {
    sync "$1" 2>/dev/null || sync
}

judge() {
    od -An -v -tu1 | awk -v manifest_name="$manifest_name" -f "$here/manifest.awk"
}

base_dir=.
model_version=
is_dry=no
manifest_name=manifest.json
while [ "$#" -gt 0 ]; do
    case $1 in
        --base-dir) base_dir=${2?expected a directory after --base-dir}; shift ;;
        --model-version) model_version=${2?expected a version after --model-version}; shift ;;
        --dry-run) is_dry=yes ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
    shift
done
[ -n "${MODELS_TYPE-}" ] || { usage >&2; exit 2; }
case $MODELS_TYPE in
    *[!A-Za-z0-9._-]* | .*) refuse "expected a name such as 'regression' as MODELS_TYPE, found '$MODELS_TYPE'" ;;
    *) ;;
esac
cd -P "$base_dir" 2>/dev/null || refuse "expected a directory at $base_dir, found none"
base=$(pwd -P)

now=$(date -u +%Y-%m-%dT%H:%M:%SZ)
created_at=$now
[ -n "$model_version" ] || model_version=v$(printf '%s' "$now" | cut -c 1-13)$(printf '%s' "$now" | cut -c 15-16)Z
interval=
if [ -f "$manifest_name" ] && facts=$(judge <"$manifest_name"); then
    interval=$(printf '%s\n' "$facts" | sed -n 's/^interval //p')
    case $interval in '' | *[.eE]*) ;; *) interval=$interval.0 ;; esac
fi

broken=$(find models scalers -name '*[[:cntrl:]]*' 2>/dev/null | tr '\n\t\r' '???' | head -c 200)
[ -z "$broken" ] || refuse "expected names without control characters, found one in $broken"
files=$(list_files)
case $files in models/* | *'
'models/*) ;; *) refuse "expected files like models/<target>/$MODELS_TYPE/model.joblib, found none" ;; esac
described=$(printf '%s\n' "$files" | describe_files) || exit 1
manifest=$(print_manifest "$described")
facts=$(printf '%s\n' "$manifest" | judge) || {
    printf 'refused: %s\n' "$base_dir" >&2
    printf '%b\n' "$facts" | sed 's/^problem /  /' >&2
    exit 1
}
if [ "$is_dry" = yes ]; then
    printf '%s\n' "$manifest"
    exit 0
fi
work=.$manifest_name.$$.tmp
trap 'rm -f "$work"' EXIT
if ! printf '%s\n' "$manifest" >"$work" || ! flush "$work" || ! mv "$work" "$manifest_name"; then
    refuse "expected to write $base/$manifest_name, failed"
fi
echo "wrote $base_dir/$manifest_name: version $model_version, $(printf '%s\n' "$files" | wc -l | tr -d ' ') files"
