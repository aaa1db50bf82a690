package block

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

func appendJSONPack(b []byte, p *Pack) ([]byte, error) {
	recs := records(p)
	for i, r := range p.Readings {
		if r.Value.Kind == Data {
			recs[i].Data = ptr(base64.RawURLEncoding.EncodeToString(r.Value.Data)) // RFC 8428, section 5
		}
	}
	out, err := json.Marshal(recs)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEncoding, err)
	}
	return append(b, out...), nil
}

func appendJSONEntry(b []byte, n *Entry) ([]byte, error) {
	out, err := json.Marshal(n.fields())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEncoding, err)
	}
	return append(b, out...), nil
}

func parseJSON(data []byte) (*Pack, *Entry, error) {
	trimmed := bytes.TrimLeft(data, " \t\r\n")
	if len(trimmed) > 0 && trimmed[0] == '{' {
		n, err := parseJSONEntry(data)
		return nil, n, err
	}
	recs, err := parseRecords(data)
	if err != nil {
		return nil, nil, err
	}
	p, err := packOf(recs, func(i int) ([]byte, error) { return base64.RawURLEncoding.DecodeString(*recs[i].Data) })
	return p, nil, err
}

// parseRecords reads the array record by record, so that something that is no
// pack costs no more than its first record.
func parseRecords(data []byte) ([]record, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	if t, err := d.Token(); err != nil || t != json.Delim('[') {
		return nil, errors.Join(errors.New("neither an array nor an object"), err)
	}
	var recs []record
	for d.More() {
		var r record
		if err := d.Decode(&r); err != nil {
			return nil, err
		}
		if err := checkRecord(len(recs), &r); err != nil {
			return nil, err
		}
		recs = append(recs, r)
	}
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("bytes behind the pack")
	}
	return recs, nil
}

func parseJSONEntry(data []byte) (*Entry, error) {
	var f entryFields
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, err
	}
	return f.entry()
}

// Kinds of raw block, the first byte, and the size of a reading's head with it.
const (
	rawReading = 0
	rawEntry   = 1
	rawHead    = 21
)

func appendRaw(b []byte, p *Pack) ([]byte, error) {
	r := p.Readings[0]
	if len(p.Readings) != 1 || r.Value.Kind != Data || r.Offset != 0 {
		return nil, fmt.Errorf("%w: a raw block is one reading of bytes", ErrEncoding)
	}
	b = append(b, rawReading)
	b = binary.LittleEndian.AppendUint32(b, p.Stamp.Boot)
	b = binary.LittleEndian.AppendUint64(b, uint64(p.Stamp.Mono.Microseconds()))
	wall := uint64(0)
	if !p.Stamp.Wall.IsZero() {
		wall = uint64(p.Stamp.Wall.UnixMilli())
	}
	b = binary.LittleEndian.AppendUint64(b, wall)
	return append(b, r.Value.Data...), nil
}

func parseRaw(data []byte) (*Pack, *Entry, error) {
	if len(data) > 0 && data[0] == rawEntry {
		n, err := parseJSONEntry(data[1:])
		return nil, n, err
	}
	if len(data) < rawHead || data[0] != rawReading {
		return nil, nil, errors.New("neither a reading nor an entry")
	}
	p := &Pack{Readings: []Reading{{Value: Value{Kind: Data, Data: data[rawHead:]}}}}
	p.Stamp.Boot = binary.LittleEndian.Uint32(data[1:])
	mono, wall := binary.LittleEndian.Uint64(data[5:]), binary.LittleEndian.Uint64(data[13:])
	if mono > maxSeconds*1e6 || wall > maxSeconds*1e3 {
		return nil, nil, fmt.Errorf("time of %d µs, %d ms", mono, wall)
	}
	p.Stamp.Mono = time.Duration(mono) * time.Microsecond
	if wall != 0 {
		p.Stamp.Wall = time.UnixMilli(int64(wall)).UTC()
	}
	return p, nil, nil
}
