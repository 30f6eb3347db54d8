package node

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"
	"github.com/pelletier/go-toml/v2"

	"coppice/union"
)

// Where things are unless the configuration says otherwise.
const (
	DefaultConfigPath = "/etc/coppice/coppice.toml"
	DefaultRunDir     = "/run/coppice"
	socketName        = "coppice.sock"
	devicesName       = "devices"
	detachesName      = "detaches"
)

// Config configures a [Daemon]. The zero value is complete but for the Driver; the
// tagged fields are those of the configuration file.
type Config struct {
	// RunDir holds the socket, the lock and the records of the devices. It should
	// be on a tmpfs, as /run is.
	RunDir string `toml:"run_dir"`
	// LogLevel is debug, info, warn or error.
	LogLevel string `toml:"log_level"`
	// LogFormat is text or json.
	LogFormat string `toml:"log_format"`
	// SocketGroup is the number of the group that may list and inspect devices.
	// Zero leaves both to root.
	SocketGroup int `toml:"socket_gid"`
	// MaxConnections bounds the connections of one user. 0 means 64.
	MaxConnections int `toml:"max_connections"`
	// OperationSeconds is how long a creation or deletion may take. 0 means 120.
	OperationSeconds int `toml:"operation_seconds"`
	// VerifyLeaf checks the CRC-32C of each block read from a leaf. On unless set to
	// false.
	VerifyLeaf *bool `toml:"verify_leaf"`
	// ScrubBytesPerSecond is how fast each open store is read in the background, over and over, to find damage. 0
	// means never; by default a store is read once a week, at [DefaultScrubRate] at most.
	ScrubBytesPerSecond *int64 `toml:"scrub_bytes_per_second"`
	// FullWait is how long writes wait for space in a full store or beyond a quota before they get ENOSPC, as
	// [time.ParseDuration] takes it. "" means 60s, "0" not at all.
	FullWait string `toml:"full_wait"`
	// Lease is how long a node that is lost keeps its stores from others on shared storage: it stops writing by itself when it could not
	// renew its lease for so long. "" means 60s.
	Lease string `toml:"lease"`
	// NodeID is the UUID by which this machine holds leases. "" means that of /etc/machine-id.
	NodeID string `toml:"node_id"`
	// DevicesPath is the directory of declared devices, which [Daemon.Run] makes. "" means [DefaultDevicesPath] for the daemon of [DefaultRunDir], and none for others.
	DevicesPath string `toml:"devices"`
	// Device has the defaults of new devices.
	Device DeviceConfig `toml:"device"`
	// Images says which roots are taken.
	Images ImageConfig `toml:"images"`
	// Metrics is HOST:PORT at which Prometheus finds numbers, by plain HTTP. "" means nowhere.
	Metrics string `toml:"metrics"`
	// Cache says how the chunks of images are cached.
	Cache CacheConfig `toml:"cache"`

	// Driver makes the kernel devices. [Daemon.Run] closes it.
	Driver Driver `toml:"-"`
	// Log receives what the daemon has to say. nil means [slog.Default].
	Log *slog.Logger `toml:"-"`
	// Level is what [Config.NewLog] logs from, and changes with [Daemon.Reload]. nil means that it stays as LogLevel says.
	Level *slog.LevelVar `toml:"-"`
	// Version is what the daemon says it is. "" means [Version].
	Version string `toml:"-"`
	// LeaveTime is how long an upgrade waits for requests in service to end. 0 means 5 s.
	LeaveTime time.Duration `toml:"-"`
	// LastWait is how long devices in use are served on while the machine goes down. 0 means a minute.
	LastWait time.Duration `toml:"-"`
	// Ready is called once all devices have been taken over, with a line about them.
	Ready func(status string) `toml:"-"`
	// MayHandOver tells what keeps another program from starting with the same arguments as this one; nil: nothing.
	MayHandOver func() error `toml:"-"`
	// BeforeHandOver is called before devices are handed over to another program, with the name of the attempt.
	BeforeHandOver func(id string) error `toml:"-"`
}

// DeviceConfig has the defaults for what a [CreateRequest] leaves at zero.
type DeviceConfig struct {
	Queues    int `toml:"queues"`     // 0 means 1
	Depth     int `toml:"depth"`      // requests in flight per queue; 0 means 128
	BlockSize int `toml:"block_size"` // 512 or 4096 bytes; 0 means 512
}

// Bounds of what one device may ask for. The driver's own bounds are 4,096 queues of
// 4,096 requests (UBLK_MAX_NR_QUEUES, UBLK_MAX_QUEUE_DEPTH in
// include/uapi/linux/ublk_cmd.h, Linux 6.12).
const (
	MaxQueues = 4096
	MaxDepth  = 4096
)

// ReadConfig reads a configuration file. A key it does not know is an error. A
// missing file is one too, unless optional.
func ReadConfig(path string, optional bool) (Config, error) {
	var c Config
	data, err := os.ReadFile(path)
	if optional && errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return c, fmt.Errorf("read configuration: %w", err)
	}
	dec := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields()
	if err := dec.Decode(&c); err != nil {
		return c, fail(CodeBadRequest, "correct the file; its keys are in docs/cli.md, section Files",
			"read configuration %s: %s", path, tomlProblem(err))
	}
	return c, nil
}

// tomlProblem says where and what, on one line.
func tomlProblem(err error) string {
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) && len(strict.Errors) > 0 {
		row, _ := strict.Errors[0].Position()
		return fmt.Sprintf("line %d: unknown key %q", row, dotted(strict.Errors[0].Key()))
	}
	var dec *toml.DecodeError
	if errors.As(err, &dec) {
		row, col := dec.Position()
		return fmt.Sprintf("line %d, column %d: %s", row, col, dec.Error())
	}
	return err.Error()
}

func dotted(key toml.Key) string {
	var b bytes.Buffer
	for i, part := range key {
		if i > 0 {
			b.WriteByte('.')
		}
		b.WriteString(part)
	}
	return b.String()
}

func (c Config) withDefaults() Config {
	setDefault(&c.RunDir, DefaultRunDir)
	if c.RunDir == DefaultRunDir {
		setDefault(&c.DevicesPath, DefaultDevicesPath)
	}
	setDefault(&c.LogLevel, "info")
	setDefault(&c.LogFormat, "text")
	setDefault(&c.MaxConnections, 64)
	setDefault(&c.OperationSeconds, 120)
	setDefault(&c.LeaveTime, leaveTime)
	setDefault(&c.LastWait, lastWait)
	setDefault(&c.FullWait, "60s")
	setDefault(&c.Lease, union.DefaultLease.String())
	setDefault(&c.Device.Queues, 1)
	setDefault(&c.Device.Depth, 128)
	setDefault(&c.Device.BlockSize, 512)
	setDefault(&c.Images.SerialsPath, DefaultSerialsPath)
	setDefault(&c.Images.LocalPath, DefaultLocalPath)
	setDefault(&c.Images.Patience, defaultPatience.String())
	c.Cache = c.Cache.withDefaults()
	setDefault(&c.Version, Version())
	if c.VerifyLeaf == nil {
		yes := true
		c.VerifyLeaf = &yes
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Ready == nil {
		c.Ready = func(string) {}
	}
	if c.MayHandOver == nil {
		c.MayHandOver = func() error { return nil }
	}
	if c.BeforeHandOver == nil {
		c.BeforeHandOver = func(string) error { return nil }
	}
	return c
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// Validate returns all that is wrong with c, joined.
func (c Config) Validate() error {
	c = c.withDefaults()
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(filepath.IsAbs(c.RunDir), "run_dir %q is not an absolute path", c.RunDir)
	check(c.DevicesPath == "" || filepath.IsAbs(c.DevicesPath), "devices %q is not an absolute path", c.DevicesPath)
	var level slog.Level
	check(level.UnmarshalText([]byte(c.LogLevel)) == nil, "log_level %q is not debug, info, warn or error", c.LogLevel)
	check(c.LogFormat == "text" || c.LogFormat == "json", "log_format %q is not text or json", c.LogFormat)
	check(c.SocketGroup >= 0, "socket_gid %d is negative", c.SocketGroup)
	check(c.MaxConnections > 0, "max_connections %d is not positive", c.MaxConnections)
	check(c.ScrubBytesPerSecond == nil || *c.ScrubBytesPerSecond >= 0, "scrub_bytes_per_second is negative")
	check(c.OperationSeconds > 0, "operation_seconds %d is not positive", c.OperationSeconds)
	wait, err := time.ParseDuration(c.FullWait)
	check(err == nil && wait >= 0, "full_wait %q is not a time such as 60s, 5m or 0", c.FullWait)
	lease, err := time.ParseDuration(c.Lease)
	check(err == nil && lease >= time.Second && lease <= time.Hour, "lease %q is not a time between 1s and 1h", c.Lease)
	_, err = uuid.Parse(c.NodeID)
	check(c.NodeID == "" || err == nil, "node_id %q is not a UUID", c.NodeID)
	check(c.Metrics == "" || validAddress(c.Metrics), "metrics %q is not HOST:PORT, such as 127.0.0.1:9488", c.Metrics)
	if err := c.Images.validate(); err != nil {
		errs = append(errs, err)
	}
	if err := c.Cache.validate(); err != nil {
		errs = append(errs, err)
	}
	if err := checkGeometry(c.Device.Queues, c.Device.Depth, c.Device.BlockSize); err != nil {
		errs = append(errs, fmt.Errorf("device: %w", err))
	}
	return errors.Join(errs...)
}

func checkGeometry(queues, depth, blockSize int) error {
	switch {
	case queues < 1 || queues > MaxQueues:
		return fmt.Errorf("%d queues are not between 1 and %d", queues, MaxQueues)
	case depth < 1 || depth > MaxDepth:
		return fmt.Errorf("a depth of %d is not between 1 and %d", depth, MaxDepth)
	case blockSize != 512 && blockSize != 4096:
		return fmt.Errorf("a block size of %d is neither 512 nor 4096", blockSize)
	}
	return nil
}

// leaseOptions is valid where c is.
func (c Config) leaseOptions() union.LeaseOptions {
	duration, _ := time.ParseDuration(c.Lease)
	id, _ := uuid.Parse(c.NodeID)
	return union.LeaseOptions{Duration: duration, Node: id}
}

// fullWait is valid where c is.
func (c Config) fullWait() time.Duration {
	wait, _ := time.ParseDuration(c.FullWait)
	return wait
}

func (c Config) operationTime() time.Duration {
	return time.Duration(c.OperationSeconds) * time.Second
}

// SocketPath returns the path of the socket of the daemon that has runDir.
func SocketPath(runDir string) string { return filepath.Join(runDir, socketName) }

// NewLog returns a log to standard error as c says; where that is /dev/kmsg, in the form that the kernel takes.
func (c Config) NewLog() *slog.Logger {
	c = c.withDefaults()
	opts := &slog.HandlerOptions{Level: c.level()}
	if c.Level != nil {
		c.Level.Set(c.level())
		opts.Level = c.Level
	}
	switch {
	case isKmsg(os.Stderr):
		return slog.New(newKmsgHandler(os.Stderr, opts))
	case c.LogFormat == "json":
		return slog.New(slog.NewJSONHandler(os.Stderr, opts))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, opts))
}
