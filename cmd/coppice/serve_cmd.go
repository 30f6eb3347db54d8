package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"coppice/appliance"
	"coppice/cache/disk"
	"coppice/certs"
	"coppice/image"
	"coppice/node"
)

type serveCmd struct {
	sourceFlags
	Listen        string        `placeholder:"HOST:PORT" default:":8440" help:"Where nodes reach this machine (${default}: port 8440 of all its addresses)."`
	Images        []string      `placeholder:"DIR" type:"path" help:"Directory with images: nodes read them at https://HOST:PORT/NAME, where NAME is the last part of the path. May be given several times."`
	Root          []imageRef    `placeholder:"REF" sep:"none" help:"Image whose chunks are given to nodes, and fetched for them once. May be given several times, also for replicas of one image."`
	CacheMemory   size          `placeholder:"SIZE" help:"Memory for chunks (default: an eighth of the machine's, at most 2G)."`
	CacheDisk     string        `placeholder:"PATH" type:"path" help:"File or block device for chunks beside that, which survive a restart."`
	CacheDiskSize size          `placeholder:"SIZE" help:"Size of the file, which is made where there is none."`
	Patience      time.Duration `placeholder:"DURATION" default:"10s" help:"How long a chunk is waited for while no replica of its root answers (${default})."`
	Insecure      bool          `help:"Serve everybody who can reach the address, without TLS."`
	LogLevel      logLevel      `placeholder:"LEVEL" help:"debug, info, warn or error (default: info)."`
	LogFormat     logFormat     `placeholder:"text|json" help:"Form of the log on standard error (default: text)."`
}

// Run serves until a signal.
func (c *serveCmd) Run(env *environment) error {
	log := node.Config{LogLevel: string(c.LogLevel), LogFormat: string(c.LogFormat)}.NewLog()
	slog.SetDefault(log)
	hangups := catchHangups()
	signal.Ignore(syscall.SIGPIPE) // a log that nobody reads any more must not end it
	o, err := c.options(log)
	if err != nil {
		return err
	}
	if c.CacheDisk != "" {
		d, err := disk.Open(c.CacheDisk, disk.Options{SizeBytes: int64(c.CacheDiskSize), Log: log})
		if err != nil {
			return fmt.Errorf("serve: %w", err)
		}
		o.Disk = d
		defer d.Close() //nolint:errcheck // what it says is in its log, and nothing is lost but time
	}
	ctx, stop := untilSignal(log, endSignals(nil))
	defer stop()
	go reloadAt(ctx, hangups, log, func() error {
		log.Info("nothing needs to be read again: certificates are when they change, and the rest is said by flags")
		return nil
	})
	return serve(ctx, o)
}

func serve(ctx context.Context, o appliance.Options) error {
	a, err := appliance.Start(ctx, o)
	if err != nil {
		return explainServe(err)
	}
	o.Log.Info("serving", "address", a.Addr(), "directories", len(o.Images), "roots", len(o.Roots))
	notifyReady(fmt.Sprintf("serving at %s", a.Addr()))
	select {
	case <-ctx.Done():
	case err = <-a.Ended():
	}
	return errors.Join(err, a.Close())
}

func (c *serveCmd) options(log *slog.Logger) (appliance.Options, error) {
	o := appliance.Options{Listen: c.Listen, MemoryBytes: int64(c.CacheMemory), Patience: c.Patience, Log: log}
	if len(c.Images) == 0 && len(c.Root) == 0 {
		return o, badServe("there is nothing to serve", "give --images DIR, --root REF, or both")
	}
	if c.Patience <= 0 {
		return o, badServe(fmt.Sprintf("a patience of %s", c.Patience), "give a time above 0, such as 10s")
	}
	if c.CacheDiskSize != 0 && c.CacheDisk == "" {
		return o, badServe("a size without a file", "give --cache-disk PATH too")
	}
	for _, dir := range c.Images {
		o.Images = append(o.Images, filepath.Clean(dir))
	}
	for _, r := range c.Root {
		ref, err := r.Abs()
		if err != nil {
			return o, err
		}
		o.Roots = append(o.Roots, ref)
	}
	return o, c.certificates(&o)
}

// certificates are those that are shown to nodes, and to the servers of roots.
func (c *serveCmd) certificates(o *appliance.Options) (err error) {
	if o.Source, err = image.NewSourceOptions(c.CA, c.TLSCert, c.TLSKey); err != nil || c.Insecure {
		return err
	}
	if c.CA == "" || c.TLSCert == "" || c.TLSKey == "" {
		return badServe("certificates are missing", "give --ca, --tls-cert and --tls-key, as coppice ca makes them, or --insecure where everybody who reaches the address may read")
	}
	o.TLS, err = certs.Open(c.CA, c.TLSCert, c.TLSKey)
	return err
}

func badServe(message, hint string) error {
	return &node.Error{Code: node.CodeBadRequest, Message: "serve: " + message, Hint: hint}
}

func explainServe(err error) error {
	e := node.Explain(fmt.Errorf("serve: %w", err))
	switch {
	case errors.Is(err, appliance.ErrBadOption):
		e.Code, e.Hint = node.CodeBadRequest, "coppice serve --help tells what can be served"
	case errors.Is(err, image.ErrNotFound):
		e.Code, e.Hint = node.CodeNotFound, "coppice image build and coppice image copy make directories with images"
	case errors.Is(err, syscall.EADDRINUSE):
		e.Code, e.Hint = node.CodeFailed, "give another address with --listen"
	}
	return e
}
