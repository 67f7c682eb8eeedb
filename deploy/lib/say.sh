# How the scripts speak: one line per step, with the seconds since the start, on stderr. Sourced, never run.

# Prints a step that begins.
say() { printf '\033[1m[%4ds]\033[0m %s\n' "$SECONDS" "$*" >&2; }

# Prints a remark that belongs to the step before it.
note() { printf '        %s\n' "$*" >&2; }

# Prints what went wrong and ends the script.
die() {
    printf '\033[1m[%4ds] error:\033[0m %s\n' "$SECONDS" "$*" >&2
    exit 1
}

# Waits until a command succeeds: until_true <seconds> <what for> <command…>. The condition decides, never a fixed pause.
until_true() {
    local limit=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        ((SECONDS < limit)) || { note "gave up waiting for $what"; return 1; }
        sleep 0.1
    done
}
