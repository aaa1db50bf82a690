// A stock peer under the tests' control: each line on stdin is JSON {id, code,
// args}; code is the body of an async function of (s, a), s what all calls share,
// a the args. Its result goes to stdout as {id, ok} or {id, error}.
const Hypercore = require('hypercore')
const Corestore = require('corestore')
const SecretStream = require('@hyperswarm/secret-stream')
const Protomux = require('protomux')
const crypto = require('hypercore-crypto')
const fs = require('fs')
const net = require('net')
const os = require('os')
const path = require('path')

const dirs = []
const s = { require, Hypercore, Corestore, SecretStream, Protomux, crypto, net, fs, path, errors: [], conflicts: 0 }

s.tmp = () => { const d = fs.mkdtempSync(path.join(os.tmpdir(), 'edge-interop-')); dirs.push(d); return d }
s.sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms))
s.hex = (b) => Buffer.from(b).toString('hex')

// until waits for a condition; the caller's time limit ends it.
s.until = async (f) => { while (!(await f())) await s.sleep(2) }

// dial connects to a seller and shakes hands.
s.dial = (port, opts = {}) => new Promise((resolve, reject) => {
  const raw = net.connect(port, '127.0.0.1')
  const stream = new SecretStream(true, raw, opts)
  stream.setKeepAlive(5000)
  stream.on('error', (e) => s.errors.push(e.message))
  stream.once('connect', () => resolve(stream))
  stream.once('close', () => reject(new Error('closed before it was open')))
})

// listen calls f with each connection to a new port, which it returns.
s.listen = (f, opts = {}) => new Promise((resolve) => {
  const server = net.createServer((raw) => {
    const stream = new SecretStream(false, raw, opts)
    stream.setKeepAlive(5000)
    stream.on('error', (e) => s.errors.push(e.message))
    f(stream)
  })
  server.listen(0, '127.0.0.1', () => resolve({ server, port: server.address().port }))
})

// core opens a core and notes what it complains about.
s.core = async (dir, key, opts = {}) => {
  const c = new Hypercore(dir, key, opts)
  await c.ready()
  c.on('verification-error', (e) => s.errors.push(e.message))
  c.on('conflict', (length) => { s.conflicts++; s.errors.push('conflict at ' + length) })
  return c
}

s.replicate = (core, stream) => core.replicate(stream, { live: true })

// rss is the peak resident set in KiB.
s.rss = () => Number(/VmHWM:\s*(\d+)/.exec(fs.readFileSync('/proc/self/status', 'utf8'))[1])

s.block = (i, n) => { const b = Buffer.alloc(n); for (let j = 0; j < n; j++) b[j] = (i * 31 + j * 7 + (j >> 8)) & 0xff; return b }

const AsyncFunction = Object.getPrototypeOf(async () => {}).constructor
const say = (o) => process.stdout.write(JSON.stringify(o) + '\n')

require('readline').createInterface({ input: process.stdin }).on('line', async (line) => {
  const { id, code, args } = JSON.parse(line)
  try {
    const ok = await new AsyncFunction('s', 'a', code)(s, args)
    say({ id, ok: ok === undefined ? null : ok })
  } catch (e) {
    say({ id, error: String(e && e.stack || e) })
  }
}).on('close', () => process.exit(0))

process.on('exit', () => { for (const d of dirs) fs.rmSync(d, { recursive: true, force: true }) })
process.on('uncaughtException', (e) => { s.errors.push('uncaught ' + e.message) })
