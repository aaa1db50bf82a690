package till

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"dazaar-edge/configs"
	"dazaar-edge/market/card"
	"dazaar-edge/payment"
	"dazaar-edge/payment/bolt11"
	"dazaar-edge/payment/devnet"
	"dazaar-edge/payment/lnd"
	"dazaar-edge/payment/nwc"
)

// Wallet returns the wallet that a buyer names: the URL of a test wallet, the file of
// another one, or "hand", which prints invoices for somebody to pay.
func Wallet(name string, out io.Writer, logger *slog.Logger) (payment.Wallet, error) {
	switch {
	case strings.HasPrefix(name, "http://"), strings.HasPrefix(name, "https://"):
		return &devnet.Wallet{URL: strings.TrimSuffix(name, "/"), Client: &http.Client{Timeout: 30 * time.Second}}, nil
	case name == "hand":
		return &hand{out}, nil
	}
	g, err := configs.LoadWallet(name)
	if err != nil {
		return nil, err
	}
	switch g.Kind {
	case "lnd":
		return lnd.NewWallet(lnd.WalletConfig{URL: g.URL, Cert: g.Cert, Macaroon: g.Macaroon, Network: bolt11.Network(g.Network)})
	case "nwc":
		return nwc.NewWallet(nwc.WalletConfig{Connection: g.Connection, Network: bolt11.Network(g.Network), Log: logger})
	}
	return nil, fmt.Errorf("wallet %q is unknown", g.Kind)
}

// hand is somebody with a wallet of his own.
type hand struct{ out io.Writer }

// Network implements [payment.Wallet]: nobody knows; the card and the invoice agree.
func (h *hand) Network() bolt11.Network { return "" }

// Pay implements [payment.Wallet]: it asks for it.
func (h *hand) Pay(_ context.Context, p payment.Payment) (payment.Proof, error) {
	v, err := bolt11.Parse(p.Request)
	if err != nil {
		return payment.Proof{}, fmt.Errorf("%w: %w", payment.ErrDeclined, err)
	}
	if err := card.PrintQR(h.out, "LIGHTNING:"+strings.ToUpper(p.Request)); err != nil {
		return payment.Proof{}, err
	}
	fmt.Fprintf(h.out, "%s\npay %d.%03d sat on %s with any Lightning wallet, until %s; it goes on when the money is there\n",
		p.Request, v.Msat/1000, v.Msat%1000, v.Network, v.ExpiresAt().Local().Format(time.TimeOnly))
	return payment.Proof{}, payment.ErrShown
}
