package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"dazaar-edge/feed"
	"dazaar-edge/feed/block"
	"dazaar-edge/payment/ledger"
	"dazaar-edge/sensors"
	"dazaar-edge/storage/db"
	"dazaar-edge/storage/durable"
	"dazaar-edge/storage/vault"
)

// Names in storage.path.
const (
	lockName = "LOCK"
	dbName   = "edge.db"
	logsName = "logs"
)

// passphraseCredential is the systemd credential with the vault's passphrase;
// the variable names a file with it where there is no systemd.
const (
	passphraseCredential = "edge-vault"
	passphraseVariable   = "EDGE_VAULT_PASSPHRASE_FILE"
)

// state is what a device keeps in storage.path, open and locked.
type state struct {
	dir   string
	lock  io.Closer
	db    *db.DB
	vault *vault.Vault
	made  bool   // the vault is new
	lost  string // why the books begin anew; "" if they do not
}

// passphrase returns the vault's passphrase; nil if none was given.
func passphrase() ([]byte, error) {
	name := os.Getenv(passphraseVariable)
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); name == "" && dir != "" {
		name = filepath.Join(dir, passphraseCredential)
		if _, err := os.Stat(name); errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
	}
	if name == "" {
		return nil, nil
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("vault passphrase: %w", err)
	}
	if b = bytes.TrimRight(b, "\r\n"); len(b) == 0 {
		return nil, fmt.Errorf("vault passphrase: %s is empty: nothing would be sealed", name)
	}
	return b, nil
}

// openState opens storage.path. With create it makes what is missing.
func openState(dir string, dbSize int64, create bool) (s *state, err error) {
	fsys := durable.OS()
	if create {
		if err := fsys.Mkdir(dir); err != nil {
			return nil, fmt.Errorf("storage.path: %w", err)
		}
	}
	s = &state{dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.lock, err = fsys.Lock(filepath.Join(dir, lockName)); err != nil {
		if errors.Is(err, durable.ErrLocked) {
			err = fmt.Errorf("%w: is edge running already? (systemctl status edge)", err)
		}
		return s, err
	}
	secret, err := passphrase()
	if err != nil {
		return s, err
	}
	here := vault.Here("/", dir)
	s.vault, err = vault.Open(fsys, dir, secret, here)
	if errors.Is(err, vault.ErrNone) && create {
		if exists(filepath.Join(dir, dbName)) || exists(filepath.Join(dir, logsName)) {
			return s, fmt.Errorf("%w: %s has logs or a database, and the keys are gone: put vault.json back from your backup, or make new keys: edge repair %s --new-identity", err, dir, dir)
		}
		s.made = true
		s.vault, err = vault.Create(fsys, dir, secret, here, nil)
	}
	if err != nil {
		return s, err
	}
	name := filepath.Join(dir, dbName)
	lost := !exists(name) && exists(filepath.Join(dir, logsName))
	s.db, err = db.Open(name, dbSize, false)
	if err == nil && lost {
		s.lost = "there was no " + dbName + " beside the keys"
		err = ledger.RecordLoss(s.db, ledger.Loss{At: time.Now().UTC(), Why: s.lost})
	}
	if errors.Is(err, durable.ErrCorrupt) {
		err = fmt.Errorf("%w: edge repair %s puts it aside and begins with empty books; buyers show what they paid", err, dir)
	}
	return s, err
}

func (s *state) close() (err error) {
	if s.db != nil {
		err = s.db.Close()
	}
	if s.lock != nil {
		err = errors.Join(err, s.lock.Close())
	}
	return err
}

// id names the device to brokers: one with another vault is another device.
func (s *state) id() string {
	key := s.vault.Devices()[0]
	return "edge-" + hex.EncodeToString(key[:8])
}

// deviceBucket holds what the device remembers of itself.
const deviceBucket = "device"

// bootRecord counts the board's starts.
type bootRecord struct {
	ID    string `json:"id"`
	Count uint32 `json:"count"`
}

// boot returns the number of this start of the board.
func (s *state) boot() (uint32, error) {
	id, err := sensors.BootID()
	if err != nil {
		return 0, err
	}
	var rec bootRecord
	err = s.db.Update(func(tx *db.Tx) error {
		b, err := tx.Get(deviceBucket, []byte("boot"))
		if err != nil {
			return err
		}
		if b != nil {
			if err := json.Unmarshal(b, &rec); err != nil {
				return fmt.Errorf("boot counter: %w", err)
			}
		}
		if rec.ID == id {
			return nil
		}
		rec = bootRecord{id, rec.Count + 1}
		if b, err = json.Marshal(rec); err != nil {
			return err
		}
		return tx.Put(deviceBucket, []byte("boot"), b)
	})
	return rec.Count, err
}

// feedStamp is the clock as a feed wants it.
func feedStamp(c sensors.Clock) func() block.Stamp {
	return func() block.Stamp {
		t := c.Now()
		return block.Stamp{Boot: t.Boot, Mono: t.Mono, Wall: t.Wall, Err: t.Err}
	}
}

// errNoLogs says that a directory has no logs.
var errNoLogs = errors.New("no logs here")

// logDirs returns the directories of the logs in storage.path, or dir itself if
// it is one.
func logDirs(dir string) ([]string, error) {
	if segments, err := filepath.Glob(filepath.Join(dir, "*.seg")); err == nil && len(segments) > 0 {
		return []string{dir}, nil
	}
	entries, err := os.ReadDir(filepath.Join(dir, logsName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w: give storage.path, or the directory of one log", dir, errNoLogs)
	} else if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() {
			out = append(out, filepath.Join(dir, logsName, e.Name()))
		}
	}
	return out, nil
}

// keys returns what a log signs with; on another board it signs nothing.
func (s *state) keys(offer string) (*vault.Offer, error) {
	k, err := s.vault.Offer(offer)
	if errors.Is(err, vault.ErrMoved) {
		err = nil
	}
	return k, err
}

var _ feed.Keys = (*vault.Offer)(nil)
