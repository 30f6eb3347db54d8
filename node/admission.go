package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"aead.dev/minisign"

	"coppice/image"
	"coppice/union"
)

// Where things of images are unless the configuration says otherwise.
const (
	// DefaultSerialsPath is where the serials of images are kept that a machine has taken.
	DefaultSerialsPath = "/var/lib/coppice/serials.json"
	// DefaultLocalPath is the directory that images are copied to which a machine is to have itself.
	DefaultLocalPath = "/var/lib/coppice/images"

	defaultPatience = 60 * time.Second
	maxPatience     = 24 * time.Hour
)

// ImageConfig says how images are reached, and which roots new layers may stand on. Layers that exist pin the content that they stand on,
// and need no signature any more.
type ImageConfig struct {
	// CA is the path of certificates of authorities that servers are trusted by beside those of the system, TLSCert and TLSKey those
	// of the certificate to show to servers, all in PEM. They are read again when they change, also for roots that are open.
	CA      string `toml:"ca"`
	TLSCert string `toml:"tls_cert"`
	TLSKey  string `toml:"tls_key"`
	// RequireSignature refuses roots that no trusted key has signed, raw ones too.
	RequireSignature bool `toml:"require_signature"`
	// TrustedKeys are the paths of public keys in the format of minisign. They are read again each time.
	TrustedKeys []string `toml:"trusted_keys"`
	// SerialsPath is where the highest serial of each image is kept. "" means [DefaultSerialsPath].
	SerialsPath string `toml:"serials"`
	// Patience is how long a read waits while no replica of its root answers, before it fails, as [time.ParseDuration] takes it. "" means 60s.
	Patience string `toml:"patience"`
	// Stall is how long a root that is an image may answer nothing before a queue's last quarter of reads fails, so that its leaf is served:
	// see [union.DeviceOptions]. "" means Patience: no read fails before another does.
	Stall string `toml:"stall"`
	// LocalPath is the directory that images are copied to for devices made with Hydrate. "" means [DefaultLocalPath].
	LocalPath string `toml:"local"`
}

func (c ImageConfig) validate() error {
	var errs []error
	if (c.TLSCert == "") != (c.TLSKey == "") {
		errs = append(errs, errors.New("images: tls_cert and tls_key belong together"))
	}
	if c.RequireSignature && len(c.TrustedKeys) == 0 {
		errs = append(errs, errors.New("images: require_signature without trusted_keys refuses everything"))
	}
	for name, text := range map[string]string{"patience": c.Patience, "stall": c.Stall} {
		if d, err := time.ParseDuration(text); text != "" && (err != nil || d <= 0 || d > maxPatience) {
			errs = append(errs, fmt.Errorf("images: %s %q is not a time such as 60s, up to %s", name, text, maxPatience))
		}
	}
	for _, path := range append([]string{c.SerialsPath, c.LocalPath, c.CA, c.TLSCert, c.TLSKey}, c.TrustedKeys...) {
		if path != "" && !filepath.IsAbs(path) {
			errs = append(errs, fmt.Errorf("images: %q is not an absolute path", path))
		}
	}
	return errors.Join(errs...)
}

// source says how servers of images are reached.
func (c ImageConfig) source() (image.SourceOptions, error) {
	return image.NewSourceOptions(c.CA, c.TLSCert, c.TLSKey)
}

// patience and stall are valid where c is.
func (c ImageConfig) patience() time.Duration { return durationOr(c.Patience, defaultPatience) }

func (c ImageConfig) stall() time.Duration {
	return min(durationOr(c.Stall, maxPatience), c.patience())
}

func durationOr(text string, otherwise time.Duration) time.Duration {
	d, err := time.ParseDuration(text)
	if err != nil {
		return otherwise
	}
	return d
}

// roots opens roots, each image once for all that stands on it, and decides which of them new layers may stand on. The zero value trusts
// who the system trusts, and takes all.
type roots struct {
	cfg ImageConfig
	log *slog.Logger
	mu  sync.Mutex // guards the file of serials

	cache    *nodeCache // nil: images are read from where they are
	prefetch prefetcher

	records sync.Mutex // held while the replicas of a root are written into records
	setsMu  sync.Mutex // guards sets, the users of each, and known; no other lock is taken under it
	sets    map[image.Digest]*rootSet
	known   map[image.Digest][]byte // what the former program had read of its images, while devices are taken over from it

	raw rawRoots
}

// taken is what is remembered of an image's name.
type taken struct {
	Serial      uint64       `json:"serial"`
	ContentRoot image.Digest `json:"content_root"`
}

const admissionHint = "have it signed: coppice image sign; trusted_keys and require_signature in coppice.toml say what this machine takes"

// admit refuses a root that a new layer may not stand on. An image that is signed by a trusted key is also held to the serials that
// were taken under its name: an older one is refused, whether or not signatures are required.
func (a *roots) admit(base union.Base, refs []image.Ref) error {
	if base == nil || !a.cfg.RequireSignature && len(a.cfg.TrustedKeys) == 0 {
		return nil
	}
	root, ok := base.(*imageRoot)
	if !ok {
		if a.cfg.RequireSignature {
			return unsignable(refs[0])
		}
		return nil
	}
	statement, err := a.check(root, refs)
	switch {
	case err == nil:
		return a.take(statement)
	case a.cfg.RequireSignature || !distrusted(err):
		return fail(CodeUntrusted, admissionHint, "%w", err)
	case !errors.Is(err, image.ErrUnsigned):
		a.log.Warn("root is taken though its signature does not count: none is required", "error", oneLine(err))
	}
	return nil
}

// check looks for a signature that counts beside each of the replicas: it is about their content.
func (a *roots) check(root *imageRoot, refs []image.Ref) (*image.Statement, error) {
	ctx, cancel := context.WithTimeout(root.ctx, openRootTime)
	defer cancel()
	return a.cfg.signed(ctx, refs, root.set.ContentRoot())
}

// keys reads the keys that are trusted.
func (c ImageConfig) keys() (keys []minisign.PublicKey, err error) {
	for _, path := range c.TrustedKeys {
		key, err := minisign.PublicKeyFromFile(path)
		if err != nil {
			return nil, fmt.Errorf("read trusted key %s: %w", path, err)
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// signed returns what a trusted key has signed about a content that replicas have.
func (c ImageConfig) signed(ctx context.Context, refs []image.Ref, content image.Digest) (*image.Statement, error) {
	keys, err := c.keys()
	if err != nil {
		return nil, err
	}
	source, err := c.source()
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, ref := range refs {
		statement, err := checkSignature(ctx, ref, source, content, keys)
		if err == nil {
			return statement, nil
		}
		errs = append(errs, fmt.Errorf("root %s: %w", ref, err))
	}
	return nil, errors.Join(errs...)
}

// CheckSigned refuses, with [CodeUntrusted], replicas of a content that new layers may not stand on, for want of a signature. It says nothing of serials, nor of
// what could not be looked at: the daemon will.
func (c ImageConfig) CheckSigned(ctx context.Context, refs []image.Ref, content image.Digest) error {
	if !c.RequireSignature {
		return nil
	}
	if len(refs) > 0 && refs[0].Kind == image.KindFile {
		return unsignable(refs[0])
	}
	if _, err := c.signed(ctx, refs, content); err != nil && distrusted(err) {
		return fail(CodeUntrusted, admissionHint, "%w", err)
	}
	return nil
}

func unsignable(ref image.Ref) error {
	return fail(CodeUntrusted, "make an image of it and sign that: coppice image build, coppice image sign",
		"root %s is a raw disk, which cannot be signed, and this machine takes only what is signed", ref)
}

func checkSignature(ctx context.Context, ref image.Ref, o image.SourceOptions, content image.Digest, keys []minisign.PublicKey) (*image.Statement, error) {
	im, src, err := image.OpenRef(ctx, ref, o)
	if err != nil {
		return nil, err
	}
	defer func() { _ = errors.Join(im.Close(), src.Close()) }() // they were only read
	if im.ContentRoot() != content {
		return nil, fmt.Errorf("holds %s, not %s: %w", im.ContentRoot(), content, image.ErrOther)
	}
	return image.CheckSignature(ctx, im, keys, ref.Image, time.Now())
}

// distrusted reports whether err is about the signature, and not about a failure to look at it.
func distrusted(err error) bool {
	for _, cause := range []error{image.ErrUnsigned, image.ErrUntrusted, image.ErrExpired, image.ErrOtherName} {
		if errors.Is(err, cause) {
			return true
		}
	}
	return false
}

// take refuses an older version than one that was taken under the same name, and remembers a newer one.
func (a *roots) take(s *image.Statement) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	path := a.cfg.SerialsPath
	all := map[string]taken{}
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, &all)
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return fail(CodeFailed, "restore "+path+", or remove it if older versions may come back once", "read serials of images: %w", err)
	}
	before, known := all[s.Name]
	switch {
	case known && s.Serial < before.Serial:
		return fail(CodeUntrusted, "use the latest version; to go back on purpose, sign the older one again with a higher serial",
			"image %s has serial %d, and this machine has taken %d before: an older version may have been put in the place of a newer one",
			s.Name, s.Serial, before.Serial)
	case known && s.Serial == before.Serial && s.ContentRoot != before.ContentRoot:
		return fail(CodeUntrusted, "sign one of them again with a higher serial",
			"image %s has serial %d, under which this machine has taken other content before", s.Name, s.Serial)
	case known && s.Serial == before.Serial:
		return nil
	}
	all[s.Name] = taken{s.Serial, s.ContentRoot}
	if err := writeSerials(path, all); err != nil {
		return fail(CodeFailed, "let the daemon write there, or set serials in coppice.toml", "keep serials of images: %w", err)
	}
	return nil
}

func writeSerials(path string, all map[string]taken) error {
	data, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(append(data, '\n')); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
