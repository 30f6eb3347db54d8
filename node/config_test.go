package node

import (
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"time"
)

func writeConfig(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "coppice.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestReadConfig(t *testing.T) {
	c, err := ReadConfig(writeConfig(t, `
run_dir = "/run/other"
log_level = "debug"
log_format = "json"
socket_gid = 12
max_connections = 3
operation_seconds = 7
verify_leaf = false
scrub_bytes_per_second = 1048576
[device]
queues = 2
depth = 64
block_size = 4096
`), false)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	want := DeviceConfig{Queues: 2, Depth: 64, BlockSize: 4096}
	if c.RunDir != "/run/other" || c.LogLevel != "debug" || c.SocketGroup != 12 || c.MaxConnections != 3 ||
		c.OperationSeconds != 7 || *c.VerifyLeaf || *c.ScrubBytesPerSecond != 1<<20 || c.Device != want {
		t.Errorf("read %+v", c)
	}
}

func TestConfigDefaults(t *testing.T) {
	c, err := ReadConfig(filepath.Join(t.TempDir(), "none"), true)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	c = c.withDefaults()
	if c.RunDir != DefaultRunDir || !*c.VerifyLeaf || c.Device.Depth != 128 || c.Device.BlockSize != 512 {
		t.Errorf("defaults: %+v", c)
	}
}

func TestReadConfigSaysWhatIsWrong(t *testing.T) {
	for text, want := range map[string]string{
		"run_dri = \"/x\"\n":             `line 1: unknown key "run_dri"`,
		"\n[device]\nqueue = 1\n":        `line 3: unknown key "device.queue"`,
		"run_dir = [\n":                  "line ",
		"[device]\nqueues = \"many\"\n":  "line 2",
		"driver = \"x\"\nversion = \"\"": "unknown key",
	} {
		_, err := ReadConfig(writeConfig(t, text), false)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, err := ReadConfig(filepath.Join(t.TempDir(), "none"), false); err == nil {
		t.Error("a missing file that was asked for is accepted")
	}
}

func TestValidateReturnsAllProblems(t *testing.T) {
	c := Config{
		RunDir: "run", LogLevel: "loud", LogFormat: "xml", SocketGroup: -1, MaxConnections: -1, OperationSeconds: -1,
		Device: DeviceConfig{Queues: -1, Depth: 4097, BlockSize: 100},
	}
	err := c.Validate()
	for _, want := range []string{"run_dir", "log_level", "log_format", "socket_gid", "max_connections", "operation_seconds", "queues"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s is not among the problems: %v", want, err)
		}
	}
}

func TestVersionOfBuild(t *testing.T) {
	set := func(revision, modified string) []debug.BuildSetting {
		return []debug.BuildSetting{{Key: "vcs.revision", Value: revision}, {Key: "vcs.modified", Value: modified}}
	}
	for want, settings := range map[string][]debug.BuildSetting{
		devVersion:                         nil,
		devVersion + "+0123456789ab":       set("0123456789abcdef", "false"),
		devVersion + "+0123456789ab.dirty": set("0123456789abcdef", "true"),
	} {
		if got := versionOf(settings); got != want {
			t.Errorf("version %s, not %s", got, want)
		}
	}
}

func TestCacheConfigIsChecked(t *testing.T) {
	for text, want := range map[string]string{
		"":                                     "",
		"memory = \"64MiB\"\npolicy = \"lru\"": "",
		"memory = 67108864":                    "",
		"memory = \"0\"\nreadahead = \"0\"":    "",
		"record = \"0\"\nprefetch_percent = 0": "",
		"attached_traces = false":              "",
		"listen = \":9500\"\ninsecure = true":  "",
		"listen = \"[::1]:9500\"\nca = \"/a\"\ntls_cert = \"/b\"\ntls_key = \"/c\"":                                              "",
		"peers = \"/p\"\nself = \"https://a:1\"\nca = \"/a\"\ntls_cert = \"/b\"\ntls_key = \"/c\"\nappliances = [\"https://b\"]": "",
		"disk = \"/d\"\ndisk_size = \"1G\"": "",
		"listen = \":1\"":                   "ca, tls_cert and tls_key",
		"appliances = [\"https://a\"]":      "ca, tls_cert and tls_key",
		"appliances = [\"http://a\"]\nca = \"/a\"\ntls_cert = \"/b\"\ntls_key = \"/c\"": "http",
		"self = \"https://a\"":                         "self without peers",
		"disk_size = \"1G\"":                           "disk_size without disk",
		"disk = \"d\"":                                 "absolute",
		"tls_cert = \"/b\"":                            "belong together",
		"memory = \"1\"":                               "less than",
		"memory = \"-1\"":                              "line 2",
		"memory = \"much\"":                            "line 2",
		"policy = \"fifo\"":                            "s3fifo",
		"insecure = true\nlisten = \"9500\"":           "HOST:PORT",
		"insecure = true\nlisten = \"localhost:http\"": "HOST:PORT",
		"record = \"soon\"":                            "record",
		"record = \"2h\"":                              "record",
		"patience = \"2s\"":                            "",
		"patience = \"long\"":                          "patience",
		"patience = \"10ms\"":                          "patience",
		"patience = \"2m\"":                            "patience",
		"prefetch_percent = 101":                       "prefetch_percent",
		"readahead = \"1G\"":                           "readahead",
		"traces = \"traces\"":                          "absolute",
		"disc = \"/dev/sda\"":                          "unknown key",
	} {
		c, err := ReadConfig(writeConfig(t, "[cache]\n"+text), false)
		if err == nil {
			err = c.Validate()
		}
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	c := Config{}.withDefaults().Cache
	if *c.Memory != 0 || *c.PrefetchPercent != 50 || *c.Readahead != 4<<20 || c.record() != 3*time.Minute || c.patience() != 600*time.Millisecond || c.silence() != 250*time.Millisecond || c.tierTime() != 700*time.Millisecond || c.TracesPath != DefaultTracesPath {
		t.Errorf("the defaults are %+v", c)
	}
}

func TestImageConfigIsChecked(t *testing.T) {
	for _, c := range []struct {
		c  ImageConfig
		ok bool
	}{
		{ImageConfig{}, true},
		{ImageConfig{Patience: "90s", LocalPath: "/srv/images"}, true},
		{ImageConfig{Patience: "soon"}, false},
		{ImageConfig{Patience: "0s"}, false},
		{ImageConfig{Patience: "-1s"}, false},
		{ImageConfig{Patience: "25h"}, false},
		{ImageConfig{LocalPath: "images"}, false},
	} {
		if err := (Config{Images: c.c}).Validate(); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c.c, err)
		}
	}
	if d := (ImageConfig{Patience: "90s"}).patience(); d != 90*time.Second {
		t.Errorf("a patience of 90s is %s", d)
	}
	if c := (Config{}).withDefaults().Images; c.patience() != time.Minute || c.LocalPath != DefaultLocalPath {
		t.Errorf("the defaults are %+v", c)
	}
}
