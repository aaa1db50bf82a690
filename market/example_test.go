package market_test

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"dazaar-edge/feed"
	"dazaar-edge/feed/block"
	"dazaar-edge/feed/feedtest"
	"dazaar-edge/market"
	"dazaar-edge/market/card"
	"dazaar-edge/market/client"
	"dazaar-edge/market/rows"
	"dazaar-edge/payment/ledger"
	"dazaar-edge/protocol/replicate"
	"dazaar-edge/storage/db"
	"dazaar-edge/storage/durable"
)

// ExampleBuy gets a feed from its seller, and prints a reading. It goes on where it
// ended when it is called with the same directory and file again.
func ExampleBuy() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	seller, address, stop := exampleSeller(dir)
	defer stop()

	file := filepath.Join(dir, "readings.ndjson")
	out, err := rows.New(rows.Config{File: file})
	if err != nil {
		fmt.Println(err)
		return
	}
	err = client.Buy(context.Background(), filepath.Join(dir, "buyer"), client.Config{
		Seller: seller, Ways: client.TCP(nil, address), Output: out,
		// What costs something needs a Wallet and a Budget.
	})
	if err := errors.Join(err, out.Close()); err != nil {
		fmt.Println(err)
		return
	}
	b, err := os.ReadFile(file)
	if err != nil {
		fmt.Println(err)
		return
	}
	var reading struct {
		Name  string
		Value float64
	}
	if err := json.Unmarshal(b, &reading); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(reading.Name, reading.Value)
	// Output: roof/temperature 21.5
}

// exampleSeller sells a log with one reading, for nothing.
func exampleSeller(dir string) (seller [32]byte, address string, stop func()) {
	fail := func(err error) {
		if err != nil {
			panic(err) // the example is of the other side
		}
	}
	database, err := db.Open(filepath.Join(dir, "edge.db"), 1<<20, false)
	fail(err)
	books, err := ledger.New(ledger.Config{DB: database})
	fail(err)
	log, err := feed.Open(feed.Config{
		FS: durable.OS(), Dir: filepath.Join(dir, "log"), MaxSize: 16 << 20, Name: "air", Keys: feedtest.Keys{}, Sales: &feedtest.Sales{},
		Now: func() block.Stamp { return block.Stamp{Boot: 1} },
	})
	fail(err)
	b, err := block.SenMLJSON.Pack(&block.Pack{
		Stamp: block.Stamp{Boot: 1, Mono: time.Second}, Readings: []block.Reading{{Name: "roof/temperature", Unit: "Cel", Value: block.Number(21.5)}},
	})
	fail(err)
	_, err = log.Append(context.Background(), b)
	fail(err)
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	offer, err := market.NewOffer(market.OfferConfig{
		Name: "air", Feed: log, Key: key, Uplink: &replicate.Uplink{}, Ledger: books, Listing: market.Listing{Card: card.Card{Name: "air"}},
	})
	fail(err)
	addr, err := offer.Listen("127.0.0.1:0")
	fail(err)
	return [32]byte(key[ed25519.SeedSize:]), addr.String(), func() {
		fail(errors.Join(offer.Close(), log.Close(), database.Close()))
	}
}
