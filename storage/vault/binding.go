package vault

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/crypto/blake2b"
	"golang.org/x/sys/unix"
)

// Binding is what names a board and a card, as short hashes; "" is unknown.
type Binding struct {
	Board string `json:"board,omitempty"` // device-tree serial or DMI uuid
	Disk  string `json:"disk,omitempty"`  // SD CID, or the disk's serial or wwid
	MAC   string `json:"mac,omitempty"`   // of the first network interface
	Inode string `json:"inode,omitempty"` // of the vault's directory

	macs []string // of all network interfaces here
}

// Weak tells that nothing names the board and card: only copied files would be
// noticed, a copied card not.
func (b Binding) Weak() bool { return b.Board == "" && b.Disk == "" && b.MAC == "" }

// differs names the parts that were known and are not the same here. A network
// address may have become another interface's than the first: somebody plugged
// one in.
func (b Binding) differs(here Binding) (what []string) {
	for _, p := range []struct{ name, was, is string }{
		{"board", b.Board, here.Board}, {"card or disk", b.Disk, here.Disk}, {"network address", b.MAC, here.MAC}, {"directory", b.Inode, here.Inode},
	} {
		if p.was != "" && p.was != p.is && !(p.was == b.MAC && slices.Contains(here.macs, p.was)) {
			what = append(what, p.name)
		}
	}
	return what
}

// Here reads what names this board and the card that dir is on. root is "/",
// but for tests.
func Here(root, dir string) Binding {
	b := Binding{
		Board: firstFile(root, "proc/device-tree/serial-number", "sys/class/dmi/id/product_uuid"),
		macs:  permanentMACs(root),
	}
	if len(b.macs) > 0 {
		b.MAC = b.macs[0]
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err == nil {
		b.Inode = digest(strconv.FormatUint(st.Ino, 10))
		b.Disk = diskOf(root, uint64(st.Dev))
	}
	return b
}

// digest hides the value itself, which is nobody's business.
func digest(s string) string {
	s = strings.Trim(s, " \t\r\n\x00")
	if s == "" || strings.Trim(s, "0-") == "" {
		return ""
	}
	sum := blake2b.Sum256([]byte("dazaar binding\n" + s))
	return hex.EncodeToString(sum[:12])
}

func firstFile(root string, names ...string) string {
	for _, name := range names {
		if b, err := os.ReadFile(filepath.Join(root, name)); err == nil {
			if d := digest(string(b)); d != "" {
				return d
			}
		}
	}
	return ""
}

// permanentMACs returns the addresses of the interfaces that are real devices,
// by name.
func permanentMACs(root string) (out []string) {
	nets, err := filepath.Glob(filepath.Join(root, "sys/class/net/*/device"))
	if err != nil {
		return nil
	}
	sort.Strings(nets)
	for _, n := range nets {
		iface := filepath.Dir(n)
		if kind, err := os.ReadFile(filepath.Join(iface, "addr_assign_type")); err == nil && strings.TrimSpace(string(kind)) != "0" {
			continue // made up at random or set by hand
		}
		if b, err := os.ReadFile(filepath.Join(iface, "address")); err == nil {
			if d := digest(string(b)); d != "" {
				out = append(out, d)
			}
		}
	}
	return out
}

// diskOf returns what names the block device with this number, or the disk it
// is a partition of.
func diskOf(root string, dev uint64) string {
	link := filepath.Join(root, "sys/dev/block", fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev)))
	path, err := filepath.EvalSymlinks(link)
	if err != nil {
		return ""
	}
	if _, err := os.Stat(filepath.Join(path, "partition")); err == nil {
		path = filepath.Dir(path)
	}
	for _, name := range []string{"device/cid", "device/serial", "device/wwid", "serial", "wwid"} {
		if b, err := os.ReadFile(filepath.Join(path, name)); err == nil {
			if d := digest(string(b)); d != "" {
				return d
			}
		}
	}
	return ""
}
