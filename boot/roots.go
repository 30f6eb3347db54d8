package boot

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"coppice/image"
	"coppice/node"
	"coppice/union"
)

const (
	// probeTime bounds one try to open an image.
	probeTime = 20 * time.Second
	// firstPause is waited after the first try that fails, lastPause after later ones: each takes twice as long.
	firstPause, lastPause = time.Second, 10 * time.Second
)

// lasting are causes that stay until a person does something. All others are taken to pass: servers that are down, names that cannot be resolved,
// answers that make no sense.
var lasting = []error{image.ErrNotFound, image.ErrRefused, image.ErrNotImage, image.ErrVersion, image.ErrCorrupt, image.ErrBadRef, image.ErrOther, fs.ErrPermission}

// passes tells whether an error may go away by itself.
func passes(err error) bool {
	var authority x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	if errors.As(err, &authority) || errors.As(err, &host) || errors.As(err, &invalid) {
		return false
	}
	return !slices.ContainsFunc(lasting, func(cause error) bool { return errors.Is(err, cause) })
}

// waitRoot returns what the root is, once a place of it answers.
func (s *starter) waitRoot(ctx context.Context) (union.Pin, error) {
	if path, ok := s.rawRoot(); ok {
		return s.waitRaw(ctx, path)
	}
	for pause, waited := firstPause, false; ; pause = min(2*pause, lastPause) {
		pin, err := s.probe(ctx)
		switch {
		case err == nil && waited:
			s.console.say("a server of the root answers: going on")
			return pin, nil
		case err == nil, ctx.Err() != nil:
			return pin, err
		case !passes(err):
			return pin, problem(node.CodeBadRoot, rootHint(err), "%v", err)
		}
		waited = true
		if err := writeResolvConf(s.root); err != nil { // of a network that came up meanwhile
			return pin, err
		}
		s.console.repeat("no server of the root answers; trying again until one does (%v)", err)
		select {
		case <-ctx.Done():
			return pin, ctx.Err()
		case <-time.After(pause):
		}
	}
}

func rootHint(err error) string {
	const again = "; then start again, or leave the shell to try again"
	switch {
	case errors.Is(err, image.ErrNotFound):
		return "correct " + keyRoot + "=, or put the image there (coppice image list PLACE shows what is)" + again
	case errors.Is(err, image.ErrRefused):
		return "give the initramfs credentials for the server, in /etc/coppice, and make it again" + again
	case errors.Is(err, image.ErrVersion):
		return "make the initramfs with a newer version of coppice"
	case errors.Is(err, image.ErrCorrupt), errors.Is(err, image.ErrNotImage):
		return "put a good copy of the image there (coppice image verify tells whether it is one)" + again
	}
	return "the certificate of the server must be of an authority that images.ca in /etc/coppice/coppice.toml names; make the initramfs again after a change; the machine's clock must be right"
}

// probe opens the image at the first place that answers. It fails with an error that passes where at least one place may answer later.
func (s *starter) probe(ctx context.Context) (union.Pin, error) {
	options, err := image.NewSourceOptions(s.config.Images.CA, s.config.Images.TLSCert, s.config.Images.TLSKey)
	if err != nil {
		return union.Pin{}, problem(node.CodeBadRoot, "mend the certificates that images in /etc/coppice/coppice.toml names, and make the initramfs again", "%v", err)
	}
	var lastingErr, passing error
	for _, text := range s.params.Roots {
		pin, err := probeOne(ctx, text, options)
		switch {
		case err == nil:
			return pin, nil
		case passes(err):
			passing = errors.Join(passing, err)
		default:
			lastingErr = errors.Join(lastingErr, err)
		}
	}
	if passing != nil {
		return union.Pin{}, passing
	}
	return union.Pin{}, lastingErr
}

func probeOne(ctx context.Context, text string, options image.SourceOptions) (union.Pin, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	ref, err := image.ParseRef(text)
	if err != nil {
		return union.Pin{}, err
	}
	im, src, err := image.OpenRef(ctx, ref, options)
	if err != nil {
		return union.Pin{}, fmt.Errorf("root %s: %w", text, err)
	}
	config := im.Config()
	pin := union.Pin{Kind: union.PinImage, SizeBytes: config.SizeBytes, Digest: union.Digest(config.ContentRoot)}
	return pin, errors.Join(im.Close(), src.Close())
}

// rawRoot returns the path of a root that is no image.
func (s *starter) rawRoot() (string, bool) {
	ref, err := image.ParseRef(s.params.Roots[0])
	return ref.Place, err == nil && ref.Kind == image.KindFile
}

func (s *starter) waitRaw(ctx context.Context, path string) (union.Pin, error) {
	if _, err := os.Stat(path); err != nil {
		if path, err = s.waitDisk(ctx, "root disk", path, s.params.Leaf.Wait); err != nil {
			return union.Pin{}, err
		}
	}
	raw, err := union.OpenRaw(path)
	if err != nil {
		return union.Pin{}, err
	}
	return raw.Pin(), raw.Close()
}
