# The `pg` gem, on the system's libpq. It runs libpq asynchronously, where long TLS records hang (P2).
require "pg"
require_relative "tour"

driver("ruby-pg", "#{PG::VERSION}, libpq #{PG.library_version / 10_000}")

def open(**changes) = PG.connect(**changes)

def value(conn, *arguments) = conn.exec_params(*(arguments.size == 1 ? [arguments[0], []] : arguments)).getvalue(0, 0)

conn = open

check("connect") do
  equal(true, conn.ssl_in_use?)
  equal("1", value(conn, "SELECT 1"))
end
check("channel_binding") { equal("1", value(open(channel_binding: "require"), "SELECT 1")) }
check("wrong_authority") { equal(true, raises(PG::ConnectionBad) { open(sslrootcert: ENV["PGOTHERCERT"]) }.message.include?("certificate verify failed")) }
check("no_tls") { equal(true, raises(PG::ConnectionBad) { open(sslmode: "disable") }.message.include?("encrypted connections only")) }
check("wrong_password") { equal(true, raises(PG::ConnectionBad) { open(password: "wrong") }.message.include?("password authentication failed")) }
check("unknown_database") { equal(true, raises(PG::ConnectionBad) { open(dbname: "postgres") }.message.include?("does not exist")) }
check("startup_options") do
  other = open(options: "-c timezone=Asia/Tokyo -c statement_timeout=61s", application_name: "tour")
  equal(%w[Asia/Tokyo 61s tour], %w[timezone statement_timeout application_name].map { |name| value(other, "SHOW #{name}") })
end
check("types") do
  conn.exec("CREATE TABLE #{PREFIX}_types (id int, a boolean, b bigint, c double precision, d numeric, e text, f text, g bytea," \
            " h timestamptz, i int[], j jsonb, k uuid)")
  bytes = (0..255).to_a.pack("C*")
  values = [true, -(2**63), Float::INFINITY, "-12345678901234567890.0123456789", TEXT, "", { value: bytes, format: 1 },
            "2024-03-31 01:30:00+00", "{1,NULL,3}", '{"a": [1, null, "ü"]}', "00112233-4455-6677-8899-aabbccddeeff"]
  insert = "INSERT INTO #{PREFIX}_types VALUES ($1, #{(2..12).map { |i| "$#{i}" }.join(", ")})"
  conn.exec_params(insert, [1, *values.map { |v| v.is_a?(Hash) ? v : v.to_s }])
  conn.exec_params(insert, [2, *values.map { nil }])
  [0, 1].each do |format|
    rows = conn.exec_params("SELECT id, a, b, c, d, e, f, g, h, i::text, j, k FROM #{PREFIX}_types ORDER BY id", [], format)
    rows.map_types!(PG::BasicTypeMapForResults.new(conn))
    equal([true, -(2**63), Float::INFINITY, TEXT, ""], rows.values[0].values_at(1, 2, 3, 5, 6))
    equal(bytes, rows.values[0][7])
    equal([nil] * 11, rows.values[1][1..])
  end
  equal("-12345678901234567890.0123456789", value(conn, "SELECT d::text FROM #{PREFIX}_types WHERE id = 1"))
end
check("wide_rows") { equal(5_000_000, conn.exec(WIDE).column_values(1).sum(&:size)) }
check("large_result") do
  size = 0
  conn.send_query(STREAM)
  conn.set_single_row_mode
  conn.get_result.stream_each_row { |row| size += row[1].size }
  equal(20_000_000, size)
  conn.transaction do
    conn.exec("DECLARE stream CURSOR FOR #{STREAM}")
    equal(3000, conn.exec("FETCH 3000 FROM stream").ntuples)
  end
end
check("prepared") do
  conns = [open, open, open]
  conns.each { |each| each.prepare("by id", "SELECT person_id FROM dl_resolved.people WHERE id = $1") }
  (1..12).each do |i|
    conns[i % 3].transaction do
      conns.each { |each| equal(format("pe_%06d", i), each.exec_prepared("by id", [i]).getvalue(0, 0)) }
    end
  end
  equal(1, conns[0].describe_prepared("by id").nparams)
  conns[0].exec('DEALLOCATE "by id"')
  raises(PG::InvalidSqlStatementName) { conns[0].exec_prepared("by id", [1]) }
end
check("prepared_redefined") do
  conn.exec("CREATE TABLE #{PREFIX}_redefined AS SELECT 1 AS a")
  conn.prepare("redefined", "SELECT * FROM #{PREFIX}_redefined")
  conn.exec_prepared("redefined")
  open.exec("ALTER TABLE #{PREFIX}_redefined ADD COLUMN b int")
  begin
    conn.exec_prepared("redefined")
  rescue PG::FeatureNotSupported
    nil
  end
  conn.exec("DEALLOCATE redefined")
  conn.prepare("redefined", "SELECT * FROM #{PREFIX}_redefined")
  equal(2, conn.exec_prepared("redefined").nfields)
end
check("batch") do
  conn.enter_pipeline_mode
  100.times { |i| conn.send_query_params("SELECT $1::int", [i]) }
  conn.pipeline_sync
  100.times do |i|
    equal(i.to_s, conn.get_result.getvalue(0, 0))
    conn.get_result
  end
  equal(PG::PGRES_PIPELINE_SYNC, conn.get_result.result_status)
  conn.exit_pipeline_mode
end
check("insert_many") do
  conn.exec("CREATE TABLE #{PREFIX}_keys (id int GENERATED ALWAYS AS IDENTITY, body text)")
  equal(%w[1 2 3], conn.exec_params("INSERT INTO #{PREFIX}_keys (body) VALUES ($1), ($2), ($3) RETURNING id", ["a", "b", nil]).column_values(0))
end
check("empty") do
  ["", "-- nothing", ";"].each { |text| equal(PG::PGRES_EMPTY_QUERY, conn.exec(text).result_status) }
end
check("notice") do
  seen = []
  conn.set_notice_receiver { |result| seen << result.error_field(PG::PG_DIAG_SEVERITY) }
  conn.exec("DROP TABLE IF EXISTS #{PREFIX}_nothing")
  equal(["NOTICE"], seen)
end
check("refusal") do
  [[FOREIGN_WRITE, []], ["#{FOREIGN_WRITE} WHERE person_id = $1", ["x"]]].each do |text, values|
    result = raises(PG::InsufficientPrivilege) { conn.exec_params(text, values) }.result
    equal(["42501", FOREIGN_WRITE_MESSAGE, "13"],
          [PG::PG_DIAG_SQLSTATE, PG::PG_DIAG_MESSAGE_PRIMARY, PG::PG_DIAG_STATEMENT_POSITION].map { |field| result.error_field(field) })
    equal(true, result.error_field(PG::PG_DIAG_MESSAGE_HINT).include?("storage"))
    equal(true, result.error_field(PG::PG_DIAG_MESSAGE_DETAIL).include?("Rule target."))
  end
  equal("1", value(conn, "SELECT 1"))
end
check("server_error") do
  conn.exec("CREATE TABLE #{PREFIX}_unique (id int CONSTRAINT one_of_a_kind UNIQUE)")
  conn.exec("INSERT INTO #{PREFIX}_unique VALUES (1)")
  error = raises(PG::UniqueViolation) { conn.exec_params("INSERT INTO #{PREFIX}_unique VALUES ($1)", [1]) }
  equal("one_of_a_kind", error.result.error_field(PG::PG_DIAG_CONSTRAINT_NAME))
  equal("1", value(conn, "SELECT 1"))
end
check("listen") { equal(true, raises(PG::InsufficientPrivilege) { conn.exec("LISTEN a") }.message.include?("Poll a table")) }
check("transaction") do
  conn.exec("CREATE TABLE #{PREFIX}_transaction (id int)")
  conn.transaction { |tx| tx.exec("INSERT INTO #{PREFIX}_transaction VALUES (1)") }
  raises(ZeroDivisionError) do
    conn.transaction do |tx|
      tx.exec("INSERT INTO #{PREFIX}_transaction VALUES (2)")
      1 / 0
    end
  end
  conn.exec("BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY")
  raises(PG::ReadOnlySqlTransaction) { conn.exec("INSERT INTO #{PREFIX}_transaction VALUES (3)") }
  conn.exec("ROLLBACK")
  equal("1", value(conn, "SELECT count(*) FROM #{PREFIX}_transaction"))
end
check("refused_in_transaction") do
  raises(PG::InsufficientPrivilege) do
    conn.transaction do |tx|
      tx.exec("INSERT INTO #{PREFIX}_transaction VALUES (1000)")
      begin
        tx.exec(FOREIGN_WRITE)
      ensure
        equal(PG::PQTRANS_INERROR, tx.transaction_status)
        raises(PG::InFailedSqlTransaction) { tx.exec("SELECT 1") }
      end
    end
  end
  equal("1", value(conn, "SELECT count(*) FROM #{PREFIX}_transaction"))
end
check("refused_in_savepoint") do
  conn.transaction do |tx|
    tx.exec("SAVEPOINT here")
    raises(PG::InsufficientPrivilege) { tx.exec("CREATE TABLE unqualified (id int)") }
    tx.exec("ROLLBACK TO SAVEPOINT here")
    tx.exec("INSERT INTO #{PREFIX}_transaction VALUES (3)")
  end
  equal("2", value(conn, "SELECT count(*) FROM #{PREFIX}_transaction"))
end
check("refused_in_batch") do
  conn.enter_pipeline_mode
  conn.send_query_params("SELECT 1", [])
  conn.send_query_params(FOREIGN_WRITE, [])
  conn.send_query_params("SELECT 2", [])
  conn.pipeline_sync
  equal("1", conn.get_result.getvalue(0, 0))
  conn.get_result
  equal("42501", raises(PG::InsufficientPrivilege) { conn.get_result.check }.result.error_field(PG::PG_DIAG_SQLSTATE))
  conn.get_result
  equal(PG::PGRES_PIPELINE_ABORTED, conn.get_result.result_status)
  conn.get_result
  equal(PG::PGRES_PIPELINE_SYNC, conn.get_result.result_status)
  conn.exit_pipeline_mode
  equal("1", value(conn, "SELECT 1"))
end
check("copy_in") do
  conn.exec("CREATE TABLE #{PREFIX}_copy (id int, body text)")
  conn.copy_data("COPY #{PREFIX}_copy FROM STDIN") { 20_000.times { |i| conn.put_copy_data("#{i}\t東京\n") } }
  equal("20000", value(conn, "SELECT count(*) FROM #{PREFIX}_copy"))
end
check("copy_out") do
  lines = 0
  conn.copy_data("COPY #{PREFIX}_copy TO STDOUT") { lines += 1 while conn.get_copy_data }
  equal(20_000, lines)
end
check("copy_broken") do
  raises(PG::InvalidTextRepresentation) { conn.copy_data("COPY #{PREFIX}_copy FROM STDIN") { conn.put_copy_data("no number\tx\n") } }
  raises(ZeroDivisionError) do
    conn.copy_data("COPY #{PREFIX}_copy FROM STDIN") do
      conn.put_copy_data("1\tx\n")
      1 / 0
    end
  end
  # Not read to its end: the gem discards the rest and says so.
  raises(PG::NotAllCopyDataRetrieved) { conn.copy_data("COPY #{PREFIX}_copy TO STDOUT") { conn.get_copy_data } }
  equal("20000", value(conn, "SELECT count(*) FROM #{PREFIX}_copy"))
end
check("cancel") do
  canceller = Thread.new do
    sleep 0.3
    conn.cancel
  end
  raises(PG::QueryCanceled) { conn.exec(LONG) }
  canceller.join
  equal("1", value(conn, "SELECT 1"))
end
check("timeout") do
  conn.exec("SET statement_timeout = 300")
  raises(PG::QueryCanceled) { conn.exec(LONG) }
  conn.exec("RESET statement_timeout")
end
check("settings") do
  conns = [open, open, open]
  conns.each_with_index { |each, i| each.exec("SET extra_float_digits = #{i}") }
  5.times { equal(%w[0 1 2], conns.map { |each| value(each, "SHOW extra_float_digits") }) }
  # A reset is a new connection.
  conns[0].reset
  equal("1", value(conns[0], "SHOW extra_float_digits"))
end
check("introspection") do
  result = conn.exec("SELECT id, salary FROM dl_resolved.people LIMIT 0")
  equal([20, 3904], [result.ftype(0), result.ftype(1)])
  # The gem's maps of types read pg_type.
  PG::BasicTypeMapForQueries.new(conn)
end
check("pool") do
  # The gem has none; sessions in threads then.
  threads = 8.times.map do |i|
    Thread.new { open.tap { |each| 10.times { equal(i.to_s, value(each, "SELECT $1::int", [i])) } }.close }
  end
  threads.each(&:join)
end
check("rotation") do
  password = rotate
  equal("1", value(open(password: password), "SELECT 1"))
  equal(true, raises(PG::ConnectionBad) { open }.message.include?("password authentication failed"))
  equal(PEOPLE.to_s, value(conn, "SELECT count(*) FROM dl_resolved.people"))
end
