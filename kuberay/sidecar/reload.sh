#!/bin/sh
# Asks the server to reload. Part of sidecar.sh, which sets `work`, `token` and the RELOAD_ variables and has `log`,
# `quoted`, `rest` and `wait_for`.
# shellcheck disable=SC2154  # those are set there

reload() {
    [ -n "$RELOAD_URL" ] || return 0
    try=1
    while :; do
        printf '' >"$work/status"
        ask
        read -r status <"$work/status" || [ -n "$status" ] || status=000
        case $status in
            2??) log info reload outcome=done "status=$status" "try=$try"; return ;;
            409) log info reload outcome=kept "status=$status" "try=$try"; return ;; # pinned, or reloads are off
            000 | 408 | 429 | 502 | 503 | 504) ;;
            *) log error reload outcome=refused "status=$status" "try=$try"; return ;;
        esac
        [ "$try" -lt "$RELOAD_TRIES" ] || { log error reload outcome=unreached "status=$status" "try=$try"; return; }
        try=$((try + 1))
        rest "$RELOAD_RETRY_SECONDS"
    done
}

# Writes the HTTP status to $work/status, or nothing. curl reads the token from its input; wget can take it only as an
# argument, where the processes of this container could see it.
ask() {
    if command -v curl >/dev/null; then
        if [ -n "$token" ]; then printf 'x-reload-token: %s\n' "$token"; fi |
            curl -q -s -o /dev/null -w '%{http_code}' --max-time "$RELOAD_TIMEOUT_SECONDS" --noproxy '*' -X POST -d '' \
                -H @- --url "$RELOAD_URL" >"$work/status" 2>/dev/null 9>&- &
        wait_for $!
    elif command -v wget >/dev/null; then
        set -- -S -t 1 -O /dev/null --post-data ''
        [ -z "$token" ] || set -- "$@" --header "x-reload-token: $token"
        # busybox 1.35 dies of -T.
        http_proxy='' https_proxy='' timeout "$RELOAD_TIMEOUT_SECONDS" wget "$@" "$RELOAD_URL" \
            >/dev/null 2>"$work/answer" 9>&- &
        wait_for $!
        sed -n 's|.*HTTP/[0-9.]* \([0-9][0-9][0-9]\).*|\1|p' "$work/answer" | tail -n 1 >"$work/status"
    else
        log error reload outcome=unreached "reason=$(quoted "expected curl or wget, found neither")"
    fi
}
