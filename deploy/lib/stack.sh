# The demo's processes: keys, certificates, configuration, start, supervision and stop. Sourced, never run.
#
# State that the functions share: DEMO (the directory), BIN (where the binaries are), PG_* (see postgres.sh), RUN (a
# directory for the sidecar's socket), WIRE_PORT, ADMIN_URL, ADMIN_KEY and one URI per workspace and kind in URIS. Who
# sources this may put further lines of proxy.toml into PROXY_SETTINGS; whole sections, since they come last.

declare -A URIS=() DATABASES=()
declare -A PIDS=()

# Ends what a run left behind that was killed before it could clean up: clear_leftovers <demo directory> <binaries>
clear_leftovers() {
    local demo=$1 binaries=$2 name pid home
    for name in proxy provisioner; do
        [[ -r $demo/$name.pid ]] || continue
        pid=$(<"$demo/$name.pid")
        # Its command line, since /proc/…/exe of a hardened process is not for its own user.
        if [[ $pid =~ ^[0-9]+$ && -r /proc/$pid/cmdline ]] && tr "\0" " " 2>/dev/null <"/proc/$pid/cmdline" | grep -qF "$binaries/portcullis-$name --config $demo/"; then
            note "ending a $name that an earlier run left behind"
            kill -KILL "$pid" 2>/dev/null || true
        fi
    done
    if [[ -L $demo/postgres ]]; then
        home=$(readlink "$demo/postgres")
        stop_cluster "$home"
    fi
    if [[ -r $demo/run && $(<"$demo/run") == */portcullis-run.?????? ]]; then
        rm -rf "$(<"$demo/run")"
    fi
    find "$demo" -mindepth 1 -maxdepth 1 ! -name lock -exec rm -rf {} +
}

# A random secret of 32 bytes in base64.
new_key() { openssl rand -base64 32; }

# Makes a certificate authority and a server certificate that it signed, ECDSA P-256.
make_certificates() {
    local dir=$1
    mkdir -p "$dir"
    (
        umask 077
        openssl ecparam -name prime256v1 -genkey -noout -out "$dir/ca.key"
        openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out "$dir/server.key"
    )
    openssl req -x509 -new -key "$dir/ca.key" -sha256 -days 30 -subj "/CN=Portcullis demo CA" -out "$dir/ca.crt" \
        -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign"
    openssl req -new -key "$dir/server.key" -sha256 -subj "/CN=localhost" -out "$dir/server.csr"
    openssl x509 -req -in "$dir/server.csr" -CA "$dir/ca.crt" -CAkey "$dir/ca.key" -CAcreateserial -sha256 -days 30 \
        -out "$dir/server.leaf" -extfile <(
            printf '%s\n' 'basicConstraints=critical,CA:FALSE' 'keyUsage=critical,digitalSignature' \
                'extendedKeyUsage=serverAuth' 'subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1'
        ) 2>/dev/null
    cat "$dir/server.leaf" "$dir/ca.crt" >"$dir/server.crt"
    rm "$dir/server.csr" "$dir/server.leaf"
}

write_config() {
    local superuser=$1 proxy_password=$2 catalog_password=$3 proxy_key key_of_keys
    proxy_key=$(new_key)
    key_of_keys=$(new_key)
    (
        umask 077
        cat >"$DEMO/proxy.toml" <<TOML
[listen]
address = "127.0.0.1:$WIRE_PORT"

[tls]
certificate_file = "$DEMO/tls/server.crt"
key_file = "$DEMO/tls/server.key"

[admin]
address = "127.0.0.1:$ADMIN_PORT"
sidecar = "unix:$RUN/sidecar.sock"

[catalog]
url = "postgresql://portcullis_proxy@127.0.0.1:$PG_PORT/portcullis"
password = "$proxy_password"

[keys]
proxy_key = "$proxy_key"
${PROXY_SETTINGS-}
TOML
        cat >"$DEMO/provisioner.toml" <<TOML
[api]
listen = "unix:$RUN/sidecar.sock"

[catalog]
url = "postgresql://portcullis_provisioner@127.0.0.1:$PG_PORT/portcullis"
password = "$catalog_password"

[keys]
key_of_keys = "$key_of_keys"
proxy_key = "$proxy_key"

[public]
host = "localhost"
port = $WIRE_PORT
sslmode = "require"

[bootstrap]
admin_key_file = "$DEMO/admin.key"

[project]
id = "demo"
name = "Portcullis demo"

[servers.main]
host = "127.0.0.1"
port = $PG_PORT
database = "postgres"
user = "postgres"
password = "$superuser"
tls = "disable"
TOML
    )
}

# Starts one of the two binaries: start_binary proxy | provisioner. Its log is target/demo/<name>.log.
start_binary() {
    local name=$1
    setsid "$BIN/portcullis-$name" --config "$DEMO/$name.toml" >>"$DEMO/$name.log" 2>&1 9>&- &
    PIDS[$name]=$!
    echo $! >"$DEMO/$name.pid"
}

# Calls the admin port: admin <method> <path> [curl's arguments…]. Fails on a status of 400 and above, with the body shown.
admin() {
    local method=$1 path=$2
    shift 2
    curl --silent --show-error --fail-with-body --cacert "$DEMO/tls/ca.crt" --max-time 60 -X "$method" "$ADMIN_URL$path" \
        -H @"$DEMO/authorization" -H 'Content-Type: application/json' "$@"
}

is_ready() { curl --silent --fail --output /dev/null --cacert "$DEMO/tls/ca.crt" --max-time 5 "$ADMIN_URL/readyz"; }

api_answers() {
    [[ $(curl --silent --output /dev/null --write-out '%{http_code}' --cacert "$DEMO/tls/ca.crt" --max-time 5 \
        -H @"$DEMO/authorization" "$ADMIN_URL/workspaces") == 200 ]]
}

# Starts everything: start_stack <demo directory> <binaries>
start_stack() {
    DEMO=$1 BIN=$2
    local superuser proxy_password catalog_password
    superuser=$(openssl rand -hex 24) proxy_password=$(openssl rand -hex 24) catalog_password=$(openssl rand -hex 24)

    say "Starting a private PostgreSQL"
    start_cluster "$superuser"
    ln -sfn "$PG_HOME" "$DEMO/postgres"
    PIDS[postgres]=$PG_PID
    note "$("$(postgres_bin_dir)/postgres" --version) on 127.0.0.1:$PG_PORT, log ${DEMO#"$PWD/"}/postgres/log"

    say "Making keys, a certificate authority and the configuration"
    RUN=$(mktemp -d "${TMPDIR:-/tmp}/portcullis-run.XXXXXX")
    echo "$RUN" >"$DEMO/run"
    WIRE_PORT=$(free_port)
    ADMIN_PORT=$(free_port)
    ADMIN_URL=https://localhost:$ADMIN_PORT
    make_certificates "$DEMO/tls"
    bootstrap_catalog "$catalog_password" "$proxy_password"
    write_config "$superuser" "$proxy_password" "$catalog_password"

    say "Starting the sidecar and the proxy"
    start_binary provisioner
    until_true 60 "the sidecar's first admin key" test -s "$DEMO/admin.key" || show_logs_and_die
    (umask 077 && printf 'Authorization: Bearer %s\n' "$(<"$DEMO/admin.key")" >"$DEMO/authorization")
    ADMIN_KEY=$(<"$DEMO/admin.key")
    start_binary proxy
    until_true 60 "the proxy" is_ready || show_logs_and_die
    until_true 60 "the sidecar behind the admin port" api_answers || show_logs_and_die
    note "wire port 127.0.0.1:$WIRE_PORT, admin port $ADMIN_URL, logs ${DEMO#"$PWD/"}/{proxy,provisioner}.log"
}

bootstrap_catalog() {
    super_psql postgres -v provisioner_password="$1" -v proxy_password="$2" -f deploy/bootstrap.sql >/dev/null
}

show_logs_and_die() {
    tail -n 15 "$DEMO/provisioner.log" "$DEMO/proxy.log" >&2 2>/dev/null || true
    die "it did not come up; the logs are in ${DEMO#"$PWD/"}"
}

# Creates a workspace through the admin port: make_workspace <name> <profile>
make_workspace() {
    local name=$1 profile=$2 kind body kinds=(customer_db)
    case $profile in
    override) kinds=(read runtime) ;;
    design) kinds=(developer) ;;
    esac
    say "Creating workspace $name (profile $profile)"
    body=$(admin POST /workspaces -d "{\"name\":\"$name\",\"database\":\"PostgreSQL\",\"mode\":\"control\",\"profile\":\"$profile\"}") ||
        die "creating $name: $body"
    for kind in "${kinds[@]}"; do
        body=$(reveal "$name" "$kind") || die "revealing $kind of $name: $body"
        URIS[$name.$kind]=$(jq -r .uri <<<"$body")
    done
    DATABASES[$name]=$(jq -r .database <<<"$body")
}

# Fills a workspace of profile storage or override with made-up people and companies: fill_workspace <name>
fill_workspace() {
    local name=$1
    super_psql "${DATABASES[$name]}" -f deploy/demo-data.sql >/dev/null
    note "$(super_psql "${DATABASES[$name]}" -At -c "SELECT format('%s people, %s companies, %s overrides',
        (SELECT count(*) FROM dl_cache.person_enrichments), (SELECT count(*) FROM dl_cache.company_enrichments),
        (SELECT count(*) FROM dl_override.person_overrides) + (SELECT count(*) FROM dl_override.company_overrides))")"
}

reveal() {
    admin POST /api/v2/ingestion/connection-uris/reveal -H "X-Workspace: $1" -d "{\"kind\":\"$2\"}"
}

# The same URI with the server's certificate checked against the demo's authority.
# shellcheck disable=SC2001  # an & in ${…/…/…} means different things to different versions of bash
verify_full() { sed "s|sslmode=require|sslmode=verify-full\&sslrootcert=$DEMO/tls/ca.crt|" <<<"$1"; }

write_env() {
    local key
    (
        umask 077
        {
            printf 'PORTCULLIS_ADMIN_URL=%q\n' "$ADMIN_URL"
            printf 'PORTCULLIS_ADMIN_KEY=%q\n' "$ADMIN_KEY"
            printf 'PORTCULLIS_CA=%q\n' "$DEMO/tls/ca.crt"
            for key in "${!URIS[@]}"; do
                printf '%s_URI=%q\n' "$(tr 'a-z.' 'A-Z_' <<<"$key")" "${URIS[$key]}"
            done | sort
        } >"$DEMO/env"
    )
}

print_welcome() {
    local key
    say "Ready. Ctrl-C stops and removes everything."
    {
        echo
        for key in "${!URIS[@]}"; do
            printf '  %-18s psql "%s"\n' "${key/./ }" "${URIS[$key]}"
        done | sort
        cat <<WELCOME

  With the certificate checked (the authority is target/demo/tls/ca.crt):
    psql "$(verify_full "${URIS[acme.customer_db]}")"

  Try as acme:
    SELECT full_name, title, company_domain FROM dl_resolved.people WHERE title = 'CTO' LIMIT 5;
    CREATE TABLE storage.notes (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, person_id text, body text);
    INSERT INTO storage.notes (person_id, body) VALUES ('pe_000007', 'met in Kraków') RETURNING *;
    DELETE FROM dl_cache.person_enrichments;          -- refused, with the reason and the remedy
    CREATE TABLE notes (id int);                      -- refused: write to storage.notes
    SELECT pg_read_file('/etc/passwd');               -- refused
  Try as globex runtime:
    INSERT INTO dl_override.person_overrides (person_id, title) VALUES ('pe_000001', 'CEO');
    SELECT title FROM dl_resolved.people WHERE person_id = 'pe_000001';

  Rotate acme's password (the old one goes on working for ten minutes):
    source target/demo/env
    curl --cacert "\$PORTCULLIS_CA" -H "Authorization: Bearer \$PORTCULLIS_ADMIN_KEY" -H 'X-Workspace: acme' \\
         -H 'Content-Type: application/json' -d '{"kind":"customer_db","grace_seconds":600}' \\
         "\$PORTCULLIS_ADMIN_URL/api/v2/ingestion/connection-uris/rotate"

  Everything for scripts is in target/demo/env; logs are in target/demo/*.log.

WELCOME
    }
}

# Stays, and starts again what ends by itself (try kill -9: nothing that was acknowledged is lost).
supervise() {
    local name
    while :; do
        # Returns when a child ends or a signal arrives; the trap of the caller decides about signals.
        wait -n "${PIDS[@]}" || true
        for name in "${!PIDS[@]}"; do
            is_gone "${PIDS[$name]}" || continue
            note "$name ended; starting it again"
            sleep 1
            if [[ $name == postgres ]]; then
                restart_cluster
                PIDS[postgres]=$PG_PID
            else
                start_binary "$name"
            fi
        done
    done
}

# Stops what start_stack started, in the order in which nobody misses anything.
stop_stack() {
    local name
    trap - EXIT
    # A second Ctrl-C must not leave half of it running.
    trap '' INT TERM HUP
    say "Stopping"
    for name in proxy provisioner; do
        [[ ${PIDS[$name]-} ]] || continue
        kill -TERM "${PIDS[$name]}" 2>/dev/null || true
    done
    for name in proxy provisioner; do
        [[ ${PIDS[$name]-} ]] || continue
        until_true 10 "$name to stop" is_gone "${PIDS[$name]}" || kill -KILL "${PIDS[$name]}" 2>/dev/null || true
    done
    if [[ ${PG_HOME-} ]]; then
        # The log outlives the cluster, for whoever wants to know what happened.
        cp "$PG_HOME/log" "$DEMO/postgres.log" 2>/dev/null || true
        stop_cluster "$PG_HOME"
        rm -f "$DEMO/postgres"
    fi
    if [[ ${RUN-} ]]; then
        rm -rf "$RUN"
    fi
    rm -f "$DEMO"/*.pid "$DEMO/run" "$DEMO/env" "$DEMO/authorization"
}
