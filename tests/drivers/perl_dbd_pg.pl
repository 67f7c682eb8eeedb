# Perl's DBD::Pg, on the system's libpq: prepares on the server from the second execution, COPY, asynchronous queries.
use strict;
use warnings;
use utf8;
use DBI;
use DBD::Pg qw(:async :pg_types);
use JSON::PP;

$| = 1;
my $json = JSON::PP->new->ascii->canonical;
my $prefix = "storage.$ENV{TABLE_PREFIX}";
my ($foreign, $message, $long, $stream, $wide) = @ENV{qw(FOREIGN_WRITE FOREIGN_WRITE_MESSAGE LONG STREAM WIDE)};

sub emit { print $json->encode({@_}), "\n" }

# Runs a check; what it dies of has failed it, and the next one goes on.
sub check {
    my ($name, $run) = @_;
    if (eval { $run->(); 1 }) {
        emit(check => $name, result => "ok");
    } else {
        emit(check => $name, result => "failed", why => "$@");
    }
}

sub equal {
    my ($want, $got) = map { defined $_ ? $_ : "undef" } @_;
    die "wanted $want, got $got at line " . (caller)[2] . "\n" if $want ne $got;
}

# The call must die with this SQLSTATE, or these words; gives the text.
sub refused {
    my ($what, $run) = @_;
    die "no error, wanted $what at line " . (caller)[2] . "\n" if eval { $run->(); 1 };
    my ($state, $text) = ($DBI::state // "", "$@");
    die "wanted $what, got $state: $text" unless $state eq $what || index($text, $what) >= 0;
    return $text;
}

sub open_ {
    my ($changes, $password, %attributes) = @_;
    my $dsn = "dbi:Pg:dbname=$ENV{PGDATABASE};host=$ENV{PGHOST};" . ($changes // "");
    return DBI->connect($dsn, $ENV{PGUSER}, $password // $ENV{PGPASSWORD},
        { RaiseError => 1, PrintError => 0, PrintWarn => 0, AutoCommit => 1, pg_enable_utf8 => 1, %attributes });
}

sub value { my ($db, $sql, @values) = @_; return ($db->selectrow_array($sql, undef, @values))[0] }

emit(driver => "DBD::Pg", version => "$DBD::Pg::VERSION");
my $db = open_();

check("connect", sub { equal(1, value($db, "SELECT 1")); die "old" if $db->{pg_server_version} < 140000 });
check("channel_binding", sub { equal(1, value(open_("channel_binding=require"), "SELECT 1")) });
check("wrong_authority", sub { refused("certificate verify failed", sub { open_("sslrootcert=$ENV{PGOTHERCERT}") }) });
check("no_tls", sub { refused("encrypted connections only", sub { open_("sslmode=disable") }) });
check("wrong_password", sub { refused("password authentication failed", sub { open_("", "wrong") }) });
check("unknown_database", sub { local $ENV{PGDATABASE} = "postgres"; refused("does not exist", sub { open_() }) });
check("startup_options", sub {
    my $other = open_("options='-c timezone=Asia/Tokyo -c statement_timeout=61s'");
    equal("Asia/Tokyo 61s", value($other, "SHOW timezone") . " " . value($other, "SHOW statement_timeout"));
});
check("types", sub {
    $db->do("CREATE TABLE ${prefix}_types (id int, a boolean, b bigint, c double precision, d numeric, e text, f text, g bytea,"
        . " h timestamptz, i int[], j text[], k jsonb, l uuid)");
    my $bytes = join "", map { chr } 0 .. 255;
    my $text = "Þóra 東京 🐘 ' \" \\ \n\t \$1 ?";
    my @values = (1, "-9223372036854775808", "1.5", "-12345678901234567890.0123456789", $text, "", $bytes, "2024-03-31 01:30:00+00",
        [1, undef, 3], ["a,b", "q\"uote", undef, "", "NULL"], '{"a": [1, null, "ü"]}', "00112233-4455-6677-8899-aabbccddeeff");
    my $insert = $db->prepare("INSERT INTO ${prefix}_types VALUES (?, " . join(", ", ("?") x @values) . ")");
    $insert->bind_param(8, undef, { pg_type => PG_BYTEA });
    $insert->execute($_ % 4, $_ % 4 ? @values : (undef) x @values) for 0 .. 3;
    for my $id (1 .. 3) {
        my @row = $db->selectrow_array("SELECT * FROM ${prefix}_types WHERE id = ?", undef, $id);
        shift @row;
        for my $i (0 .. $#values) {
            next if $i == 7;
            equal($json->encode([ref $values[$i] ? $values[$i] : "$values[$i]"]), $json->encode([ref $row[$i] ? [map { defined && /^\d+$/ ? $_ + 0 : $_ } @{$row[$i]}] : "$row[$i]"]));
        }
    }
    equal(12, scalar grep { !defined } $db->selectrow_array("SELECT a, b, c, d, e, f, g, h, i, j, k, l FROM ${prefix}_types WHERE id = 0"));
});
check("wide_rows", sub { my $size = 0; $size += length $_->[1] for @{$db->selectall_arrayref($wide)}; equal(5_000_000, $size) });
check("large_result", sub {
    my $size = 0;
    $db->begin_work;
    $db->do("DECLARE stream CURSOR FOR $stream");
    my $fetch = $db->prepare("FETCH 2000 FROM stream");
    while ($fetch->execute > 0) { $size += length $_->[1] for @{$fetch->fetchall_arrayref} }
    $db->commit;
    equal(20_000_000, $size);
});
check("prepared", sub {
    my @all = map { open_() } 1 .. 3;
    my @statements = map { $_->prepare("SELECT person_id FROM dl_resolved.people WHERE id = ?", { pg_switch_prepared => 2 }) } @all;
    for my $i (1 .. 12) {
        $all[$i % 3]->begin_work;
        for my $statement (@statements) {
            $statement->execute($i);
            equal(sprintf("pe_%06d", $i), $statement->fetchrow_arrayref->[0]);
            $statement->finish;
        }
        $all[$i % 3]->commit;
    }
});
check("prepared_redefined", sub {
    $db->do("CREATE TABLE ${prefix}_redefined AS SELECT 1 AS a");
    my $statement = $db->prepare("SELECT * FROM ${prefix}_redefined WHERE a = ?", { pg_prepare_now => 1 });
    $statement->execute(1);
    $statement->finish;
    open_()->do("ALTER TABLE ${prefix}_redefined ADD COLUMN b int");
    equal("0A000", $DBI::state) unless eval { $statement->execute(1); $statement->finish; 1 };
    equal(2, scalar @{[$db->selectrow_array("SELECT * FROM ${prefix}_redefined")]});
});
check("batch", sub {
    $db->do("CREATE TABLE ${prefix}_batch (id int, body text)");
    my $insert = $db->prepare("INSERT INTO ${prefix}_batch VALUES (?, ?)");
    equal(200, $insert->execute_array({}, [1 .. 200], [map { "row $_" } 1 .. 200]));
});
check("insert_many", sub {
    $db->do("CREATE TABLE ${prefix}_keys (id serial PRIMARY KEY, body text)");
    equal("1 2 3", join " ", @{$db->selectcol_arrayref("INSERT INTO ${prefix}_keys (body) VALUES (?), (?), (?) RETURNING id", undef, "a", "b", undef)});
    $db->begin_work;
    $db->do("INSERT INTO ${prefix}_keys (body) VALUES ('c')");
    my ($schema, $table) = split /\./, "${prefix}_keys";
    equal(4, $db->last_insert_id(undef, $schema, $table, "id"));
    $db->commit;
});
check("empty", sub { $db->do($_) for "", "-- nothing", ";"; equal(1, value($db, "SELECT 1")) });
check("notice", sub {
    my $seen = "";
    local $SIG{__WARN__} = sub { $seen .= $_[0] };
    local $db->{PrintWarn} = 1;
    $db->do("DROP TABLE IF EXISTS ${prefix}_nothing");
    equal(1, $seen =~ /does not exist/ ? 1 : 0);
});
check("refusal", sub {
    for my $run (sub { $db->do($foreign) }, sub { $db->do("$foreign WHERE person_id = ?", undef, "x") }) {
        my $text = refused("42501", $run);
        equal(1, index($text, $_) >= 0 ? 1 : 0) for $message, "DETAIL:  Rule target.", "HINT:  ";
    }
    equal(1, value($db, "SELECT 1"));
});
check("server_error", sub {
    $db->do("CREATE TABLE ${prefix}_unique (id int CONSTRAINT one_of_a_kind UNIQUE)");
    $db->do("INSERT INTO ${prefix}_unique VALUES (1)");
    refused("23505", sub { $db->do("INSERT INTO ${prefix}_unique VALUES (?)", undef, 1) });
    equal("one_of_a_kind", $db->pg_error_field("constraint"));
    equal(1, value($db, "SELECT 1"));
});
check("listen", sub { die "no hint" unless refused("42501", sub { $db->do("LISTEN a") }) =~ /Poll a table/ });
check("transaction", sub {
    $db->do("CREATE TABLE ${prefix}_transaction (id int)");
    for my $end (qw(commit rollback)) {
        $db->begin_work;
        $db->do("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE");
        $db->do("INSERT INTO ${prefix}_transaction VALUES (1)");
        $db->$end;
    }
    my $reading = open_("", undef, ReadOnly => 1, AutoCommit => 0);
    refused("25006", sub { $reading->do("INSERT INTO ${prefix}_transaction VALUES (2)") });
    $reading->rollback;
    equal(1, value($db, "SELECT count(*) FROM ${prefix}_transaction"));
});
check("refused_in_transaction", sub {
    $db->begin_work;
    $db->do("INSERT INTO ${prefix}_transaction VALUES (1000)");
    refused("42501", sub { $db->do($foreign) });
    refused("25P02", sub { value($db, "SELECT ?::int", 1) });
    $db->rollback;
    equal(1, value($db, "SELECT count(*) FROM ${prefix}_transaction"));
});
check("refused_in_savepoint", sub {
    $db->begin_work;
    $db->pg_savepoint("here");
    refused("42501", sub { $db->do("CREATE TABLE unqualified (id int)") });
    $db->pg_rollback_to("here");
    $db->do("INSERT INTO ${prefix}_transaction VALUES (3)");
    $db->commit;
    equal(2, value($db, "SELECT count(*) FROM ${prefix}_transaction"));
});
check("refused_in_batch", sub {
    refused("42501", sub { $db->do("BEGIN; $foreign; COMMIT") });
    $db->do("ROLLBACK");
    refused("42501", sub { $db->do("SELECT 1; SELECT 2") });
    equal(1, value($db, "SELECT 1"));
});
check("copy_in", sub {
    $db->do("CREATE TABLE ${prefix}_copy (id int, body text)");
    $db->do("COPY ${prefix}_copy FROM STDIN");
    $db->pg_putcopydata("$_\t東京\n") for 1 .. 20_000;
    $db->pg_putcopyend;
    equal(20_000, value($db, "SELECT count(*) FROM ${prefix}_copy"));
});
check("copy_out", sub {
    my ($line, $lines) = ("", 0);
    $db->do("COPY ${prefix}_copy TO STDOUT");
    $lines++ while $db->pg_getcopydata($line) >= 0;
    equal(20_000, $lines);
});
check("copy_broken", sub {
    $db->do("COPY ${prefix}_copy FROM STDIN");
    $db->pg_putcopydata("no number\tx\n");
    refused("22P02", sub { $db->pg_putcopyend });
    equal(20_000, value($db, "SELECT count(*) FROM ${prefix}_copy"));
});
check("cancel", sub {
    $db->do($long, { pg_async => PG_ASYNC });
    select undef, undef, undef, 0.3;
    equal(1, $db->pg_cancel);
    equal(1, value($db, "SELECT 1"));
});
check("timeout", sub {
    $db->do("SET statement_timeout = 300");
    refused("57014", sub { $db->do($long) });
    $db->do("RESET statement_timeout");
});
check("settings", sub {
    my @all = map { open_() } 0 .. 2;
    $all[$_]->do("SET extra_float_digits = $_") for 0 .. 2;
    equal("0 1 2", join " ", map { value($_, "SHOW extra_float_digits") } @all) for 1 .. 5;
});
check("introspection", sub {
    my ($schema, $table) = split /\./, "${prefix}_keys";
    equal("id", ($db->primary_key(undef, $schema, $table))[0]);
    equal(14, scalar @{$db->column_info(undef, "dl_resolved", "people", "%")->fetchall_arrayref});
    equal(2, scalar @{$db->table_info(undef, "dl_resolved", "%", "VIEW")->fetchall_arrayref});
    equal(1, scalar @{$db->statistics_info(undef, $schema, $table, 1, 1)->fetchall_arrayref} > 0 ? 1 : 0);
    $db->foreign_key_info(undef, $schema, $table, undef, undef, undef);
    equal(1, scalar(grep { /dl_resolved/ } $db->tables(undef, "dl_resolved", "%", undef)) > 0 ? 1 : 0);
    $db->type_info_all;
});
check("pool", sub {
    # connect_cached is DBI's: the same handle, pinged.
    my @all = map { DBI->connect_cached("dbi:Pg:", $ENV{PGUSER}, $ENV{PGPASSWORD}, { RaiseError => 1 }) } 1 .. 5;
    equal(1, value($_, "SELECT 1")) for @all;
    equal(1, $all[0]->ping > 0 ? 1 : 0);
});
check("rotation", sub {
    emit(ask => "rotate");
    chomp(my $password = <STDIN>);
    equal(1, value(open_("", $password), "SELECT 1"));
    refused("password authentication failed", sub { open_() });
    equal(4980, value($db, "SELECT count(*) FROM dl_resolved.people"));
});
