#!/bin/sh
# Prints compiler flags that keep the binary small: what runs rarely is not inlined. It
# saves 800 KB of arm6, and slows nothing that is measured: ciphers, hashes, JSON, the log,
# the wire and the ledger are as ever; a handshake of TLS, once for each wallet, takes longer
# (secp256k1: 245 us to recover a key, with and without). What it costs in the last line of
# packages (from dht on: also bufio, strings, context, net/netip) was not measured.
for p in net net/http net/url crypto/tls crypto/x509 encoding/asn1 crypto/ecdh crypto/ecdsa crypto/rsa crypto/internal/fips140/rsa \
	crypto/internal/fips140/bigmod crypto/internal/fips140/ecdsa crypto/internal/fips140/nistec/... math/big fmt reflect os log/slog flag compress/flate \
	mime/... vendor/golang.org/x/... github.com/goccy/go-yaml/... github.com/eclipse/... github.com/gorilla/... github.com/warthog618/... periph.io/... \
	rsc.io/qr dazaar-edge/cmd/edge dazaar-edge/cmd/edge/... dazaar-edge/configs dazaar-edge/monitor dazaar-edge/payment/cashier dazaar-edge/payment/lnd \
	dazaar-edge/payment/lnurl dazaar-edge/payment/nostr dazaar-edge/payment/nwc \
	dazaar-edge/protocol/punch dazaar-edge/protocol/relay dazaar-edge/sensors dazaar-edge/sensors/... dazaar-edge/market/archive dazaar-edge/market/bill \
	dazaar-edge/market/card dazaar-edge/market/proof dazaar-edge/market/purse dazaar-edge/payment/devnet dazaar-edge/storage/vault text/... path/filepath \
	io/fs unicode/... go.etcd.io/bbolt dazaar-edge/market/client dazaar-edge/market/device dazaar-edge/payment dazaar-edge/payment/meter \
	dazaar-edge/protocol/dazaar dazaar-edge/protocol/jcs regexp regexp/syntax net/textproto net/http/... os/exec encoding/pem encoding/csv \
	crypto/x509/pkix crypto/elliptic crypto/mlkem crypto/internal/fips140/mlkem crypto/hpke dazaar-edge/feed/sales dazaar-edge/storage/db \
	github.com/decred/... dazaar-edge/market dazaar-edge/protocol/dht/... dazaar-edge/protocol/bucket dazaar-edge/payment/bolt11 context bufio strings \
	net/netip log sort golang.org/x/sys/unix; do
	printf -- '-gcflags=%s=-l ' "$p"
done
