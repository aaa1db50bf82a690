package dazaar

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"reflect"
	"strings"
	"sync"
	"testing"

	"dazaar-edge/protocol/compact"
	"dazaar-edge/protocol/jcs"
	"dazaar-edge/protocol/mux"
)

func key(b byte) ed25519.PrivateKey { return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, 32)) }

func TestOneTimeFeed(t *testing.T) {
	seller, buyer := public(key(1)), public(key(2))
	f := OneTimeFeed{Key: [32]byte{3}, Generation: 300, Fork: 1}
	f.Sign(key(1), buyer)
	b := f.Append(nil)
	got, rest, err := ParseOneTimeFeed(append(b, 9))
	if err != nil || got != f || !bytes.Equal(rest, []byte{9}) {
		t.Fatal(got, rest, err)
	}
	if err := got.Verify(seller, buyer); err != nil {
		t.Error(err)
	}
	for name, bad := range map[string]func(f *OneTimeFeed){
		"key": func(f *OneTimeFeed) { f.Key[0]++ }, "generation": func(f *OneTimeFeed) { f.Generation++ }, "signature": func(f *OneTimeFeed) { f.Signature[5]++ },
	} {
		x := f
		bad(&x)
		if err := x.Verify(seller, buyer); !errors.Is(err, ErrSignature) {
			t.Errorf("changed %s: %v", name, err)
		}
	}
	if f.Verify(seller, seller) == nil || f.Verify(buyer, buyer) == nil {
		t.Error("good for others too")
	}
	for i := range b {
		if _, _, err := ParseOneTimeFeed(b[:i]); !errors.Is(err, compact.ErrShort) {
			t.Errorf("%d bytes: %v", i, err)
		}
	}
}

func TestHandshake(t *testing.T) {
	for want, h := range map[string]Handshake{
		"02040465646765": {Version: 2, Features: 4, Agent: "edge"},
		"02050465646765" + strings.Repeat("07", 64): {Version: 2, Features: 4 | FeatureHandOver, Agent: "edge", HandOver: [64]byte(bytes.Repeat([]byte{7}, 64))},
	} {
		b := h.Append(nil)
		if hex.EncodeToString(b) != want {
			t.Errorf("%x", b)
		}
		if got, rest, err := ParseHandshake(append(b, 9)); err != nil || got != h || len(rest) != 1 {
			t.Error(got, rest, err)
		}
		for i := range b {
			if _, _, err := ParseHandshake(b[:i]); !errors.Is(err, compact.ErrShort) {
				t.Errorf("%d bytes: %v", i, err)
			}
		}
	}
}

// TestInvoiceSignature: what is signed are the bytes that the specification says,
// and a change of any of it is seen.
func TestInvoiceSignature(t *testing.T) {
	terms := jcs.Hex32{7}
	v := Invoice{ID: 5, Request: "lnbcrt1", Msat: "30000", Hash: jcs.Hex32{9}, ExpiresAt: 1e9, Units: 3, Card: 2, Terms: &terms}
	seller, buyer := public(key(1)), public(key(2))
	if err := v.Sign(key(1), buyer); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf(`dazaar invoice`+"\n"+`{"buyer":"%x","card":2,"hash":"%x","msat":"30000","seller":"%x","terms":"%x","units":3}`, buyer, v.Hash, seller, terms)
	if !ed25519.Verify(seller[:], []byte(want), v.Sig[:]) {
		t.Errorf("signed is not\n%s", want)
	}
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]func(v *Invoice){
		"": func(*Invoice) {}, "msat": func(v *Invoice) { v.Msat = "3000" }, "hash": func(v *Invoice) { v.Hash[3]++ }, "units": func(v *Invoice) { v.Units++ },
		"card": func(v *Invoice) { v.Card++ }, "terms": func(v *Invoice) { v.Terms[0]++ }, "no terms": func(v *Invoice) { v.Terms = nil },
		"signature": func(v *Invoice) { v.Sig[0]++ }, "large": func(v *Invoice) { v.Units = 1 << 60 },
	} {
		var x Invoice
		if err := json.Unmarshal(b, &x); err != nil {
			t.Fatal(err)
		}
		bad(&x)
		if err := x.Verify(seller, buyer); (name == "") != (err == nil) || name != "" && !errors.Is(err, ErrSignature) {
			t.Errorf("changed %s: %v", name, err)
		}
	}
	if v.Verify(seller, seller) == nil || v.Verify(buyer, buyer) == nil {
		t.Error("good for others too")
	}
	v.Units = 1 << 60
	if v.Sign(key(1), buyer) == nil {
		t.Error("a number that JSON does not hold is signed")
	}
	if b, err := json.Marshal(Invoice{ID: 3, Error: "later", Code: CodeUnpayable}); err != nil || string(b) != `{"id":3,"terms":null,"error":"later","code":"unpayable"}` {
		t.Errorf("%s, %v", b, err)
	}
}

func TestAcceptTerms(t *testing.T) {
	seller, buyer := public(key(1)), public(key(2))
	a := NewAcceptTerms("be kind", seller, key(2))
	if err := a.Verify(seller, buyer); err != nil || a.SHA256 != sha256.Sum256([]byte("be kind")) {
		t.Error(err)
	}
	other := a
	other.SHA256[0]++
	for _, err := range []error{a.Verify(buyer, buyer), a.Verify(seller, seller), other.Verify(seller, buyer)} {
		if !errors.Is(err, ErrSignature) {
			t.Error(err)
		}
	}
}

func TestBurned(t *testing.T) {
	b := Burned{FeedKey: jcs.Hex32{1}, Signer: jcs.Hex32(public(key(4))), Seed: jcs.Hex32(key(4).Seed())}
	if err := b.Verify(); err != nil {
		t.Error(err)
	}
	b.Seed[0]++
	if err := b.Verify(); !errors.Is(err, ErrSignature) {
		t.Error(err)
	}
}

// ear is both a SellerHandler and a BuyerHandler that notes what it hears.
type ear struct {
	mu   sync.Mutex
	cond *sync.Cond
	got  []any
}

func newEar() *ear {
	e := &ear{}
	e.cond = sync.NewCond(&e.mu)
	return e
}

func (e *ear) note(v any) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.got = append(e.got, v)
	e.cond.Broadcast()
	return nil
}

func (e *ear) wait(n int) []any {
	e.mu.Lock()
	defer e.mu.Unlock()
	for len(e.got) < n {
		e.cond.Wait()
	}
	return e.got
}

func (e *ear) Opened(h Handshake) error              { return e.note(h) }
func (e *ear) UserMessage(m UserMessage) error       { return e.note(m) }
func (e *ear) Closed(error)                          {}
func (e *ear) AcceptTerms(a AcceptTerms) error       { return e.note(a) }
func (e *ear) InvoiceRequest(r InvoiceRequest) error { return e.note(r) }
func (e *ear) Receipt(r Receipt) error               { return e.note(r) }
func (e *ear) FindTime(f FindTime) error             { return e.note(f) }
func (e *ear) SellerID(id [32]byte) error            { return e.note(id) }
func (e *ear) Terms(text []byte) error               { return e.note("terms " + string(text)) }
func (e *ear) Card(card []byte) error                { return e.note("card " + string(card)) }
func (e *ear) OneTimeFeed(f OneTimeFeed) error       { return e.note(f) }
func (e *ear) Valid(v Valid) error                   { return e.note(v) }
func (e *ear) Invalid(v Invalid) error               { return e.note(v) }
func (e *ear) Invoice(v Invoice) error               { return e.note(v) }
func (e *ear) FoundTime(f FoundTime) error           { return e.note(f) }
func (e *ear) Burned(b Burned) error                 { return e.note(b) }

// stream is a mux.Stream over one end of a pipe.
type stream struct {
	net.Conn
	buf []byte
}

func (s *stream) ReadMessage() ([]byte, error) {
	n, err := s.Read(s.buf)
	return s.buf[:n], err
}
func (s *stream) WriteMessage(m []byte) error { _, err := s.Write(m); return err }
func (s *stream) Backlog() (int, bool)        { return 0, false }
func (s *stream) SetMaxMessage(int)           {}
func (s *stream) CloseWrite() error           { return s.Close() }

// TestMessages sends every message in its direction.
func TestMessages(t *testing.T) {
	a, b := net.Pipe()
	sells, buys := newEar(), newEar()
	ms, mb := mux.New(&stream{a, make([]byte, 1<<20)}, mux.Config{}), mux.New(&stream{b, make([]byte, 1<<20)}, mux.Config{})
	s, err := OpenSeller(ms, public(key(1)), "seller", sells)
	if err != nil {
		t.Fatal(err)
	}
	y, err := OpenBuyer(mb, public(key(1)), Handshake{Agent: "buyer"}, buys)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for _, m := range []*mux.Mux{ms, mb} {
		wg.Go(func() { m.Run() }) //nolint:errcheck // ends with the test
	}
	defer wg.Wait()
	defer ms.Close()
	defer mb.Close()
	seven := int64(7)
	feed := OneTimeFeed{Key: [32]byte{1}, Generation: 2}
	note := UserMessage{"lnd-pay-request", json.RawMessage(`{"amount":5}`)}
	invoice := Invoice{ID: 1, Request: "lnbcrt", Msat: "5", Hash: jcs.Hex32{1}, ExpiresAt: 2, Units: 3, Card: 4, Sig: jcs.Hex64{5}}
	valid := Valid{Type: "time", Remaining: &seven, CreditMsat: "8", PaidMsat: "11", First: 9, Length: 10}
	accept := NewAcceptTerms("be kind", public(key(1)), key(2))
	burned := Burned{jcs.Hex32{1}, jcs.Hex32{2}, jcs.Hex32{3}}
	for _, err := range []error{
		s.SellerID([32]byte{6}), s.Card([]byte(`{"a":1}`)), s.Terms("be kind"), s.OneTimeFeed(feed), s.Valid(valid), s.Invalid(Invalid{"no", CodeTerms, ""}),
		s.Invoice(invoice), s.FoundTime(FoundTime{1, 2}), s.Burned(burned), s.UserMessage(note),
		y.AcceptTerms(accept), y.InvoiceRequest(InvoiceRequest{ID: 1, Units: "3"}), y.Receipt(Receipt{invoice, jcs.Hex32{9}}), y.FindTime(FindTime{1, "2026-01-01T00:00:00Z"}),
		y.UserMessage(note),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	want := []any{
		Handshake{Version: 2, Agent: "seller"}, [32]byte{6}, `card {"a":1}`, "terms be kind", feed, valid, Invalid{"no", CodeTerms, ""}, invoice, FoundTime{1, 2}, burned, note,
	}
	if got := buys.wait(len(want)); !reflect.DeepEqual(got, want) {
		t.Errorf("the buyer heard\n%+v\nnot\n%+v", got, want)
	}
	want = []any{
		Handshake{Version: 2, Agent: "buyer"}, accept, InvoiceRequest{ID: 1, Units: "3"}, Receipt{invoice, jcs.Hex32{9}}, FindTime{1, "2026-01-01T00:00:00Z"}, note,
	}
	if got := sells.wait(len(want)); !reflect.DeepEqual(got, want) {
		t.Errorf("the seller heard\n%+v\nnot\n%+v", got, want)
	}
}

func TestBadMessages(t *testing.T) {
	e := newEar()
	h, s := buyerHandler{e}, sellerHandler{e}
	doc := `{"type":"free","remaining":null,"creditMsat":"0","first":3,"length":9,"later":[1]}`
	if err := h.Message(typeValid, compact.AppendString(nil, doc)); err != nil || !reflect.DeepEqual(e.got, []any{Valid{Type: "free", CreditMsat: "0", First: 3, Length: 9}}) {
		t.Error(e.got, err)
	}
	for name, m := range map[string]struct {
		typ uint64
		b   []byte
	}{
		"short id": {typeSellerID, make([]byte, 31)}, "no JSON": {typeValid, compact.AppendString(nil, "{")}, "cut": {typeInvalid, []byte{5, '{'}},
		"long": {typeInvalid, compact.AppendBuffer(nil, bytes.Repeat([]byte(" "), maxJSON+1))}, "feed": {typeOneTimeFeed, nil},
		"hex":       {typeBurned, compact.AppendString(nil, `{"seed":"00"}`)},
		"long card": {typeCard, compact.AppendBuffer(nil, make([]byte, maxJSON+1))},
	} {
		if err := h.Message(m.typ, m.b); !errors.Is(err, ErrMessage) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := s.Message(typeInvoiceRequest, compact.AppendString(nil, `{"id":-1}`)); !errors.Is(err, ErrMessage) {
		t.Error(err)
	}
	// What is not known, or for the other side, is ignored.
	n := len(e.got)
	for typ := range uint64(20) {
		if err := s.Message(typ, []byte("what?")); err != nil && (typ < typeUserMessage || typ == typeCard || typ == typeInvoice || typ > typeFindTime) {
			t.Errorf("type %d: %v", typ, err)
		}
	}
	if err := h.Message(typeAcceptTerms, []byte("what?")); err != nil || len(e.got) != n {
		t.Error(err)
	}
	if err := h.Opened([]byte{9, 0, 0}); !errors.Is(err, ErrVersion) {
		t.Error(err)
	}
}

func FuzzMessage(f *testing.F) {
	o := OneTimeFeed{Key: [32]byte{3}}
	f.Add(uint64(typeSellerID), make([]byte, 32))
	f.Add(uint64(typeOneTimeFeed), o.Append(nil))
	for typ, doc := range map[uint64]string{
		typeValid: `{"type":"free","remaining":1}`, typeInvalid: `{"error":"x"}`, typeUserMessage: `{"name":"a","message":[1]}`, typeCard: `{}`,
		typeAcceptTerms: `{"sha256":"` + hex.EncodeToString(make([]byte, 32)) + `"}`, typeInvoiceRequest: `{"id":1,"msat":"5"}`,
		typeInvoice: `{"id":1,"units":3,"terms":null}`, typeReceipt: `{"id":1,"preimage":"00"}`, typeFindTime: `{"id":1,"time":""}`,
		typeFoundTime: `{"id":1,"index":2}`, typeBurned: `{}`, typeTerms: "be kind",
	} {
		f.Add(typ, compact.AppendString(nil, doc))
	}
	f.Fuzz(func(t *testing.T, typ uint64, b []byte) {
		e := newEar()
		buyerHandler{e}.Message(typ, b)  //nolint:errcheck // must not panic
		sellerHandler{e}.Message(typ, b) //nolint:errcheck // likewise
		buyerHandler{e}.Opened(b)        //nolint:errcheck // likewise
		for _, v := range e.got {
			if i, ok := v.(Invoice); ok {
				i.Verify(public(key(1)), public(key(2))) //nolint:errcheck // likewise
			}
		}
	})
}
