package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"
	"oras.land/oras-go/v2/registry/remote/errcode"
)

// maxTags bounds how many tags of a repository are listed.
const maxTags = 10_000

// Registry is a repository of an OCI registry.
type Registry struct {
	repo   *remote.Repository
	client *client
	web    *http.Client
}

// OpenRegistry returns the repository HOST[:PORT]/REPO. Credentials are those of docker's configuration, and its helpers. A registry on
// this machine is spoken to without TLS. Nothing is read yet.
func OpenRegistry(repository string, o SourceOptions) (*Registry, error) {
	ref, err := registry.ParseReference(repository)
	if err == nil && ref.Reference != "" {
		err = errors.New("has a tag")
	}
	if err != nil {
		return nil, fmt.Errorf("%.200q is not HOST/REPOSITORY: %w: %w", repository, err, ErrBadRef)
	}
	store, err := credentials.NewStoreFromDocker(credentials.StoreOptions{})
	if err != nil {
		return nil, fmt.Errorf("read docker's configuration for credentials: %w", err)
	}
	r := &Registry{repo: &remote.Repository{Reference: ref, PlainHTTP: isLocal(ref.Host()), SkipReferrersGC: true}}
	r.client, r.web = newClient(r, o)
	caller := &auth.Client{
		Client: r.web, Cache: auth.NewCache(), Credential: credentials.Credential(store),
		Header: http.Header{"User-Agent": {"coppice"}},
	}
	r.repo.Client, r.client.own = caller, login{caller}
	return r, nil
}

// login is a client that says in our words when it has no password.
type login struct{ *auth.Client }

// Do does a request.
func (l login) Do(req *http.Request) (*http.Response, error) {
	resp, err := l.Client.Do(req)
	if err != nil {
		return nil, remoteError(err)
	}
	return resp, nil
}

// isLocal reports whether a registry is on this machine.
func isLocal(host string) bool {
	if at, err := netip.ParseAddrPort(host); err == nil {
		return at.Addr().IsLoopback()
	}
	if ip, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return ip.IsLoopback()
	}
	name, _, _ := strings.Cut(host, ":")
	return name == "localhost"
}

// String returns HOST/REPO.
func (r *Registry) String() string {
	return r.repo.Reference.Registry + "/" + r.repo.Reference.Repository
}

// Close closes connections that wait to be used again.
func (r *Registry) Close() error {
	r.web.CloseIdleConnections()
	r.client.close()
	return nil
}

func (r *Registry) url(kind, name string) string {
	scheme := "https"
	if r.repo.PlainHTTP {
		scheme = "http"
	}
	return fmt.Sprintf("%s://%s/v2/%s/%s/%s", scheme, r.repo.Reference.Host(), r.repo.Reference.Repository, kind, name)
}

func (r *Registry) pull(ctx context.Context) context.Context {
	return auth.AppendRepositoryScope(ctx, r.repo.Reference, auth.ActionPull)
}

// Manifest returns what a tag or a digest means.
func (r *Registry) Manifest(ctx context.Context, name string) ([]byte, error) {
	digest, err := ParseDigest(name)
	named := err == nil
	if err != nil && !validTag(name) {
		return nil, fmt.Errorf("tag %.80q of %s: %w", name, r, ErrBadRef)
	}
	accept := http.Header{"Accept": {ocispec.MediaTypeImageManifest}}
	data, err := r.client.fetch(r.pull(ctx), r.url("manifests", name), accept, maxManifest, false)
	if err != nil {
		return nil, fmt.Errorf("manifest of %s in %s: %w", name, r, err)
	}
	if named {
		err = checkManifest(data, digest, name, r)
	}
	return data, err
}

// ReadBlob asks for a range.
func (r *Registry) ReadBlob(ctx context.Context, blob ocispec.Descriptor, p []byte, off int64) error {
	return r.client.readRange(r.pull(ctx), r.url("blobs", string(blob.Digest)), blob, p, off)
}

// OpenBlob asks for a whole blob.
func (r *Registry) OpenBlob(ctx context.Context, blob ocispec.Descriptor) (io.ReadCloser, error) {
	b, err := r.client.open(r.pull(ctx), r.url("blobs", string(blob.Digest)), blob)
	if err != nil {
		return nil, fmt.Errorf("blob %s in %s: %w", blob.Digest, r, err)
	}
	return b, nil
}

// HasBlob asks for the head of a blob. One that is kept elsewhere is there.
func (r *Registry) HasBlob(ctx context.Context, blob ocispec.Descriptor) (bool, error) {
	req, err := http.NewRequestWithContext(r.pull(ctx), http.MethodHead, r.url("blobs", string(blob.Digest)), nil)
	if err != nil {
		return false, err
	}
	resp, err := r.client.own.Do(req)
	if err != nil {
		return false, fmt.Errorf("look for blob %s in %s: %w", blob.Digest, r, err)
	}
	resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusNotFound:
		return false, nil
	case resp.StatusCode == http.StatusOK || isRedirect(resp.StatusCode):
		return true, nil
	}
	return false, fmt.Errorf("look for blob %s in %s: %w", blob.Digest, r, statusError(resp))
}

// PutBlob uploads a blob in one go. It is compared here and, with the whole upload, by the registry.
func (r *Registry) PutBlob(ctx context.Context, blob ocispec.Descriptor, content io.Reader) error {
	digest, err := ParseDigest(string(blob.Digest))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	up := &upload{r: content, stall: r.client.stall, cancel: cancel, blob: blob, digest: digest}
	up.seen = hashWriter{w: io.Discard, h: sha256.New()}
	err = r.repo.Blobs().Push(ctx, blob, up)
	up.stop()
	switch {
	case err == nil:
		return nil
	case up.err != nil:
		err = up.err
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	}
	return fmt.Errorf("upload blob %s to %s: %w", blob.Digest, r, remoteError(err))
}

// upload is the content of a blob on its way to a registry. It ends where it is not what it should be, and where the server takes nothing
// any more.
type upload struct {
	r      io.Reader
	blob   ocispec.Descriptor
	digest Digest
	seen   hashWriter
	err    error // of reading or comparing

	stall  time.Duration
	cancel context.CancelCauseFunc
	timer  *time.Timer
}

// Read reads what is uploaded next. Until the next call the server has its time to take it.
func (u *upload) Read(p []byte) (int, error) {
	u.stop()
	n, err := u.r.Read(p)
	_, _ = u.seen.Write(p[:n]) // never fails
	if u.seen.n >= u.blob.Size || errors.Is(err, io.EOF) {
		if bad := u.seen.check(u.blob, u.digest, "blob "+u.digest.String()); bad != nil {
			u.err = bad
			return 0, bad
		}
	}
	switch {
	case err == nil:
		u.timer = time.AfterFunc(u.stall, func() { u.cancel(fmt.Errorf("the server took nothing for %s: %w", u.stall, context.DeadlineExceeded)) })
	case !errors.Is(err, io.EOF):
		u.err = err
	}
	return n, err
}

func (u *upload) stop() {
	if u.timer != nil {
		u.timer.Stop()
	}
}

// PutManifest uploads a manifest and tags it.
func (r *Registry) PutManifest(ctx context.Context, tag string, data []byte) error {
	if !validTag(tag) {
		return fmt.Errorf("tag %.80q of %s: %w", tag, r, ErrBadRef)
	}
	desc := descriptor(ocispec.MediaTypeImageManifest, data)
	if err := r.repo.Manifests().PushReference(ctx, desc, bytes.NewReader(data), tag); err != nil {
		return fmt.Errorf("upload manifest %s to %s: %w", tag, r, remoteError(err))
	}
	return nil
}

// Tags returns the tags of the repository, of whatever they are.
func (r *Registry) Tags(ctx context.Context) ([]string, error) {
	tags := []string{}
	err := r.repo.Tags(ctx, "", func(some []string) error {
		if tags = append(tags, some...); len(tags) > maxTags {
			return fmt.Errorf("more than %d tags: %w", maxTags, ErrProtocol)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list tags of %s: %w", r, remoteError(err))
	}
	slices.Sort(tags)
	return tags, nil
}

// Remove deletes the manifest that a tag means, with all tags that mean the same, its signatures, its trace and its index. Most registries free the space later.
func (r *Registry) Remove(ctx context.Context, tag string) error {
	desc, err := r.repo.Resolve(ctx, tag)
	if err == nil {
		err = r.repo.Delete(ctx, desc)
	}
	if err != nil {
		return fmt.Errorf("remove %s from %s: %w", tag, r, remoteError(err))
	}
	of, err := ParseDigest(string(desc.Digest))
	if err != nil {
		return nil // of another kind, which we do not sign
	}
	for _, about := range referrerTags(of) {
		found, err := r.repo.Resolve(ctx, about)
		if err == nil {
			err = r.repo.Delete(ctx, found)
		}
		if err = remoteErrorOrNil(err); err != nil && !errors.Is(err, ErrNotFound) {
			return fmt.Errorf("remove %s, which is about %s, from %s: %w", about, tag, r, err)
		}
	}
	return nil
}

// unlist deletes the manifest of an artifact about another manifest whose tag means a later one by now. Before that it is taken off the list of such artifacts, where the registry does not keep that itself. It is no
// matter where this fails, as it does where nothing can be deleted: nobody who goes by the tag sees it.
func (r *Registry) unlist(ctx context.Context, manifest []byte) {
	_ = r.repo.Delete(ctx, descriptor(ocispec.MediaTypeImageManifest, manifest))
}

func remoteErrorOrNil(err error) error {
	if err == nil {
		return nil
	}
	return remoteError(err)
}

// remoteError gives what a registry said a cause that callers know.
func remoteError(err error) error {
	var answer *errcode.ErrorResponse
	switch {
	case errors.Is(err, errdef.ErrNotFound):
		return fmt.Errorf("%w: %w", err, ErrNotFound)
	case errors.Is(err, auth.ErrBasicCredentialNotFound):
		return fmt.Errorf("%w: %w", err, ErrRefused)
	case !errors.As(err, &answer):
		return err
	case answer.StatusCode == http.StatusNotFound:
		return fmt.Errorf("%w: %w", err, ErrNotFound)
	case answer.StatusCode == http.StatusMethodNotAllowed:
		return fmt.Errorf("%w: %w", err, ErrNoRemoval)
	case answer.StatusCode == http.StatusUnauthorized || answer.StatusCode == http.StatusForbidden:
		return fmt.Errorf("%w: %w", err, ErrRefused)
	}
	return fmt.Errorf("%w: %w", err, ErrProtocol)
}
