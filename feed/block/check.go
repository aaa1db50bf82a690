package block

import (
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// What is checked here can be written and read back as it was.

// maxRecords bounds the readings of a pack.
const maxRecords = 1 << 16

func checkSpan(what string, d time.Duration) error {
	if d <= -maxSeconds*time.Second || d >= maxSeconds*time.Second {
		return fmt.Errorf("%s of %v", what, d)
	}
	return nil
}

func checkStamp(s Stamp) error {
	if s.Mono < 0 {
		return fmt.Errorf("monotonic time of %v", s.Mono)
	}
	if !s.Wall.IsZero() && (s.Wall.UnixMilli() <= 0 || s.Wall.Unix() >= maxSeconds) {
		return fmt.Errorf("wall time %v", s.Wall)
	}
	return errors.Join(checkSpan("monotonic time", s.Mono), checkSpan("uncertainty", s.Err))
}

func checkText(texts ...string) error {
	for _, s := range texts {
		if !utf8.ValidString(s) {
			return fmt.Errorf("text %q is not UTF-8", s)
		}
	}
	return nil
}

// round returns the stamp as it will be read: to µs, raw wall time to ms and
// without an uncertainty.
func (e Encoding) round(s Stamp) Stamp {
	s.Mono = s.Mono.Truncate(time.Microsecond)
	if e == Raw {
		s.Wall, s.Err = s.Wall.Truncate(time.Millisecond), 0
	} else {
		s.Wall = s.Wall.Truncate(time.Microsecond)
	}
	return s
}

func (e Encoding) checkPack(p *Pack) error {
	if len(p.Readings) == 0 || len(p.Readings) > maxRecords {
		return fmt.Errorf("a pack of %d readings", len(p.Readings))
	}
	if err := errors.Join(checkStamp(p.Stamp), checkText(p.BaseName)); err != nil {
		return err
	}
	for i := range p.Readings {
		r := &p.Readings[i]
		if r.Value.Kind < Float || r.Value.Kind > Data {
			return fmt.Errorf("reading %d: value of kind %d", i, r.Value.Kind)
		}
		if f := r.Value.Float; r.Value.Kind == Float && f-f != 0 {
			return fmt.Errorf("reading %d: value %v", i, f)
		}
		for _, q := range r.Quality {
			if q == "" || strings.Contains(q, ",") {
				return fmt.Errorf("reading %d: quality flag %q", i, q)
			}
		}
		if err := errors.Join(checkSpan("offset", r.Offset), checkText(r.Name, r.Unit, r.Value.Text), checkText(r.Quality...)); err != nil {
			return fmt.Errorf("reading %d: %w", i, err)
		}
		if e == Raw && (r.Name != "" || r.Unit != "" || len(r.Quality) > 0 || p.BaseName != "") {
			return errors.New("a raw block has no names, units and flags")
		}
	}
	return nil
}

func checkEntry(n *Entry) error {
	if n.Kind == "" {
		return errors.New("an entry without a kind")
	}
	const most = 1 << 53
	if n.Index > most || n.Fork > most || n.Lost != nil && (n.Lost.First > most || n.Lost.Count > most) || n.Part < 0 || n.Parts < 0 {
		return errors.New("a count above 2^53")
	}
	if n.OffsetErr < 0 {
		return fmt.Errorf("uncertainty of %v", n.OffsetErr)
	}
	err := errors.Join(checkStamp(n.Stamp), checkText(string(n.Kind), n.Cause, n.Sensor), checkSpan("offset", n.Offset), checkSpan("uncertainty", n.OffsetErr))
	for _, d := range []*time.Duration{n.From, n.To} {
		if d != nil {
			err = errors.Join(err, checkSpan("time", *d))
		}
	}
	return err
}
