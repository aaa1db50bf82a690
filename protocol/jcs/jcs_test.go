package jcs

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
)

func TestTransform(t *testing.T) {
	for in, want := range map[string]string{
		` { "b" : 1 , "a" : [ true , false , null ] } `: `{"a":[true,false,null],"b":1}`,
		`{}`: `{}`, `[]`: `[]`, `"x"`: `"x"`, `-5`: `-5`, `0`: `0`, `9007199254740991`: `9007199254740991`,
		// The order of the standard's example: by UTF-16, not by code point.
		`{"€":1,"\r":2,"\ufb33":3,"1":4,"😀":5,"\u0080":6,"ö":7}`: "{\"\\r\":2,\"1\":4,\"\u0080\":6,\"ö\":7,\"€\":1,\"😀\":5,\"\ufb33\":3}",
		// One way to write a string: what must be escaped, and no more.
		`"\u0041\/\u00f6\ud83d\ude00\u000a\u000f\u001f\u007f\"\\"`: "\"A/ö😀\\n\\u000f\\u001f\u007f\\\"\\\\\"",
		`"\b\f\n\r\t"`: `"\b\f\n\r\t"`,
		`"\\ud800"`:    `"\\ud800"`, // an escaped backslash, and letters
	} {
		got, err := Transform([]byte(in))
		if err != nil || string(got) != want {
			t.Errorf("%s\nis   %s, %v\nwant %s", in, got, err, want)
		}
	}
	for name, in := range map[string]string{
		"nothing": ``, "two values": `1 2`, "fraction": `1.5`, "exponent": `1e3`, "whole fraction": `1.0`, "large": `9007199254740992`,
		"very large": `123456789012345678901234567890`, "negative zero": `-0`, "duplicate": `{"a":1,"b":2,"a":3}`, "duplicate, written otherwise": `{"a":1,"\u0061":3}`,
		"half a character": `"\ud800"`, "the other half": `"\udc00"`, "halves in wrong order": `"\udc00\ud800"`, "half and a letter": `"\ud800x"`, "no UTF-8": "\"\xff\"",
		"open": `{"a":1`, "comma": `[1,]`, "key": `{1:2}`, "deep": strings.Repeat("[", 40) + strings.Repeat("]", 40), "single quotes": `'a'`, "NaN": `NaN`,
		"control character": "\"\n\"",
	} {
		if got, err := Transform([]byte(in)); !errors.Is(err, ErrJSON) {
			t.Errorf("%s is %s, %v", name, got, err)
		}
	}
}

func TestMarshal(t *testing.T) {
	got, err := Marshal(map[string]any{"seller": "00", "msat": "5", "buyer": nil, "units": 3, "html": "<&>"})
	if want := `{"buyer":null,"html":"<&>","msat":"5","seller":"00","units":3}`; err != nil || string(got) != want {
		t.Errorf("%s, %v", got, err)
	}
}

// FuzzTransform: what is canonical stays so, and means the same.
func FuzzTransform(f *testing.F) {
	f.Add([]byte(`{"b":[1,2,{"c":"\ud83d\ude00"}],"a":null}`))
	f.Add([]byte(`{"name":"roof","payment":[{"amount":"1000","interval":"600"}],"version":3}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		once, err := Transform(b)
		if err != nil {
			return
		}
		twice, err := Transform(once)
		if err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("%s becomes %s, %v", once, twice, err)
		}
		var x, y any
		if json.Unmarshal(b, &x) != nil || json.Unmarshal(once, &y) != nil || !reflect.DeepEqual(x, y) {
			t.Errorf("%s means something else than %s", once, b)
		}
	})
}
