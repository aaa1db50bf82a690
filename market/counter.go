package market

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"dazaar-edge/market/bill"
	"dazaar-edge/payment"
	"dazaar-edge/payment/bolt11"
	"dazaar-edge/payment/cashier"
	"dazaar-edge/payment/ledger"
	"dazaar-edge/payment/meter"
	"dazaar-edge/protocol/bucket"
	"dazaar-edge/protocol/dazaar"
	"dazaar-edge/protocol/jcs"
)

// handler is a session as the dazaar channel sees it: what a buyer asks for over the
// counter.
type handler session

// Opened implements dazaar.SellerHandler.
func (h *handler) Opened(hs dazaar.Handshake) error {
	s := (*session)(h)
	s.o.log.Debug("caller", "key", s.name(), "from", s.conn.RemoteAddr(), "agent", fmt.Sprintf("%.40q", hs.Agent))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaves = hs.HandOver
	return s.begin()
}

// Closed implements dazaar.SellerHandler.
func (h *handler) Closed(error) { (*session)(h).mux.Finish() }

// may counts what a buyer asks for, and tells whether it gets an answer. mu is held.
func (s *session) may() bool { return !s.over && bucket.Take(time.Now(), s.asked) }

// AcceptTerms implements dazaar.SellerHandler.
func (h *handler) AcceptTerms(a dazaar.AcceptTerms) error {
	s := (*session)(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.o.listing()
	if !s.may() || l.hash == nil {
		return nil
	}
	if a.SHA256 != *l.hash {
		return s.ch.Invalid(dazaar.Invalid{Error: "those are not the terms of today", Code: dazaar.CodeTerms})
	}
	if err := a.Verify(s.o.key(), s.buyer); err != nil {
		return err
	}
	if s.agreed {
		return nil
	}
	s.terms, s.agreed, s.accepted = true, true, &a
	return s.proceed()
}

// InvoiceRequest implements dazaar.SellerHandler.
func (h *handler) InvoiceRequest(r dazaar.InvoiceRequest) error {
	s := (*session)(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.order(r, func(v dazaar.Invoice) error { return s.ch.Invoice(v) })
}

// order has an invoice made, and answers with it when it is there. mu is held.
func (s *session) order(r dazaar.InvoiceRequest, answer func(dazaar.Invoice) error) error {
	refuse := func(code, format string, args ...any) error {
		return answer(dazaar.Invoice{ID: r.ID, Error: fmt.Sprintf(format, args...), Code: code})
	}
	l := s.o.listing()
	switch {
	case s.over:
		return nil
	case !s.may() || s.invoice:
		return refuse(dazaar.CodeBusy, "too many requests: wait for the answer, or some seconds")
	case l.free || s.sale == nil:
		return refuse(dazaar.CodeUnpayable, "it is free")
	case !s.agreed:
		return refuse(dazaar.CodeTerms, "accept the terms of use first")
	case s.o.cfg.Cashier == nil:
		return refuse(dazaar.CodeUnpayable, "the seller has no wallet")
	case l.card.Payee == "" && !l.floats:
		return refuse(dazaar.CodeUnpayable, "no wallet has said yet who is paid")
	}
	msat, units, err := bill.Amount(r, l.price)
	if err != nil {
		return refuse(dazaar.CodeChargeLimit, "%v", err)
	}
	if st := s.sale.State(); st.Owned && l.price.Unit == meter.Once {
		return refuse(dazaar.CodeChargeLimit, "it is paid already, for good")
	}
	known := s.sale.State().Begun
	if !known && !s.o.stranger(s.conn.RemoteAddr()) {
		return refuse(dazaar.CodeBusy, "too many invoices for strangers of this network: try again in a minute")
	}
	if err := s.sign(); err != nil {
		return s.broken("terms", err)
	}
	s.invoice = true
	o := cashier.Order{
		Offer: s.o.cfg.Name, Buyer: s.buyer, Msat: msat, Price: l.price, History: l.history, Card: l.card.Version, Terms: l.hash,
		Description: bill.Description(s.o.key(), s.buyer), Short: bill.ShortDescription(s.o.key(), s.buyer), Known: known,
	}
	ok := s.o.spawn(func(ctx context.Context) {
		row, err := s.o.cfg.Cashier.Invoice(ctx, o)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.invoice = false
		if s.over {
			return
		}
		v, code := dazaar.Invoice{}, ""
		if err == nil {
			v, err = s.bill(r.ID, row, units, l)
		}
		switch {
		case errors.Is(err, cashier.ErrLimit), errors.Is(err, meter.ErrLots):
			code = dazaar.CodeChargeLimit
		case errors.Is(err, payment.ErrUnpayable):
			code = dazaar.CodeUnpayable
		case err != nil:
			code = dazaar.CodeBusy
		}
		if code != "" {
			s.o.log.Warn("no invoice", "buyer", s.name(), "msat", msat, "error", err)
			refuse(code, "%v", reason(err)) //nolint:errcheck // the connection ends
			return
		}
		s.o.stay(s, min(row.Expires.Sub(row.Made), cashier.Expiry)+unpaidStay)
		answer(v) //nolint:errcheck // as above
	})
	if !ok {
		s.invoice = false
	}
	return nil
}

// reason is what a stranger is told: not which wallet, where, answers what.
func reason(err error) string {
	switch {
	case errors.Is(err, cashier.ErrLimit), errors.Is(err, meter.ErrLots):
		return err.Error()
	case errors.Is(err, cashier.ErrClock):
		return "the seller's clock is not set yet: try again in some minutes"
	case errors.Is(err, payment.ErrUnpayable):
		return "the seller's wallet cannot be paid now"
	}
	return "the seller cannot make an invoice now"
}

// bill signs an invoice for the buyer. mu is held.
func (s *session) bill(id uint64, row ledger.Row, units uint64, l *listing) (v dazaar.Invoice, err error) {
	inv, err := bolt11.Parse(row.Request)
	if err != nil {
		return v, err
	}
	if !l.floats && !l.card.Pays(inv.Payee) {
		return v, fmt.Errorf("%w: the wallet's key is %x, and the card says %q", payment.ErrUnpayable, inv.Payee, l.card.Payee)
	}
	v = dazaar.Invoice{
		ID: id, Request: row.Request, Msat: strconv.FormatUint(row.Msat, 10), Hash: row.Hash, ExpiresAt: row.Expires.Unix(), Units: units,
		Card: row.Card, Terms: row.Terms,
	}
	return v, v.Sign(s.o.cfg.Key, s.buyer)
}

// UserMessage implements dazaar.SellerHandler: it knows what the old plugin's buyers
// say.
func (h *handler) UserMessage(m dazaar.UserMessage) error {
	s := (*session)(h)
	if m.Name != "lnd-pay-request" {
		return nil
	}
	var q struct {
		Amount uint64 `json:"amount"` // satoshi
	}
	if err := json.Unmarshal(m.Message, &q); err != nil || q.Amount > cashier.MaxMsat/1000 {
		return nil // nobody knows what he wants
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.order(dazaar.InvoiceRequest{Msat: strconv.FormatUint(q.Amount*1000, 10)}, func(v dazaar.Invoice) error {
		if v.Code != "" {
			return s.ch.Invalid(dazaar.Invalid{Error: v.Error, Code: v.Code})
		}
		b, err := json.Marshal(struct {
			Request string `json:"request"`
			Amount  uint64 `json:"amount"`
		}{v.Request, q.Amount})
		if err != nil {
			return err
		}
		return s.ch.UserMessage(dazaar.UserMessage{Name: "lnd-invoice", Message: b})
	})
}

// Receipt implements dazaar.SellerHandler: it looks up what the buyer says it paid.
// What the wallet says counts, and nothing else.
func (h *handler) Receipt(r dazaar.Receipt) error {
	s := (*session)(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.may() || s.o.cfg.Cashier == nil || r.Verify(s.o.key(), s.buyer) != nil {
		return nil
	}
	s.o.spawn(func(ctx context.Context) {
		err := s.o.cfg.Cashier.Look(ctx, r.Hash)
		if lost, e := s.o.cfg.Ledger.Lost(); e == nil && lost != nil && errors.Is(err, ledger.ErrUnknown) && sha256.Sum256(r.Preimage[:]) == r.Hash {
			l := s.o.listing()
			s.restored.Store(true)
			err = s.o.cfg.Cashier.Restore(ctx, bill.Signed(s.o.cfg.Name, r.Invoice, s.buyer, l.price, l.history))
		}
		if err != nil {
			s.o.log.Warn("a receipt was shown, and its invoice cannot be looked up", "buyer", s.name(), "hash", jcs.Hex32(r.Hash), "error", err)
		}
	})
	return nil
}

// FindTime implements dazaar.SellerHandler.
func (h *handler) FindTime(f dazaar.FindTime) error {
	s := (*session)(h)
	t, err := time.Parse(time.RFC3339, f.Time)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil || !s.may() || s.feed == nil {
		return nil
	}
	i, err := s.o.cfg.Feed.Seek(t)
	if err != nil {
		s.o.log.Warn("a time cannot be found", "error", err)
		return nil
	}
	return s.ch.FoundTime(dazaar.FoundTime{ID: f.ID, Index: max(i, s.first())})
}
