// A buyer of a feed in stock npm modules, without any code of edge:
//
//   npm install @hyperswarm/secret-stream protomux hypercore hypercore-crypto compact-encoding b4a bolt11
//   node buyer.js CARD.json HOST:PORT WALLET-URL MAX-SATS BLOCKS
//
// It checks the card, pays invoices that it checked first, and prints the blocks that
// hypercore verified. A program for real use keeps its key pair, its receipts and where
// it was; this one is a new buyer each time.
const fs = require('fs')
const net = require('net')
const os = require('os')
const path = require('path')
const b4a = require('b4a')
const bolt11 = require('bolt11')
const c = require('compact-encoding')
const crypto = require('hypercore-crypto')
const Hypercore = require('hypercore')
const Protomux = require('protomux')
const SecretStream = require('@hyperswarm/secret-stream')

const [cardFile, address, wallet, maxSats, blocks] = process.argv.slice(2)
const card = JSON.parse(fs.readFileSync(cardFile))
const seller = b4a.from(card.sellerKey, 'hex')
const keyPair = crypto.keyPair()

function die (why) { console.error('buyer: ' + why); process.exit(1) }

// canonical is JSON in the form of RFC 8785; cards and invoices have integers only.
function canonical (v) {
  if (Array.isArray(v)) return '[' + v.map(canonical).join(',') + ']'
  if (v === null || typeof v !== 'object') return JSON.stringify(v)
  return '{' + Object.keys(v).sort().map((k) => JSON.stringify(k) + ':' + canonical(v[k])).join(',') + '}'
}

// signed tells whether the seller signed a text.
const signed = (text, sig) => crypto.verify(b4a.from(text), b4a.from(sig, 'hex'), seller)

const { sig: cardSig, ...unsigned } = card
if (!signed('dazaar card\n' + canonical(unsigned), cardSig)) die('the card is not signed by its seller')
const price = card.payment[0]
const msat = String(Number(price.amount) * 1000)
let spent = 0

// check returns what is wrong with an invoice, if anything is.
function check (v) {
  const buyer = b4a.toString(keyPair.publicKey, 'hex')
  const { card: version, hash, msat: amount, terms, units } = v
  const text = canonical({ buyer, card: version, hash, msat: amount, seller: card.sellerKey, terms, units })
  if (!signed('dazaar invoice\n' + text, v.sig)) return 'it is not signed by the seller'
  const d = bolt11.decode(v.request, { bech32: 'bcrt', pubKeyHash: 0x6f, scriptHash: 0xc4, validWitnessVersions: [0, 1] })
  const tag = (name) => d.tags.find((t) => t.tagName === name)?.data
  if (d.payeeNodeKey !== card.payee) return 'it pays somebody else than the card says'
  if (d.millisatoshis !== msat || amount !== msat) return 'it is for another amount'
  if (tag('payment_hash') !== hash) return 'it has another hash than the seller signed'
  if (tag('description') !== `dazaar: ${card.sellerKey} ${buyer}`) return 'it is not for this sale'
  if (d.timeExpireDate < Date.now() / 1000 + 60) return 'it is about to expire'
}

const raw = net.connect({ host: address.split(':')[0], port: Number(address.split(':')[1]) })
const stream = new SecretStream(true, raw, { keyPair })
stream.on('error', (e) => die(e.message))
stream.on('connect', () => {
  if (!b4a.equals(stream.remotePublicKey, seller)) die('somebody else answers at ' + address)
  const mux = Protomux.from(stream)
  const handshake = {
    preencode (s, m) { c.uint.preencode(s, m.version); c.uint.preencode(s, m.features); c.string.preencode(s, m.agent) },
    encode (s, m) { c.uint.encode(s, m.version); c.uint.encode(s, m.features); c.string.encode(s, m.agent) },
    decode (s) { return { version: c.uint.decode(s), features: c.uint.decode(s), agent: c.string.decode(s) } }
  }
  const feedOffer = {
    preencode () {},
    encode () {},
    decode (s) { return { key: c.fixed32.decode(s), generation: c.uint.decode(s), fork: c.uint.decode(s), signature: c.fixed64.decode(s) } }
  }
  const channel = mux.createChannel({ protocol: 'dazaar/2', id: seller, handshake })
  // Protomux waits for what a handler returns, and what we wait for comes by the same
  // connection: nothing is returned.
  const add = (encoding, handle = () => {}) => channel.addMessage({ encoding, onmessage (m) { Promise.resolve(handle(m)).catch((e) => die(e.message)) } })
  add(c.fixed32) // 0 seller-id
  add(c.string) // 1 terms-of-use
  add(feedOffer, follow) // 2 one-time-feed
  add(c.json) // 3 valid
  add(c.json, (m) => { // 4 invalid
    if (m.code !== 'payment-required' && m.code !== 'credit-ended') die(`${m.code}: ${m.error}`)
    if (spent + Number(price.amount) > Number(maxSats)) die('the budget is spent')
    request.send({ id: 1, msat })
  })
  add(c.json) // 5 user-message
  add(c.json) // 6 card
  add(c.json) // 7 accept-terms
  const request = add(c.json) // 8 invoice-request
  add(c.json, async (v) => { // 9 invoice
    if (v.code) die(`no invoice: ${v.code}: ${v.error}`)
    const wrong = check(v)
    if (wrong) die('the invoice is not paid: ' + wrong)
    const r = await fetch(wallet + '/pay', { method: 'POST', body: JSON.stringify({ request: v.request }) })
    const { preimage, error } = await r.json()
    if (error) die('the wallet: ' + error)
    if (require('crypto').createHash('sha256').update(b4a.from(preimage, 'hex')).digest('hex') !== v.hash) die('no receipt')
    spent += Number(price.amount)
    console.error(`paid ${v.msat} msat for ${v.units} times ${price.interval} ${price.unit}`)
  })
  channel.open({ version: 2, features: 0, agent: 'stock buyer' })
})

let core = null
// follow replicates the feed that is this buyer's own, and prints its blocks.
async function follow (offer) {
  const le64 = b4a.alloc(8)
  le64.writeBigUInt64LE(BigInt(offer.generation))
  const text = b4a.concat([b4a.from('dazaar feed\n'), seller, keyPair.publicKey, offer.key, le64])
  if (!crypto.verify(text, offer.signature, seller)) die('the feed is not signed by the seller')
  if (core) return
  core = new Hypercore(fs.mkdtempSync(path.join(os.tmpdir(), 'buyer-')), offer.key)
  await core.ready()
  core.replicate(stream)
  await core.update({ wait: true })
  for (let i = 0; i < Number(blocks); i++) console.log((await core.get(i)).toString())
  console.error(`${blocks} blocks, ${spent} sat`)
  process.exit(0)
}
