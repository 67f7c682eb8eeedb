import java.io.StringReader;
import java.io.StringWriter;
import java.sql.Connection;
import java.sql.DatabaseMetaData;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Savepoint;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.List;
import java.util.Properties;
import org.postgresql.PGConnection;
import org.postgresql.util.PSQLException;

/** The PostgreSQL JDBC driver through the gate. Connection data come in the environment; one line per check. */
public final class Jdbc {
    private static final String FOREIGN_WRITE = "DELETE FROM dl_cache.person_enrichments";
    private static final String FOREIGN_WRITE_MESSAGE =
        "Customer DB writes are only allowed for schema-qualified storage tables.";
    private static final String LONG = "SELECT count(*) FROM (SELECT generate_series(1, 100000000000)) AS s";

    private interface Check {
        void run(Connection conn) throws Exception;
    }

    private static int failed = 0;

    public static void main(String[] arguments) throws Exception {
        try (Connection conn = connect(new Properties())) {
            check("parameterisedQuery", conn, Jdbc::parameterisedQuery);
            check("introspection", conn, Jdbc::introspection);
            check("writesToStorage", conn, Jdbc::writesToStorage);
            check("refusalInATransaction", conn, Jdbc::refusalInATransaction);
            check("savepoints", conn, Jdbc::savepoints);
            check("cancel", conn, Jdbc::cancel);
            check("queryTimeout", conn, Jdbc::queryTimeout);
            check("copyBothWays", conn, Jdbc::copyBothWays);
            check("cursorFetch", conn, Jdbc::cursorFetch);
            check("largeResult", conn, Jdbc::largeResult);
        }
        check("autosave", null, unused -> autosave());
        System.exit(failed == 0 ? 0 : 1);
    }

    private static Connection connect(Properties properties) throws SQLException {
        properties.setProperty("user", System.getenv("PGUSER"));
        properties.setProperty("password", System.getenv("PGPASSWORD"));
        properties.setProperty("sslmode", "verify-full");
        properties.setProperty("sslrootcert", System.getenv("PORTCULLIS_CA"));
        return DriverManager.getConnection(
            "jdbc:postgresql://localhost:" + System.getenv("PGPORT") + "/" + System.getenv("PGDATABASE"), properties);
    }

    private static void check(String name, Connection conn, Check check) {
        try {
            check.run(conn);
            System.out.println("ok " + name);
        } catch (Exception | AssertionError error) {
            failed++;
            System.out.println("FAILED " + name);
            error.printStackTrace(System.out);
            reset(conn);
        }
    }

    private static void reset(Connection conn) {
        try {
            if (conn != null && !conn.getAutoCommit()) {
                conn.rollback();
                conn.setAutoCommit(true);
            }
        } catch (SQLException error) {
            error.printStackTrace(System.out);
        }
    }

    private static void equal(Object want, Object got) {
        if (!want.equals(got)) {
            throw new AssertionError("wanted " + want + ", got " + got);
        }
    }

    private static Object single(Connection conn, String sql) throws SQLException {
        try (Statement statement = conn.createStatement(); ResultSet rows = statement.executeQuery(sql)) {
            rows.next();
            return rows.getObject(1);
        }
    }

    private static void execute(Connection conn, String sql) throws SQLException {
        try (Statement statement = conn.createStatement()) {
            statement.execute(sql);
        }
    }

    private static void refused(Connection conn, String sql) throws SQLException {
        try {
            execute(conn, sql);
        } catch (PSQLException error) {
            equal("42501", error.getSQLState());
            equal(FOREIGN_WRITE_MESSAGE, error.getServerErrorMessage().getMessage());
            return;
        }
        throw new AssertionError("not refused: " + sql);
    }

    private static void parameterisedQuery(Connection conn) throws SQLException {
        // Above five executions the driver names the statement on the server.
        try (PreparedStatement statement = conn.prepareStatement("SELECT person_id FROM dl_resolved.people WHERE id = ?")) {
            for (int i = 1; i <= 12; i++) {
                statement.setInt(1, i);
                try (ResultSet rows = statement.executeQuery()) {
                    rows.next();
                    equal(String.format("pe_%06d", i), rows.getString(1));
                }
            }
        }
    }

    private static void introspection(Connection conn) throws SQLException {
        DatabaseMetaData data = conn.getMetaData();
        List<String> names = new ArrayList<>();
        try (ResultSet rows = data.getTables(null, "dl_resolved", "%", null)) {
            while (rows.next()) {
                names.add(rows.getString("TABLE_NAME"));
            }
        }
        equal(List.of("companies", "people"), names);
        int columns = 0;
        try (ResultSet rows = data.getColumns(null, "dl_resolved", "people", "%")) {
            while (rows.next()) {
                columns++;
            }
        }
        equal(14, columns);
        for (ResultSet rows : List.of(data.getSchemas(), data.getTypeInfo(), data.getCatalogs(), data.getTableTypes(),
                data.getPrimaryKeys(null, "dl_cache", "person_enrichments"), data.getImportedKeys(null, "storage", null),
                data.getIndexInfo(null, "storage", "t", false, false), data.getFunctions(null, "dl_resolved", "%"),
                data.getProcedures(null, "dl_resolved", "%"), data.getTablePrivileges(null, "dl_resolved", "%"))) {
            while (rows.next()) {
                rows.getString(1);
            }
            rows.close();
        }
    }

    private static void writesToStorage(Connection conn) throws SQLException {
        execute(conn, "CREATE TABLE storage.jdbc (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text)");
        try (PreparedStatement insert =
                conn.prepareStatement("INSERT INTO storage.jdbc (body) VALUES (?)", Statement.RETURN_GENERATED_KEYS)) {
            insert.setString(1, "Łukasz");
            equal(1, insert.executeUpdate());
            try (ResultSet keys = insert.getGeneratedKeys()) {
                keys.next();
                equal(1, keys.getInt("id"));
            }
        }
        try (PreparedStatement batch = conn.prepareStatement("INSERT INTO storage.jdbc (body) VALUES (?)")) {
            for (int i = 0; i < 500; i++) {
                batch.setString(1, "row " + i);
                batch.addBatch();
            }
            equal(500, batch.executeBatch().length);
        }
        equal(501L, single(conn, "SELECT count(*) FROM storage.jdbc"));
    }

    private static void refusalInATransaction(Connection conn) throws SQLException {
        conn.setAutoCommit(false);
        execute(conn, "INSERT INTO storage.jdbc (body) VALUES ('lost')");
        refused(conn, FOREIGN_WRITE);
        try {
            execute(conn, "SELECT 1");
            throw new AssertionError("the transaction should have failed");
        } catch (PSQLException error) {
            equal("25P02", error.getSQLState());
        }
        conn.rollback();
        equal(0L, single(conn, "SELECT count(*) FROM storage.jdbc WHERE body = 'lost'"));
        conn.commit();
        conn.setAutoCommit(true);
        refused(conn, "CREATE TABLE unqualified (id int)");
        equal(1, single(conn, "SELECT 1"));
    }

    private static void savepoints(Connection conn) throws SQLException {
        conn.setAutoCommit(false);
        execute(conn, "INSERT INTO storage.jdbc (body) VALUES ('before')");
        Savepoint savepoint = conn.setSavepoint("here");
        refused(conn, FOREIGN_WRITE);
        conn.rollback(savepoint);
        execute(conn, "INSERT INTO storage.jdbc (body) VALUES ('after')");
        conn.commit();
        conn.setAutoCommit(true);
        equal(2L, single(conn, "SELECT count(*) FROM storage.jdbc WHERE body IN ('before', 'after')"));
    }

    private static void autosave() throws SQLException {
        Properties properties = new Properties();
        properties.setProperty("autosave", "always");
        try (Connection conn = connect(properties)) {
            conn.setAutoCommit(false);
            execute(conn, "INSERT INTO storage.jdbc (body) VALUES ('saved')");
            refused(conn, FOREIGN_WRITE);
            execute(conn, "INSERT INTO storage.jdbc (body) VALUES ('saved')");
            conn.commit();
            equal(2L, single(conn, "SELECT count(*) FROM storage.jdbc WHERE body = 'saved'"));
            conn.commit();
        }
    }

    private static void cancel(Connection conn) throws Exception {
        try (Statement statement = conn.createStatement()) {
            Thread canceller = new Thread(() -> {
                try {
                    Thread.sleep(500);
                    statement.cancel();
                } catch (InterruptedException | SQLException error) {
                    error.printStackTrace(System.out);
                }
            });
            canceller.start();
            cancelled(() -> statement.executeQuery(LONG));
            canceller.join();
        }
        equal(1, single(conn, "SELECT 1"));
    }

    private static void queryTimeout(Connection conn) throws Exception {
        try (Statement statement = conn.createStatement()) {
            statement.setQueryTimeout(1);
            cancelled(() -> statement.executeQuery(LONG));
        }
        equal(1, single(conn, "SELECT 1"));
    }

    private interface Query {
        ResultSet run() throws SQLException;
    }

    private static void cancelled(Query query) throws SQLException {
        try {
            query.run();
        } catch (PSQLException error) {
            equal("57014", error.getSQLState());
            return;
        }
        throw new AssertionError("not cancelled");
    }

    private static void copyBothWays(Connection conn) throws Exception {
        execute(conn, "CREATE TABLE storage.jdbc_copy (id int, body text)");
        StringBuilder text = new StringBuilder();
        for (int i = 0; i < 20000; i++) {
            text.append(i).append("\trow ").append(i).append('\n');
        }
        var copy = conn.unwrap(PGConnection.class).getCopyAPI();
        equal(20000L, copy.copyIn("COPY storage.jdbc_copy FROM STDIN", new StringReader(text.toString())));
        StringWriter out = new StringWriter();
        equal(20000L, copy.copyOut("COPY storage.jdbc_copy TO STDOUT", out));
        equal(text.length(), out.toString().length());
        equal(1, single(conn, "SELECT 1"));
    }

    private static void cursorFetch(Connection conn) throws SQLException {
        conn.setAutoCommit(false);
        try (Statement statement = conn.createStatement()) {
            statement.setFetchSize(100);
            try (ResultSet rows = statement.executeQuery("SELECT id FROM dl_resolved.people")) {
                int count = 0;
                while (rows.next()) {
                    count++;
                }
                equal(4980, count);
            }
        }
        conn.commit();
        conn.setAutoCommit(true);
    }

    private static void largeResult(Connection conn) throws SQLException {
        long size = 0;
        try (Statement statement = conn.createStatement();
                ResultSet rows = statement.executeQuery("SELECT i, repeat('x', 1000) FROM generate_series(1, 50000) AS i")) {
            while (rows.next()) {
                size += rows.getString(2).length();
            }
        }
        equal(50_000_000L, size);
    }
}
