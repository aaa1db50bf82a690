package durable

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Identity returns what tells a file from every other one, also from one that gets its
// name, or its number, when it is gone.
func Identity(f *os.File) (string, error) {
	var st unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_BTIME, &st); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x:%x:%x:%x.%x", st.Dev_major, st.Dev_minor, st.Ino, st.Btime.Sec, st.Btime.Nsec), nil
}
