package block

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Fields of a record or entry on their way between a struct and an encoding. A
// nil pointer is an absent field.
type record struct {
	BaseName *string  `json:"bn,omitempty"`
	BaseTime *float64 `json:"bt,omitempty"`
	Boot     *float64 `json:"boot,omitempty"`
	Mono     *float64 `json:"mono,omitempty"`
	Err      *float64 `json:"err,omitempty"`
	Name     *string  `json:"n,omitempty"`
	Unit     *string  `json:"u,omitempty"`
	Value    *float64 `json:"v,omitempty"`
	Text     *string  `json:"vs,omitempty"`
	Bool     *bool    `json:"vb,omitempty"`
	Data     *string  `json:"vd,omitempty"`
	Time     *float64 `json:"t,omitempty"`
	Quality  *string  `json:"q,omitempty"`
}

type entryFields struct {
	Entry  string   `json:"entry"`
	Boot   float64  `json:"boot"`
	Mono   float64  `json:"mono"`
	Offset *float64 `json:"offset,omitempty"`
	Err    *float64 `json:"err,omitempty"`
	From   nullable `json:"from,omitzero"`
	To     nullable `json:"to,omitzero"`
	Cause  *string  `json:"cause,omitempty"`
	Sensor *string  `json:"sensor,omitempty"`
	First  *float64 `json:"first,omitempty"`
	Count  *float64 `json:"count,omitempty"`
	Index  *float64 `json:"index,omitempty"`
	Fork   *float64 `json:"fork,omitempty"`
	Part   *float64 `json:"part,omitempty"`
	Parts  *float64 `json:"parts,omitempty"`
	Data   *[]byte  `json:"data,omitempty"`
}

// nullable is a number that is absent, null or there.
type nullable struct {
	set   bool
	value *float64
}

// MarshalJSON implements [json.Marshaler].
func (n nullable) MarshalJSON() ([]byte, error) { return json.Marshal(n.value) }

// UnmarshalJSON implements [json.Unmarshaler].
func (n *nullable) UnmarshalJSON(b []byte) error {
	n.set = true
	return json.Unmarshal(b, &n.value)
}

// nullableSeconds writes an unknown time as null.
func nullableSeconds(d *time.Duration) nullable {
	if d == nil {
		return nullable{set: true}
	}
	return nullable{true, ptr(seconds(*d))}
}

func ptr[T any](v T) *T { return &v }

// optional returns nil for the zero value.
func optional[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}

// records returns the SenML records of a pack, without a data value, which the
// encodings write differently.
func records(p *Pack) []record {
	out := make([]record, len(p.Readings))
	for i, r := range p.Readings {
		out[i] = record{Name: optional(r.Name), Unit: optional(r.Unit), Time: optional(seconds(r.Offset))}
		switch r.Value.Kind {
		case Text:
			out[i].Text = ptr(r.Value.Text)
		case Bool:
			out[i].Bool = ptr(r.Value.Bool)
		case Float:
			out[i].Value = ptr(r.Value.Float)
		}
		if len(r.Quality) > 0 {
			out[i].Quality = ptr(strings.Join(r.Quality, ","))
		}
	}
	first := &out[0]
	first.BaseName = optional(p.BaseName)
	first.Boot, first.Mono = ptr(float64(p.Stamp.Boot)), ptr(seconds(p.Stamp.Mono))
	if !p.Stamp.Wall.IsZero() {
		first.BaseTime = ptr(unixSeconds(p.Stamp.Wall))
		if p.Stamp.Err > 0 {
			first.Err = ptr(seconds(p.Stamp.Err))
		}
	}
	return out
}

var errStamp = errors.New("no boot and monotonic time")

func parseStamp(boot, mono float64) (s Stamp, err error) {
	if !(boot >= 0 && boot <= 1<<32-1) || boot != float64(uint32(boot)) {
		return s, fmt.Errorf("boot %v", boot)
	}
	s.Boot = uint32(boot)
	if mono < 0 {
		return s, fmt.Errorf("monotonic time %v", mono)
	}
	s.Mono, err = duration(mono)
	return s, err
}

// checkRecord refuses what cannot be record number i of a pack.
func checkRecord(i int, r *record) error {
	if i == 0 && (r.Boot == nil || r.Mono == nil) {
		return errStamp
	}
	if i >= maxRecords {
		return fmt.Errorf("more than %d readings", maxRecords)
	}
	return nil
}

// packOf is the inverse of records; data returns the value of a vd field.
func packOf(recs []record, data func(i int) ([]byte, error)) (*Pack, error) {
	if len(recs) == 0 || recs[0].Boot == nil || recs[0].Mono == nil {
		return nil, errStamp
	}
	p := &Pack{Readings: make([]Reading, 0, len(recs))}
	var err error
	if p.Stamp, err = parseStamp(*recs[0].Boot, *recs[0].Mono); err != nil {
		return nil, err
	}
	if recs[0].BaseName != nil {
		p.BaseName = *recs[0].BaseName
	}
	if recs[0].BaseTime != nil {
		if p.Stamp.Wall, err = fromUnix(*recs[0].BaseTime); err != nil {
			return nil, err
		}
		if recs[0].Err != nil {
			if p.Stamp.Err, err = duration(*recs[0].Err); err != nil {
				return nil, err
			}
		}
	}
	for i := range recs {
		r, err := recs[i].reading(func() ([]byte, error) { return data(i) })
		if err != nil {
			return nil, fmt.Errorf("record %d: %w", i, err)
		}
		p.Readings = append(p.Readings, r)
	}
	return p, nil
}

func (f *record) reading(data func() ([]byte, error)) (r Reading, err error) {
	if f.Name != nil {
		r.Name = *f.Name
	}
	if f.Unit != nil {
		r.Unit = *f.Unit
	}
	if f.Time != nil {
		if r.Offset, err = duration(*f.Time); err != nil {
			return r, err
		}
	}
	if f.Quality != nil && *f.Quality != "" {
		r.Quality = strings.Split(*f.Quality, ",")
	}
	switch {
	case f.Value != nil:
		r.Value = Number(*f.Value)
	case f.Text != nil:
		r.Value = Value{Kind: Text, Text: *f.Text}
	case f.Bool != nil:
		r.Value = Value{Kind: Bool, Bool: *f.Bool}
	case f.Data != nil:
		r.Value.Kind = Data
		r.Value.Data, err = data()
	default:
		err = errors.New("no value")
	}
	return r, err
}

func (n *Entry) fields() entryFields {
	f := entryFields{Entry: string(n.Kind), Boot: float64(n.Stamp.Boot), Mono: seconds(n.Stamp.Mono)}
	switch n.Kind {
	case Clock:
		f.Offset = ptr(seconds(n.Offset))
		if n.OffsetErr > 0 {
			f.Err = ptr(seconds(n.OffsetErr))
		}
	case GapEntry:
		f.From, f.To = nullableSeconds(n.From), nullableSeconds(n.To)
		f.Cause, f.Sensor = ptr(n.Cause), optional(n.Sensor)
		if n.Lost != nil {
			f.First, f.Count = ptr(float64(n.Lost.First)), ptr(float64(n.Lost.Count))
		}
	case Recovered:
		f.Index, f.Fork = ptr(float64(n.Index)), ptr(float64(n.Fork))
		f.Part, f.Parts = ptr(float64(n.Part)), ptr(float64(n.Parts))
		f.Data = ptr(n.Data)
	}
	return f
}

func (f *entryFields) entry() (n *Entry, err error) {
	n = &Entry{Kind: Kind(f.Entry)}
	if f.Entry == "" {
		return nil, errors.New("no entry kind")
	}
	if n.Stamp, err = parseStamp(f.Boot, f.Mono); err != nil {
		return nil, err
	}
	count := func(v *float64) (out uint64) {
		if v == nil {
			return 0
		}
		if !(*v >= 0 && *v <= 1<<53) || *v != float64(uint64(*v)) {
			err = fmt.Errorf("count %v", *v)
			return 0
		}
		return uint64(*v)
	}
	span := func(v *float64) *time.Duration {
		if v == nil {
			return nil
		}
		d, derr := duration(*v)
		if derr != nil {
			err = derr
		}
		return &d
	}
	if d := span(f.Offset); d != nil {
		n.Offset = *d
	}
	if d := span(f.Err); d != nil {
		n.OffsetErr = *d
	}
	n.From, n.To = span(f.From.value), span(f.To.value)
	if f.Cause != nil {
		n.Cause = *f.Cause
	}
	if f.Sensor != nil {
		n.Sensor = *f.Sensor
	}
	if f.First != nil {
		n.Lost = &Range{count(f.First), count(f.Count)}
	}
	n.Index, n.Fork = count(f.Index), count(f.Fork)
	n.Part, n.Parts = int(count(f.Part)), int(count(f.Parts))
	if f.Data != nil {
		n.Data = *f.Data
	}
	return n, err
}
