package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"syscall"
	"time"
)

// CodeNoDaemon is the code of a [Client]'s errors when nobody answers.
const CodeNoDaemon Code = "no_daemon"

// Client speaks to the daemon of a run directory. It may be used from any goroutine.
type Client struct {
	// Wait is how long to wait for the socket of a daemon that may just have been started, two
	// seconds unless changed before the first call. One that has claimed the run
	// directory is given 30 s to listen.
	Wait time.Duration

	runDir  string
	version string
	http    *http.Client
	// contents is for reads of contents, of which there are many, and none outlives its daemon: it keeps connections.
	contents *http.Client
}

const waitForSocket = 30 * time.Second

// keptConnection is how long a connection for reads of contents waits for the next one. A daemon that ends does not wait for it.
const keptConnection = 2 * time.Second

// NewClient returns a client that says it is of the given version, or of [Version] where
// that is "".
func NewClient(runDir, version string) *Client {
	setDefault(&version, Version())
	c := &Client{Wait: 2 * time.Second, runDir: runDir, version: version}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) }
	c.http = &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	c.contents = &http.Client{Transport: &http.Transport{DialContext: dial, IdleConnTimeout: keptConnection}}
	return c
}

// ClientOf returns a client that says it is of the version that the daemon of runDir is, which must be listening.
func ClientOf(ctx context.Context, runDir string) (*Client, error) {
	c := NewClient(runDir, "")
	c.Wait = 0
	v, err := c.Version(ctx)
	c.version = v.Version
	return c, err
}

// dial connects, waiting for a daemon on its way.
func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	const pause = 20 * time.Millisecond
	path := SocketPath(c.runDir)
	began := time.Now()
	for {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", path)
		absent := errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
		waited := time.Since(began)
		switch {
		case err == nil:
			return conn, nil
		case errors.Is(err, fs.ErrPermission):
			return nil, fail(CodeForbidden, "run it as root, or join the group of the socket", "connect to %s: %w", path, fs.ErrPermission)
		case !absent:
			return nil, fmt.Errorf("connect to daemon: %w", err)
		case waited > waitForSocket, waited >= c.Wait && !daemonHolds(c.runDir):
			return nil, fail(CodeNoDaemon, "start it: coppice daemon (or systemctl start coppice); --run-dir must be the same for both",
				"connect to %s: no daemon is running", path)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// Version asks who the daemon is. It works between any two versions.
func (c *Client) Version(ctx context.Context) (VersionInfo, error) {
	var v VersionInfo
	return v, c.send(ctx, http.MethodGet, "version", nil, &v, false)
}

// Upgrade has the daemon, of whatever version, hand its devices over to the program in a sealed file that this process has open as
// r.FD says, and returns before that is done: Version tells.
func (c *Client) Upgrade(ctx context.Context, r UpgradeRequest) (Upgrade, error) {
	var u Upgrade
	return u, about("upgrade daemon", c.send(ctx, http.MethodPost, "upgrade", r, &u, false))
}

// Create makes a device.
func (c *Client) Create(ctx context.Context, r CreateRequest) (Device, error) {
	var d Device
	return d, about("create "+r.Name, c.send(ctx, http.MethodPost, "devices", r, &d, true))
}

// List returns all devices, without statistics.
func (c *Client) List(ctx context.Context) ([]Device, error) {
	var l listBody
	return l.Devices, about("list devices", c.send(ctx, http.MethodGet, "devices", nil, &l, true))
}

// Overview returns what changes from one second to the next.
func (c *Client) Overview(ctx context.Context) (Overview, error) {
	var o Overview
	return o, about("look at the devices", c.send(ctx, http.MethodGet, "overview", nil, &o, true))
}

// Inspect returns all about one device.
func (c *Client) Inspect(ctx context.Context, name string) (Device, error) {
	var d Device
	return d, about("inspect "+name, c.send(ctx, http.MethodGet, "devices/"+url.PathEscape(name), nil, &d, true))
}

// Delete stops and removes a device that is not in use, and returns what it was.
func (c *Client) Delete(ctx context.Context, name string) (Device, error) {
	var d Device
	return d, about("delete "+name, c.send(ctx, http.MethodDelete, "devices/"+url.PathEscape(name), nil, &d, true))
}

// PrepareFreeze makes ready to seal what a device holds; Seal or CancelFreeze with the token is to follow soon.
func (c *Client) PrepareFreeze(ctx context.Context, name string, r FreezeRequest) (PreparedFreeze, error) {
	var p PreparedFreeze
	return p, about("freeze "+name, c.send(ctx, http.MethodPost, devicePath(name, "freeze"), r, &p, true))
}

// Seal seals what a device holds.
func (c *Client) Seal(ctx context.Context, name, token string) (SealedFreeze, error) {
	var f SealedFreeze
	return f, about("freeze "+name, c.send(ctx, http.MethodPost, devicePath(name, "freeze", token), nil, &f, true))
}

// CancelFreeze takes a prepared freeze back.
func (c *Client) CancelFreeze(ctx context.Context, name, token string) error {
	return about("cancel freeze of "+name, c.send(ctx, http.MethodDelete, devicePath(name, "freeze", token), nil, &struct{}{}, true))
}

func devicePath(name string, more ...string) string {
	path := "devices/" + url.PathEscape(name)
	for _, m := range more {
		path += "/" + url.PathEscape(m)
	}
	return path
}

// about says what was tried.
func about(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

func (c *Client) send(ctx context.Context, method, path string, in, out any, sameVersion bool) error {
	resp, err := c.request(ctx, method, path, in, sameVersion)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	return decodeAnswer(resp, out)
}

// request returns an answer whose body the caller closes.
func (c *Client) request(ctx context.Context, method, path string, in any, sameVersion bool) (*http.Response, error) {
	return c.requestBy(ctx, c.http, method, path, in, sameVersion)
}

func (c *Client) requestBy(ctx context.Context, by *http.Client, method, path string, in any, sameVersion bool) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://coppice/"+APIVersion+"/"+path, body)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	req.Header.Set(VersionHeader, c.version)
	resp, err := by.Do(req)
	if err != nil {
		return nil, plainURLError(err)
	}
	if sameVersion {
		if err := checkVersions(c.version, resp.Header.Get(VersionHeader)); err != nil {
			_ = resp.Body.Close()
			return nil, err
		}
	}
	return resp, nil
}

// plainURLError drops the made-up URL that net/http puts before its errors.
func plainURLError(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

func decodeAnswer(resp *http.Response, out any) error {
	const maxAnswer = 64 << 20
	dec := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer))
	if resp.StatusCode == http.StatusOK {
		if err := dec.Decode(out); err != nil {
			return fmt.Errorf("read the daemon's answer: %w", err)
		}
		return nil
	}
	var e errorBody
	if err := dec.Decode(&e); err != nil || e.Error == nil {
		return fmt.Errorf("the daemon answered %s", resp.Status)
	}
	return e.Error
}
