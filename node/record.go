package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"coppice/image"
)

// recordVersion is the version of the record's form. A record of another one is kept
// and reported, never guessed at.
const recordVersion = 1

// phase is what a record says about its device; see the package's documentation.
type phase string

const (
	phaseCreating phase = "creating"
	phaseActive   phase = "active"
	phaseDeleting phase = "deleting"
)

// record is what is kept of a device in the run directory: all that a later daemon needs
// to serve it again.
type record struct {
	Version int           `json:"version"`
	Phase   phase         `json:"phase"`
	BootID  string        `json:"boot_id"`
	Token   uint64        `json:"token,string"` // by which the kernel's device is known to be this one
	Device  CreateRequest `json:"device"`       // with all defaults resolved
	// Manifests are the digests of the manifests by which the replicas of the root were opened last, by reference: what a tag means by now does not matter then.
	Manifests map[string]image.Digest `json:"manifests,omitempty"`
	NewLayer  bool                    `json:"new_layer"`
	Created   time.Time               `json:"created"`
	CreateMS  float64                 `json:"create_ms"`
}

// setReplicas takes down which replicas the root has. A layer that is complete has none.
func (r *record) setReplicas(b *backing) {
	switch root := b.base.(type) {
	case nil:
		r.Device.setRoots(nil)
		r.Manifests = nil
		r.Device.Hydrate = false
	case *imageRoot:
		texts, manifests := root.set.list()
		r.Device.setRoots(texts)
		for ref, known := range r.Manifests { // of one that is not open just now
			if _, ok := manifests[ref]; !ok && slices.Contains(texts, ref) {
				manifests[ref] = known
			}
		}
		r.Manifests = manifests
	}
}

// records is the directory with one record per device.
type records struct{ dir string }

const recordSuffix = ".json"

func (s records) path(name string) string { return filepath.Join(s.dir, name+recordSuffix) }

// save replaces the record of r's device; after a crash the old or the new one is there.
func (s records) save(r record) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err == nil {
		err = writeAtomically(s.path(r.Device.Name), append(data, '\n'))
	}
	if err != nil {
		return fmt.Errorf("save record of %s: %w", r.Device.Name, err)
	}
	return nil
}

// remove deletes a record; none there is no error.
func (s records) remove(name string) error {
	err := os.Remove(s.path(name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove record of %s: %w", name, err)
	}
	return syncDir(s.dir)
}

// loaded is one record, or why it cannot be read.
type loaded struct {
	name string
	record
	err error
}

// load returns all records in order of name. What a crash left half written is removed.
func (s records) load() ([]loaded, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("read records: %w", err)
	}
	var all []loaded
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempPrefix) {
			_ = os.Remove(filepath.Join(s.dir, e.Name()))
			continue
		}
		name, ok := strings.CutSuffix(e.Name(), recordSuffix)
		if !ok {
			continue
		}
		r, err := s.read(name)
		all = append(all, loaded{name: name, record: r, err: err})
	}
	return all, nil
}

func (s records) read(name string) (record, error) {
	var r record
	data, err := os.ReadFile(s.path(name))
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	switch {
	case err != nil:
		return r, fmt.Errorf("read record of %s: %w", name, err)
	case r.Version != recordVersion:
		return r, fmt.Errorf("read record of %s: version %d is not the known %d", name, r.Version, recordVersion)
	case r.Device.Name != name:
		return r, fmt.Errorf("read record of %s: it is about %q", name, r.Device.Name)
	}
	return r, nil
}

const tempPrefix = ".new-"

// writeAtomically replaces the file at path, durably, in one step.
func writeAtomically(path string, data []byte) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, tempPrefix)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(data); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// bootID returns the kernel's identity of this boot
// (Documentation/admin-guide/sysctl/kernel.rst, random).
func bootID() (string, error) {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}
