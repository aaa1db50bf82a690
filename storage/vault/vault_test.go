package vault

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"dazaar-edge/storage/durable"
	"dazaar-edge/storage/faultfs"

	"golang.org/x/crypto/blake2b"
)

var here = Binding{Board: "b", Disk: "d", MAC: "m", Inode: "i", macs: []string{"m"}}

type ones struct{}

func (ones) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = 1
	}
	return len(b), nil
}

func create(t *testing.T, passphrase string) (string, *Vault) {
	t.Helper()
	dir := t.TempDir()
	v, err := Create(durable.OS(), dir, []byte(passphrase), here, ones{})
	if err != nil {
		t.Fatal(err)
	}
	return dir, v
}

// TestKeys derives by the definition in specs/exchange.md.
func TestKeys(t *testing.T) {
	dir, _ := create(t, "")
	v, err := Open(durable.OS(), dir, nil, here)
	if err != nil {
		t.Fatal(err)
	}
	keyed := func(parts ...[]byte) []byte {
		h, _ := blake2b.New256(bytes.Repeat([]byte{1}, 32))
		for _, p := range parts {
			h.Write(p)
		}
		return h.Sum(nil)
	}
	o, err := v.Offer("air")
	if err != nil {
		t.Fatal(err)
	}
	if want := keyed([]byte("dazaar seller\nair")); !bytes.Equal(o.seller.Seed(), want) {
		t.Error("seller seed")
	}
	if want := keyed([]byte("dazaar device\n")); !bytes.Equal(o.device.Seed(), want) {
		t.Error("device seed")
	}
	buyer := [32]byte{7}
	got, err := o.FeedSeed(buyer, 3)
	want := keyed([]byte("dazaar feed seed\n"), o.SellerKey(), buyer[:], binary.LittleEndian.AppendUint64(nil, 3))
	if err != nil || !bytes.Equal(got[:], want) {
		t.Error("feed seed", err)
	}
	if st, err := os.Stat(filepath.Join(dir, Name)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
}

func TestPassphrase(t *testing.T) {
	dir, made := create(t, "correct horse")
	b, err := os.ReadFile(filepath.Join(dir, Name))
	if err != nil || bytes.Contains(b, []byte("secret")) {
		t.Errorf("secret in the clear: %s, %v", b, err)
	}
	if _, err := Open(durable.OS(), dir, nil, here); !errors.Is(err, ErrSealed) {
		t.Error(err)
	}
	if _, err := Open(durable.OS(), dir, []byte("wrong"), here); !errors.Is(err, ErrSecret) {
		t.Error(err)
	}
	v, err := Open(durable.OS(), dir, []byte("correct horse"), here)
	if err != nil || v.master != made.master {
		t.Fatal(err)
	}
	if err := v.Bind(here); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(durable.OS(), dir, nil, here); !errors.Is(err, ErrSealed) {
		t.Error("unsealed by binding it again:", err)
	}
}

// TestMoved checks that nothing is signed elsewhere until somebody decides.
func TestMoved(t *testing.T) {
	dir, _ := create(t, "")
	for name, c := range map[string]struct {
		there Binding
		want  []string
	}{
		"same":                    {here, nil},
		"another card":            {Binding{"b", "x", "m", "i", []string{"m"}}, []string{"card or disk"}},
		"another board":           {Binding{"x", "d", "y", "i", []string{"y"}}, []string{"board", "network address"}},
		"copied files":            {Binding{"b", "d", "m", "x", []string{"m"}}, []string{"directory"}},
		"an adapter plugged in":   {Binding{"b", "d", "a", "i", []string{"a", "m"}}, nil},
		"something more is known": {Binding{"b", "d", "m", "i", []string{"m"}}, nil},
	} {
		v, err := Open(durable.OS(), dir, nil, c.there)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(v.Moved(), c.want) {
			t.Errorf("%s: %v, want %v", name, v.Moved(), c.want)
		}
		o, err := v.Offer("air")
		if moved := c.want != nil; errors.Is(err, ErrMoved) != moved || (o.SignDevice([]byte("x")) == nil) != moved || (o.SellerKey() == nil) != moved {
			t.Errorf("%s: keys given out: %v", name, err)
		}
		if _, err := o.FeedSeed([32]byte{}, 0); errors.Is(err, ErrMoved) != (c.want != nil) {
			t.Errorf("%s: feed seed: %v", name, err)
		}
	}
	there := Binding{Board: "x", Disk: "y"}
	v, _ := Open(durable.OS(), dir, nil, there)
	if err := v.Bind(there); err != nil {
		t.Fatal(err)
	}
	v, err := Open(durable.OS(), dir, nil, there)
	if err != nil || v.Moved() != nil {
		t.Error(v.Moved(), err)
	}
	if _, err := v.Offer("air"); err != nil {
		t.Error(err)
	}
	if !(Binding{Inode: "i"}).Weak() || there.Weak() {
		t.Error("Weak")
	}
}

// TestFlips flips every bit of the file: each is found.
func TestFlips(t *testing.T) {
	for _, passphrase := range []string{"", "x"} {
		dir, _ := create(t, passphrase)
		name := filepath.Join(dir, Name)
		good, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for bit := range len(good) * 8 {
			bad := bytes.Clone(good)
			bad[bit/8] ^= 1 << (bit % 8)
			if _, err := parse(bad); err == nil {
				t.Errorf("bit %d (%q) was not found", bit, bad[bit/8])
			}
		}
		if err := Verify(durable.OS(), dir); err != nil {
			t.Error(err)
		}
	}
}

func TestFiles(t *testing.T) {
	dir, _ := create(t, "")
	if _, err := Create(durable.OS(), dir, nil, here, nil); !errors.Is(err, fs.ErrExist) {
		t.Error("replaced:", err)
	}
	if _, err := Open(durable.OS(), t.TempDir(), nil, here); !errors.Is(err, ErrNone) {
		t.Error(err)
	}
	old, err := Retire(durable.OS(), dir, time.Unix(1_790_000_000, 0))
	if err != nil || !strings.HasSuffix(old, "vault-20260921T141320Z.old") {
		t.Error(old, err)
	}
	if _, err := Create(durable.OS(), dir, nil, here, nil); err != nil {
		t.Error(err)
	}
	newer := bytes.Replace([]byte(`{"version":9,"secret":"x"}`), []byte("x"), bytes.Repeat([]byte("A"), 44), 1)
	if _, err := parse(newer); !errors.Is(err, ErrNewer) {
		t.Error(err)
	}
}

// TestPowerCut replaces the vault while the power goes at every call: the old
// or the new one is there.
func TestPowerCut(t *testing.T) {
	for at := 1; at < 12; at++ {
		disk := faultfs.New(uint64(at))
		if err := disk.Mkdir("/v"); err != nil {
			t.Fatal(err)
		}
		v, err := Create(disk, "/v", nil, here, ones{})
		if err != nil {
			t.Fatal(err)
		}
		disk.CutAfter(at)
		_ = v.Bind(Binding{Board: "new"})
		disk.PowerOff()
		disk.Reboot()
		again, err := Open(disk, "/v", nil, here)
		if err != nil || again.master != v.master || again.bound.Board != "b" && again.bound.Board != "new" {
			t.Fatalf("cut %d: %v", at, err)
		}
	}
}

// TestHere reads what names a board from files as a Pi and a PC have them.
func TestHere(t *testing.T) {
	root := t.TempDir()
	write := func(name, text string) {
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	empty := Here(root, root)
	if !empty.Weak() || empty.Inode == "" {
		t.Errorf("%+v", empty)
	}
	write("sys/class/dmi/id/product_uuid", "4C4C4544-0042\n")
	write("sys/class/net/eth0/address", "b8:27:eb:00:00:01\n")
	write("sys/class/net/eth0/device/x", "")
	write("sys/class/net/eth0/addr_assign_type", "0\n")
	write("sys/class/net/veth1/address", "02:00:00:00:00:01\n")
	pc := Here(root, root)
	write("proc/device-tree/serial-number", "10000000abcdef\x00")
	pi := Here(root, root)
	if pc.Weak() || pi.Board == pc.Board || pi.MAC == "" || len(pi.macs) != 1 {
		t.Errorf("%+v, %+v", pc, pi)
	}
	write("sys/class/net/eth0/addr_assign_type", "1\n")
	if random := Here(root, root); random.MAC != "" {
		t.Error("a random address binds")
	}
}

func FuzzParse(f *testing.F) {
	for _, p := range []string{"", "x"} {
		disk := faultfs.New(1)
		if err := disk.Mkdir("/v"); err != nil {
			f.Fatal(err)
		}
		if _, err := Create(disk, "/v", []byte(p), here, nil); err != nil {
			f.Fatal(err)
		}
		b, err := durable.ReadFile(disk, "/v/"+Name, maxFile)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, err := parse(b); err == nil && v.Sealed == nil && len(v.Secret) != secretSize {
			t.Fatal("accepted without a secret")
		}
	})
}
