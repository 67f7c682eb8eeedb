// postgres.js (`postgres`): everything is pipelined, statements are prepared by themselves, COPY goes by the extended protocol.
'use strict'

const assert = require('node:assert/strict')
const fs = require('node:fs')
const postgres = require('postgres')
const { pipeline } = require('node:stream/promises')
const { Readable } = require('node:stream')
const { tour, rotate, prefix, people, FOREIGN_WRITE, FOREIGN_WRITE_MESSAGE, LONG, STREAM, WIDE } = require('./tour')

const env = process.env
const ca = fs.readFileSync(env.PGSSLROOTCERT, 'utf8')

function connect (changes = {}) {
  return postgres({ max: 1, onnotice: () => {}, ssl: { ca, rejectUnauthorized: true }, ...changes })
}

async function refused (changes, wanted) {
  const sql = connect(changes)
  await assert.rejects(sql`SELECT 1`.execute(), wanted)
  await sql.end({ timeout: 1 })
}

const checks = {
  async connect (sql) {
    assert.deepEqual([...await sql`SELECT 1 AS n`], [{ n: 1 }])
    assert.equal(sql.parameters.standard_conforming_strings, 'on')
  },
  wrong_authority: () => refused({ ssl: { ca: fs.readFileSync(env.PGOTHERCERT, 'utf8') } }, /certificate|self.signed/),
  no_tls: () => refused({ ssl: false }, { code: '28000' }),
  wrong_password: () => refused({ password: 'wrong' }, { code: '28P01', message: /password authentication failed/ }),
  unknown_database: () => refused({ database: 'postgres' }, { code: '3D000' }),
  async startup_options () {
    const sql = connect({ max: 3, connection: { application_name: 'tour', timezone: 'Asia/Tokyo', statement_timeout: 61000 } })
    for (let i = 0; i < 6; i++) {
      assert.deepEqual((await sql`SHOW timezone`)[0].TimeZone, 'Asia/Tokyo')
      assert.deepEqual((await sql`SHOW statement_timeout`)[0].statement_timeout, '61s')
    }
    await sql.end()
  },
  async types (sql) {
    const values = [
      ['boolean', true], ['smallint', -32768], ['integer', 2147483647], ['bigint', '-9223372036854775808'], ['real', 1.5],
      ['double precision', Infinity], ['numeric', '-12345678901234567890.0123456789'], ['text', 'Þóra 東京 🐘 \' " \\ \n\t $1'], ['text', ''],
      ['bytea', Buffer.from(Array.from({ length: 256 }, (_, i) => i))], ['uuid', '00112233-4455-6677-8899-aabbccddeeff'],
      ['timestamptz', new Date('2024-03-31T01:30:00Z')], ['int[]', [1, 2, 3]], ['text[]', ['a,b', 'q"uote', '', '{}']],
      ['jsonb', { a: [1, null, 'ü'], b: { c: 1.5 } }], ['json', { x: 'y' }]
    ]
    await sql.unsafe(`CREATE TABLE ${prefix}_types (id int, ${values.map(([kind], i) => `c${i} ${kind}`).join(', ')})`)
    const insert = `INSERT INTO ${prefix}_types VALUES ($1, ${values.map((_, i) => `$${i + 2}`).join(', ')})`
    await sql.unsafe(insert, [1, ...values.map(([, value]) => value)])
    await sql.unsafe(insert, [2, ...values.map(() => null)])
    const rows = await sql.unsafe(`SELECT * FROM ${prefix}_types ORDER BY id`).values()
    assert.deepEqual(rows[0].slice(1), values.map(([, value]) => value))
    assert.deepEqual(rows[1].slice(1), values.map(() => null))
  },
  async wide_rows (sql) {
    assert.equal((await sql.unsafe(WIDE)).reduce((size, row) => size + row.y.length, 0), 5000000)
  },
  async large_result (sql) {
    let size = 0
    for await (const rows of sql.unsafe(STREAM, [], { prepare: true }).cursor(500)) size += rows.reduce((sum, row) => sum + row.x.length, 0)
    assert.equal(size, 20000000)
    let seen = 0
    await sql`SELECT id FROM dl_resolved.people`.forEach(() => { seen++ })
    assert.equal(seen, people)
    // A cursor that is given up closes its portal.
    for await (const [row] of sql`SELECT id FROM dl_resolved.people ORDER BY id`.cursor()) { assert.equal(row.id, '1'); break }
    assert.equal((await sql`SELECT 1 AS n`)[0].n, 1)
  },
  async prepared () {
    const clients = [connect(), connect(), connect()]
    for (let i = 1; i < 13; i++) {
      await clients[i % 3].begin(async (holder) => {
        await holder`SELECT 1`
        for (const [j, client] of clients.entries()) {
          const sql = j === i % 3 ? holder : client
          const [row] = await sql`SELECT person_id FROM dl_resolved.people WHERE id = ${i}`
          assert.equal(row.person_id, `pe_${String(i).padStart(6, '0')}`)
        }
      })
    }
    await Promise.all(clients.map((client) => client.end()))
  },
  async prepared_redefined (sql) {
    await sql.unsafe(`CREATE TABLE ${prefix}_redefined AS SELECT 1 AS a`)
    const ask = () => sql.unsafe(`SELECT * FROM ${prefix}_redefined`, [], { prepare: true })
    assert.deepEqual([...await ask()], [{ a: 1 }])
    const other = connect()
    await other.unsafe(`ALTER TABLE ${prefix}_redefined ADD COLUMN b int`)
    await other.end()
    // It tries again by itself where it knows the error; otherwise the second time works.
    await ask().catch((error) => assert.equal(error.code, '0A000'))
    assert.deepEqual([...await ask()], [{ a: 1, b: null }])
  },
  async batch (sql) {
    const answers = await Promise.all(Array.from({ length: 200 }, (_, i) => sql`SELECT ${i}::int AS n`))
    assert.deepEqual(answers.map((rows) => rows[0].n), Array.from({ length: 200 }, (_, i) => i))
  },
  async insert_many (sql) {
    await sql.unsafe(`CREATE TABLE ${prefix}_keys (id int GENERATED ALWAYS AS IDENTITY, body text)`)
    const rows = [{ body: 'a' }, { body: 'b' }, { body: null }]
    const made = await sql`INSERT INTO ${sql(`${prefix}_keys`)} ${sql(rows)} RETURNING id`
    assert.deepEqual(made.map((row) => row.id), [1, 2, 3])
  },
  async empty (sql) {
    for (const text of ['', '-- nothing', ';']) assert.equal((await sql.unsafe(text)).length, 0)
    assert.equal((await sql`SELECT 1 AS n`)[0].n, 1)
  },
  async notice () {
    const notices = []
    const sql = connect({ onnotice: (notice) => notices.push(notice.severity) })
    await sql.unsafe(`DROP TABLE IF EXISTS ${prefix}_nothing`)
    assert.deepEqual(notices, ['NOTICE'])
    await sql.end()
  },
  async refusal (sql) {
    for (const query of [() => sql.unsafe(FOREIGN_WRITE), () => sql.unsafe(`${FOREIGN_WRITE} WHERE person_id = $1`, ['x'])]) {
      await assert.rejects(query(), (error) => {
        assert.deepEqual([error.code, error.message, error.position], ['42501', FOREIGN_WRITE_MESSAGE, '13'])
        assert.match(error.detail, /Rule target\./)
        assert.match(error.hint, /storage/)
        return true
      })
    }
    assert.equal((await sql`SELECT ${3}::int AS n`)[0].n, 3)
  },
  async server_error (sql) {
    await sql.unsafe(`CREATE TABLE ${prefix}_unique (id int CONSTRAINT one_of_a_kind UNIQUE)`)
    await sql.unsafe(`INSERT INTO ${prefix}_unique VALUES (1)`)
    await assert.rejects(sql.unsafe(`INSERT INTO ${prefix}_unique VALUES ($1)`, [1]), { code: '23505', constraint_name: 'one_of_a_kind' })
  },
  async listen () {
    const sql = connect()
    await assert.rejects(sql.listen('a', () => {}), { code: '42501' })
    await assert.rejects(sql`LISTEN a`, { code: '42501', hint: /Poll a table/ })
    await sql.end({ timeout: 1 })
  },
  async transaction (sql) {
    await sql.unsafe(`CREATE TABLE ${prefix}_transaction (id int)`)
    const insert = (sql) => sql.unsafe(`INSERT INTO ${prefix}_transaction VALUES ($1)`, [1])
    await sql.begin('ISOLATION LEVEL SERIALIZABLE', (sql) => insert(sql))
    await assert.rejects(sql.begin(async (sql) => { await insert(sql); throw new Error('undone') }), /undone/)
    await assert.rejects(sql.begin('READ ONLY', (sql) => insert(sql)), { code: '25006' })
    assert.equal((await sql.unsafe(`SELECT count(*)::int AS n FROM ${prefix}_transaction`))[0].n, 1)
  },
  async refused_in_transaction (sql) {
    const both = sql.begin(async (sql) => {
      await sql.unsafe(`INSERT INTO ${prefix}_transaction VALUES (1000)`)
      await assert.rejects(sql.unsafe(FOREIGN_WRITE), { code: '42501' })
      await assert.rejects(sql`SELECT ${1}::int`, { code: '25P02' })
    })
    await assert.rejects(both, { code: /42501|25P02/ })
    assert.equal((await sql.unsafe(`SELECT count(*)::int AS n FROM ${prefix}_transaction`))[0].n, 1)
  },
  async refused_in_savepoint (sql) {
    await sql.begin(async (sql) => {
      await assert.rejects(sql.savepoint((sql) => sql.unsafe('CREATE TABLE unqualified (id int)')), { code: '42501' })
      await sql.unsafe(`INSERT INTO ${prefix}_transaction VALUES (3)`)
    })
    assert.equal((await sql.unsafe(`SELECT count(*)::int AS n FROM ${prefix}_transaction`))[0].n, 2)
  },
  async refused_in_batch (sql) {
    const answers = await Promise.allSettled([sql`SELECT 1`, sql.unsafe(`${FOREIGN_WRITE} WHERE person_id = $1`, ['x']), sql`SELECT ${2}::int`])
    assert.deepEqual(answers.map(({ status, reason }) => reason?.code ?? status), ['fulfilled', '42501', 'fulfilled'])
    const together = sql.begin((sql) => [sql`SELECT 1`, sql.unsafe(FOREIGN_WRITE), sql`SELECT ${2}::int`])
    await assert.rejects(together, { code: '42501' })
    assert.equal((await sql`SELECT 1 AS n`)[0].n, 1)
  },
  async copy_in (sql) {
    await sql.unsafe(`CREATE TABLE ${prefix}_copy (id int, body text)`)
    const lines = Readable.from((function * () { for (let i = 0; i < 20000; i++) yield `${i}\t東京\n` })())
    await pipeline(lines, await sql.unsafe(`COPY ${prefix}_copy FROM STDIN`).writable())
    assert.equal((await sql.unsafe(`SELECT count(*)::int AS n FROM ${prefix}_copy`))[0].n, 20000)
  },
  async copy_out (sql) {
    let lines = 0
    for await (const chunk of await sql.unsafe(`COPY ${prefix}_copy TO STDOUT`).readable()) lines += chunk.toString().split('\n').length - 1
    assert.equal(lines, 20000)
  },
  async copy_broken (sql) {
    // A wrong row is nothing that it tells of (its stream then neither fails nor ends, with any server).
    const givenUp = await sql.unsafe(`COPY ${prefix}_copy FROM STDIN`).writable()
    givenUp.on('error', () => {})
    givenUp.write('1\tx\n')
    const closed = new Promise((resolve) => givenUp.once('close', resolve))
    givenUp.destroy(new Error('given up'))
    await closed
    assert.equal((await sql.unsafe(`SELECT count(*)::int AS n FROM ${prefix}_copy`))[0].n, 20000)
  },
  async cancel (sql) {
    const running = sql.unsafe(LONG)
    setTimeout(() => running.cancel(), 300)
    await assert.rejects(running.execute(), { code: '57014' })
    assert.equal((await sql`SELECT 1 AS n`)[0].n, 1)
  },
  async timeout () {
    const sql = connect({ connection: { statement_timeout: 300 } })
    await assert.rejects(sql.unsafe(LONG), { code: '57014' })
    await sql.end()
  },
  async settings () {
    const clients = [connect(), connect(), connect()]
    for (const [i, sql] of clients.entries()) await sql.unsafe(`SET extra_float_digits = ${i}`)
    for (let i = 0; i < 5; i++) {
      const shown = await Promise.all(clients.map((sql) => sql`SHOW extra_float_digits`))
      assert.deepEqual(shown.map((rows) => rows[0].extra_float_digits), ['0', '1', '2'])
    }
    await Promise.all(clients.map((sql) => sql.end()))
  },
  async introspection () {
    // It reads pg_type for arrays when it connects.
    const sql = connect({ fetch_types: true })
    assert.deepEqual((await sql`SELECT ARRAY[1, 2]::int[] AS a`)[0].a, [1, 2])
    const { columns } = await sql`SELECT id, salary FROM dl_resolved.people`.describe()
    assert.deepEqual(columns.map((column) => [column.name, column.type]), [['id', 20], ['salary', 3904]])
    await sql.end()
  },
  async pool () {
    const sql = connect({ max: 6, idle_timeout: 1 })
    const answers = await Promise.all(Array.from({ length: 100 }, (_, i) => sql`SELECT ${i}::int AS n`))
    assert.deepEqual(answers.map((rows) => rows[0].n), Array.from({ length: 100 }, (_, i) => i))
    const reserved = await sql.reserve()
    await reserved`SELECT 1`
    reserved.release()
    await sql.end()
  },
  async rotation (sql) {
    const password = await rotate()
    const fresh = connect({ password })
    assert.equal((await fresh`SELECT 1 AS n`)[0].n, 1)
    await fresh.end()
    await refused({}, { code: '28P01' })
    assert.equal((await sql`SELECT count(*)::int AS n FROM dl_resolved.people`)[0].n, people)
  }
}

tour('postgres.js', JSON.parse(fs.readFileSync(require.resolve('postgres').replace(/cjs.src.index.js$/, 'package.json'))).version, checks, {
  async open () {
    const sql = connect()
    await sql`SELECT 1`
    return sql
  },
  close: (sql) => sql.end({ timeout: 1 }),
  notApplicable: { channel_binding: 'postgres.js speaks SCRAM-SHA-256 without channel binding' }
})
