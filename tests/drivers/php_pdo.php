<?php
// PHP's PDO and its older functions (pg_…), on the system's libpq. See checks.toml.
declare(strict_types=1);

$prefix = 'storage.' . getenv('TABLE_PREFIX');
[$foreign, $message, $long, $stream, $wide] = array_map('getenv', ['FOREIGN_WRITE', 'FOREIGN_WRITE_MESSAGE', 'LONG', 'STREAM', 'WIDE']);

function emit(array $members): void
{
    echo json_encode($members), "\n";
    flush();
}

/** Runs a check; what it throws has failed it, and the next one goes on. */
function check(string $name, callable $run): void
{
    try {
        $run();
        emit(['check' => $name, 'result' => 'ok']);
    } catch (Throwable $error) {
        emit(['check' => $name, 'result' => 'failed', 'why' => (string) $error]);
    }
}

function equal(mixed $want, mixed $got): void
{
    if ($want !== $got) {
        throw new RuntimeException('wanted ' . var_export($want, true) . ', got ' . var_export($got, true));
    }
}

/** The error that the call must end with, by its SQLSTATE or by words in it. */
function refused(string $what, callable $run): PDOException
{
    try {
        $run();
    } catch (PDOException $error) {
        if ($error->getCode() !== $what && !str_contains($error->getMessage(), $what)) {
            throw new RuntimeException("wanted $what, got {$error->getCode()}: {$error->getMessage()}");
        }
        return $error;
    }
    throw new RuntimeException("no error, wanted $what");
}

function open(string $changes = '', ?string $password = null, array $options = []): PDO
{
    $dsn = 'pgsql:host=' . getenv('PGHOST') . ';dbname=' . getenv('PGDATABASE') . ";$changes";
    return new PDO($dsn, getenv('PGUSER'), $password ?? getenv('PGPASSWORD'), $options + [PDO::ATTR_ERRMODE => PDO::ERRMODE_EXCEPTION]);
}

function value(PDO $db, string $sql, array $values = []): mixed
{
    $statement = $db->prepare($sql);
    $statement->execute($values);
    return $statement->fetchColumn();
}

error_reporting(E_ALL & ~E_WARNING & ~E_NOTICE);
emit(['driver' => 'php-pdo', 'version' => PHP_VERSION]);
$db = open();

check('connect', fn () => equal(1, value($db, 'SELECT 1')));
check('channel_binding', fn () => equal(1, value(open('channel_binding=require'), 'SELECT 1')));
check('wrong_authority', fn () => refused('certificate verify failed', fn () => open('sslrootcert=' . getenv('PGOTHERCERT'))));
check('no_tls', fn () => refused('encrypted connections only', fn () => open('sslmode=disable')));
check('wrong_password', fn () => refused('password authentication failed', fn () => open('', 'wrong')));
check('unknown_database', fn () => refused('does not exist', fn () => open('dbname=postgres')));
check('startup_options', function () {
    $other = open("options='-c timezone=Asia/Tokyo -c statement_timeout=61s'");
    equal(['Asia/Tokyo', '61s'], [value($other, 'SHOW timezone'), value($other, 'SHOW statement_timeout')]);
});
check('types', function () use ($db, $prefix) {
    $bytes = implode('', array_map('chr', range(0, 255)));
    $text = "Þóra 東京 🐘 ' \" \\ \n\t \$1 ?";
    $db->exec("CREATE TABLE {$prefix}_types (id int, a boolean, b bigint, c double precision, d numeric, e text, f text, g bytea,"
        . ' h timestamptz, i int[], j jsonb, k uuid, l date)');
    $values = [['a', true, PDO::PARAM_BOOL], ['b', PHP_INT_MIN, PDO::PARAM_INT], ['c', '1.5', PDO::PARAM_STR],
        ['d', '-12345678901234567890.0123456789', PDO::PARAM_STR], ['e', $text, PDO::PARAM_STR], ['f', '', PDO::PARAM_STR],
        ['h', '2024-03-31 01:30:00+00', PDO::PARAM_STR], ['i', '{1,NULL,3}', PDO::PARAM_STR], ['j', '{"a": [1, null, "ü"]}', PDO::PARAM_STR],
        ['k', '00112233-4455-6677-8899-aabbccddeeff', PDO::PARAM_STR], ['l', '2024-02-29', PDO::PARAM_STR], ['g', $bytes, PDO::PARAM_LOB]];
    $names = implode(', ', array_column($values, 0));
    $marks = implode(', ', array_map(fn ($each) => ":{$each[0]}", $values));
    foreach ([false, true] as $emulated) {
        $db->setAttribute(PDO::ATTR_EMULATE_PREPARES, $emulated);
        foreach ([1, 2] as $id) {
            $insert = $db->prepare("INSERT INTO {$prefix}_types (id, $names) VALUES ($id, $marks)");
            foreach ($values as [$name, $value, $kind]) {
                $insert->bindValue($name, $id === 1 ? $value : null, $id === 1 ? $kind : PDO::PARAM_NULL);
            }
            $insert->execute();
        }
        $rows = $db->query("SELECT $names FROM {$prefix}_types ORDER BY id")->fetchAll(PDO::FETCH_NUM);
        equal([true, PHP_INT_MIN], [$rows[0][0], $rows[0][1]]);
        equal([$text, '', '{1,NULL,3}'], [$rows[0][4], $rows[0][5], $rows[0][7]]);
        equal($bytes, stream_get_contents($rows[0][11]));
        equal(array_fill(0, 12, null), $rows[1]);
        $db->exec("TRUNCATE {$prefix}_types");
    }
    $db->setAttribute(PDO::ATTR_EMULATE_PREPARES, false);
});
check('wide_rows', fn () => equal(5_000_000, array_sum(array_map(fn ($row) => strlen($row[1]), $db->query($wide)->fetchAll(PDO::FETCH_NUM)))));
check('large_result', function () use ($db, $stream) {
    $db->beginTransaction();
    $cursor = $db->prepare($stream, [PDO::ATTR_CURSOR => PDO::CURSOR_SCROLL]);
    $cursor->execute();
    $size = 0;
    foreach (range(1, 500) as $_) {
        $size += strlen($cursor->fetch(PDO::FETCH_NUM)[1]);
    }
    equal(500_000, $size);
    $cursor = null;
    $db->commit();
    equal(20_000_000, array_sum(array_map(fn ($row) => strlen($row[1]), $db->query($stream)->fetchAll(PDO::FETCH_NUM))));
});
check('prepared', function () {
    $all = array_map(fn () => open(), range(1, 3));
    $statements = array_map(fn ($each) => $each->prepare('SELECT person_id FROM dl_resolved.people WHERE id = ?'), $all);
    foreach (range(1, 12) as $i) {
        $all[$i % 3]->beginTransaction();
        foreach ($statements as $statement) {
            $statement->execute([$i]);
            equal(sprintf('pe_%06d', $i), $statement->fetchColumn());
        }
        $all[$i % 3]->commit();
    }
});
check('prepared_redefined', function () use ($db, $prefix) {
    $db->exec("CREATE TABLE {$prefix}_redefined AS SELECT 1 AS a");
    $statement = $db->prepare("SELECT * FROM {$prefix}_redefined");
    $statement->execute();
    $statement->fetchAll();
    open()->exec("ALTER TABLE {$prefix}_redefined ADD COLUMN b int");
    try {
        $statement->execute();
    } catch (PDOException $error) {
        equal('0A000', $error->getCode());
    }
    equal(['a' => 1, 'b' => null], $db->query("SELECT * FROM {$prefix}_redefined")->fetch(PDO::FETCH_ASSOC));
});
check('batch', function () use ($db, $prefix) {
    $db->exec("CREATE TABLE {$prefix}_batch (id int)");
    $insert = $db->prepare("INSERT INTO {$prefix}_batch VALUES (?)");
    $db->beginTransaction();
    foreach (range(1, 200) as $i) {
        $insert->execute([$i]);
    }
    $db->commit();
    equal(200, value($db, "SELECT count(*)::int FROM {$prefix}_batch"));
});
check('insert_many', function () use ($db, $prefix) {
    $db->exec("CREATE TABLE {$prefix}_keys (id serial, body text)");
    $insert = $db->prepare("INSERT INTO {$prefix}_keys (body) VALUES (?), (?), (?) RETURNING id");
    $insert->execute(['a', 'b', null]);
    equal([1, 2, 3], $insert->fetchAll(PDO::FETCH_COLUMN));
    // PDO's way to the last key: SELECT CURRVAL($1) in the same transaction.
    $db->beginTransaction();
    $db->exec("INSERT INTO {$prefix}_keys (body) VALUES ('c')");
    equal('4', $db->lastInsertId("{$prefix}_keys_id_seq"));
    $db->commit();
});
check('empty', function () use ($db) {
    // PDO makes an error of EmptyQueryResponse.
    foreach (['-- nothing', ';'] as $text) {
        refused('HY000', fn () => $db->exec($text));
    }
    equal(1, value($db, 'SELECT 1'));
});
check('notice', function () use ($prefix) {
    $old = pg_connect('');
    pg_query($old, "DROP TABLE IF EXISTS {$prefix}_nothing");
    equal(true, str_contains(pg_last_notice($old), 'does not exist'));
});
check('refusal', function () use ($db, $foreign, $message) {
    foreach ([fn () => $db->exec($foreign), fn () => value($db, "$foreign WHERE person_id = ?", ['x'])] as $run) {
        $error = refused('42501', $run);
        foreach ([$message, 'DETAIL:  Rule target.', 'HINT:  '] as $part) {
            equal(true, str_contains($error->getMessage(), $part));
        }
    }
    equal(1, value($db, 'SELECT 1'));
});
check('server_error', function () use ($db, $prefix) {
    $db->exec("CREATE TABLE {$prefix}_unique (id int CONSTRAINT one_of_a_kind UNIQUE)");
    $db->exec("INSERT INTO {$prefix}_unique VALUES (1)");
    equal(true, str_contains(refused('23505', fn () => value($db, "INSERT INTO {$prefix}_unique VALUES (?)", [1]))->getMessage(), 'one_of_a_kind'));
    equal(1, value($db, 'SELECT 1'));
});
check('listen', fn () => equal(true, str_contains(refused('42501', fn () => $db->exec('LISTEN a'))->getMessage(), 'Poll a table')));
check('transaction', function () use ($db, $prefix) {
    $db->exec("CREATE TABLE {$prefix}_transaction (id int)");
    foreach (['commit', 'rollBack'] as $end) {
        $db->beginTransaction();
        $db->exec('SET TRANSACTION ISOLATION LEVEL SERIALIZABLE');
        $db->exec("INSERT INTO {$prefix}_transaction VALUES (1)");
        $db->$end();
    }
    $db->beginTransaction();
    $db->exec('SET TRANSACTION READ ONLY');
    refused('25006', fn () => $db->exec("INSERT INTO {$prefix}_transaction VALUES (2)"));
    $db->rollBack();
    equal(1, value($db, "SELECT count(*)::int FROM {$prefix}_transaction"));
});
check('refused_in_transaction', function () use ($db, $prefix, $foreign) {
    $db->beginTransaction();
    $db->exec("INSERT INTO {$prefix}_transaction VALUES (1000)");
    refused('42501', fn () => $db->exec($foreign));
    refused('25P02', fn () => value($db, 'SELECT ?::int', [1]));
    equal(true, $db->inTransaction());
    $db->rollBack();
    equal(1, value($db, "SELECT count(*)::int FROM {$prefix}_transaction"));
});
check('refused_in_savepoint', function () use ($db, $prefix) {
    $db->beginTransaction();
    $db->exec('SAVEPOINT here');
    refused('42501', fn () => $db->exec('CREATE TABLE unqualified (id int)'));
    $db->exec('ROLLBACK TO SAVEPOINT here');
    $db->exec("INSERT INTO {$prefix}_transaction VALUES (3)");
    $db->commit();
    equal(2, value($db, "SELECT count(*)::int FROM {$prefix}_transaction"));
});
check('refused_in_batch', function () use ($db, $foreign) {
    refused('42501', fn () => $db->exec("BEGIN; $foreign; COMMIT"));
    $db->exec('ROLLBACK');
    refused('42501', fn () => $db->exec('SELECT 1; SELECT 2'));
    equal(1, value($db, 'SELECT 1'));
});
check('copy_in', function () use ($db, $prefix) {
    $db->exec("CREATE TABLE {$prefix}_copy (id int, body text)");
    $db->pgsqlCopyFromArray("{$prefix}_copy", array_map(fn ($i) => "$i\t東京\n", range(1, 20_000)));
    equal(20_000, value($db, "SELECT count(*)::int FROM {$prefix}_copy"));
});
check('copy_out', fn () => equal(20_000, count($db->pgsqlCopyToArray("{$prefix}_copy"))));
check('copy_broken', function () use ($db, $prefix) {
    refused('22P02', fn () => $db->pgsqlCopyFromArray("{$prefix}_copy", ["no number\tx\n"]));
    equal(20_000, value($db, "SELECT count(*)::int FROM {$prefix}_copy"));
});
check('cancel', function () use ($long) {
    // PDO has none; the older functions do.
    $old = pg_connect('', PGSQL_CONNECT_FORCE_NEW);
    pg_send_query($old, $long);
    usleep(300_000);
    equal(true, pg_cancel_query($old));
    equal('1', pg_fetch_result(pg_query($old, 'SELECT 1'), 0, 0));
});
check('timeout', function () use ($db, $long) {
    $db->exec('SET statement_timeout = 300');
    refused('57014', fn () => $db->query($long));
    $db->exec('RESET statement_timeout');
});
check('settings', function () {
    $all = array_map(fn () => open(), range(0, 2));
    foreach ($all as $i => $each) {
        $each->exec("SET extra_float_digits = $i");
    }
    foreach (range(1, 5) as $_) {
        equal(['0', '1', '2'], array_map(fn ($each) => value($each, 'SHOW extra_float_digits'), $all));
    }
});
check('introspection', function () use ($db, $prefix) {
    $meta = $db->query('SELECT id, salary FROM dl_resolved.people LIMIT 0')->getColumnMeta(1);
    equal(['salary', 3904], [$meta['name'], $meta['pgsql:oid']]);
    $old = pg_connect('', PGSQL_CONNECT_FORCE_NEW);
    equal(14, count(pg_meta_data($old, 'dl_resolved.people')));
    equal(true, pg_insert($old, "{$prefix}_keys", ['body' => 'by pg_insert']) !== false);
});
check('pool', function () {
    // Persistent connections are PHP's pool: the next user gets what the last one left.
    $one = open('', null, [PDO::ATTR_PERSISTENT => true]);
    $two = open('', null, [PDO::ATTR_PERSISTENT => true]);
    equal([1, 2], [value($one, 'SELECT 1'), value($two, 'SELECT 2')]);
    $old = pg_pconnect('');
    equal('1', pg_fetch_result(pg_query($old, 'SELECT 1'), 0, 0));
});
check('rotation', function () use ($db) {
    emit(['ask' => 'rotate']);
    $password = trim(fgets(STDIN));
    equal(1, value(open('', $password), 'SELECT 1'));
    refused('password authentication failed', fn () => open());
    equal(4980, value($db, 'SELECT count(*)::int FROM dl_resolved.people'));
});
