package scale

import (
	"testing"
	"time"

	"dazaar-edge/feed/block"
	"dazaar-edge/payment/meter"
)

// pack returns one with n readings.
func pack(t *testing.T, boot uint32, mono time.Duration, n int) []byte {
	t.Helper()
	p := block.Pack{Stamp: block.Stamp{Boot: boot, Mono: mono}}
	for i := range n {
		p.Readings = append(p.Readings, block.Reading{Name: "a", Value: block.Number(1), Offset: time.Duration(i) * time.Millisecond})
	}
	b, err := block.SenMLJSON.Pack(&p)
	if err != nil {
		t.Fatal(err)
	}
	return b.Data
}

// TestWorth: readings, bytes and sensed time are weighed as a seller weighs them; what
// cannot be weighed is said to be unknown.
func TestWorth(t *testing.T) {
	entry, err := block.SenMLJSON.Entry(&block.Entry{Kind: block.Boot, Stamp: block.Stamp{Boot: 2}})
	if err != nil {
		t.Fatal(err)
	}
	blocks := [][]byte{pack(t, 1, time.Second, 3), pack(t, 1, 11*time.Second, 2), entry.Data, pack(t, 2, time.Second, 1), pack(t, 2, 6*time.Second, 1)}
	size := uint64(0)
	for _, b := range blocks {
		size += uint64(len(b))
	}
	for _, c := range []struct {
		price meter.Price
		want  uint64
		known bool
	}{
		{meter.Price{Unit: meter.Readings, Interval: 7, Amount: 1000, History: 500}, 1000, true},
		{meter.Price{Unit: meter.Readings, Interval: 7, Amount: 500, History: 1000}, 1000, true},
		{meter.Price{Unit: meter.Time, Interval: 1000, Amount: 10, History: 10}, 150, true},
		{meter.Price{Unit: meter.Bytes, Interval: 1, Amount: 2, History: 2}, 2 * size, true},
		{meter.Price{Unit: meter.Wall, Interval: 1, Amount: 2, History: 2}, 0, false},
		{meter.Price{Unit: meter.Once, Interval: 1, Amount: 2, History: 2}, 0, false},
	} {
		var s Scale
		s.Set(c.price)
		for _, b := range blocks {
			s.Add(b)
		}
		if got, _, known := s.Worth(); got != c.want || known != c.known {
			t.Errorf("%+v: %d, %v", c.price, got, known)
		}
		s.Set(c.price)
		if got, _, _ := s.Worth(); got != c.want {
			t.Errorf("%+v: %d after it was said again", c.price, got)
		}
		s.Add([]byte("?"))
		if _, _, known := s.Worth(); known != (c.price.Unit == meter.Bytes) {
			t.Errorf("%+v: something is weighed that cannot be", c.price)
		}
	}
}
