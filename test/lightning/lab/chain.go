package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"

	"github.com/btcsuite/btcd/btcec/v2"
	"github.com/btcsuite/btcd/btcutil"
	"github.com/btcsuite/btcd/chaincfg"
	"github.com/btcsuite/btcd/txscript"
	"github.com/btcsuite/btcd/wire"
)

// Who may ask btcd.
const rpcUser, rpcPassword = "lab", "lab"

// chain is a btcd, which mines for a key of ours.
type chain struct {
	process
	address, cert string
	key           *btcec.PrivateKey
	script        []byte // that its coins are locked with
}

func startChain(ctx context.Context, bin, dir string, ports []string) (*chain, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	key, err := btcec.NewPrivateKey()
	if err != nil {
		return nil, err
	}
	miner, err := btcutil.NewAddressPubKeyHash(btcutil.Hash160(key.PubKey().SerializeCompressed()), &chaincfg.RegressionNetParams)
	if err != nil {
		return nil, err
	}
	script, err := txscript.PayToAddrScript(miner)
	if err != nil {
		return nil, err
	}
	c := &chain{address: "127.0.0.1:" + ports[0], cert: filepath.Join(dir, "rpc.cert"), key: key, script: script}
	c.process = process{name: "btcd", dir: dir, args: []string{
		"--configfile=/dev/null", "--datadir=" + dir, "--logdir=" + dir, "--regtest", "--txindex", "--nodnsseed", "--rpcuser=" + rpcUser,
		"--rpcpass=" + rpcPassword, "--rpclisten=" + c.address, "--rpccert=" + c.cert, "--rpckey=" + filepath.Join(dir, "rpc.key"),
		"--listen=127.0.0.1:" + ports[1], "--miningaddr=" + miner.EncodeAddress(), "--minrelaytxfee=0.00000001", "--rpcmaxwebsockets=100",
	}}
	if err := c.begin(bin); err != nil {
		return nil, err
	}
	return c, until(ctx, "btcd does not answer", func() error {
		if !c.runs() {
			return errOver
		}
		return c.ask(ctx, nil, "getblockcount")
	})
}

// ask calls btcd.
func (c *chain) ask(ctx context.Context, out any, method string, params ...any) error {
	client, err := clientFor(c.cert)
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	if params == nil {
		params = []any{}
	}
	var answer struct {
		Result json.RawMessage
		Error  any
	}
	in := map[string]any{"jsonrpc": "1.0", "id": 1, "method": method, "params": params}
	err = do(ctx, client, http.MethodPost, "https://"+c.address, func(r *http.Request) { r.SetBasicAuth(rpcUser, rpcPassword) }, in, &answer)
	if err == nil && answer.Error != nil {
		err = fmt.Errorf("%s: %v", method, answer.Error)
	}
	if err != nil || out == nil {
		return err
	}
	return json.Unmarshal(answer.Result, out)
}

func (c *chain) mine(ctx context.Context, n int) error { return c.ask(ctx, nil, "generate", n) }

// pay sends so many satoshi to each address, out of the oldest coinbases.
func (c *chain) pay(ctx context.Context, addresses []string, sat int64) error {
	const fee = 100_000
	tx := wire.NewMsgTx(2)
	left := int64(fee)
	for _, text := range addresses {
		a, err := btcutil.DecodeAddress(text, &chaincfg.RegressionNetParams)
		if err != nil {
			return err
		}
		script, err := txscript.PayToAddrScript(a)
		if err != nil {
			return err
		}
		tx.AddTxOut(wire.NewTxOut(sat, script))
		left += sat
	}
	for height := 1; left > 0; height++ {
		var hash, raw string
		if err := c.ask(ctx, &hash, "getblockhash", height); err != nil {
			return err
		}
		if err := c.ask(ctx, &raw, "getblock", hash, 0); err != nil {
			return err
		}
		b, err := hex.DecodeString(raw)
		if err != nil {
			return err
		}
		var block wire.MsgBlock
		if err := block.Deserialize(bytes.NewReader(b)); err != nil {
			return err
		}
		coin, id := block.Transactions[0], block.Transactions[0].TxHash()
		tx.AddTxIn(wire.NewTxIn(wire.NewOutPoint(&id, 0), nil, nil))
		left -= coin.TxOut[0].Value
	}
	tx.AddTxOut(wire.NewTxOut(-left, c.script)) // what is left over
	for i := range tx.TxIn {
		script, err := txscript.SignatureScript(tx, i, c.script, txscript.SigHashAll, c.key, true)
		if err != nil {
			return err
		}
		tx.TxIn[i].SignatureScript = script
	}
	var b bytes.Buffer
	if err := tx.Serialize(&b); err != nil {
		return err
	}
	return c.ask(ctx, nil, "sendrawtransaction", hex.EncodeToString(b.Bytes()))
}
