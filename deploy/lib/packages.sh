# Installs the Debian or Ubuntu packages that are missing, and says so. Sourced after say.sh, never run.
#
# What is looked for is the thing itself (a command, a library), not the package: Node.js may come from elsewhere, with
# npm inside. Nothing is installed, and apt is not touched, when everything is there.

# The directory with initdb, pg_ctl and postgres of the newest supported server on this machine, or nothing.
postgres_bin_dir() {
    if [[ -n ${PORTCULLIS_POSTGRES_BIN:-} ]]; then
        echo "$PORTCULLIS_POSTGRES_BIN"
        return
    fi
    local dir
    for dir in $(printf '%s\n' /usr/lib/postgresql/*/bin | sort -rV); do
        if [[ -x $dir/initdb && -x $dir/postgres ]]; then
            echo "$dir"
            return
        fi
    done
}

have() { command -v "$1" >/dev/null 2>&1; }

# The library that bindgen loads (libclang-cpp is another one) and the compiler's own headers, which come apart from it.
have_libclang() {
    [[ -n ${LIBCLANG_PATH:-} ]] && return
    local -a libraries=() headers=()
    mapfile -t libraries < <(compgen -G '/usr/lib/llvm-*/lib/libclang.so*'; compgen -G '/usr/lib/llvm-*/lib/libclang-[0-9]*.so*'
        compgen -G '/usr/lib/*/libclang.so*'; compgen -G '/usr/lib/*/libclang-[0-9]*.so*')
    mapfile -t headers < <(compgen -G '/usr/lib/llvm-*/lib/clang/*/include/stddef.h'; compgen -G '/usr/lib/clang/*/include/stddef.h')
    ((${#libraries[@]} > 0 && ${#headers[@]} > 0))
}

# A virtual environment needs ensurepip, which Debian keeps in a package of its own.
have_venv() { have python3 && python3 -c 'import ensurepip, venv' >/dev/null 2>&1; }

jdbc_jar() {
    local jar=/usr/share/java/postgresql.jar
    [[ -e $jar ]] && echo "$jar"
}

# Where Debian's packages put the sources of Go's libraries.
go_path=/usr/share/gocode

have_ruby() { have ruby && ruby -e "require '$1'" >/dev/null 2>&1; }

have_php() { have php && php -r 'exit(in_array("pgsql", PDO::getAvailableDrivers()) && function_exists("pg_connect") ? 0 : 1);' 2>/dev/null; }

# The packages that a set of needs lacks: missing_packages build | server | bench | python | node | java | go | ruby | php | perl | odbc …
missing_packages() {
    local need
    for need in "$@"; do
        case $need in
        build)
            have cc || echo gcc libc6-dev
            have make || echo make
            have_libclang || echo libclang-dev
            ;;
        server)
            [[ -n $(postgres_bin_dir) ]] || echo postgresql
            have psql || echo postgresql-client
            have openssl || echo openssl
            have curl || echo curl ca-certificates
            have jq || echo jq
            have setpriv || echo util-linux
            ;;
        # The runtimes of the drivers that the end-to-end tests run, each for itself: what cannot be had is skipped.
        python) have_venv || echo python3-venv ;;
        node)
            have node || echo nodejs
            # Packages of Node.js from elsewhere bring npm along; then the package `npm` would conflict with them.
            have npm || echo npm
            ;;
        java)
            { have java && have javac; } || echo default-jdk-headless
            jdbc_jar >/dev/null || echo libpostgresql-jdbc-java
            ;;
        go)
            have go || echo golang-go
            [[ -d $go_path/src/github.com/lib/pq ]] || echo golang-github-lib-pq-dev
            [[ -d $go_path/src/github.com/jackc/pgx/v4 ]] || echo golang-github-jackc-pgx-v4-dev
            ;;
        ruby)
            have ruby || echo ruby
            have_ruby pg || echo ruby-pg
            have_ruby active_record || echo ruby-activerecord
            ;;
        php) have_php || echo php-cli php-pgsql ;;
        perl) perl -MDBD::Pg -e 1 2>/dev/null || echo libdbd-pg-perl ;;
        odbc) compgen -G '/usr/lib/*/odbc/psqlodbcw.so' >/dev/null || echo odbc-postgresql ;;
        esac
    done | tr ' ' '\n' | sort -u
}

# Makes sure that everything a set of needs wants is there: ensure_packages build server …
ensure_packages() {
    local -a missing
    mapfile -t missing < <(missing_packages "$@")
    if ((${#missing[@]} == 0)); then
        return
    fi
    have apt-get || die "these are missing and there is no apt-get to install them with: ${missing[*]}"
    ((EUID == 0)) || have sudo || die "please install as root: apt-get install --no-install-recommends ${missing[*]}"
    install_packages "${missing[@]}" || true
    mapfile -t missing < <(missing_packages "$@")
    if ((${#missing[@]} > 0)); then
        die "still missing after the installation: ${missing[*]}"
    fi
}

# The same, for what one can do without: fails, and says nothing.
try_packages() {
    local -a missing
    mapfile -t missing < <(missing_packages "$@")
    if ((${#missing[@]} == 0)); then
        return
    fi
    have apt-get && { ((EUID == 0)) || sudo -n true 2>/dev/null; } && install_packages "${missing[@]}" || return 1
    [[ -z $(missing_packages "$@") ]]
}

install_packages() {
    local -a as_root=()
    ((EUID == 0)) || as_root=(sudo)
    say "Installing Debian packages: $*"
    if [[ " $* " == *" postgresql "* ]]; then
        note "Debian's package also makes a cluster of its own on port 5432; it is not used here."
    fi
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" \
        </dev/null | sed 's/^/        /' >&2
}

# Rust comes from rustup, not from Debian (its version is too old).
ensure_rust() {
    have cargo || PATH="$PATH:$HOME/.cargo/bin"
    have cargo || die "Rust is missing. Install it with: curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"
}
