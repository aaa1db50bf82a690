package block

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// The subset of CBOR (RFC 8949) that SenML needs: definite lengths, integers,
// floats, strings, arrays, maps and booleans, written in shortest form.

const (
	cborUint   = 0
	cborNeg    = 1
	cborBytes  = 2
	cborText   = 3
	cborArray  = 4
	cborMap    = 5
	cborSimple = 7
	cborFalse  = 0xf4
	cborTrue   = 0xf5
	cborNull   = 0xf6
	cborFloat  = 0xfb
)

// SenML's labels in CBOR (RFC 8428, table 4); ours are text.
const (
	labelBaseName = -2
	labelBaseTime = -3
	labelName     = 0
	labelUnit     = 1
	labelValue    = 2
	labelText     = 3
	labelBool     = 4
	labelTime     = 6
	labelData     = 8
)

func appendHead(b []byte, major byte, n uint64) []byte {
	major <<= 5
	switch {
	case n < 24:
		return append(b, major|byte(n))
	case n <= math.MaxUint8:
		return append(b, major|24, byte(n))
	case n <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(b, major|25), uint16(n))
	case n <= math.MaxUint32:
		return binary.BigEndian.AppendUint32(append(b, major|26), uint32(n))
	}
	return binary.BigEndian.AppendUint64(append(b, major|27), n)
}

func appendCBORInt(b []byte, n int64) []byte {
	if n < 0 {
		return appendHead(b, cborNeg, uint64(-1-n))
	}
	return appendHead(b, cborUint, uint64(n))
}

func appendCBORText(b []byte, s string) []byte {
	return append(appendHead(b, cborText, uint64(len(s))), s...)
}
func appendCBORBytes(b, p []byte) []byte {
	return append(appendHead(b, cborBytes, uint64(len(p))), p...)
}

// appendCBORFloat writes whole numbers as integers.
func appendCBORFloat(b []byte, f float64) []byte {
	if f == math.Trunc(f) && math.Abs(f) < 1<<53 && !(f == 0 && math.Signbit(f)) {
		return appendCBORInt(b, int64(f))
	}
	return binary.BigEndian.AppendUint64(append(b, cborFloat), math.Float64bits(f))
}

func appendCBORBool(b []byte, v bool) []byte {
	if v {
		return append(b, cborTrue)
	}
	return append(b, cborFalse)
}

// cborMapWriter counts the fields of one map.
type cborMapWriter struct {
	b []byte
	n uint64
}

func (w *cborMapWriter) label(l any) {
	w.n++
	switch l := l.(type) {
	case int:
		w.b = appendCBORInt(w.b, int64(l))
	case string:
		w.b = appendCBORText(w.b, l)
	}
}

func (w *cborMapWriter) text(label any, v *string) {
	if v != nil {
		w.label(label)
		w.b = appendCBORText(w.b, *v)
	}
}

func (w *cborMapWriter) number(label any, v *float64) {
	if v != nil {
		w.label(label)
		w.b = appendCBORFloat(w.b, *v)
	}
}

func (w *cborMapWriter) null(label string, v nullable) {
	if v.set && v.value == nil {
		w.label(label)
		w.b = append(w.b, cborNull)
	}
}

func (w *cborMapWriter) appendTo(b []byte) []byte {
	return append(appendHead(b, cborMap, w.n), w.b...)
}

func appendCBORPack(b []byte, p *Pack) []byte {
	b = appendHead(b, cborArray, uint64(len(p.Readings)))
	for i, f := range records(p) {
		var w cborMapWriter
		w.text(labelBaseName, f.BaseName)
		w.number(labelBaseTime, f.BaseTime)
		w.number("boot", f.Boot)
		w.number("mono", f.Mono)
		w.number("err", f.Err)
		w.text(labelName, f.Name)
		w.text(labelUnit, f.Unit)
		w.number(labelValue, f.Value)
		w.text(labelText, f.Text)
		if f.Bool != nil {
			w.label(labelBool)
			w.b = appendCBORBool(w.b, *f.Bool)
		}
		if v := p.Readings[i].Value; v.Kind == Data {
			w.label(labelData)
			w.b = appendCBORBytes(w.b, v.Data)
		}
		w.number(labelTime, f.Time)
		w.text("q", f.Quality)
		b = w.appendTo(b)
	}
	return b
}

func appendCBOREntry(b []byte, n *Entry) []byte {
	f := n.fields()
	var w cborMapWriter
	w.text("entry", &f.Entry)
	w.number("boot", &f.Boot)
	w.number("mono", &f.Mono)
	for _, v := range f.numbers() {
		w.number(v.label, *v.value)
	}
	w.null("from", f.From)
	w.null("to", f.To)
	w.text("cause", f.Cause)
	w.text("sensor", f.Sensor)
	if f.Data != nil {
		w.label("data")
		w.b = appendCBORBytes(w.b, *f.Data)
	}
	return w.appendTo(b)
}

type numberField struct {
	label string
	value **float64
}

// numbers lists the optional numeric fields.
func (f *entryFields) numbers() []numberField {
	return []numberField{
		{"offset", &f.Offset}, {"err", &f.Err}, {"from", &f.From.value}, {"to", &f.To.value}, {"first", &f.First}, {"count", &f.Count},
		{"index", &f.Index}, {"fork", &f.Fork}, {"part", &f.Part}, {"parts", &f.Parts},
	}
}

var errCBOR = errors.New("malformed CBOR")

// maxDepth bounds nested values that are skipped.
const maxDepth = 8

// parseHead takes the head of a value off b: its major type, the rest of its
// first byte, and its argument.
func parseHead(b []byte) (major, info byte, n uint64, rest []byte, err error) {
	if len(b) == 0 {
		return 0, 0, 0, nil, errCBOR
	}
	major, info, rest = b[0]>>5, b[0]&31, b[1:]
	size := 0
	switch {
	case info < 24:
		return major, info, uint64(info), rest, nil
	case info <= 27:
		size = 1 << (info - 24)
	default:
		return 0, 0, 0, nil, fmt.Errorf("%w: indefinite length", errCBOR)
	}
	if len(rest) < size {
		return 0, 0, 0, nil, errCBOR
	}
	for _, c := range rest[:size] {
		n = n<<8 | uint64(c)
	}
	return major, info, n, rest[size:], nil
}

// parseValue takes a scalar off b: float64, string, []byte, bool or nil; arrays
// and maps are skipped and give nil too.
func parseValue(b []byte, depth int) (v any, rest []byte, err error) {
	major, info, n, rest, err := parseHead(b)
	if err != nil {
		return nil, nil, err
	}
	switch major {
	case cborUint:
		return float64(n), rest, nil
	case cborNeg:
		return -1 - float64(n), rest, nil
	case cborBytes, cborText:
		if n > uint64(len(rest)) {
			return nil, nil, errCBOR
		}
		if major == cborText {
			return string(rest[:n]), rest[n:], nil
		}
		return rest[:n:n], rest[n:], nil
	case cborArray, cborMap:
		if depth <= 0 || n > uint64(len(rest)) {
			return nil, nil, errCBOR
		}
		if major == cborMap {
			n *= 2
		}
		for range n {
			if _, rest, err = parseValue(rest, depth-1); err != nil {
				return nil, nil, err
			}
		}
		return nil, rest, nil
	case cborSimple:
		return parseSimple(b[0], info, n, rest)
	}
	return nil, nil, fmt.Errorf("%w: tag", errCBOR)
}

func parseSimple(first, info byte, n uint64, rest []byte) (any, []byte, error) {
	switch {
	case first == cborFalse, first == cborTrue:
		return first == cborTrue, rest, nil
	case first == cborNull:
		return nil, rest, nil
	case info == 27:
		return math.Float64frombits(n), rest, nil
	case info == 26:
		return float64(math.Float32frombits(uint32(n))), rest, nil
	}
	return nil, nil, fmt.Errorf("%w: simple value", errCBOR)
}

// parseMap takes a map off b and calls f for each field with a label that is a
// float64 or a string.
func parseMap(b []byte, f func(label, v any)) ([]byte, error) {
	major, _, n, rest, err := parseHead(b)
	if err != nil || major != cborMap || n > uint64(len(rest)) {
		return nil, errCBOR
	}
	for range n {
		var label, v any
		if label, rest, err = parseValue(rest, 0); err != nil {
			return nil, err
		}
		if v, rest, err = parseValue(rest, maxDepth); err != nil {
			return nil, err
		}
		f(label, v)
	}
	return rest, nil
}

func set[T any](dst **T, v any) {
	if t, ok := v.(T); ok {
		*dst = &t
	}
}

func parseCBOR(data []byte) (*Pack, *Entry, error) {
	major, _, n, rest, err := parseHead(data)
	switch {
	case err != nil:
		return nil, nil, err
	case major == cborMap:
		e, err := parseCBOREntry(data)
		return nil, e, err
	case major != cborArray || n > uint64(len(rest)):
		return nil, nil, errCBOR
	}
	recs := make([]record, 0, min(n, 1024))
	values := make([][]byte, 0, cap(recs))
	for range n {
		var f record
		var value []byte
		if rest, err = parseMap(rest, func(label, v any) { f.setCBOR(label, v, &value) }); err != nil {
			return nil, nil, err
		}
		if err := checkRecord(len(recs), &f); err != nil {
			return nil, nil, err
		}
		recs, values = append(recs, f), append(values, value)
	}
	if len(rest) != 0 {
		return nil, nil, fmt.Errorf("%w: %d bytes behind the pack", errCBOR, len(rest))
	}
	p, err := packOf(recs, func(i int) ([]byte, error) { return values[i], nil })
	return p, nil, err
}

func (f *record) setCBOR(label, v any, data *[]byte) {
	switch label {
	case float64(labelBaseName):
		set(&f.BaseName, v)
	case float64(labelBaseTime):
		set(&f.BaseTime, v)
	case "boot":
		set(&f.Boot, v)
	case "mono":
		set(&f.Mono, v)
	case "err":
		set(&f.Err, v)
	case float64(labelName):
		set(&f.Name, v)
	case float64(labelUnit):
		set(&f.Unit, v)
	case float64(labelValue):
		set(&f.Value, v)
	case float64(labelText):
		set(&f.Text, v)
	case float64(labelBool):
		set(&f.Bool, v)
	case float64(labelTime):
		set(&f.Time, v)
	case "q":
		set(&f.Quality, v)
	case float64(labelData):
		if b, ok := v.([]byte); ok {
			*data, f.Data = b, ptr("")
		}
	}
}

func parseCBOREntry(data []byte) (*Entry, error) {
	var f entryFields
	var kind *string
	var boot, mono *float64
	rest, err := parseMap(data, func(label, v any) {
		switch label {
		case "entry":
			set(&kind, v)
		case "boot":
			set(&boot, v)
		case "mono":
			set(&mono, v)
		case "cause":
			set(&f.Cause, v)
		case "sensor":
			set(&f.Sensor, v)
		case "data":
			set(&f.Data, v)
		}
		for _, n := range f.numbers() {
			if label == n.label {
				set(n.value, v)
			}
		}
	})
	if err != nil {
		return nil, err
	}
	if kind == nil || boot == nil || mono == nil || len(rest) != 0 {
		return nil, errStamp
	}
	f.Entry, f.Boot, f.Mono = *kind, *boot, *mono
	return f.entry()
}
