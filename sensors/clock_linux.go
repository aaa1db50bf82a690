package sensors

import (
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// BootID returns the kernel's random name for this start of the board.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

type systemClock struct {
	boot  uint32
	trust bool
}

// SystemClock returns the kernel's clock for start number boot. The wall time
// is known while the kernel says that something keeps it synchronised
// (adjtimex): a board that boots in 1970, or with the time of its last
// shutdown, says that it does not know.
func SystemClock(boot uint32) Clock { return systemClock{boot: boot} }

// TrustedClock is SystemClock for a board whose clock runs on without power, or is
// set by its host: the wall time is what it says, if that is not before this program
// was written, and how sure it is nobody knows.
func TrustedClock(boot uint32) Clock { return systemClock{boot, true} }

// written is when this was.
var written = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// Now implements [Clock].
func (c systemClock) Now() Time {
	t := Time{Boot: c.boot}
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err == nil {
		t.Mono = time.Duration(ts.Nano()).Truncate(time.Microsecond)
	}
	var tx unix.Timex
	state, err := unix.Adjtimex(&tx)
	if err == nil && state != unix.TIME_ERROR && tx.Status&unix.STA_UNSYNC == 0 {
		t.Wall = time.Now().Round(0).Truncate(time.Microsecond).UTC()
		t.Err = time.Duration(tx.Maxerror) * time.Microsecond
	} else if now := time.Now().Round(0).Truncate(time.Microsecond).UTC(); c.trust && now.After(written) {
		t.Wall = now
	}
	return t
}
