// Records what stock Hypercore peers say when a feed's fork is raised: a writer
// that truncated its log, and buyers in several states who meet it. Prints the
// vectors of protocol/replicate/replicatetest/testdata/captures-forks.json:
//
//   node forks.js > ../../protocol/replicate/replicatetest/testdata/captures-forks.json
//
// Keys, blocks, handshake hashes and the order in which a buyer asks are fixed;
// the order of frames that both sides write at the same time is not.
const fs = require('fs')
const os = require('os')
const path = require('path')
const b4a = require('b4a')
const crypto = require('hypercore-crypto')
const Hypercore = require('hypercore')
const SecretStream = require('@hyperswarm/secret-stream')

const hex = (b) => b4a.toString(b, 'hex')
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms))
const sellerSeed = b4a.alloc(32, 0x50)
const keyPair = crypto.keyPair(sellerSeed)
const numbers = (from, to, shift = 0) => Array.from({ length: to - from }, (_, i) => from + i + shift)

// Stock buyers ask in random order.
let state = 1
Math.random = () => {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0
  return state / 2 ** 32
}

// block is the content of block number i: as in the other captures.
function block (i, n = 20) {
  const b = b4a.alloc(n)
  for (let j = 0; j < n; j++) b[j] = (i * 31 + j * 7 + (j >> 8)) & 0xff
  return b
}

const tmp = () => fs.mkdtempSync(path.join(os.tmpdir(), 'forks-'))

async function until (f) {
  for (let i = 0; i < 2000; i++) {
    if (f()) return
    await sleep(5)
  }
  throw new Error('waited in vain: ' + f)
}

// Writer is a stock seller together with the blocks of each of its forks.
class Writer {
  logs = { 0: [] }
  async open () {
    this.core = new Hypercore(tmp(), null, { keyPair, manifest: { version: 1, signers: [{ publicKey: keyPair.publicKey }] }, compat: false })
    await this.core.ready()
    return this
  }

  async append (list) {
    await this.core.append(list.map((i) => block(i)))
    this.logs[this.core.fork].push(...list)
  }

  async truncate (n) {
    const kept = this.logs[this.core.fork].slice(0, n)
    await this.core.truncate(n, this.core.fork + 1)
    this.logs[this.core.fork] = kept
  }
}

// pair joins two streams without a handshake, and records what goes over them.
function pair (n) {
  const tx = b4a.alloc(32, 0x70 + n)
  const rx = b4a.alloc(32, 0x90 + n)
  const hash = b4a.concat([crypto.hash(b4a.from('a' + n)), crypto.hash(b4a.from('b' + n))])
  const a = crypto.keyPair(b4a.alloc(32, 1)).publicKey
  const b = crypto.keyPair(b4a.alloc(32, 2)).publicKey
  const buyer = new SecretStream(true, null, { handshake: { tx, rx, hash, publicKey: a, remotePublicKey: b } })
  const seller = new SecretStream(false, null, { handshake: { tx: rx, rx: tx, hash, publicKey: b, remotePublicKey: a } })
  const frames = []
  for (const [from, s] of [['buyer', buyer], ['seller', seller]]) {
    const write = s.write
    s.write = function (m) {
      frames.push({ from, hex: hex(m) })
      return write.call(s, m)
    }
    s.on('error', () => {})
    s.rawStream.on('error', () => {})
  }
  buyer.rawStream.pipe(seller.rawStream).pipe(buyer.rawStream)
  const close = () => { buyer.destroy(); seller.destroy() }
  return { buyer, seller, hash, frames, close }
}

const out = { about: '', sellerKeySeed: hex(sellerSeed), heads: [], scenarios: {} }
out.about = 'Raised forks between stock hypercore 11.37.1 peers: frames as they are before encryption, in the order in which they were written. ' +
  'Block number i is 20 bytes, byte j = (31 i + 7 j + (j >> 8)) & 0xff; logs tells which numbers are the blocks of a fork.'
let count = 0

// buyer opens a stock buyer that had some of what the writer had before: all, or
// the blocks that are listed.
async function buyerOf (old, dir, has) {
  const b = new Hypercore(dir, old.core.key)
  await b.ready()
  if (has) {
    const p = pair(0)
    old.core.replicate(p.seller)
    b.replicate(p.buyer)
    for (const i of has) await b.get(i)
    await sleep(20)
    p.close()
    await sleep(20)
  }
  return b
}

async function scenario (name, about, { writer, old, has, dir = tmp(), download, live }) {
  const b = await buyerOf(old || writer, dir, has)
  const before = { fork: b.core.state.fork, length: b.core.state.length }
  const p = pair(++count)
  state = count * 7919
  const wanted = download && b.download(download)
  writer.core.replicate(p.seller)
  b.replicate(p.buyer)
  if (live) {
    await until(() => b.length === writer.core.length)
    await sleep(50)
    await live()
  }
  await until(() => b.core.state.fork === writer.core.fork && b.core.state.length === writer.core.length)
  if (wanted) await until(() => b.contiguousLength === writer.core.length)
  await sleep(100)
  const s = b.core.state
  out.scenarios[name] = {
    about,
    handshakeHash: hex(p.hash),
    initiator: 'buyer',
    logs: structuredClone(writer.logs),
    buyerBefore: before,
    outcome: { fork: s.fork, length: s.length, treeHash: hex(crypto.tree(s.roots)), signature: hex(s.signature), contiguousLength: b.contiguousLength },
    frames: p.frames.slice()
  }
  out.heads.push({ fork: s.fork, length: s.length, treeHash: hex(crypto.tree(s.roots)), signature: hex(s.signature), blocks: writer.logs[s.fork].slice() })
  if (wanted) wanted.destroy()
  p.close()
  await b.close()
  return dir
}

async function main () {
  const make = async (...steps) => {
    const w = await new Writer().open()
    for (const f of steps) await f(w)
    return w
  }
  const begin = (w) => w.append(numbers(0, 20))
  const all = numbers(0, 20)
  const old = await make(begin)
  const cut = (n, to) => async (w) => {
    await w.truncate(n)
    if (to > n) await w.append(numbers(n, to, 100 * w.core.fork))
  }
  await scenario('shorter', 'the writer cut its log from 20 to 13 blocks', { writer: await make(begin, cut(13, 13)), old, has: all })
  await scenario('diverged-longer', 'cut to 9 blocks, then 18 others', { writer: await make(begin, cut(9, 27)), old, has: all })
  await scenario('diverged-same-length', 'cut to 9 blocks, then 11 others', { writer: await make(begin, cut(9, 20)), old, has: all })
  await scenario('diverged-shorter-download', 'cut to 9 blocks, then 5 others, which the buyer downloads', { writer: await make(begin, cut(9, 14)), old, has: all, download: { start: 0, end: -1 } })
  await scenario('same-tree', 'the fork was raised, nothing was lost', { writer: await make(begin, cut(20, 20)), old, has: all })
  await scenario('sparse', 'cut to 9 blocks, then 18 others; the buyer has blocks 16 to 19 only', { writer: await make(begin, cut(9, 27)), old, has: [16, 17, 18, 19] })
  await scenario('fresh', 'a buyer that knows but the key meets fork 1', { writer: await make(begin, cut(9, 14)) })
  const dir = await scenario('first-of-two', 'fork 0 to 1, then', { writer: await make(begin, cut(9, 27)), old, has: all })
  await scenario('second-of-two', 'fork 1 to 2, the same buyer, opened again', { writer: await make(begin, cut(9, 27), cut(12, 24)), dir })
  const w = await make(begin)
  await scenario('live', 'the writer cuts its log to 15 blocks and appends 2 while the buyer is connected', { writer: w, has: all, live: () => cut(15, 17)(w) })
  await scenario('jump', 'fork 0 to 2 at once', { writer: await make(begin, cut(16, 18), cut(6, 11)), old, has: all, download: { start: 0, end: -1 } })
  const text = JSON.stringify(out).replace(/\{"(from|fork|about)"/g, '\n{"$1"')
  await new Promise((resolve) => process.stdout.write(text + '\n', resolve))
  process.exit(0)
}

main().catch((err) => { console.error(err); process.exit(1) })
