// node-postgres (`pg`), with its streams for cursors and COPY.
'use strict'

const assert = require('node:assert/strict')
const fs = require('node:fs')
const net = require('node:net')
const tls = require('node:tls')
const { Client, Pool } = require('pg')
const copy = require('pg-copy-streams')
const Cursor = require('pg-cursor')
const QueryStream = require('pg-query-stream')
const { pipeline } = require('node:stream/promises')
const { Readable } = require('node:stream')
const { tour, rotate, prefix, people, FOREIGN_WRITE, FOREIGN_WRITE_MESSAGE, LONG, STREAM, WIDE } = require('./tour')

const env = process.env
// Its own way with PGSSLMODE and its like differs from libpq's; so everything is said.
const options = {
  host: env.PGHOST, port: Number(env.PGPORT), database: env.PGDATABASE, user: env.PGUSER, password: env.PGPASSWORD,
  ssl: { ca: fs.readFileSync(env.PGSSLROOTCERT, 'utf8'), rejectUnauthorized: true }
}

async function open (changes = {}) {
  const client = new Client({ ...options, ...changes })
  client.on('error', () => {})
  await client.connect()
  return client
}

async function value (client, ...query) {
  return Object.values((await client.query(...query)).rows[0])[0]
}

// Cancels by hand, over TLS: node-postgres's own cancel() knows no TLS.
async function cancelRequest (client) {
  const raw = net.connect(options.port, '127.0.0.1')
  raw.write(Buffer.from([0, 0, 0, 8, 4, 210, 22, 47]))
  await new Promise((resolve) => raw.once('data', resolve))
  const secured = tls.connect({ socket: raw, ca: options.ssl.ca, servername: 'localhost' })
  await new Promise((resolve) => secured.once('secureConnect', resolve))
  const packet = Buffer.alloc(16)
  packet.writeInt32BE(16, 0)
  packet.writeInt32BE(80877102, 4)
  packet.writeInt32BE(client.processID, 8)
  packet.writeInt32BE(client.secretKey, 12)
  secured.resume()
  const ended = new Promise((resolve) => secured.once('end', resolve))
  secured.write(packet)
  await ended
}

const checks = {
  async connect (client) {
    assert.equal(client.connection.stream.authorized, true)
    assert.equal(await value(client, 'SELECT 1'), 1)
  },
  async channel_binding () {
    const client = await open({ enableChannelBinding: true })
    assert.equal(await value(client, 'SELECT 1'), 1)
    await client.end()
  },
  async wrong_authority () {
    await assert.rejects(open({ ssl: { ca: fs.readFileSync(env.PGOTHERCERT, 'utf8') } }), /certificate|self.signed/)
  },
  async no_tls () {
    await assert.rejects(open({ ssl: false }), { code: '28000' })
  },
  async wrong_password () {
    await assert.rejects(open({ password: 'wrong' }), { code: '28P01', message: /password authentication failed/ })
  },
  async unknown_database () {
    await assert.rejects(open({ database: 'postgres' }), { code: '3D000' })
  },
  async startup_options () {
    const client = await open({ application_name: 'tour', statement_timeout: 61000, options: '-c timezone=Asia/Tokyo' })
    assert.equal(await value(client, 'SHOW statement_timeout'), '61s')
    assert.equal(await value(client, 'SHOW timezone'), 'Asia/Tokyo')
    assert.equal(await value(client, 'SHOW application_name'), 'tour')
    await client.end()
  },
  async types (client) {
    const values = [
      ['boolean', true], ['smallint', -32768], ['integer', 2147483647], ['bigint', '-9223372036854775808'], ['real', 1.5],
      ['double precision', Infinity], ['numeric', '-12345678901234567890.0123456789'], ['text', 'Þóra 東京 🐘 \' " \\ \n\t $1'], ['text', ''],
      ['bytea', Buffer.from(Array.from({ length: 256 }, (_, i) => i))], ['uuid', '00112233-4455-6677-8899-aabbccddeeff'],
      ['timestamptz', new Date('2024-03-31T01:30:00Z')], ['int[]', [1, null, 3]], ['text[]', ['a,b', 'q"uote', null, '', 'NULL', '{}']],
      ['jsonb', { a: [1, null, 'ü'], b: { c: 1.5 } }], ['json', { x: 'y' }]
    ]
    await client.query(`CREATE TABLE ${prefix}_types (id int, ${values.map(([kind], i) => `c${i} ${kind}`).join(', ')})`)
    const insert = `INSERT INTO ${prefix}_types VALUES ($1, ${values.map((_, i) => `$${i + 2}`).join(', ')})`
    await client.query(insert, [1, ...values.map(([, value]) => value)])
    await client.query(insert, [2, ...values.map(() => null)])
    const { rows } = await client.query({ text: `SELECT * FROM ${prefix}_types ORDER BY id`, rowMode: 'array' })
    assert.deepEqual(rows[0].slice(1), values.map(([, value]) => value))
    assert.deepEqual(rows[1].slice(1), values.map(() => null))
    const binary = await client.query({ text: 'SELECT id, score, active FROM dl_resolved.people WHERE id = $1', values: [2], binary: true })
    assert.equal(binary.rows.length, 1)
  },
  async wide_rows (client) {
    const { rows } = await client.query(WIDE)
    assert.equal(rows.reduce((size, row) => size + row.y.length, 0), 5000000)
  },
  async large_result (client) {
    let size = 0
    for await (const row of client.query(new QueryStream(STREAM, [], { batchSize: 500 }))) size += row.x.length
    assert.equal(size, 20000000)
    const cursor = client.query(new Cursor('SELECT id FROM dl_resolved.people WHERE id > $1', [0]))
    assert.equal((await cursor.read(100)).length, 100)
    await cursor.close()
    assert.equal(await value(client, 'SELECT 1'), 1)
  },
  async prepared () {
    const clients = await Promise.all([open(), open(), open()])
    for (let i = 1; i < 13; i++) {
      await clients[i % 3].query('BEGIN')
      for (const client of clients) {
        const query = { name: 'by-id', text: 'SELECT person_id FROM dl_resolved.people WHERE id = $1', values: [i] }
        assert.equal(await value(client, query), `pe_${String(i).padStart(6, '0')}`)
      }
      await clients[i % 3].query('COMMIT')
    }
    await Promise.all(clients.map((client) => client.end()))
  },
  async prepared_redefined (client) {
    await client.query(`CREATE TABLE ${prefix}_redefined AS SELECT 1 AS a`)
    const query = { name: 'redefined', text: `SELECT * FROM ${prefix}_redefined` }
    await client.query(query)
    const other = await open()
    await other.query(`ALTER TABLE ${prefix}_redefined ADD COLUMN b int`)
    await other.end()
    await client.query(query).catch((error) => assert.equal(error.code, '0A000'))
    assert.deepEqual((await client.query({ ...query, name: 'redefined-again' })).rows, [{ a: 1, b: null }])
  },
  async batch (client) {
    const answers = await Promise.all(Array.from({ length: 200 }, (_, i) => client.query('SELECT $1::int AS n', [i])))
    assert.deepEqual(answers.map((answer) => answer.rows[0].n), Array.from({ length: 200 }, (_, i) => i))
  },
  async insert_many (client) {
    await client.query(`CREATE TABLE ${prefix}_keys (id int GENERATED ALWAYS AS IDENTITY, body text)`)
    const { rows } = await client.query(`INSERT INTO ${prefix}_keys (body) VALUES ($1), ($2), ($3) RETURNING id`, ['a', 'b', null])
    assert.deepEqual(rows.map((row) => row.id), [1, 2, 3])
  },
  async empty (client) {
    for (const text of ['', '-- nothing', ';']) {
      assert.deepEqual((await client.query(text)).rows, [])
      assert.deepEqual((await client.query({ text, values: [], queryMode: 'extended' })).rows, [])
    }
  },
  async notice (client) {
    const notices = []
    client.on('notice', (notice) => notices.push(notice.severity))
    await client.query(`DROP TABLE IF EXISTS ${prefix}_nothing`)
    assert.deepEqual(notices, ['NOTICE'])
  },
  async refusal (client) {
    for (const query of [[FOREIGN_WRITE], [`${FOREIGN_WRITE} WHERE person_id = $1`, ['x']]]) {
      await assert.rejects(client.query(...query), (error) => {
        assert.deepEqual([error.code, error.message, error.position], ['42501', FOREIGN_WRITE_MESSAGE, '13'])
        assert.match(error.detail, /Rule target\./)
        assert.match(error.hint, /storage/)
        return true
      })
    }
    assert.equal(await value(client, 'SELECT $1::int', [3]), 3)
  },
  async server_error (client) {
    await client.query(`CREATE TABLE ${prefix}_unique (id int CONSTRAINT one_of_a_kind UNIQUE)`)
    await client.query(`INSERT INTO ${prefix}_unique VALUES (1)`)
    await assert.rejects(client.query(`INSERT INTO ${prefix}_unique VALUES ($1)`, [1]), { code: '23505', constraint: 'one_of_a_kind' })
    assert.equal(await value(client, 'SELECT 1'), 1)
  },
  async listen (client) {
    await assert.rejects(client.query('LISTEN a'), { code: '42501', hint: /Poll a table/ })
  },
  async transaction (client) {
    await client.query(`CREATE TABLE ${prefix}_transaction (id int)`)
    for (const end of ['COMMIT', 'ROLLBACK']) {
      await client.query('BEGIN ISOLATION LEVEL SERIALIZABLE')
      await client.query(`INSERT INTO ${prefix}_transaction VALUES ($1)`, [1])
      await client.query(end)
    }
    assert.equal(await value(client, `SELECT count(*) FROM ${prefix}_transaction`), '1')
    await client.query('BEGIN READ ONLY')
    await assert.rejects(client.query(`INSERT INTO ${prefix}_transaction VALUES (2)`), { code: '25006' })
    await client.query('ROLLBACK')
  },
  async refused_in_transaction (client) {
    await client.query('BEGIN')
    await client.query(`INSERT INTO ${prefix}_transaction VALUES (1000)`)
    await assert.rejects(client.query(FOREIGN_WRITE), { code: '42501' })
    await assert.rejects(client.query('SELECT $1::int', [1]), { code: '25P02' })
    await client.query('ROLLBACK')
    assert.equal(await value(client, `SELECT count(*) FROM ${prefix}_transaction`), '1')
  },
  async refused_in_savepoint (client) {
    await client.query('BEGIN')
    await client.query('SAVEPOINT here')
    await assert.rejects(client.query('CREATE TABLE unqualified (id int)'), { code: '42501' })
    await client.query('ROLLBACK TO SAVEPOINT here')
    await client.query(`INSERT INTO ${prefix}_transaction VALUES (3)`)
    await client.query('COMMIT')
    assert.equal(await value(client, `SELECT count(*) FROM ${prefix}_transaction`), '2')
  },
  async refused_in_batch (client) {
    const answers = await Promise.allSettled([
      client.query('SELECT 1'), client.query(`${FOREIGN_WRITE} WHERE person_id = $1`, ['x']), client.query('SELECT $1::int', [2])])
    assert.deepEqual(answers.map(({ status, reason }) => reason?.code ?? status), ['fulfilled', '42501', 'fulfilled'])
    await assert.rejects(client.query(`BEGIN; ${FOREIGN_WRITE}; COMMIT`), { code: '42501' })
    await client.query('ROLLBACK')
  },
  async copy_in (client) {
    await client.query(`CREATE TABLE ${prefix}_copy (id int, body text)`)
    const lines = Readable.from((function * () { for (let i = 0; i < 20000; i++) yield `${i}\t東京\n` })())
    await pipeline(lines, client.query(copy.from(`COPY ${prefix}_copy FROM STDIN`)))
    assert.equal(await value(client, `SELECT count(*) FROM ${prefix}_copy`), '20000')
  },
  async copy_out (client) {
    let lines = 0
    for await (const chunk of client.query(copy.to(`COPY ${prefix}_copy TO STDOUT`))) lines += chunk.toString().split('\n').length - 1
    assert.equal(lines, 20000)
  },
  async copy_broken (client) {
    for (const [data, wanted] of [['no number\tx\n', '22P02'], [null, '57014']]) {
      const broken = client.query(copy.from(`COPY ${prefix}_copy FROM STDIN`))
      const failed = new Promise((resolve) => broken.once('error', resolve))
      broken.write(data ?? '1\tx\n')
      if (data) broken.end()
      else broken.destroy()
      assert.equal((await failed).code, wanted)
    }
    assert.equal(await value(client, `SELECT count(*) FROM ${prefix}_copy`), '20000')
  },
  async cancel (client) {
    const running = client.query(LONG)
    setTimeout(() => cancelRequest(client), 300)
    await assert.rejects(running, { code: '57014' })
    assert.equal(await value(client, 'SELECT 1'), 1)
  },
  async timeout () {
    const client = await open({ statement_timeout: 300 })
    await assert.rejects(client.query(LONG), { code: '57014' })
    assert.equal(await value(client, 'SELECT 1'), 1)
    await client.end()
    // The driver's own: it gives up, and the connection with it.
    const impatient = await open({ query_timeout: 300 })
    await assert.rejects(impatient.query(LONG), /timeout/)
    impatient.connection.stream.destroy()
  },
  async settings () {
    const clients = await Promise.all([open(), open(), open()])
    await Promise.all(clients.map((client, i) => client.query(`SET extra_float_digits = ${i}`)))
    for (let i = 0; i < 5; i++) {
      assert.deepEqual(await Promise.all(clients.map((client) => value(client, 'SHOW extra_float_digits'))), ['0', '1', '2'])
    }
    await Promise.all(clients.map((client) => client.end()))
  },
  async introspection (client) {
    const { rows } = await client.query("SELECT table_name FROM information_schema.tables WHERE table_schema = 'dl_resolved' ORDER BY 1")
    assert.deepEqual(rows.map((row) => row.table_name), ['companies', 'people'])
    const { fields } = await client.query('SELECT id, salary FROM dl_resolved.people LIMIT 0')
    assert.deepEqual(fields.map((field) => [field.name, field.dataTypeID]), [['id', 20], ['salary', 3904]])
  },
  async pool () {
    const pool = new Pool({ ...options, max: 8 })
    const answers = await Promise.all(Array.from({ length: 100 }, (_, i) => pool.query('SELECT $1::int AS n', [i])))
    assert.deepEqual(answers.map((answer) => answer.rows[0].n), Array.from({ length: 100 }, (_, i) => i))
    await pool.end()
  },
  async rotation (client) {
    const password = await rotate()
    const fresh = await open({ password })
    assert.equal(await value(fresh, 'SELECT 1'), 1)
    await fresh.end()
    await assert.rejects(open(), { code: '28P01' })
    assert.equal(await value(client, 'SELECT count(*)::int FROM dl_resolved.people'), people)
  }
}

tour('node-pg', require('pg/package.json').version, checks, { open, close: (client) => client.end() })
