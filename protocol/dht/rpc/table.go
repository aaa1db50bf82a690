package rpc

import (
	"bytes"
	"math/bits"
	"net/netip"
	"slices"
	"time"

	"dazaar-edge/protocol/dht/packet"
)

// rowSize is how many nodes there are in a row, and in the answer to a query.
const rowSize = 20

// table has the nodes that are known, in rows by how many leading bits their ids share with
// ours.
type table struct {
	id   packet.ID
	rows map[int][]entry // the oldest first
	n    int
}

type entry struct {
	id   packet.ID
	addr netip.AddrPort
	seen time.Time
	told bool // it answered a request of ours
}

// closer compares the distances of a and b to a target.
func closer(target, a, b packet.ID) int {
	for i := range target {
		if x, y := a[i]^target[i], b[i]^target[i]; x != y {
			return int(x) - int(y)
		}
	}
	return 0
}

func (t *table) row(id packet.ID) int {
	for i := range id {
		if x := id[i] ^ t.id[i]; x != 0 {
			return 8*i + bits.LeadingZeros8(x)
		}
	}
	return -1 // ourselves
}

// see notes that a node is there, and whether it answered. If its row is full it returns the oldest node of that,
// whose place it may have if that one is gone.
func (t *table) see(id packet.ID, addr netip.AddrPort, now time.Time, told bool) (oldest entry, full bool) {
	k := t.row(id)
	if k < 0 {
		return entry{}, false
	}
	row := t.rows[k]
	if i := slices.IndexFunc(row, func(e entry) bool { return e.id == id }); i >= 0 {
		told = told || row[i].told
		row = append(slices.Delete(row, i, i+1), entry{id, addr, now, told})
		t.rows[k] = row
		return entry{}, false
	}
	if len(row) >= rowSize {
		return row[0], true
	}
	if t.rows == nil {
		t.rows = map[int][]entry{}
	}
	t.rows[k] = append(row, entry{id, addr, now, told})
	t.n++
	return entry{}, false
}

// drop forgets a node.
func (t *table) drop(id packet.ID) {
	k := t.row(id)
	if i := slices.IndexFunc(t.rows[k], func(e entry) bool { return e.id == id }); i >= 0 {
		t.rows[k] = slices.Delete(t.rows[k], i, i+1)
		t.n--
	}
}

// closest returns the nodes that are closest to a target, the closest first.
func (t *table) closest(target packet.ID, most int) []entry {
	all := t.all()
	slices.SortFunc(all, func(a, b entry) int { return closer(target, a.id, b.id) })
	return all[:min(most, len(all))]
}

// newest returns the nodes that were seen last, of those that answered, the newest first.
func (t *table) newest(most int) []entry {
	all := slices.DeleteFunc(t.all(), func(e entry) bool { return !e.told })
	slices.SortFunc(all, func(a, b entry) int {
		if c := b.seen.Compare(a.seen); c != 0 {
			return c
		}
		return bytes.Compare(a.id[:], b.id[:])
	})
	return all[:min(most, len(all))]
}

func (t *table) all() []entry {
	all := make([]entry, 0, t.n)
	for _, row := range t.rows {
		all = append(all, row...)
	}
	return all
}

// become sorts the nodes anew around another id.
func (t *table) become(id packet.ID) {
	all := t.all()
	slices.SortFunc(all, func(a, b entry) int { return a.seen.Compare(b.seen) })
	*t = table{id: id}
	for _, e := range all {
		t.see(e.id, e.addr, e.seen, e.told)
	}
}
