package udx

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"time"
)

// JunctionConfig says whose packets a junction passes on. All but Allow are required.
type JunctionConfig struct {
	// IDs are the numbers of the two ends' streams.
	IDs [2]uint32
	// Host says at which host an end is now: only from there its packets are taken. It must
	// not wait.
	Host [2]func() netip.Addr
	// Allow tells whether n bytes may be passed on now; nil allows all. What may not is
	// lost, by which the ends see how much the way carries.
	Allow func(n int) bool
}

// Junction passes packets on between two streams, of which each end is another process, and
// reads nothing of them but to which stream they are. All methods are safe for concurrent
// use.
type Junction struct {
	ep   *Endpoint
	cfg  JunctionConfig
	legs [2]leg

	mu     sync.Mutex
	paths  [2]path // guarded by mu, like all below
	bytes  uint64
	lost   uint64
	heard  [2]time.Time
	closed bool
}

// leg is how an end of a junction is found by its number.
type leg struct {
	j   *Junction
	end int
	id  uint32
}

// Join makes a junction.
func (e *Endpoint) Join(cfg JunctionConfig) (*Junction, error) {
	j := &Junction{ep: e, cfg: cfg}
	for i := range j.legs {
		j.legs[i] = leg{j: j, end: i}
		j.heard[i] = time.Now()
		err := e.claim(func(id uint32) {
			j.legs[i].id = id
			e.legs[id] = &j.legs[i]
		})
		if err != nil {
			j.Close()
			return nil, err
		}
	}
	return j, nil
}

// ID returns the number by which an end, 0 or 1, addresses the other.
func (j *Junction) ID(end int) uint32 { return j.legs[end].id }

// Quiet returns for how long nothing came from one of the ends.
func (j *Junction) Quiet() time.Duration {
	j.mu.Lock()
	defer j.mu.Unlock()
	return max(time.Since(j.heard[0]), time.Since(j.heard[1]))
}

// Passed returns how many bytes were passed on, and how many were not, as there were too
// many.
func (j *Junction) Passed() (bytes, lost uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.bytes, j.lost
}

// Close ends the junction: packets are dropped.
func (j *Junction) Close() {
	j.mu.Lock()
	j.closed = true
	j.mu.Unlock()
	j.ep.mu.Lock()
	defer j.ep.mu.Unlock()
	for i := range j.legs {
		if l := &j.legs[i]; j.ep.legs[l.id] == l {
			delete(j.ep.legs, l.id)
		}
	}
}

// pass passes a packet on that came from an end.
func (l *leg) pass(sock *Socket, from netip.AddrPort, b []byte) {
	j := l.j
	if from.Addr() != j.cfg.Host[l.end]() {
		return
	}
	j.mu.Lock()
	j.paths[l.end] = path{sock, from, j.cfg.IDs[l.end]}
	j.heard[l.end] = time.Now()
	to := j.paths[1-l.end]
	ok := !j.closed && to.sock != nil && (j.cfg.Allow == nil || j.cfg.Allow(len(b)))
	if ok {
		j.bytes += uint64(len(b))
	} else {
		j.lost += uint64(len(b))
	}
	j.mu.Unlock()
	if ok {
		binary.LittleEndian.PutUint32(b[4:], to.id)
		to.sock.Send(b, to.remote, 0) //nolint:errcheck // as if it were lost
	}
}
