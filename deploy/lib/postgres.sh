# A private PostgreSQL cluster: made, started and removed by the script that sources this (after say.sh and packages.sh).
#
# The server refuses to run as root, so root hands it to the user `postgres`; that user may not be able to enter the
# clone (a home with mode 0700), so the cluster always lives in a directory of its own under ${TMPDIR:-/tmp}. TCP on
# 127.0.0.1 asks for a password (SCRAM); the Unix socket, in that directory, trusts whoever may enter it: its owner and
# root. That is how a script logs in as any role without knowing a secret. Who sources this may put further lines of
# postgresql.conf into PG_SETTINGS.

# A TCP port on which nobody listens now, below the range from which the kernel hands out ports of its own.
free_port() {
    local port
    while :; do
        port=$((15000 + (RANDOM * 32768 + RANDOM) % 17000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo "$port"
}

# Runs a command as the user that owns the cluster.
as_postgres() {
    if ((EUID == 0)); then
        setpriv --reuid=postgres --regid=postgres --init-groups --reset-env -- "$@"
    else
        "$@"
    fi
}

# Makes a cluster and starts it: start_cluster <superuser password>.
# Sets PG_HOME (the directory), PG_PORT and PG_PID; the log is PG_HOME/log.
start_cluster() {
    local password=$1 bin
    bin=$(postgres_bin_dir)
    PG_HOME=$(mktemp -d "${TMPDIR:-/tmp}/portcullis-pg.XXXXXX")
    PG_PORT=$(free_port)
    (umask 077 && printf '%s\n' "$password" >"$PG_HOME/password")
    if ((EUID == 0)); then
        chown -R postgres: "$PG_HOME"
    fi
    (cd "$PG_HOME" && as_postgres "$bin/initdb" --pgdata="$PG_HOME/data" --username=postgres --pwfile="$PG_HOME/password" \
        --auth-local=trust --auth-host=scram-sha-256 --encoding=UTF8 --locale=C.UTF-8 --no-instructions --no-sync) >"$PG_HOME.initdb.log" 2>&1 ||
        { cat "$PG_HOME.initdb.log" >&2; die "initdb failed"; }
    mv "$PG_HOME.initdb.log" "$PG_HOME/initdb.log"
    rm "$PG_HOME/password"
    as_postgres tee -a "$PG_HOME/data/postgresql.conf" >/dev/null <<CONF
listen_addresses = '127.0.0.1'
port = $PG_PORT
unix_socket_directories = '$PG_HOME'
max_connections = 150
max_prepared_transactions = 0
# The cluster ends with the demo. What a killed server wrote, the kernel still has; only a power cut would lose it.
fsync = off
${PG_SETTINGS-}
CONF
    restart_cluster
}

# Starts the server of the cluster in PG_HOME, the first time or after it died.
restart_cluster() {
    launch_server
    until_true 60 "PostgreSQL" server_answers || { tail -20 "$PG_HOME/log" >&2; die "PostgreSQL did not start"; }
}

launch_server() {
    local as=()
    if ((EUID == 0)); then
        as=(setpriv --reuid=postgres --regid=postgres --init-groups --reset-env --)
    fi
    # A session of its own: Ctrl-C in the terminal reaches this script, which then stops the server in the right order.
    # Descriptor 9 is the script's lock, which a server must not hold.
    (cd "$PG_HOME" && exec setsid "${as[@]}" "$(postgres_bin_dir)/postgres" -D "$PG_HOME/data") >>"$PG_HOME/log" 2>&1 9>&- &
    # shellcheck disable=SC2034  # read by who sources this
    PG_PID=$!
}

# It answers. One that gave up because backends of a killed server were still about is started again.
server_answers() {
    "$(postgres_bin_dir)/pg_isready" -q -h "$PG_HOME" -p "$PG_PORT" && return
    if is_gone "$PG_PID" && tail -n 5 "$PG_HOME/log" | grep -q 'is still in use'; then
        launch_server
    fi
    return 1
}

# Stops a cluster and removes it: stop_cluster <directory>. Also clears up after a run that was killed.
stop_cluster() {
    local home=$1 pid
    [[ $home == */portcullis-pg.?????? && -d $home ]] || return 0
    if [[ -r $home/data/postmaster.pid ]]; then
        pid=$(head -1 "$home/data/postmaster.pid")
        # The number could belong to somebody else by now: only a postgres of this very directory is signalled.
        if [[ $pid =~ ^[0-9]+$ && $(readlink "/proc/$pid/cwd" 2>/dev/null) == "$home/data" ]]; then
            kill -INT "$pid" 2>/dev/null || true
            until_true 15 "PostgreSQL to stop" is_gone "$pid" || kill -QUIT "$pid" 2>/dev/null || true
        fi
    fi
    rm -rf "$home"
}

is_gone() { ! kill -0 "$1" 2>/dev/null || grep -q '^State:[[:space:]]*Z' "/proc/$1/status" 2>/dev/null; }

# psql as the superuser through the socket: super_psql <database> [arguments…]
super_psql() {
    local database=$1
    shift
    psql -X -q -v ON_ERROR_STOP=1 -h "$PG_HOME" -p "$PG_PORT" -U postgres -d "$database" "$@"
}
