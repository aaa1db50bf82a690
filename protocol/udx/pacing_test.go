package udx

import (
	"testing"
	"time"
)

// TestLateTimers: who is woken up late sends as fast as it should, in larger bursts; but who
// had nothing to send, or no room, does not send at once what it could have sent meanwhile.
func TestLateTimers(t *testing.T) {
	s, _, _ := lonely(t, StreamConfig{})
	s.mu.Lock() // the stream's own timer waits
	defer s.mu.Unlock()
	const rate = 1e6 // bytes a second
	s.bbr.rate, s.bbr.window, s.bbr.minRTT, s.peerWindow = rate, 1<<40, 100*int64(time.Millisecond), 1<<40
	now := s.ep.now()
	pump := func(after time.Duration) (sent int64) {
		now += int64(after)
		before := s.inFlight
		s.pump(now)
		return s.inFlight - before
	}
	s.out.push(make([]byte, 4<<20))
	pump(0)
	for _, every := range []time.Duration{time.Millisecond, 7 * time.Millisecond, 24 * time.Millisecond} {
		sent := int64(0)
		for range 40 {
			sent += pump(every)
		}
		if want := int64(rate * (40 * every).Seconds()); sent < want-2*maxMTU || sent > want+2*maxMTU {
			t.Errorf("woken up every %v it sends %d bytes and not %d", every, sent, want)
		}
	}
	burst := func(what string, sent int64, d time.Duration) {
		t.Helper()
		if most := int64(rate*d.Seconds()) + maxMTU; sent > most {
			t.Errorf("%s, it sends %d bytes at once, and not %d", what, sent, most)
		}
	}
	burst("after a second without the processor", pump(time.Second), 25*time.Millisecond)
	window := s.bbr.window
	s.bbr.window = s.inFlight
	pump(10 * time.Millisecond) // its time has come, and there is no room
	s.bbr.window = window
	burst("after a second without room", pump(time.Second), 2*time.Millisecond)
	s.upTo = s.base + int64(s.out.n)
	pump(10 * time.Millisecond) // its time has come, and it has nothing to send
	s.out.push(make([]byte, 1<<20))
	burst("after a second with nothing to send", pump(time.Second), 2*time.Millisecond)
	s.upTo = s.base + int64(s.out.n)
	for s.out.push(make([]byte, 10*maxMTU)); s.upTo < s.base+int64(s.out.n); {
		pump(time.Millisecond)
	}
	if s.nextSend <= now {
		t.Fatal("the last took no time")
	}
	s.out.push(make([]byte, 1<<20))
	burst("after a second, when the last took its time", pump(time.Second), 2*time.Millisecond)
	s.bbr.minRTT = 10 * int64(time.Millisecond)
	burst("after a second without the processor, on a short way", pump(time.Second), 5*time.Millisecond)
}
