package udx

import "time"

// bbr decides how fast to send: it models the path by its bottleneck bandwidth and its
// round-trip time, and does not take a loss for congestion. It is version 1, as stock
// peers have it (draft-cardwell-iccrg-bbr-congestion-control-00), but for what its
// comments say. It belongs to its stream. Times are those of [Stream.now], amounts bytes
// with their headers.
type bbr struct {
	state     bbrState
	bw        maxFilter // bytes a second
	minRTT    int64     // 0 is none yet
	minRTTAt  int64
	rounds    int64
	roundEnd  int64 // what must be delivered for the round to end
	roundNew  bool
	timed     bool    // the rate is one for the path's round-trip time
	full      bool    // start-up has found the bandwidth
	fullBW    float64 // what it was when it grew last
	fullCount int
	cycle     int
	cycleAt   int64
	probeDone int64 // when ProbeRTT may end, 0 while it has not got there
	prior     int64 // window before a loss or ProbeRTT
	recovery  bool
	conserve  bool // in the first round of recovery

	window     int64   // bytes that may be on their way
	rate       float64 // bytes a second
	pacingGain float64
	windowGain float64
}

type bbrState byte

const (
	bbrStartup bbrState = iota
	bbrDrain
	bbrProbeBW
	bbrProbeRTT
)

const (
	highGain = 2.885 // 2/ln 2
	// minWindow keeps acknowledgements coming.
	minWindow   = 4 * maxMTU
	firstWindow = 10 * baseMTU
	minRTTLife  = 10 * int64(time.Second)
	probeRTT    = 200 * int64(time.Millisecond)
	// quantum is the time for which packets are sent at once: timers are no finer.
	quantum = int64(time.Millisecond)
)

// cycleGains are those of the eight phases of ProbeBW, of one round-trip time each.
var cycleGains = [8]float64{1.25, 0.75, 1, 1, 1, 1, 1, 1}

func (b *bbr) init(now int64) {
	*b = bbr{window: firstWindow, pacingGain: highGain, windowGain: highGain, minRTTAt: now}
	b.rate = highGain * firstWindow / 0.001
}

// sample is what acknowledgements that came together say.
type sample struct {
	now       int64
	acked     int64 // bytes
	lost      int64
	rtt       int64 // 0 is unknown
	delivered int64 // in all
	prior     int64 // in all, when the newest acknowledged packet was sent
	interval  int64
	limited   bool // by the application, not by the network
	inFlight  int64
	before    int64 // in flight before
}

// on takes a sample.
func (b *bbr) on(s sample) {
	b.roundNew = false
	if s.prior >= b.roundEnd {
		b.roundEnd = s.delivered
		b.rounds++
		b.roundNew = true
		b.conserve = false
	}
	if s.interval > 0 {
		if bw := float64(s.delivered-s.prior) * 1e9 / float64(s.interval); !s.limited || bw >= b.bw.max() {
			b.bw.add(b.rounds, bw)
		}
	}
	b.phase(s)
	b.checkFull(s)
	if b.state == bbrDrain && s.inFlight <= b.inFlight(1) {
		b.enterProbeBW(s.now)
	}
	b.checkRTT(s)
	b.setRate(s)
	b.setWindow(s)
}

// inFlight returns the bandwidth-delay product, times a gain.
func (b *bbr) inFlight(gain float64) int64 {
	if b.minRTT == 0 || b.bw.max() == 0 {
		return firstWindow
	}
	return int64(gain * b.bw.max() * float64(b.minRTT) / 1e9)
}

func (b *bbr) phase(s sample) {
	if b.state != bbrProbeBW {
		return
	}
	over := s.now-b.cycleAt > b.minRTT
	switch b.pacingGain {
	case 1.25:
		over = over && (s.lost > 0 || s.before >= b.inFlight(1.25))
	case 0.75:
		over = over || s.before <= b.inFlight(1)
	}
	if over {
		b.cycle = (b.cycle + 1) % len(cycleGains)
		b.cycleAt = s.now
		b.pacingGain = cycleGains[b.cycle]
	}
}

func (b *bbr) checkFull(s sample) {
	if b.full || !b.roundNew || s.limited {
		return
	}
	if bw := b.bw.max(); bw >= 1.25*b.fullBW {
		b.fullBW, b.fullCount = bw, 0
		return
	}
	if b.fullCount++; b.fullCount >= 3 {
		b.full = true
		if b.state == bbrStartup {
			b.state, b.pacingGain, b.windowGain = bbrDrain, 1/highGain, highGain
		}
	}
}

func (b *bbr) enterProbeBW(now int64) {
	// Not with the phase that drains; any other would do.
	b.state, b.windowGain, b.cycle, b.cycleAt = bbrProbeBW, 2, 2, now
	b.pacingGain = cycleGains[b.cycle]
}

// checkRTT looks for the round-trip time of the empty path, every ten seconds, unless it
// shows by itself: as it does where data comes from time to time.
func (b *bbr) checkRTT(s sample) {
	expired := s.now-b.minRTTAt > minRTTLife
	if s.rtt > 0 && (b.minRTT == 0 || s.rtt <= b.minRTT || expired) {
		b.minRTT, b.minRTTAt = s.rtt, s.now
	}
	if expired && b.state != bbrProbeRTT && !s.limited { // who had nothing to send has just seen it
		b.prior = max(b.prior, b.window)
		b.state, b.pacingGain, b.windowGain, b.probeDone = bbrProbeRTT, 1, 1, 0
	}
	if b.state != bbrProbeRTT {
		return
	}
	switch {
	case b.probeDone == 0 && s.inFlight <= b.floor():
		b.probeDone = s.now + probeRTT
	case b.probeDone != 0 && s.now > b.probeDone:
		b.minRTTAt = s.now
		b.restore()
		if b.full {
			b.enterProbeBW(s.now)
		} else {
			b.state, b.pacingGain, b.windowGain = bbrStartup, highGain, highGain
		}
	}
}

// floor is the window in ProbeRTT: half of what fills the path, as in version 2, which
// shows the time as well and costs less.
func (b *bbr) floor() int64 { return max(minWindow, b.inFlight(0.5)) }

func (b *bbr) setRate(s sample) {
	if !b.timed && b.minRTT > 0 { // until then nothing was known
		b.timed = true
		b.rate = highGain * firstWindow * 1e9 / float64(b.minRTT)
	}
	// What little was sent at first says nothing of what the path carries.
	if rate := b.pacingGain * b.bw.max(); b.full || rate > b.rate {
		b.rate = rate
	}
}

// burst is how much is sent at once.
func (b *bbr) burst() int64 {
	return min(max(2*maxMTU, int64(b.rate*float64(quantum)/1e9)), 512<<10)
}

func (b *bbr) setWindow(s sample) {
	target := b.inFlight(b.windowGain) + 3*min(b.burst(), 128<<10)
	switch {
	case b.conserve:
		b.window = max(b.window-s.lost, s.inFlight+s.acked)
	case b.full:
		b.window = min(b.window+s.acked, target)
	case b.window < target || s.delivered < firstWindow:
		b.window += s.acked
	}
	b.window = max(b.window, minWindow)
	if b.state == bbrProbeRTT {
		b.window = min(b.window, b.floor())
	}
}

func (b *bbr) restore() {
	b.window = max(b.window, b.prior)
	b.prior = 0
}

// lose is told that packets were lost, when what is sent from now on is behind
// delivered: for a round no more is sent than arrives.
func (b *bbr) lose(inFlight, acked, delivered int64) {
	if b.recovery {
		return
	}
	b.prior = max(b.prior, b.window)
	b.recovery, b.conserve = true, true
	b.window = max(inFlight+acked, minWindow)
	b.roundEnd = delivered
}

// recover is told that what was lost has arrived.
func (b *bbr) recover() {
	if b.recovery {
		b.recovery, b.conserve = false, false
		b.restore()
	}
}

// timeout is told that nothing comes back.
func (b *bbr) timeout() {
	b.prior = max(b.prior, b.window)
	b.recovery = true
	b.conserve = false
	b.window = minWindow
}

// maxFilter is the largest of the values of the last ten rounds: the three best ones, so
// that there is another when one grows too old (Nichols' windowed filter).
type maxFilter [3]struct {
	round int64
	v     float64
}

const filterRounds = 10

func (f *maxFilter) max() float64 { return f[0].v }

func (f *maxFilter) add(round int64, v float64) {
	type entry = struct {
		round int64
		v     float64
	}
	e := entry{round, v}
	if v >= f[0].v || round-f[2].round > filterRounds {
		f[0], f[1], f[2] = e, e, e
		return
	}
	if v >= f[1].v {
		f[1], f[2] = e, e
	} else if v >= f[2].v {
		f[2] = e
	}
	switch age := round - f[0].round; {
	case age > filterRounds:
		f[0], f[1], f[2] = f[1], f[2], e
		if round-f[0].round > filterRounds {
			f[0], f[1], f[2] = f[1], f[2], e
		}
	case f[1].round == f[0].round && age > filterRounds/4:
		f[1], f[2] = e, e
	case f[2].round == f[1].round && age > filterRounds/2:
		f[2] = e
	}
}
