// A stock blind relay on a public host, which is told that it is one: else those behind
// random routers must guess its port, and may do so once in 20 seconds.
const path = require('path')
const crypto = require('crypto')
const req = (name) => require(path.join(process.env.LAB_NODE_MODULES, name))
const DHT = req('hyperdht')
const { Server } = req('blind-relay')

async function main () {
  const bootstrap = process.env.NATLAB_BOOTSTRAP.split(',')
  const dht = new DHT({ bootstrap, firewalled: false, host: '0.0.0.0' })
  const relay = new Server({ createStream: (opts) => dht.createRawStream({ ...opts, framed: true }) })
  const server = dht.createServer({ shareLocalAddress: false }, (socket) => {
    relay.accept(socket, { id: socket.remotePublicKey }).on('error', () => {})
    socket.on('error', () => {})
  })
  await server.listen(DHT.keyPair(crypto.createHash('sha256').update('natlab relay').digest()))
  console.log('READY')
}
main()
