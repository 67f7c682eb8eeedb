import java.io.Reader;
import java.io.StringReader;
import java.io.StringWriter;
import java.math.BigDecimal;
import java.nio.charset.StandardCharsets;
import java.sql.BatchUpdateException;
import java.sql.Connection;
import java.sql.DatabaseMetaData;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Savepoint;
import java.sql.Statement;
import java.time.LocalDate;
import java.time.LocalDateTime;
import java.time.OffsetDateTime;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Properties;
import java.util.Scanner;
import java.util.UUID;
import java.util.concurrent.Callable;
import org.postgresql.PGConnection;
import org.postgresql.util.PGobject;
import org.postgresql.util.PSQLException;

/** The PostgreSQL JDBC driver over the list of checks: simple and extended protocol, thresholds, fetch sizes, autosave. */
public final class Jdbc {
    private static final String PREFIX = "storage." + System.getenv("TABLE_PREFIX");
    private static final String FOREIGN_WRITE = System.getenv("FOREIGN_WRITE");
    private static final String FOREIGN_WRITE_MESSAGE = System.getenv("FOREIGN_WRITE_MESSAGE");
    private static final String LONG = System.getenv("LONG");
    private static final String STREAM = System.getenv("STREAM");

    private interface Check {
        void run(Connection conn) throws Exception;
    }

    private static Connection shared;

    public static void main(String[] arguments) throws Exception {
        shared = connect();
        line("driver", "pgjdbc", "version", shared.getMetaData().getDriverVersion());
        check("connect", Jdbc::connecting);
        line("check", "channel_binding", "result", "not applicable", "why", "pgjdbc cannot insist on it before 42.7.4, and Debian's is older");
        check("wrong_authority", Jdbc::wrongAuthority);
        check("no_tls", conn -> state("28000", () -> connect("sslmode", "disable")));
        check("wrong_password", conn -> state("28P01", () -> connect("password", "wrong")));
        check("unknown_database", conn -> state("3D000", () -> connect("PGDBNAME", "postgres")));
        check("startup_options", Jdbc::startupOptions);
        check("types", Jdbc::types);
        check("wide_rows", Jdbc::wideRows);
        check("large_result", Jdbc::largeResult);
        check("prepared", Jdbc::prepared);
        check("prepared_redefined", Jdbc::preparedRedefined);
        check("batch", Jdbc::batch);
        check("insert_many", Jdbc::insertMany);
        check("empty", Jdbc::empty);
        check("notice", Jdbc::notice);
        check("refusal", Jdbc::refusal);
        check("server_error", Jdbc::serverError);
        check("listen", conn -> state("42501", () -> execute(conn, "LISTEN a")));
        check("transaction", Jdbc::transaction);
        check("refused_in_transaction", Jdbc::refusedInTransaction);
        check("refused_in_savepoint", Jdbc::refusedInSavepoint);
        check("refused_in_batch", Jdbc::refusedInBatch);
        check("copy_in", Jdbc::copyIn);
        check("copy_out", Jdbc::copyOut);
        check("copy_broken", Jdbc::copyBroken);
        check("cancel", Jdbc::cancel);
        check("timeout", Jdbc::timeout);
        check("settings", Jdbc::settings);
        check("introspection", Jdbc::introspection);
        check("pool", Jdbc::pool);
        check("rotation", Jdbc::rotation);
        System.exit(0);
    }

    private static void check(String name, Check check) throws SQLException {
        try {
            check.run(shared);
            line("check", name, "result", "ok");
        } catch (Exception | AssertionError error) {
            StringWriter why = new StringWriter();
            error.printStackTrace(new java.io.PrintWriter(why));
            line("check", name, "result", "failed", "why", why.toString());
            shared = connect();
        }
    }

    /** A JSON object of strings. */
    private static void line(String... members) {
        List<String> parts = new ArrayList<>();
        for (int i = 0; i < members.length; i += 2) {
            parts.add(quoted(members[i]) + ": " + quoted(members[i + 1]));
        }
        System.out.println("{" + String.join(", ", parts) + "}");
    }

    private static String quoted(String text) {
        StringBuilder out = new StringBuilder("\"");
        text.chars().forEach(c -> out.append(c < ' ' || c > '~' || c == '"' || c == '\\' ? String.format("\\u%04x", c) : (char) c));
        return out.append('"').toString();
    }

    /** Connects with the environment's parameters and the changes given as pairs. */
    private static Connection connect(String... changes) throws SQLException {
        Properties properties = new Properties();
        properties.setProperty("user", System.getenv("PGUSER"));
        properties.setProperty("password", System.getenv("PGPASSWORD"));
        properties.setProperty("sslmode", "verify-full");
        properties.setProperty("sslrootcert", System.getenv("PGSSLROOTCERT"));
        String database = System.getenv("PGDATABASE");
        for (int i = 0; i < changes.length; i += 2) {
            if (changes[i].equals("PGDBNAME")) {
                database = changes[i + 1];
            } else {
                properties.setProperty(changes[i], changes[i + 1]);
            }
        }
        return DriverManager.getConnection("jdbc:postgresql://localhost:" + System.getenv("PGPORT") + "/" + database, properties);
    }

    private static void equal(Object want, Object got) {
        if (!want.equals(got)) {
            throw new AssertionError("wanted " + want + ", got " + got);
        }
    }

    private static PSQLException state(String want, Callable<?> call) throws Exception {
        try {
            call.call();
        } catch (PSQLException error) {
            equal(want, error.getSQLState());
            return error;
        }
        throw new AssertionError("no error, wanted " + want);
    }

    private static Object single(Connection conn, String sql) throws SQLException {
        try (Statement statement = conn.createStatement(); ResultSet rows = statement.executeQuery(sql)) {
            rows.next();
            return rows.getObject(1);
        }
    }

    private static boolean execute(Connection conn, String sql) throws SQLException {
        try (Statement statement = conn.createStatement()) {
            return statement.execute(sql);
        }
    }

    private static void connecting(Connection conn) throws SQLException {
        for (String mode : List.of("extended", "simple", "extendedForPrepared", "extendedCacheEverything")) {
            try (Connection other = connect("preferQueryMode", mode, "assumeMinServerVersion", "12", "ApplicationName", "tour")) {
                equal(1, single(other, "SELECT 1"));
                equal("tour", single(other, "SHOW application_name"));
            }
        }
    }

    private static void wrongAuthority(Connection conn) throws Exception {
        PSQLException error = state("08006", () -> connect("sslrootcert", System.getenv("PGOTHERCERT")));
        if (!error.toString().contains("SSL error")) {
            throw new AssertionError(error.toString());
        }
    }

    private static void startupOptions(Connection conn) throws SQLException {
        try (Connection other = connect("options", "-c statement_timeout=61s -c search_path=storage", "readOnly", "true")) {
            equal("61s", single(other, "SHOW statement_timeout"));
            equal("storage", single(other, "SHOW search_path"));
            equal("storage", other.getSchema());
        }
    }

    private static void types(Connection conn) throws Exception {
        String table = PREFIX + "_types";
        execute(conn, "CREATE TABLE " + table + " (id int, a boolean, b smallint, c int, d bigint, e real, f double precision, g numeric,"
            + " h text, i text, j bytea, k uuid, l date, m timestamp, n timestamptz, o int[], p text[], q jsonb, r json)");
        byte[] bytes = new byte[256];
        for (int i = 0; i < 256; i++) {
            bytes[i] = (byte) i;
        }
        PGobject document = new PGobject();
        document.setType("jsonb");
        document.setValue("{\"a\": [1, null, \"ü\"]}");
        Integer[] numbers = {1, null, 3};
        String[] texts = {"a,b", "q\"uote", null, "", "NULL", "{}"};
        List<Object> values = List.of(true, -32768, 2147483647, Long.MIN_VALUE, 1.5f, Double.POSITIVE_INFINITY,
            new BigDecimal("-12345678901234567890.0123456789"), "Þóra 東京 🐘 ' \" \\ \n\t $1", "", bytes,
            UUID.fromString("00112233-4455-6677-8899-aabbccddeeff"), LocalDate.of(2024, 2, 29),
            LocalDateTime.of(1999, 12, 31, 23, 59, 59, 1000), OffsetDateTime.parse("2024-03-31T01:30:00Z"),
            conn.createArrayOf("int4", numbers), conn.createArrayOf("text", texts), document);
        String marks = "?, ".repeat(values.size());
        // Text formats at first, binary ones beyond the threshold.
        try (PreparedStatement insert = conn.prepareStatement("INSERT INTO " + table + " VALUES (?, " + marks + "?::json)")) {
            for (int round = 0; round < 8; round++) {
                insert.setInt(1, round);
                for (int i = 0; i < values.size(); i++) {
                    if (round != 7) {
                        insert.setObject(i + 2, values.get(i));
                    } else {
                        insert.setNull(i + 2, java.sql.Types.NULL);
                    }
                }
                insert.setString(values.size() + 2, round == 7 ? null : "[true]");
                insert.executeUpdate();
            }
        }
        try (PreparedStatement select = conn.prepareStatement("SELECT * FROM " + table + " WHERE id = ?")) {
            for (int round = 0; round < 8; round++) {
                select.setInt(1, round);
                try (ResultSet row = select.executeQuery()) {
                    row.next();
                    for (int i = 0; i < values.size(); i++) {
                        if (round == 7) {
                            equal(true, row.getObject(i + 2) == null && row.wasNull());
                        } else if (values.get(i) instanceof byte[] want) {
                            equal(true, Arrays.equals(want, row.getBytes(i + 2)));
                        } else if (values.get(i) instanceof java.sql.Array want) {
                            equal(Arrays.asList((Object[]) want.getArray()), Arrays.asList((Object[]) row.getArray(i + 2).getArray()));
                        } else if (values.get(i) instanceof PGobject want) {
                            equal(want.getValue(), row.getString(i + 2));
                        } else {
                            equal(values.get(i), row.getObject(i + 2, values.get(i).getClass()));
                        }
                    }
                }
            }
        }
    }

    private static void wideRows(Connection conn) throws SQLException {
        equal(5_000_000L, size(conn, System.getenv("WIDE"), 0));
    }

    private static void largeResult(Connection conn) throws SQLException {
        conn.setAutoCommit(false);
        equal(20_000_000L, size(conn, STREAM, 500));
        conn.commit();
        conn.setAutoCommit(true);
        equal(20_000_000L, size(conn, STREAM, 0));
        try (Statement statement = conn.createStatement()) {
            statement.setMaxRows(10);
            try (ResultSet rows = statement.executeQuery(STREAM)) {
                int count = 0;
                while (rows.next()) {
                    count++;
                }
                equal(10, count);
            }
        }
    }

    private static long size(Connection conn, String sql, int fetchSize) throws SQLException {
        long size = 0;
        try (Statement statement = conn.createStatement()) {
            statement.setFetchSize(fetchSize);
            try (ResultSet rows = statement.executeQuery(sql)) {
                while (rows.next()) {
                    size += rows.getString(2).length();
                }
            }
        }
        return size;
    }

    private static void prepared(Connection conn) throws SQLException {
        for (String threshold : List.of("5", "1", "-1", "0")) {
            List<Connection> conns = new ArrayList<>();
            List<PreparedStatement> statements = new ArrayList<>();
            for (int i = 0; i < 3; i++) {
                conns.add(connect("prepareThreshold", threshold, "preparedStatementCacheQueries", "4"));
                statements.add(conns.get(i).prepareStatement("SELECT person_id FROM dl_resolved.people WHERE id = ?"));
            }
            for (int i = 1; i <= 12; i++) {
                Connection holder = conns.get(i % 3);
                holder.setAutoCommit(false);
                single(holder, "SELECT 1");
                for (PreparedStatement statement : statements) {
                    statement.setInt(1, i);
                    try (ResultSet rows = statement.executeQuery()) {
                        rows.next();
                        equal(String.format("pe_%06d", i), rows.getString(1));
                    }
                }
                // More than the cache holds: the oldest are closed on the server.
                equal(i, single(holder, "SELECT " + i));
                holder.commit();
                holder.setAutoCommit(true);
            }
            for (Connection each : conns) {
                each.close();
            }
        }
    }

    private static void preparedRedefined(Connection conn) throws SQLException {
        String table = PREFIX + "_redefined";
        execute(conn, "CREATE TABLE " + table + " AS SELECT 1 AS a");
        try (PreparedStatement select = conn.prepareStatement("SELECT * FROM " + table); Connection other = connect()) {
            for (int i = 0; i < 8; i++) {
                if (i == 6) {
                    execute(other, "ALTER TABLE " + table + " ADD COLUMN b int");
                }
                // The driver prepares it anew by itself.
                try (ResultSet rows = select.executeQuery()) {
                    equal(i < 6 ? 1 : 2, rows.getMetaData().getColumnCount());
                }
            }
        }
    }

    private static void batch(Connection conn) throws SQLException {
        execute(conn, "CREATE TABLE " + PREFIX + "_batch (id int, body text)");
        for (String rewrite : List.of("false", "true")) {
            try (Connection other = connect("reWriteBatchedInserts", rewrite);
                    PreparedStatement insert = other.prepareStatement("INSERT INTO " + PREFIX + "_batch (id, body) VALUES (?, ?)")) {
                for (int i = 0; i < 1000; i++) {
                    insert.setInt(1, i);
                    insert.setString(2, "row " + i);
                    insert.addBatch();
                }
                equal(1000, insert.executeBatch().length);
            }
        }
        equal(2000L, single(conn, "SELECT count(*) FROM " + PREFIX + "_batch"));
    }

    private static void insertMany(Connection conn) throws SQLException {
        execute(conn, "CREATE TABLE " + PREFIX + "_keys (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text)");
        String insert = "INSERT INTO " + PREFIX + "_keys (body) VALUES (?), (?), (?)";
        try (PreparedStatement statement = conn.prepareStatement(insert, Statement.RETURN_GENERATED_KEYS)) {
            statement.setString(1, "a");
            statement.setString(2, "Łukasz");
            statement.setString(3, null);
            equal(3, statement.executeUpdate());
            try (ResultSet keys = statement.getGeneratedKeys()) {
                for (int i = 1; i <= 3; i++) {
                    keys.next();
                    equal(i, keys.getInt("id"));
                }
            }
        }
    }

    private static void empty(Connection conn) throws SQLException {
        for (String text : List.of("", "-- nothing", ";", "/* nothing */")) {
            equal(false, execute(conn, text));
        }
        equal(1, single(conn, "SELECT 1"));
    }

    private static void notice(Connection conn) throws SQLException {
        try (Statement statement = conn.createStatement()) {
            statement.execute("DROP TABLE IF EXISTS " + PREFIX + "_nothing");
            equal(true, statement.getWarnings().getMessage().contains("does not exist"));
        }
    }

    private static void refusal(Connection conn) throws Exception {
        for (String text : List.of(FOREIGN_WRITE, FOREIGN_WRITE + " WHERE person_id = 'x'")) {
            var error = state("42501", () -> execute(conn, text)).getServerErrorMessage();
            equal(FOREIGN_WRITE_MESSAGE, error.getMessage());
            equal(true, error.getDetail().contains("Rule target.") && error.getHint().contains("storage"));
            equal(13, error.getPosition());
        }
        try (PreparedStatement statement = conn.prepareStatement(FOREIGN_WRITE + " WHERE person_id = ?")) {
            statement.setString(1, "x");
            state("42501", statement::executeUpdate);
            state("42501", statement::getParameterMetaData);
        }
        equal(1, single(conn, "SELECT 1"));
    }

    private static void serverError(Connection conn) throws Exception {
        execute(conn, "CREATE TABLE " + PREFIX + "_unique (id int CONSTRAINT one_of_a_kind UNIQUE)");
        execute(conn, "INSERT INTO " + PREFIX + "_unique VALUES (1)");
        PSQLException error = state("23505", () -> execute(conn, "INSERT INTO " + PREFIX + "_unique VALUES (1)"));
        equal("one_of_a_kind", error.getServerErrorMessage().getConstraint());
        equal(1, single(conn, "SELECT 1"));
    }

    private static void transaction(Connection conn) throws Exception {
        execute(conn, "CREATE TABLE " + PREFIX + "_transaction (body text)");
        conn.setAutoCommit(false);
        for (int level : new int[] {Connection.TRANSACTION_SERIALIZABLE, Connection.TRANSACTION_REPEATABLE_READ, Connection.TRANSACTION_READ_COMMITTED}) {
            conn.setTransactionIsolation(level);
            equal(level, conn.getTransactionIsolation());
            execute(conn, "INSERT INTO " + PREFIX + "_transaction VALUES ('lost')");
            conn.rollback();
        }
        execute(conn, "INSERT INTO " + PREFIX + "_transaction VALUES ('kept')");
        conn.commit();
        conn.setReadOnly(true);
        state("25006", () -> execute(conn, "INSERT INTO " + PREFIX + "_transaction VALUES ('no')"));
        conn.rollback();
        conn.setReadOnly(false);
        conn.setAutoCommit(true);
        equal(1L, single(conn, "SELECT count(*) FROM " + PREFIX + "_transaction"));
    }

    private static void refusedInTransaction(Connection conn) throws Exception {
        conn.setAutoCommit(false);
        execute(conn, "INSERT INTO " + PREFIX + "_transaction VALUES ('lost')");
        state("42501", () -> execute(conn, FOREIGN_WRITE));
        state("25P02", () -> execute(conn, "SELECT 1"));
        conn.rollback();
        conn.setAutoCommit(true);
        equal(0L, single(conn, "SELECT count(*) FROM " + PREFIX + "_transaction WHERE body = 'lost'"));
    }

    private static void refusedInSavepoint(Connection conn) throws Exception {
        conn.setAutoCommit(false);
        Savepoint savepoint = conn.setSavepoint("here");
        state("42501", () -> execute(conn, "CREATE TABLE unqualified (id int)"));
        conn.rollback(savepoint);
        execute(conn, "INSERT INTO " + PREFIX + "_transaction VALUES ('after')");
        conn.commit();
        conn.setAutoCommit(true);
        equal(1L, single(conn, "SELECT count(*) FROM " + PREFIX + "_transaction WHERE body = 'after'"));
        // The driver's own savepoint around every statement, sent with it in one go (P42).
        for (String mode : List.of("always", "conservative")) {
            try (Connection other = connect("autosave", mode)) {
                other.setAutoCommit(false);
                execute(other, "INSERT INTO " + PREFIX + "_transaction VALUES ('" + mode + "')");
                if (mode.equals("always")) {
                    state("42501", () -> execute(other, FOREIGN_WRITE));
                    state("22012", () -> execute(other, "SELECT 1/0"));
                }
                execute(other, "INSERT INTO " + PREFIX + "_transaction VALUES ('" + mode + "')");
                other.commit();
                equal(2L, single(other, "SELECT count(*) FROM " + PREFIX + "_transaction WHERE body = '" + mode + "'"));
                other.commit();
            }
        }
    }

    private static void refusedInBatch(Connection conn) throws Exception {
        for (boolean autoCommit : new boolean[] {true, false}) {
            conn.setAutoCommit(autoCommit);
            try (Statement statement = conn.createStatement()) {
                statement.addBatch("INSERT INTO " + PREFIX + "_batch VALUES (5000, 'x')");
                statement.addBatch(FOREIGN_WRITE);
                statement.addBatch("INSERT INTO " + PREFIX + "_batch VALUES (5001, 'x')");
                statement.executeBatch();
                throw new AssertionError("not refused");
            } catch (BatchUpdateException error) {
                equal("42501", error.getSQLState());
            }
            if (!autoCommit) {
                conn.rollback();
            }
            equal(0L, single(conn, "SELECT count(*) FROM " + PREFIX + "_batch WHERE id = 5001"));
        }
        conn.rollback();
        conn.setAutoCommit(true);
    }

    private static void copyIn(Connection conn) throws Exception {
        execute(conn, "CREATE TABLE " + PREFIX + "_copy (id int, body text)");
        StringBuilder text = new StringBuilder();
        for (int i = 0; i < 20000; i++) {
            text.append(i).append("\t東京\n");
        }
        var copy = conn.unwrap(PGConnection.class).getCopyAPI();
        equal(20000L, copy.copyIn("COPY " + PREFIX + "_copy FROM STDIN", new StringReader(text.toString())));
    }

    private static void copyOut(Connection conn) throws Exception {
        StringWriter out = new StringWriter();
        var copy = conn.unwrap(PGConnection.class).getCopyAPI();
        equal(20000L, copy.copyOut("COPY " + PREFIX + "_copy TO STDOUT", out));
        equal(20000L, out.toString().lines().count());
    }

    private static void copyBroken(Connection conn) throws Exception {
        var copy = conn.unwrap(PGConnection.class).getCopyAPI();
        Reader wrong = new StringReader("no number\tx\n");
        state("22P02", () -> copy.copyIn("COPY " + PREFIX + "_copy FROM STDIN", wrong));
        var given = copy.copyIn("COPY " + PREFIX + "_copy FROM STDIN");
        byte[] row = "1\tx\n".getBytes(StandardCharsets.UTF_8);
        given.writeToCopy(row, 0, row.length);
        given.cancelCopy();
        equal(20000L, single(conn, "SELECT count(*) FROM " + PREFIX + "_copy"));
    }

    private static void cancel(Connection conn) throws Exception {
        try (Statement statement = conn.createStatement()) {
            Thread canceller = new Thread(() -> {
                try {
                    Thread.sleep(300);
                    statement.cancel();
                } catch (InterruptedException | SQLException error) {
                    throw new IllegalStateException(error);
                }
            });
            canceller.start();
            state("57014", () -> statement.executeQuery(LONG));
            canceller.join();
        }
        equal(1, single(conn, "SELECT 1"));
    }

    private static void timeout(Connection conn) throws Exception {
        try (Statement statement = conn.createStatement()) {
            statement.setQueryTimeout(1);
            state("57014", () -> statement.executeQuery(LONG));
        }
        execute(conn, "SET statement_timeout = 300");
        state("57014", () -> execute(conn, LONG));
        execute(conn, "RESET statement_timeout");
        conn.setNetworkTimeout(Runnable::run, 60_000);
        equal(true, conn.isValid(5));
    }

    private static void settings(Connection conn) throws SQLException {
        List<Connection> conns = List.of(connect(), connect(), connect());
        List<String> zones = List.of("Asia/Tokyo", "Europe/Paris", "UTC");
        for (int i = 0; i < 3; i++) {
            execute(conns.get(i), "SET TIME ZONE '" + zones.get(i) + "'");
            conns.get(i).setClientInfo("ApplicationName", "tour " + i);
            conns.get(i).setSchema("storage");
        }
        for (int round = 0; round < 5; round++) {
            for (int i = 0; i < 3; i++) {
                equal(zones.get(i), single(conns.get(i), "SHOW timezone"));
                equal("tour " + i, single(conns.get(i), "SHOW application_name"));
                equal("storage", conns.get(i).getSchema());
            }
        }
        for (Connection each : conns) {
            each.close();
        }
    }

    /** Everything of DatabaseMetaData that asks the server. */
    private static void introspection(Connection conn) throws Exception {
        DatabaseMetaData data = conn.getMetaData();
        equal(List.of("companies", "people"), column(data.getTables(null, "dl_resolved", "%", null), "TABLE_NAME"));
        equal(14, column(data.getColumns(null, "dl_resolved", "people", "%"), "COLUMN_NAME").size());
        String table = System.getenv("TABLE_PREFIX") + "_keys";
        equal(List.of("id"), column(data.getPrimaryKeys(null, "storage", table), "COLUMN_NAME"));
        equal(List.of(table + "_pkey"), column(data.getIndexInfo(null, "storage", table, true, false), "INDEX_NAME"));
        equal(true, column(data.getSchemas(), "TABLE_SCHEM").contains("dl_resolved"));
        equal(true, column(data.getTypeInfo(), "TYPE_NAME").contains("int4range"));
        String s = "storage";
        for (ResultSet rows : List.of(data.getCatalogs(), data.getTableTypes(), data.getSchemas(null, "%"), data.getClientInfoProperties(),
                data.getImportedKeys(null, s, table), data.getExportedKeys(null, s, table), data.getCrossReference(null, s, table, null, s, table),
                data.getFunctions(null, "dl_resolved", "%"), data.getFunctionColumns(null, "pg_catalog", "lower", "%"),
                data.getProcedures(null, "dl_resolved", "%"), data.getProcedureColumns(null, "pg_catalog", "lower", "%"),
                data.getTablePrivileges(null, "dl_resolved", "%"), data.getColumnPrivileges(null, s, table, "%"),
                data.getBestRowIdentifier(null, s, table, DatabaseMetaData.bestRowSession, true), data.getVersionColumns(null, s, table),
                data.getUDTs(null, s, "%", null))) {
            while (rows.next()) {
                rows.getString(1);
            }
            rows.close();
        }
        equal("PostgreSQL", data.getDatabaseProductName());
        equal(true, data.getMaxColumnNameLength() == 63 && data.getDefaultTransactionIsolation() == Connection.TRANSACTION_READ_COMMITTED);
        data.getSQLKeywords();
        equal(System.getenv("PGUSER"), data.getUserName());
        // An updatable result looks for the table's key.
        try (Statement statement = conn.createStatement(ResultSet.TYPE_SCROLL_INSENSITIVE, ResultSet.CONCUR_UPDATABLE);
                ResultSet rows = statement.executeQuery("SELECT id, body FROM " + PREFIX + "_keys ORDER BY id")) {
            rows.next();
            equal(PREFIX.substring(8) + "_keys", rows.getMetaData().unwrap(org.postgresql.PGResultSetMetaData.class).getBaseTableName(1));
            rows.updateString("body", "changed");
            rows.updateRow();
        }
    }

    private static List<String> column(ResultSet rows, String name) throws SQLException {
        List<String> values = new ArrayList<>();
        while (rows.next()) {
            values.add(rows.getString(name));
        }
        rows.close();
        return values;
    }

    @SuppressWarnings("deprecation")
    private static void pool(Connection conn) throws Exception {
        var source = new org.postgresql.ds.PGPoolingDataSource();
        source.setServerNames(new String[] {"localhost"});
        source.setPortNumbers(new int[] {Integer.parseInt(System.getenv("PGPORT"))});
        source.setDatabaseName(System.getenv("PGDATABASE"));
        source.setUser(System.getenv("PGUSER"));
        source.setPassword(System.getenv("PGPASSWORD"));
        source.setSslMode("verify-full");
        source.setSslRootCert(System.getenv("PGSSLROOTCERT"));
        source.setDataSourceName("tour");
        source.setMaxConnections(4);
        List<Thread> threads = new ArrayList<>();
        List<Object> seen = java.util.Collections.synchronizedList(new ArrayList<>());
        for (int i = 0; i < 8; i++) {
            threads.add(new Thread(() -> {
                for (int j = 0; j < 10; j++) {
                    try (Connection each = source.getConnection()) {
                        seen.add(single(each, "SELECT " + j));
                    } catch (SQLException error) {
                        seen.add(error);
                    }
                }
            }));
        }
        threads.forEach(Thread::start);
        for (Thread thread : threads) {
            thread.join();
        }
        equal(80L, seen.stream().filter(Integer.class::isInstance).count());
        source.close();
    }

    private static void rotation(Connection conn) throws Exception {
        line("ask", "rotate");
        String password = new Scanner(System.in, StandardCharsets.UTF_8).nextLine();
        try (Connection fresh = connect("password", password)) {
            equal(1, single(fresh, "SELECT 1"));
        }
        state("28P01", Jdbc::connect);
        equal(4980L, single(conn, "SELECT count(*) FROM dl_resolved.people"));
    }
}
