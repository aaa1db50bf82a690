package feed

import (
	"os"
	"testing"

	"dazaar-edge/storage"

	"golang.org/x/sys/unix"
)

// punchHole empties all pages of a segment file but the first and the last 16.
func punchHole(b testing.TB, name string) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		b.Fatal(err)
	}
	const mode = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	if err := unix.Fallocate(int(f.Fd()), mode, storage.PageSize, st.Size()-17*storage.PageSize); err != nil {
		b.Fatal(err)
	}
}
