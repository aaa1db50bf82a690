// Package jcs is canonical JSON (RFC 8785), so that what a signature is over does
// not depend on who wrote it: keys in order, no spaces, one way to write each
// string. Numbers are integers within ±(2^53 - 1), which leaves one way to write
// those, too; decimals are strings.
//
// It is stricter than usual: a duplicate key, a lone surrogate or bytes that are no
// UTF-8 are errors, since readers differ in what they take them for.
//
// Source: RFC 8785, RFC 8259; specs/exchange.md, "Card".
package jcs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// ErrJSON says that bytes are no JSON, or not of the kind that can be signed.
var ErrJSON = errors.New("jcs: not JSON that can be signed")

// maxDepth bounds how deep arrays and objects may stand in each other.
const maxDepth = 32

// MaxNumber bounds numbers.
const MaxNumber = 1<<53 - 1

// Transform returns the canonical form of one JSON value.
func Transform(b []byte) ([]byte, error) {
	if !utf8.Valid(b) {
		return nil, fmt.Errorf("%w: it is no UTF-8", ErrJSON)
	}
	if err := surrogates(b); err != nil {
		return nil, err
	}
	t := &transform{d: json.NewDecoder(bytes.NewReader(b))}
	t.d.UseNumber()
	out, err := t.value(nil, 0)
	if err != nil {
		return nil, err
	}
	if _, err := t.d.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: something follows it", ErrJSON)
	}
	return out, nil
}

// Marshal returns the canonical form of a Go value.
func Marshal(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return Transform(b)
}

// surrogates refuses escapes that are half a character.
func surrogates(b []byte) error {
	unit := func(at int) (uint64, bool) {
		if at+6 > len(b) || b[at] != '\\' || b[at+1] != 'u' {
			return 0, false
		}
		n, err := strconv.ParseUint(string(b[at+2:at+6]), 16, 16)
		return n, err == nil
	}
	for i := 0; i < len(b); i++ {
		if b[i] != '\\' {
			continue
		}
		u, ok := unit(i)
		switch {
		case !ok:
			i++ // the escaped character, which may be a backslash
		case u >= 0xd800 && u < 0xdc00:
			if low, ok := unit(i + 6); !ok || low < 0xdc00 || low > 0xdfff {
				return fmt.Errorf("%w: half a character at %d", ErrJSON, i)
			}
			i += 11
		case u >= 0xdc00 && u < 0xe000:
			return fmt.Errorf("%w: half a character at %d", ErrJSON, i)
		default:
			i += 5
		}
	}
	return nil
}

type transform struct{ d *json.Decoder }

func (t *transform) value(out []byte, depth int) ([]byte, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("%w: more than %d deep", ErrJSON, maxDepth)
	}
	tok, err := t.d.Token()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrJSON, err)
	}
	switch v := tok.(type) {
	case nil:
		return append(out, "null"...), nil
	case bool:
		return strconv.AppendBool(out, v), nil
	case string:
		return appendString(out, v), nil
	case json.Number:
		return appendNumber(out, v.String())
	case json.Delim:
		if v == '{' {
			return t.object(out, depth)
		}
		return t.array(out, depth)
	}
	return nil, fmt.Errorf("%w: %v", ErrJSON, tok)
}

func (t *transform) array(out []byte, depth int) (_ []byte, err error) {
	out = append(out, '[')
	for i := 0; t.d.More(); i++ {
		if i > 0 {
			out = append(out, ',')
		}
		if out, err = t.value(out, depth+1); err != nil {
			return nil, err
		}
	}
	return t.end(append(out, ']'))
}

// member is a key with its value, which is canonical.
type member struct {
	key   []uint16 // as keys are compared
	text  string
	value []byte
}

func (t *transform) object(out []byte, depth int) ([]byte, error) {
	var members []member
	for t.d.More() {
		tok, err := t.d.Token()
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrJSON, err)
		}
		m := member{text: tok.(string)} // the decoder takes nothing else
		m.key = utf16.Encode([]rune(m.text))
		if m.value, err = t.value(nil, depth+1); err != nil {
			return nil, err
		}
		members = append(members, m)
	}
	slices.SortFunc(members, func(a, b member) int { return slices.Compare(a.key, b.key) })
	out = append(out, '{')
	for i, m := range members {
		if i > 0 {
			if m.text == members[i-1].text {
				return nil, fmt.Errorf("%w: %q is there twice", ErrJSON, m.text)
			}
			out = append(out, ',')
		}
		out = append(append(appendString(out, m.text), ':'), m.value...)
	}
	return t.end(append(out, '}'))
}

// end takes the closing bracket.
func (t *transform) end(out []byte) ([]byte, error) {
	if _, err := t.d.Token(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrJSON, err)
	}
	return out, nil
}

func appendNumber(out []byte, s string) ([]byte, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n > MaxNumber || n < -MaxNumber || strconv.FormatInt(n, 10) != s {
		return nil, fmt.Errorf("%w: %s is no integer within 2^53", ErrJSON, s)
	}
	return append(out, s...), nil
}

func appendString(out []byte, s string) []byte {
	const hex = "0123456789abcdef"
	out = append(out, '"')
	for i := range len(s) {
		c := s[i]
		switch c {
		case '"', '\\':
			out = append(out, '\\', c)
		case '\b':
			out = append(out, '\\', 'b')
		case '\t':
			out = append(out, '\\', 't')
		case '\n':
			out = append(out, '\\', 'n')
		case '\f':
			out = append(out, '\\', 'f')
		case '\r':
			out = append(out, '\\', 'r')
		default:
			if c < ' ' {
				out = append(out, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			} else {
				out = append(out, c)
			}
		}
	}
	return append(out, '"')
}
