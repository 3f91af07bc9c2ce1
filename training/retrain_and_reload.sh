#!/usr/bin/env bash
# Train the forecaster on new data, have the server take it up, and look whether it has. Ends with 0 only then.
#
#   training/retrain_and_reload.sh [options of training.train_tft, e.g. --observations DIR --epochs 20]
#
# For cron, and for the server's own trigger. Environment, with what holds where it is not set:
#   DAEMON_URL       http://localhost:8000
#   NORDIQ_API_KEY   the token in TOKEN_FILE; no token where there is no such file
#   STATE_DIR        .serve-app beside this directory
#   TOKEN_FILE       $STATE_DIR/admin-token
#   FAMILY           tft
#   MODELS           $STATE_DIR/models/$FAMILY: where versions are published
#   PYTHON           the one of .venv beside this directory, else python3
#   RELOAD_TIMEOUT_S 300
#
# Exit status: 2 a tool is missing, 3 another run is under way, 4 the training failed, 5 the server does not answer,
# 6 the reload failed and the old model still serves, 7 the new model is not the one that answers.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
DAEMON_URL=${DAEMON_URL:-http://localhost:8000}
STATE_DIR=${STATE_DIR:-$repository/.serve-app}
TOKEN_FILE=${TOKEN_FILE:-$STATE_DIR/admin-token}
FAMILY=${FAMILY:-tft}
MODELS=${MODELS:-$STATE_DIR/models/$FAMILY}
RELOAD_TIMEOUT_S=${RELOAD_TIMEOUT_S:-300}
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ ! -x "$repository/.venv/bin/python" ] || PYTHON=$repository/.venv/bin/python
fi
export PYTHONPATH=$repository${PYTHONPATH:+:$PYTHONPATH}

fail() { # status, sentence
    echo "error: $2" >&2
    exit "$1"
}

for tool in curl jq flock "$PYTHON"; do
    command -v "$tool" >/dev/null || fail 2 "expected the program $tool, found none; nothing was changed"
done

mkdir -p "$MODELS" || fail 2 "expected a directory for models at $MODELS"
exec 9>"$MODELS/.retrain.lock"
flock --nonblock 9 || fail 3 "another training of $FAMILY is under way in $MODELS; nothing was changed"

answer=$(mktemp)
trap 'rm -f "$answer"' EXIT

key=${NORDIQ_API_KEY:-}
if [ -z "$key" ] && [ -r "$TOKEN_FILE" ]; then
    key=$(awk '!/^[[:space:]]*(#|$)/ { print $NF; exit }' "$TOKEN_FILE")
fi

ask() { # method, path; the body goes to $answer, the status to stdout. The key is no argument, for `ps` shows those.
    local header=
    [ -z "$key" ] || header="header = \"X-API-Key: $key\""
    curl --config - --silent --show-error --connect-timeout 10 --max-time $((RELOAD_TIMEOUT_S + 30)) \
        --request "$1" --output "$answer" --write-out '%{http_code}' "$DAEMON_URL$2" <<<"$header"
}

said() { # what an answer says of its failure
    jq -r '.error // .detail // .title // empty' "$answer" 2>/dev/null | head -c 500 || true
}

version=tft_model_$(date -u +%Y%m%d_%H%M%S)
echo "[1/3] Training $version"
gently=(nice -n 19)
if command -v chrt >/dev/null && chrt --idle 0 true 2>/dev/null; then
    gently+=(chrt --idle 0)
fi
trained=0
"${gently[@]}" "$PYTHON" -m training.train_tft --out "$MODELS" --model-version "$version" "$@" 9>&- || trained=$?
[ "$trained" -eq 0 ] || fail 4 "the training ended with status $trained; nothing was changed"
[ -f "$MODELS/$version/manifest.json" ] || fail 4 "expected the training to publish $version in $MODELS, found none"

echo "[2/3] Reloading the model at $DAEMON_URL"
status=$(ask POST "/admin/reload-model?family=$FAMILY&timeout_s=$RELOAD_TIMEOUT_S") ||
    fail 5 "the server at $DAEMON_URL does not answer; it takes up $version when it is back"
if [ "$(jq -r '.success' "$answer" 2>/dev/null)" != true ]; then
    fail 6 "the reload failed (status $status): $(said)"
fi

echo "[3/3] Verifying"
status=$(ask GET "/admin/model-info?family=$FAMILY") || fail 5 "the server at $DAEMON_URL does not answer any more"
name=$(jq -r '.model_name // empty' "$answer" 2>/dev/null) || name=
[ "$name" = "$version" ] || fail 7 "expected $version to be loaded, found ${name:-none} (status $status): $(said)"
status=$(ask GET "/predictions/current?family=$FAMILY") || fail 5 "the server at $DAEMON_URL does not answer any more"
[ "$status" = 200 ] || fail 7 "expected predictions, got status $status: $(said)"
read -r type predicting < <(jq -r '.metadata | "\(.model_type) \(.model_version)"' "$answer")
[ "$predicting" = "$version" ] || fail 7 "expected predictions of $version, got those of $predicting"
echo "$version ($type) is active"
