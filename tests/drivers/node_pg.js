// node-postgres through the gate. Gets its URI without sslmode in PORTCULLIS_URI_PLAIN and the authority in PORTCULLIS_CA.
'use strict'

const assert = require('node:assert/strict')
const fs = require('node:fs')
const net = require('node:net')
const tls = require('node:tls')
const { Client, Pool } = require('pg')
const copy = require('pg-copy-streams')
const QueryStream = require('pg-query-stream')
const { pipeline } = require('node:stream/promises')
const { Readable } = require('node:stream')

const ca = fs.readFileSync(process.env.PORTCULLIS_CA, 'utf8')
const options = { connectionString: process.env.PORTCULLIS_URI_PLAIN, ssl: { ca, rejectUnauthorized: true } }

const FOREIGN_WRITE = 'DELETE FROM dl_cache.person_enrichments'
const FOREIGN_WRITE_MESSAGE = 'Customer DB writes are only allowed for schema-qualified storage tables.'
const LONG = 'SELECT count(*) FROM (SELECT generate_series(1, 100000000000)) AS s'

// Cancels by hand, over TLS: node-postgres's own cancel() knows no TLS.
async function cancelRequest (client) {
  const raw = net.connect(client.port, '127.0.0.1')
  const sslRequest = Buffer.from([0, 0, 0, 8, 4, 210, 22, 47])
  raw.write(sslRequest)
  await new Promise((resolve) => raw.once('data', resolve))
  const secured = tls.connect({ socket: raw, ca, servername: 'localhost' })
  await new Promise((resolve) => secured.once('secureConnect', resolve))
  const packet = Buffer.alloc(16)
  packet.writeInt32BE(16, 0)
  packet.writeInt32BE(80877102, 4)
  packet.writeInt32BE(client.processID, 8)
  packet.writeInt32BE(client.secretKey, 12)
  secured.write(packet)
  await new Promise((resolve) => secured.once('close', resolve))
}

const checks = {
  async parameterisedQuery (client) {
    const { rows } = await client.query('SELECT person_id FROM dl_resolved.people WHERE id = $1', [7])
    assert.equal(rows[0].person_id, 'pe_000007')
  },
  async namedPreparedStatements (client) {
    for (let i = 1; i < 20; i++) {
      const { rows } = await client.query({ name: 'by-id', text: 'SELECT id FROM dl_resolved.people WHERE id = $1', values: [i] })
      assert.equal(rows[0].id, String(i))
    }
  },
  async introspection (client) {
    const { rows } = await client.query("SELECT table_name FROM information_schema.tables WHERE table_schema = 'dl_resolved' ORDER BY 1")
    assert.deepEqual(rows.map((row) => row.table_name), ['companies', 'people'])
  },
  async writesToStorage (client) {
    await client.query('CREATE TABLE storage.node (id int PRIMARY KEY, body text)')
    const { rows } = await client.query('INSERT INTO storage.node VALUES ($1, $2) RETURNING body', [1, 'Þóra'])
    assert.equal(rows[0].body, 'Þóra')
  },
  async refusalInATransaction (client) {
    await client.query('BEGIN')
    await client.query("INSERT INTO storage.node VALUES (2, 'lost')")
    await assert.rejects(client.query(FOREIGN_WRITE), (error) => {
      assert.equal(error.code, '42501')
      assert.equal(error.message, FOREIGN_WRITE_MESSAGE)
      assert.ok(error.hint && error.detail)
      return true
    })
    await assert.rejects(client.query('SELECT 1'), { code: '25P02' })
    await client.query('ROLLBACK')
    const { rows } = await client.query('SELECT count(*)::int AS n FROM storage.node')
    assert.equal(rows[0].n, 1)
  },
  async refusalOfParameters (client) {
    await assert.rejects(client.query('UPDATE dl_cache.person_enrichments SET title = $1', ['x']), { code: '42501' })
    assert.equal((await client.query('SELECT $1::int AS n', [3])).rows[0].n, 3)
  },
  async cancel (client) {
    const running = client.query(LONG)
    setTimeout(() => cancelRequest(client), 500)
    await assert.rejects(running, { code: '57014' })
    assert.equal((await client.query('SELECT 1 AS n')).rows[0].n, 1)
  },
  async copyBothWays (client) {
    await client.query('CREATE TABLE storage.node_copy (id int, body text)')
    const lines = Readable.from((function * () { for (let i = 0; i < 20000; i++) yield `${i}\trow ${i}\n` })())
    await pipeline(lines, client.query(copy.from('COPY storage.node_copy FROM STDIN')))
    let size = 0
    for await (const chunk of client.query(copy.to('COPY storage.node_copy TO STDOUT'))) size += chunk.toString().split('\n').length - 1
    assert.equal(size, 20000)
  },
  async copyThatTheClientFails (client) {
    const broken = client.query(copy.from('COPY storage.node_copy FROM STDIN'))
    const ended = new Promise((resolve) => broken.once('close', resolve))
    let code
    broken.on('error', (error) => { code = error.code })
    broken.write('1\tx\n')
    broken.destroy()
    await ended
    assert.equal(code, '57014')
    const { rows } = await client.query('SELECT count(*)::int AS n FROM storage.node_copy')
    assert.equal(rows[0].n, 20000)
  },
  async portalsInPieces (client) {
    let count = 0
    for await (const _ of client.query(new QueryStream('SELECT id FROM dl_resolved.people WHERE id > $1', [0], { batchSize: 100 }))) count++
    assert.equal(count, 4980)
  },
  async largeResult (client) {
    const { rows } = await client.query("SELECT i, repeat('x', 1000) AS x FROM generate_series(1, 50000) AS i")
    assert.equal(rows.reduce((size, row) => size + row.x.length, 0), 50000000)
  },
  async aPool () {
    const pool = new Pool({ ...options, max: 10 })
    const answers = await Promise.all(Array.from({ length: 200 }, (_, i) => pool.query('SELECT $1::int AS n', [i])))
    assert.deepEqual(answers.map((answer) => answer.rows[0].n), Array.from({ length: 200 }, (_, i) => i))
    await pool.end()
  }
}

async function main () {
  let failed = 0
  const client = new Client(options)
  await client.connect()
  for (const [name, run] of Object.entries(checks)) {
    try {
      await run(client)
      console.log(`ok ${name}`)
    } catch (error) {
      failed++
      console.log(`FAILED ${name}`, error)
      await client.query('ROLLBACK').catch(() => {})
    }
  }
  await client.end()
  process.exit(failed ? 1 : 0)
}

main().catch((error) => { console.log('FAILED', error); process.exit(1) })
