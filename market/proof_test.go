package market

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"dazaar-edge/market/card"
	"dazaar-edge/market/client"
	"dazaar-edge/market/proof"
)

// TestProof: what a buyer got is proved to a third party: from the first block and from
// a later one, over restarts, when its credit ended before the log's end; and nothing that
// was changed is.
func TestProof(t *testing.T) {
	x := newTill(t, func(l *Listing) { l.Card.History = &card.History{All: true} })
	x.sense(35)
	for name, from := range map[string]uint64{"from 0": 0, "from 5": 5, "from 8": 8} {
		t.Run(name, func(t *testing.T) {
			var file bytes.Buffer
			c := x.rich(1)
			steps := uint64(1)
			config := c.config
			c.config = func(cfg *client.Config) {
				config(cfg)
				cfg.From, cfg.Budget.Total, cfg.Proof = from, steps*1000, proof.NewWriter(&file)
			}
			for steps = 1; steps <= 3; steps++ { // each time ten more readings, and then no money
				if err := c.buy(context.Background(), x.shop, false); !errors.Is(err, client.ErrBudget) && steps < 3 {
					t.Fatal(err)
				}
			}
			var got [][]byte
			next := from
			sum, err := proof.Verify(bytes.NewReader(file.Bytes()), func(i uint64, b []byte) error {
				if i != next {
					t.Errorf("block %d comes, want %d", i, next)
				}
				next++
				got = append(got, bytes.Clone(b))
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if sum.Seller != x.offer.key() || sum.Buyer != c.key() || sum.Card == nil || sum.First != from || sum.Blocks != min(30, 35-from) || sum.Unproven != 0 {
				t.Errorf("%+v", sum)
			}
			for i, b := range got {
				if want := c.paper.lines[i]; !bytes.Equal(b, want) {
					t.Errorf("block %d is %q, and %q came", from+uint64(i), b, want)
				}
			}
			tamper(t, file.Bytes())
		})
	}
}

// tamper changes each line of a proof in each of its fields; none may verify.
func tamper(t *testing.T, file []byte) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(string(file)), "\n")
	verify := func(lines []string) error {
		_, err := proof.Verify(strings.NewReader(strings.Join(lines, "\n")), func(uint64, []byte) error { return nil })
		return err
	}
	for i := range lines {
		var fields map[string]json.RawMessage
		if err := json.Unmarshal([]byte(lines[i]), &fields); err != nil {
			t.Fatal(err)
		}
		for name, value := range fields {
			changed := changedJSON(value)
			if changed == nil {
				continue
			}
			fields[name] = changed
			b, err := json.Marshal(fields)
			if err != nil {
				t.Fatal(err)
			}
			fields[name] = value
			other := append([]string{}, lines...)
			other[i] = string(b)
			if err := verify(other); err == nil && name != "right" && name != "left" {
				t.Errorf("line %d: %s may be changed from %.60s to %.60s", i+1, name, value, changed)
			} else if err == nil {
				t.Errorf("line %d: a node may be changed", i+1)
			}
		}
	}
	// A block is missing, or there twice.
	for i, l := range lines {
		if strings.Contains(l, `"block"`) {
			if verify(append(append([]string{}, lines[:i]...), lines[i+1:]...)) == nil {
				t.Errorf("line %d may be missing", i+1)
			}
			if verify(append(append([]string{}, lines[:i+1]...), lines[i:]...)) == nil {
				t.Errorf("line %d may be there twice", i+1)
			}
			break
		}
	}
}

// changedJSON returns a value that is another one; nil if there is none that is like it.
func changedJSON(v json.RawMessage) json.RawMessage {
	switch text := string(v); {
	case text[0] == '"' && len(text) > 4: // another digit in the middle
		b := []byte(text)
		i := len(b) / 2
		if b[i] == '1' {
			b[i] = '2'
		} else {
			b[i] = '1'
		}
		return b
	case text[0] >= '0' && text[0] <= '9':
		return json.RawMessage("1" + text)
	case text[0] == '[' && len(text) > 2:
		return json.RawMessage(strings.Replace(text, `"size":`, `"size":1`, 1))
	case text[0] == '{':
		return json.RawMessage(strings.Replace(text, `"name":"`, `"name":"x`, 1))
	}
	return nil
}
