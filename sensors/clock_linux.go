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

type systemClock struct{ boot uint32 }

// SystemClock returns the kernel's clock for start number boot. The wall time
// is known while the kernel says that something keeps it synchronised
// (adjtimex): a board that boots in 1970, or with the time of its last
// shutdown, says that it does not know.
func SystemClock(boot uint32) Clock { return systemClock{boot} }

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
	}
	return t
}
