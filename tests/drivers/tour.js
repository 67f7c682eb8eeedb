// What the Node.js programs of the matrix share: the texts, and how a check reports. See checks.toml.
'use strict'

const readline = require('node:readline')
const { inspect } = require('node:util')

const { FOREIGN_WRITE, FOREIGN_WRITE_MESSAGE, LONG, STREAM, WIDE } = process.env
const prefix = `storage.${process.env.TABLE_PREFIX}`
const people = 4980

const emit = (line) => process.stdout.write(`${JSON.stringify(line)}\n`)

// The login's new password, once it has been rotated.
async function rotate () {
  emit({ ask: 'rotate' })
  const lines = readline.createInterface({ input: process.stdin })
  const password = await new Promise((resolve) => lines.once('line', resolve))
  lines.close()
  return password
}

// Runs the checks in order, each with the session that `open` gives; a failed check gets the next one a new session.
async function tour (driver, version, checks, { open, close, notApplicable = {} }) {
  emit({ driver, version })
  for (const [check, why] of Object.entries(notApplicable)) emit({ check, result: 'not applicable', why })
  let session
  for (const [check, run] of Object.entries(checks)) {
    try {
      session ??= await open()
      await run(session)
      emit({ check, result: 'ok' })
    } catch (error) {
      emit({ check, result: 'failed', why: inspect(error) })
      session = undefined
    }
  }
  if (session) await close(session)
  process.exit(0)
}

module.exports = { tour, rotate, prefix, people, FOREIGN_WRITE, FOREIGN_WRITE_MESSAGE, LONG, STREAM, WIDE }
