# ActiveRecord on the `pg` gem: its introspection, its prepared statements, its transactions and its pool.
require "active_record"
require_relative "tour"

driver("activerecord", ActiveRecord.version.to_s)
CONFIG = { adapter: "postgresql", host: ENV["PGHOST"], port: ENV["PGPORT"], database: ENV["PGDATABASE"], username: ENV["PGUSER"],
           password: ENV["PGPASSWORD"], sslmode: "verify-full", sslrootcert: ENV["PGSSLROOTCERT"], schema_search_path: "storage",
           pool: 6 }.freeze

class Note < ActiveRecord::Base
  self.table_name = "#{PREFIX}_notes"
end

class Person < ActiveRecord::Base
  self.table_name = "dl_resolved.people"
  self.primary_key = "id"
end

def connect(**changes)
  ActiveRecord::Base.establish_connection(CONFIG.merge(changes))
  ActiveRecord::Base.connection
end

def refused_connection(words, **changes)
  error = raises(StandardError) { connect(**changes).select_value("SELECT 1") }
  equal(true, error.message.include?(words))
ensure
  connect
end

def state(kind, code)
  error = raises(kind) { yield }
  equal(code, error.cause.result.error_field(PG::PG_DIAG_SQLSTATE))
  error
end

db = connect

check("connect") { equal(1, db.select_value("SELECT 1")) }
check("channel_binding") { equal(1, connect(channel_binding: "require").select_value("SELECT 1")) }
check("wrong_authority") { refused_connection("certificate verify failed", sslrootcert: ENV["PGOTHERCERT"]) }
check("no_tls") { refused_connection("encrypted connections only", sslmode: "disable") }
check("wrong_password") { refused_connection("password authentication failed", password: "wrong") }
check("unknown_database") { refused_connection("postgres", database: "postgres") }
check("startup_options") do
  other = connect(variables: { statement_timeout: "61s" }, options: "-c timezone=Asia/Tokyo")
  equal("61s", other.select_value("SHOW statement_timeout"))
end
db = connect
check("types") do
  db.create_table("#{PREFIX}_notes") do |t|
    t.boolean :a
    t.bigint :b
    t.float :c
    t.decimal :d
    t.text :body
    t.binary :e
    t.jsonb :f
    t.uuid :g
    t.datetime :h
    t.integer :i, array: true
    t.string :j, array: true
    t.date :k
  end
  values = { a: true, b: -(2**63), c: 1.5, d: BigDecimal("-12345678901234567890.0123456789"), body: TEXT, e: (0..255).to_a.pack("C*"),
             f: { "a" => [1, nil, "ü"] }, g: "00112233-4455-6677-8899-aabbccddeeff", h: Time.utc(2024, 3, 31, 1, 30), i: [1, nil, 3],
             j: ["a,b", 'q"uote', nil, "", "NULL"], k: Date.new(2024, 2, 29) }
  id = Note.create!(values).id
  values.each { |name, value| equal(value, Note.find(id)[name]) }
  equal([nil] * 12, Note.find(Note.create!.id).attributes.values[1..])
end
check("wide_rows") { equal(5_000_000, db.select_rows(WIDE).sum { |row| row[1].size }) }
check("large_result") do
  seen = 0
  Person.in_batches(of: 1000) { |people| seen += people.pluck(:full_name).size }
  equal(PEOPLE, seen)
  equal(20_000_000, db.select_rows(STREAM).sum { |row| row[1].size })
end
check("prepared") do
  # The statements of the adapter's cache, by threads that share the gate's connections.
  4.times.map do
    Thread.new do
      ActiveRecord::Base.connection_pool.with_connection { (1..20).each { |i| equal(format("pe_%06d", i), Person.find(i).person_id) } }
    end
  end.each(&:join)
end
check("prepared_redefined") do
  Note.first
  db.add_column("#{PREFIX}_notes", :added, :integer)
  # Outside of a transaction the adapter prepares it anew by itself.
  Note.connection.clear_query_cache
  equal(true, Note.first.present?)
end
check("batch") { equal(500, Note.insert_all!(Array.new(500) { |i| { body: "row #{i}" } }).length) }
check("insert_many") do
  made = Note.insert_all([{ body: "x" }, { body: "y" }], returning: [:id])
  equal(2, made.rows.flatten.uniq.size)
  equal(1, Note.upsert_all([{ id: made.rows[0][0], body: "z" }]).length)
end
check("empty") { [";", "-- nothing"].each { |text| db.execute(text) } }
check("notice") do
  seen = []
  db.raw_connection.set_notice_receiver { |result| seen << result.error_field(PG::PG_DIAG_SEVERITY) }
  db.drop_table("#{PREFIX}_nothing", if_exists: true)
  # Rails asks for warnings only.
  db.execute("SET client_min_messages TO notice")
  db.execute("DROP TABLE IF EXISTS #{PREFIX}_nothing")
  equal(["NOTICE"], seen)
end
check("refusal") do
  error = state(ActiveRecord::StatementInvalid, "42501") { db.execute(FOREIGN_WRITE) }
  equal(true, error.message.include?(FOREIGN_WRITE_MESSAGE) && error.message.include?("HINT:"))
  state(ActiveRecord::StatementInvalid, "42501") { Person.where(id: 1).update_all(title: "x") }
  equal(1, db.select_value("SELECT 1"))
end
check("server_error") do
  db.add_index("#{PREFIX}_notes", :g, unique: true)
  state(ActiveRecord::RecordNotUnique, "23505") { Note.create!(g: "00112233-4455-6677-8899-aabbccddeeff") }
  equal(1, db.select_value("SELECT 1"))
end
check("listen") { state(ActiveRecord::StatementInvalid, "42501") { db.execute("LISTEN a") } }
check("transaction") do
  count = Note.count
  Note.transaction(isolation: :serializable) { Note.create!(body: "kept") }
  Note.transaction do
    Note.create!(body: "lost")
    raise ActiveRecord::Rollback
  end
  equal(count + 1, Note.count)
end
check("refused_in_transaction") do
  count = Note.count
  state(ActiveRecord::StatementInvalid, "42501") do
    Note.transaction do
      Note.create!(body: "lost")
      db.execute(FOREIGN_WRITE)
    end
  end
  equal(count, Note.count)
end
check("refused_in_savepoint") do
  count = Note.count
  Note.transaction do
    state(ActiveRecord::StatementInvalid, "42501") { Note.transaction(requires_new: true) { db.execute("CREATE TABLE unqualified (id int)") } }
    Note.create!(body: "kept")
  end
  equal(count + 1, Note.count)
end
check("refused_in_batch") do
  state(ActiveRecord::StatementInvalid, "42501") { db.execute("BEGIN; #{FOREIGN_WRITE}; COMMIT") }
  db.execute("ROLLBACK")
end
%w[copy_in copy_out copy_broken].each { |name| not_applicable(name, "ActiveRecord has no COPY of its own; the gem's is in the matrix") }
not_applicable("cancel", "ActiveRecord has no cancel of its own; the gem's is in the matrix")
check("timeout") do
  db.execute("SET statement_timeout = 300")
  state(ActiveRecord::QueryCanceled, "57014") { db.execute(LONG) }
  db.execute("RESET statement_timeout")
end
check("settings") do
  db.execute("SET extra_float_digits = 2")
  4.times.map { Thread.new { ActiveRecord::Base.connection_pool.with_connection { |each| equal("1", each.select_value("SHOW extra_float_digits")) } } }.each(&:join)
  equal("2", db.select_value("SHOW extra_float_digits"))
  db.reset!
  equal("1", db.select_value("SHOW extra_float_digits"))
end
check("introspection") do
  equal(true, db.tables.include?("#{PREFIX.delete_prefix("storage.")}_notes"))
  equal(14, db.columns("dl_resolved.people").size)
  equal("id", db.primary_key("#{PREFIX}_notes"))
  equal(1, db.indexes("#{PREFIX}_notes").size)
  equal([], db.foreign_keys("#{PREFIX}_notes"))
  equal(true, db.schema_exists?("dl_resolved") && db.data_source_exists?("dl_resolved.companies") && db.views.is_a?(Array))
  equal(true, db.postgresql_version >= 140_000 && db.extensions.is_a?(Array))
end
check("pool") do
  answers = 12.times.map { |i| Thread.new { ActiveRecord::Base.connection_pool.with_connection { |each| each.select_value("SELECT #{i}") } } }
  equal((0...12).to_a, answers.map(&:value))
  ActiveRecord::Base.connection_pool.disconnect!
  db = ActiveRecord::Base.connection
end
check("rotation") do
  password = rotate
  equal(PEOPLE, Person.count)
  refused = raises(StandardError) { PG.connect }
  equal(true, refused.message.include?("password authentication failed"))
  equal(PEOPLE, connect(password: password) && Person.count)
end
