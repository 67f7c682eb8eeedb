# The tour of `deploy/demo --check`: what a customer does with a printed URI, done with psql, shown and checked.
# Sourced, never run; uses what stack.sh set up.

D33='Only read statements or schema-qualified storage tables are supported.'
D34='Customer DB writes are only allowed for schema-qualified storage tables.'

TOUR_FAILED=0

# psql as a customer: as_customer <uri> [arguments…]. Errors carry their SQLSTATE; nothing is read from the home.
as_customer() {
    local uri=$1
    shift
    PGOPTIONS='' psql -X -v ON_ERROR_STOP=1 -v VERBOSITY=verbose -P pager=off "$uri" "$@" 2>&1
}

# psql around the gate, straight to PostgreSQL, as the login role that the proxy uses for a workspace's kind, in the
# role that its grants hang on: around_the_gate <workspace> <kind> [arguments…]
around_the_gate() {
    local database=${DATABASES[$1]} role=${DATABASES[$1]}_$2 login
    login=$(super_psql postgres -At -c "SELECT min(rolname) FROM pg_roles WHERE rolcanlogin AND rolname IN ('${role}_a', '${role}_b')")
    shift 2
    PGOPTIONS="-c role=$role" psql -X -v ON_ERROR_STOP=1 -v VERBOSITY=verbose -P pager=off \
        -h "$PG_HOME" -p "$PG_PORT" -U "$login" -d "$database" "$@" 2>&1
}

shown() { sed -e "${2:-1,8}!d" -e 's/^/        | /' <<<"$1" >&2; }

passed() { printf '     ok %s\n' "$1" >&2; }

failed() {
    printf ' FAILED %s\n' "$1" >&2
    TOUR_FAILED=$((TOUR_FAILED + 1))
}

# The command succeeds and its output has the pattern: works <what> <pattern> <command…>
works() {
    local what=$1 pattern=$2 output status=0
    shift 2
    output=$("$@") || status=$?
    if ((status == 0)) && grep -qE -- "$pattern" <<<"$output"; then
        passed "$what"
        shown "$output"
    else
        failed "$what (status $status, expected /$pattern/)"
        shown "$output" 1,40
    fi
}

# The gate refuses the statement with an SQLSTATE, a message and a hint: refused <statement> <message pattern> <uri>
refused() {
    local statement=$1 pattern=$2 uri=$3 output status=0
    output=$(as_customer "$uri" -c "$statement") || status=$?
    if ((status != 0)) && grep -qE -- "^(ERROR|psql:.*ERROR): +(42501|0A000): .*$pattern" <<<"$output" &&
        grep -qE '^HINT: ' <<<"$output"; then
        passed "refused: $statement"
        shown "$(grep -E '^(ERROR|DETAIL|HINT)' <<<"$output")"
    else
        failed "should be refused with /$pattern/ and a hint: $statement (status $status)"
        shown "$output" 1,40
    fi
}

# PostgreSQL itself refuses it, for lack of a grant: walled <workspace> <kind> <statement>
walled() {
    local workspace=$1 kind=$2 statement=$3 output status=0
    output=$(around_the_gate "$workspace" "$kind" -c "$statement") || status=$?
    if ((status != 0)) && grep -qE '^ERROR: +(42501|3F000): ' <<<"$output"; then
        passed "PostgreSQL's own grants refuse: $statement"
        shown "$(grep -E '^ERROR' <<<"$output")"
    else
        failed "PostgreSQL's own grants should refuse: $statement (status $status)"
        shown "$output"
    fi
}

# The password does not open the workspace any more.
locked_out() {
    local output status=0
    output=$(as_customer "$1" -c 'SELECT 1') || status=$?
    if ((status != 0)) && grep -q 'password authentication failed' <<<"$output"; then
        passed "$2"
    else
        failed "$2 (status $status)"
        shown "$output"
    fi
}

rotate() { admin POST /api/v2/ingestion/connection-uris/rotate -H "X-Workspace: $1" -d "{\"kind\":\"$2\",\"grace_seconds\":$3}"; }

tour() {
    local acme=${URIS[acme.customer_db]} read=${URIS[globex.read]} runtime=${URIS[globex.runtime]}
    tour_reading "$acme"
    tour_writing "$acme"
    tour_refusals "$acme"
    tour_walls
    tour_overrides "$read" "$runtime"
    tour_rotation "$acme"
    if ((TOUR_FAILED > 0)); then
        die "$TOUR_FAILED checks failed"
    fi
    say "The tour is over: everything was as it should be"
}

tour_reading() {
    local acme=$1 command
    say "Connecting and reading, with the printed URI"
    works 'sslmode=require: the connection is encrypted' 'SSL connection \(protocol: TLSv1\.[23]' as_customer "$acme" -c '\conninfo'
    works 'sslmode=verify-full with the printed authority' '^ *acme_workspace|^ *ws_' \
        as_customer "$(verify_full "$acme")" -At -c 'SELECT current_database()'
    works 'people' '[0-9]+ rows' as_customer "$acme" -c \
        "SELECT person_id, full_name, title, location FROM dl_resolved.people WHERE title = 'CTO' ORDER BY id LIMIT 4"
    works 'all the people that did not opt out' '^4980$' as_customer "$acme" -At -c 'SELECT count(*) FROM dl_resolved.people'
    works 'an override wins over the cache' 'aerospace' as_customer "$acme" -c \
        "SELECT name, industry, employees FROM dl_resolved.companies WHERE company_id = 'co_00003'"
    for command in '\d' '\dt *.*' '\dn+' '\df' '\l' '\d dl_resolved.people' '\du' '\dp dl_resolved.*' '\encoding'; do
        works "psql's $command" '.' as_customer "$acme" -c "$command"
    done
    tour_completion "$acme"
}

# Tab completion needs a terminal: `script` gives psql one, if it is there.
tour_completion() {
    if ! have script || ! script -q -e -c true /dev/null >/dev/null 2>&1 </dev/null; then
        note "no script(1), or no pseudo-terminals, on this machine: tab completion is left to you"
        return
    fi
    works 'tab completion finds dl_resolved.people' 'dl_resolved\.people' tab_completes "$1" 'SELECT count(*) FROM dl_resolved.peo'
}

# Types a text and a tab into psql on a terminal of its own: tab_completes <uri> <text>
tab_completes() {
    local keys
    keys=$(mktemp -u "$RUN/keys.XXXXXX")
    mkfifo "$keys"
    : >"$RUN/completion"
    {
        # The line is completed only after psql is ready for it, and sent only after the answer of the completion.
        exec 8>"$keys"
        until_true 10 "psql's prompt" grep -q '=[>#]' "$RUN/completion"
        printf '%s\t' "$2" >&8
        until_true 10 "the completion" grep -q 'dl_resolved\.people' "$RUN/completion" || true
        printf ';\n\\q\n' >&8
        exec 8>&-
    } &
    script -q -e -f -c "psql -X -P pager=off '$1'" "$RUN/completion" <"$keys" >/dev/null 2>&1 || true
    wait $! || true
    rm -f "$keys"
    tr -d '\r\a' <"$RUN/completion"
}

tour_writing() {
    local acme=$1 notes
    say "Writing to storage"
    works 'CREATE TABLE storage.notes' 'CREATE TABLE' as_customer "$acme" -c \
        'CREATE TABLE storage.notes (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, person_id text NOT NULL, body text)'
    works 'INSERT … RETURNING' 'met in Kraków' as_customer "$acme" -c \
        "INSERT INTO storage.notes (person_id, body) VALUES ('pe_000007', 'met in Kraków') RETURNING *"
    notes=$'COPY storage.notes (person_id, body) FROM STDIN;\npe_000001\tcalled\npe_000002\twrote a letter\npe_000003\t日本語\n\\.\n'
    works 'COPY storage.notes FROM STDIN' 'COPY 3' as_customer "$acme" -f - <<<"$notes"
    works 'a join of notes and people' '日本語' as_customer "$acme" -c \
        'SELECT p.full_name, n.body FROM storage.notes n JOIN dl_resolved.people p USING (person_id) ORDER BY n.id'
    works 'COPY … TO STDOUT' 'pe_000001' as_customer "$acme" -c "COPY (SELECT person_id, body FROM storage.notes) TO STDOUT (FORMAT csv)"
    works 'a refusal inside a transaction, ROLLBACK, and more work' '^4$' as_customer "$acme" -At -v ON_ERROR_STOP=0 \
        -c BEGIN -c "INSERT INTO storage.notes (person_id) VALUES ('pe_000009')" -c 'DELETE FROM dl_cache.person_enrichments' \
        -c 'SELECT 1' -c ROLLBACK -c 'SELECT count(*) FROM storage.notes'
}

tour_refusals() {
    local acme=$1
    say "What the gate refuses, and what it says"
    refused 'DELETE FROM dl_cache.person_enrichments' "$D34" "$acme"
    refused 'CREATE TABLE notes (id int)' "$D34" "$acme"
    refused 'SET ROLE postgres' '.' "$acme"
    refused "SELECT pg_read_file('/etc/passwd')" '.' "$acme"
    refused 'SELECT 1; SELECT 2' '.' "$acme"
    refused "COPY (SELECT 1) TO PROGRAM 'id'" '.' "$acme"
    # shellcheck disable=SC2016  # $$ is SQL's
    refused 'DO $$BEGIN END$$' "$D33" "$acme"
    refused 'CREATE SCHEMA mine' "$D33" "$acme"
    refused 'GRANT ALL ON storage.notes TO PUBLIC' "$D33" "$acme"
}

tour_walls() {
    local statement
    say "The same around the gate, with the backend role's own login: the grants refuse"
    # shellcheck disable=SC2016
    for statement in 'DELETE FROM dl_cache.person_enrichments' 'CREATE TABLE public.notes (id int)' 'CREATE TABLE notes (id int)' \
        'SET ROLE postgres' "SELECT pg_read_file('/etc/passwd')" "COPY (SELECT 1) TO PROGRAM 'id'" 'DO $$BEGIN END$$'; do
        walled acme customer_db "$statement"
    done
}

tour_overrides() {
    local read=$1 runtime=$2
    say "The override profile: read and runtime"
    works 'read reads' '^4980$' as_customer "$read" -At -c 'SELECT count(*) FROM dl_resolved.people'
    refused "UPDATE dl_override.person_overrides SET title = 'x'" '.' "$read"
    works 'runtime writes a correction' 'INSERT 0 1' as_customer "$runtime" -c \
        "INSERT INTO dl_override.person_overrides (person_id, title) VALUES ('pe_000001', 'Präsidentin')
         ON CONFLICT (person_id) DO UPDATE SET title = excluded.title"
    works 'and it is visible through dl_resolved' 'Präsidentin' as_customer "$read" -At -c \
        "SELECT title FROM dl_resolved.people WHERE person_id = 'pe_000001'"
    works 'a table of its own in tenant_custom' '^41$' as_customer "$runtime" -At -c \
        'CREATE TABLE tenant_custom.scores AS SELECT 41 AS score' -c 'SELECT score FROM tenant_custom.scores'
    refused 'TRUNCATE dl_override.person_overrides' '.' "$runtime"
}

tour_rotation() {
    local old=$1 body grace new
    say "Rotating acme's password"
    body=$(rotate acme customer_db 600) || { failed "rotate with grace: $body"; return; }
    grace=$(jq -r .uri <<<"$body")
    works 'with grace: the new password works' '^1$' as_customer "$grace" -At -c 'SELECT 1'
    works 'with grace: the old one goes on working' '^1$' as_customer "$old" -At -c 'SELECT 1'
    body=$(rotate acme customer_db 0) || { failed "rotate without grace: $body"; return; }
    new=$(jq -r .uri <<<"$body")
    works 'without grace: the first login with the new password works' '^1$' as_customer "$new" -At -c 'SELECT 1'
    locked_out "$old" 'the first password is refused'
    locked_out "$grace" 'the second password is refused'
    works 'and work goes on' 'INSERT 0 1' as_customer "$new" -c "INSERT INTO storage.notes (person_id) VALUES ('pe_000010')"
    URIS[acme.customer_db]=$new
    write_env
}
