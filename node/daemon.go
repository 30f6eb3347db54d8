package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// Daemon serves the devices of one run directory. Its methods may be called from any
// goroutine.
type Daemon struct {
	cfg     Config
	log     *slog.Logger
	driver  Driver
	lock    *runLock
	records records
	names   udevNames
	stores  *stores
	cache   *nodeCache
	roots   *roots
	bootID  string
	began   time.Time
	metrics *metricsServer // nil: none
	latency *latencies

	cuts     cuts
	detaches detaches
	contents contents
	lent     lentCuts
	leasing  sync.Mutex      // held while leases of images are taken and given back
	quit     context.Context // ends when the daemon begins to stop
	stopWork context.CancelFunc
	restored chan struct{}  // closed once the records have been acted on
	handOver chan struct{}  // closed once there is a successor
	follows  *handover      // what this daemon took its devices over by; nil: none
	ops      sync.WaitGroup // operations under way; grows under mu, and not once stopping

	mu       sync.Mutex // guards what follows; no device's lock is taken under it
	devices  map[string]*device
	ids      map[int]string // whose number each is, served or not
	stopping bool
	upgraded *Upgrade
	// successor is set once, before handOver is closed.
	successor *successor
}

// New claims the run directory of cfg, which it makes where there is none, and reads the
// records in it. It fails with [ErrRunning] where another daemon has it. Nothing is
// served before [Daemon.Run].
func New(cfg Config) (*Daemon, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fail(CodeBadRequest, "correct the configuration", "check configuration: %w", err)
	}
	cfg = cfg.withDefaults()
	if cfg.Driver == nil {
		return nil, errors.New("start daemon: no driver")
	}
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	if err := makeRunDir(cfg); err != nil {
		return nil, err
	}
	lock, err := takeRunLock(cfg.RunDir, 2*time.Second)
	if err != nil {
		return nil, err
	}
	cached, err := openCache(cfg)
	if err != nil {
		return nil, errors.Join(err, lock.release())
	}
	quit, stopWork := context.WithCancel(context.Background())
	d := &Daemon{
		quit: quit, stopWork: stopWork, cuts: cuts{open: make(map[string]*cut)}, detaches: detaches{jobs: make(map[detachKey]*detachJob)},
		cfg: cfg, log: cfg.Log, driver: cfg.Driver, lock: lock, bootID: boot, began: time.Now(),
		records:  records{filepath.Join(cfg.RunDir, devicesName)},
		names:    udevNames{filepath.Join(cfg.RunDir, namesName)},
		stores:   newStores(cfg, cached),
		cache:    cached,
		latency:  newLatencies(cfg.Log),
		roots:    &roots{cfg: cfg.Images, log: cfg.Log, cache: cached},
		restored: make(chan struct{}),
		handOver: make(chan struct{}),
		devices:  make(map[string]*device),
		ids:      make(map[int]string),
	}
	cached.OnAsked(d.roots.openAsked)
	if err := errors.Join(d.forgetEnding(), d.loadUpgrade(), d.loadRecords()); err != nil {
		return nil, errors.Join(err, cached.close(), lock.release())
	}
	return d, nil
}

// Run serves until ctx ends, then stops or leaves every device as the package's
// documentation says, closes the driver and gives the run directory back; or until an upgrade, when it leaves every device for
// [Daemon.Successor]. It is called once.
func (d *Daemon) Run(ctx context.Context) error {
	srv, err := d.listen()
	if err == nil {
		if d.metrics, err = d.serveMetrics(); err != nil {
			err = errors.Join(err, srv.close())
		}
	}
	if err != nil {
		return errors.Join(err, d.driver.Close(), d.cache.close(), d.lock.release())
	}
	d.log.Info("daemon started", "version", d.cfg.Version, "run_dir", d.cfg.RunDir)
	if d.follows != nil {
		d.roots.learn(d.follows.Known)
		d.follows.step(stepProgram)
		d.inherit(d.follows.Latency)
	}
	d.restoreAll(ctx)
	d.endUpgrade()
	close(d.restored)
	d.makeDeclared()
	go d.retryDeclared()
	go d.resumeDetaches()
	go d.retryRestores()
	go d.renewLeases()
	d.cfg.Ready(d.status())
	select {
	case <-ctx.Done():
		d.stopUpgrade()
	case err = <-srv.ended:
		err = fmt.Errorf("serve socket: %w", err)
	case <-d.handOver:
		d.log.Info("handing devices over to another program", "devices", len(d.all()), "to", d.successor.To)
		d.leaveAll(srv)
		return d.lock.release()
	}
	d.log.Info("daemon stopping", "devices", len(d.all()))
	err = errors.Join(err, d.stopAll(), srv.close(), d.metrics.close(), d.latency.install(nil), d.cache.close(), d.lock.release())
	d.log.Info("daemon stopped")
	return err
}

func (d *Daemon) status() string {
	live, failed := 0, 0
	for _, v := range d.all() {
		switch v.current() {
		case StateLive:
			live++
		case StateFailed:
			failed++
		}
	}
	return fmt.Sprintf("%d devices served, %d failed", live, failed)
}

// all returns the devices in order of name.
func (d *Daemon) all() []*device {
	d.mu.Lock()
	defer d.mu.Unlock()
	names := slices.Sorted(maps.Keys(d.devices))
	list := make([]*device, len(names))
	for i, name := range names {
		list[i] = d.devices[name]
	}
	return list
}

func (d *Daemon) find(name string) (*device, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if v, ok := d.devices[name]; ok {
		return v, nil
	}
	return nil, fail(CodeNotFound, "`coppice list` shows the devices there are", "no such device")
}

// begin admits an operation that changes devices, once those of an earlier
// daemon have been taken over. Each success is followed by ops.Done.
func (d *Daemon) begin(ctx context.Context) error {
	select {
	case <-d.restored:
	case <-ctx.Done():
		return fmt.Errorf("wait for the devices of an earlier daemon: %w", ctx.Err())
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stopping {
		return fail(CodeStopping, "try again when it has been started again", "the daemon is stopping")
	}
	d.ops.Add(1)
	return nil
}

// List reports all devices, without statistics. It waits for no store.
func (d *Daemon) List() []Device {
	list, u := []Device{}, readUsage()
	for _, v := range d.all() {
		list = append(list, v.report(u))
	}
	return list
}

// Inspect reports all there is to know about a device.
func (d *Daemon) Inspect(name string) (Device, error) {
	v, err := d.find(name)
	if err != nil {
		return Device{}, err
	}
	rep := v.inspect(readUsage())
	rep.Detach, rep.Declared = d.detachOf(v), d.declared(name)
	return rep, nil
}

// forEach runs do for every device, a few at once, and waits for all.
func forEach(list []*device, do func(*device)) {
	const atOnce = 8
	slots := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	for _, v := range list {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			do(v)
		})
	}
	wg.Wait()
}
