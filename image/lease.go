package image

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// ErrLeased is the cause where an image is needed by a device or a layer.
var ErrLeased = errors.New("in use")

const (
	leasesDir    = workDir + "/leases"
	leaseVersion = 1

	// LeaseTime is how long a lease holds after it was taken or renewed: a node that is gone keeps an image for no longer.
	LeaseTime = 30 * 24 * time.Hour
	// leaseSkew is how far ahead of ours the clock of another node may be.
	leaseSkew = 24 * time.Hour

	maxLeases    = 10_000
	maxLeaseFile = 16 << 10
)

// Lease says who needs a content. In a layout it is a file, which those who use the layout on other nodes see too.
type Lease struct {
	Version     int       `json:"version"`
	Node        string    `json:"node"` // its id
	Host        string    `json:"host"` // and what it is called
	Device      string    `json:"device,omitempty"`
	Store       string    `json:"store"` // on the node
	Layer       string    `json:"layer"`
	Ref         string    `json:"ref,omitempty"`     // by which the device has the image
	Name        string    `json:"name,omitempty"`    // in the layout
	Manifest    Digest    `json:"manifest,omitzero"` // that the device reads
	ContentRoot Digest    `json:"content_root"`      // that the layer stands on
	Renewed     time.Time `json:"renewed,omitzero"`
	Expires     time.Time `json:"expires,omitzero"`
}

// String says in words who holds it.
func (l Lease) String() string {
	who := fmt.Sprintf("layer %s of %s", l.Layer, l.Store)
	if l.Device != "" {
		who = "device " + l.Device
	}
	if l.Host != "" {
		who += " on " + l.Host
	}
	return who
}

// check refuses what another program, or a torn write, left.
func (l *Lease) check(now time.Time) error {
	switch {
	case l.Version != leaseVersion:
		return fmt.Errorf("version %d: %w", l.Version, ErrVersion)
	case l.Node == "" || l.ContentRoot == (Digest{}):
		return errors.New("it names no node or no content")
	case l.Renewed.After(now.Add(leaseSkew)):
		return fmt.Errorf("it was renewed on %s, which is yet to come", l.Renewed.UTC().Format(time.RFC3339))
	}
	if most := l.Renewed.Add(LeaseTime); l.Expires.After(most) {
		l.Expires = most
	}
	return nil
}

// LeasedError says who needs an image. It matches [ErrLeased].
type LeasedError struct {
	Name string
	By   []Lease
}

func (e *LeasedError) Error() string {
	by := e.By[0].String()
	if n := len(e.By) - 1; n > 0 {
		by += fmt.Sprintf(" and %d more", n)
	}
	return fmt.Sprintf("image %s is in use by %s", e.Name, by)
}

// Is makes errors.Is(err, ErrLeased) hold.
func (e *LeasedError) Is(target error) bool { return target == ErrLeased }

func (l *Layout) leasePath(lease Lease) string {
	sum := sha256.Sum256([]byte(lease.Node + "\x00" + lease.Device))
	return l.path(filepath.Join(leasesDir, fmt.Sprintf("%x.json", sum[:16])))
}

// PutLease takes or renews a device's lease, for [LeaseTime]. It fails with [ErrNotFound] where the layout has the image no more; then none is
// taken.
func (l *Layout) PutLease(lease Lease) error {
	now := time.Now().UTC().Truncate(time.Second)
	lease.Version, lease.Renewed, lease.Expires = leaseVersion, now, now.Add(LeaseTime)
	data, err := json.MarshalIndent(lease, "", "  ")
	if err == nil {
		err = l.putLease(lease, append(data, '\n'))
	}
	if err != nil {
		return fmt.Errorf("take lease of %s in %s: %w", lease.Name, l, err)
	}
	return nil
}

func (l *Layout) putLease(lease Lease, data []byte) error {
	if err := os.MkdirAll(l.path(leasesDir), 0o755); err != nil {
		return err
	}
	unlock, err := flock(l.path(indexLock), unix.LOCK_EX) // so that nobody removes the image between a look and the lease
	if err != nil {
		return err
	}
	defer unlock()
	index, err := l.index()
	if err != nil {
		return err
	}
	there := false
	for _, b := range index {
		there = there || b.Digest == lease.Manifest.String()
	}
	if !there {
		return fmt.Errorf("manifest %s: %w", lease.Manifest, ErrNotFound)
	}
	path := l.leasePath(lease)
	return replaceFile(path+".new", path, data)
}

// ManifestOf returns the manifest that a name means, if it has the content.
func (l *Layout) ManifestOf(ctx context.Context, name string, content Digest) (Digest, error) {
	im, err := Open(ctx, l, name)
	if err != nil {
		return Digest{}, err
	}
	if err := im.Close(); err != nil {
		return Digest{}, err
	}
	if im.ContentRoot() != content {
		return Digest{}, fmt.Errorf("image %s in %s is another one by now: %w", name, l, ErrNotFound)
	}
	return ParseDigest(string(im.desc.Digest))
}

// DropLease gives a device's lease back. None there is no error.
func (l *Layout) DropLease(lease Lease) error {
	if err := os.Remove(l.leasePath(lease)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("give lease back: %w", err)
	}
	return nil
}

// Leases returns the leases that hold, and what is wrong with files that count for nothing.
func (l *Layout) Leases() (all []Lease, bad []error, err error) {
	entries, err := os.ReadDir(l.path(leasesDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read leases of %s: %w", l, err)
	}
	now := time.Now()
	for i, e := range entries {
		if !strings.HasSuffix(e.Name(), ".json") {
			continue
		}
		if i >= maxLeases {
			return all, append(bad, fmt.Errorf("%s has more than %d files: the others do not count", l.path(leasesDir), maxLeases)), nil
		}
		lease, err := readLease(l.path(filepath.Join(leasesDir, e.Name())), now)
		switch {
		case errors.Is(err, fs.ErrNotExist): // given back just now
		case err != nil:
			bad = append(bad, err)
		case now.Before(lease.Expires):
			all = append(all, lease)
		}
	}
	return all, bad, nil
}

func readLease(path string, now time.Time) (lease Lease, err error) {
	data, err := readCapped(path, maxLeaseFile)
	if err == nil {
		if err = json.Unmarshal(data, &lease); err == nil {
			err = lease.check(now)
		}
	}
	if err != nil {
		return lease, fmt.Errorf("lease %s does not count: %w", path, err)
	}
	return lease, nil
}

// removeOldLeases removes files of leases that are over, and those that count for nothing when nobody has touched them for as long.
func (l *Layout) removeOldLeases() error {
	files, err := filepath.Glob(l.path(leasesDir + "/*"))
	if err != nil {
		return err
	}
	now := time.Now()
	for _, path := range files {
		lease, err := readLease(path, now)
		over := err == nil && now.After(lease.Expires)
		if err != nil {
			st, statErr := os.Stat(path)
			over = statErr == nil && now.Sub(st.ModTime()) > LeaseTime
		}
		if !over {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// RemoveOptions says how an image is removed.
type RemoveOptions struct {
	// Leases are those that the place does not know of.
	Leases []Lease
	// Force removes what is in use.
	Force bool
}

// Removal tells what was removed.
type Removal struct {
	Name       string  `json:"name"`
	FreedBytes int64   `json:"freed_bytes"`
	Kept       bool    `json:"blobs_kept"`       // because somebody writes to the directory just now
	InUse      []Lease `json:"in_use,omitempty"` // by whom it is, and was removed all the same
	Bad        []error `json:"-"`                // leases that do not count
}

// Remove forgets an image, and in a layout the blobs that nothing uses then. One that is in use is refused with a [LeasedError], unless
// another name means the same.
func Remove(ctx context.Context, dst Target, name string, o RemoveOptions) (Removal, error) {
	r := Removal{Name: name}
	if err := r.remove(ctx, dst, o); err != nil {
		return r, fmt.Errorf("remove image: %w", err)
	}
	return r, nil
}

func (r *Removal) remove(ctx context.Context, dst Target, o RemoveOptions) error {
	root, err := contentRootOf(ctx, dst, r.Name)
	if err != nil && !o.Force {
		return err
	}
	l, ok := dst.(*Layout)
	if !ok {
		if err := r.allow(o.Leases, root, o.Force); err != nil {
			return err
		}
		return dst.Remove(ctx, r.Name)
	}
	err = l.forget(r.Name, func(index []ocispec.Descriptor, gone ocispec.Descriptor) error {
		leases, bad, err := l.Leases()
		if r.Bad = bad; err != nil && !o.Force {
			return err
		}
		leases = append(leases, o.Leases...)
		if isNamed(index, gone.Digest) { // the same content stays; only who goes by this name needs it
			leases = byName(leases, r.Name)
		}
		return r.allow(leases, root, o.Force)
	})
	if err != nil {
		return err
	}
	r.FreedBytes, err = l.Collect()
	if errors.Is(err, ErrBusy) {
		r.Kept, err = true, nil
	}
	return err
}

// allow refuses what a lease names.
func (r *Removal) allow(leases []Lease, root Digest, force bool) error {
	same := func(a, b Lease) bool {
		return a.Node == b.Node && a.Device == b.Device && a.Layer == b.Layer && a.Store == b.Store
	}
	for _, lease := range leases {
		known := slices.ContainsFunc(r.InUse, func(other Lease) bool { return same(lease, other) }) // from a file and from its node
		if lease.ContentRoot == root && root != (Digest{}) && !known {
			r.InUse = append(r.InUse, lease)
		}
	}
	if len(r.InUse) > 0 && !force {
		return &LeasedError{r.Name, r.InUse}
	}
	return nil
}

func byName(all []Lease, name string) (out []Lease) {
	for _, lease := range all {
		if lease.Name == name {
			out = append(out, lease)
		}
	}
	return out
}

// contentRootOf returns the content root of an image; it is zero for what is none of ours.
func contentRootOf(ctx context.Context, src Source, name string) (Digest, error) {
	im, err := Open(ctx, src, name)
	if errors.Is(err, ErrNotImage) || errors.Is(err, ErrVersion) {
		return Digest{}, nil
	}
	if err != nil {
		return Digest{}, err
	}
	return im.ContentRoot(), im.Close()
}
