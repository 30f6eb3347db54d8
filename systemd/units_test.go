package systemd

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const unitDir = "root/usr/lib/systemd/system"

// mostExposed is what `systemd-analyze security` may say of a unit, from 0 to 10.
const mostExposed = 2.5

// units returns the services of the package.
func units(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob(unitDir + "/*.service")
	if err != nil || len(files) < 2 {
		t.Fatalf("units: %v, %v", files, err)
	}
	return files
}

func TestUnitsAreSandboxed(t *testing.T) {
	for _, unit := range []string{"coppice.service", "coppice-serve.service", "coppice-ebpf.service"} {
		out := command(t, "", []string{"LC_ALL=C"}, "systemd-analyze", "security", "--offline=true", "--no-pager", filepath.Join(unitDir, unit))
		m := regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+)`).FindStringSubmatch(out)
		if m == nil {
			t.Fatalf("no level in:\n%s", out)
		}
		level, err := strconv.ParseFloat(m[1], 64)
		if err != nil || level > mostExposed {
			t.Errorf("%s: exposure %s, want at most %.1f:\n%s", unit, m[1], mostExposed, out)
		}
	}
}

// systemd finds no fault with the units, but for what is not installed here.
func TestUnitsAreUnderstood(t *testing.T) {
	dir := t.TempDir()
	var paths []string
	for _, unit := range units(t) {
		data, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, filepath.Base(unit))
		text := strings.ReplaceAll(string(data), "/usr/bin/coppice", "/bin/true")
		text = regexp.MustCompile(`(?m)^(Documentation|ExecStop)=.*$`).ReplaceAllString(text, "")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	for _, path := range paths {
		cmd := exec.CommandContext(t.Context(), "systemd-analyze", "verify", "--man=no", "--recursive-errors=no", path)
		cmd.Env = append(os.Environ(), "LC_ALL=C", "SYSTEMD_UNIT_PATH="+dir+":")
		out, err := cmd.CombinedOutput()
		if err != nil || strings.Contains(string(out), filepath.Base(path)+":") {
			t.Errorf("%s: %v\n%s", path, err, out)
		}
	}
}

// generate runs the generator on a file of mounts, and returns the names of the units that it orders, and what it said.
func generate(t *testing.T, fstab string) (ordered []string, said string) {
	t.Helper()
	dir := t.TempDir()
	table, out := filepath.Join(dir, "fstab"), filepath.Join(dir, "normal")
	if err := os.WriteFile(table, []byte(fstab), 0o644); err != nil {
		t.Fatal(err)
	}
	said = command(t, "", []string{"FSTAB=" + table, "KMSG=" + filepath.Join(dir, "kmsg")}, "root/usr/lib/systemd/system-generators/coppice-generator", out, out, out)
	files, err := filepath.Glob(out + "/*.d/50-coppice.conf")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(text), "\nWants=coppice.service\nAfter=coppice.service\n") {
			t.Errorf("%s: %v\n%s", file, err, text)
		}
		ordered = append(ordered, strings.TrimSuffix(filepath.Base(filepath.Dir(file)), ".d"))
	}
	slices.Sort(ordered)
	return ordered, said
}

// Mounts and swaps on devices of Coppice come after its daemon; those that belong to the start of the machine cannot, and that is said.
func TestGenerator(t *testing.T) {
	ordered, said := generate(t, `# comment
/dev/ublkb0 / ext4 errors=remount-ro 0 1
UUID=1 /home ext4 defaults 0 2
/dev/coppice/by-name/web1 /srv/web ext4 _netdev,nofail 0 2
/dev/coppice/by-name/web2 /srv/with\040space xfs defaults,_netdev 0 0
/dev/coppice/by-name/web3-part1 none swap sw,_netdev 0 0
/dev/ublkb12p1 /mnt/a-b ext4 _netdev 0 2
/dev/coppice/by-name/hand /mnt/hand ext4 noauto 0 2
/dev/coppice/by-name/early /early ext4 defaults 0 2
`)
	want := []string{`dev-coppice-by\x2dname-web3\x2dpart1.swap`, `mnt-a\x2db.mount`, "mnt-hand.mount", "srv-web.mount", `srv-with\x20space.mount`}
	if !slices.Equal(ordered, want) {
		t.Errorf("ordered %q, want %q", ordered, want)
	}
	if !strings.Contains(said, "/dev/coppice/by-name/early") || !strings.Contains(said, "_netdev") || strings.Count(said, "\n") != 1 {
		t.Errorf("said %q", said)
	}
	if ordered, said := generate(t, ""); len(ordered) != 0 || said != "" {
		t.Errorf("of an empty table: %q, %q", ordered, said)
	}
}

// Scripts that run as root on every machine are at least understood by its shell.
func TestScripts(t *testing.T) {
	scripts := []string{"../tools/deb.sh", "root/usr/lib/coppice/before-stop", "root/usr/lib/systemd/system-generators/coppice-generator"}
	maintainer, err := filepath.Glob("debian/*")
	if err != nil || len(maintainer) != 3 {
		t.Fatalf("%q, %v", maintainer, err)
	}
	for _, script := range append(scripts, maintainer...) {
		text, err := os.ReadFile(script)
		if err != nil {
			t.Fatal(err)
		}
		shell, _, _ := strings.Cut(strings.TrimPrefix(string(text), "#!"), "\n")
		fields := strings.Fields(shell)
		command(t, "", nil, fields[len(fields)-1], "-n", script)
		if info, err := os.Stat(script); err != nil || info.Mode()&0o111 == 0 {
			t.Errorf("%s cannot be executed (%v)", script, err)
		}
	}
}

// The configuration of the package is the one in docs/cli.md, key by key.
func TestDefaultConfiguration(t *testing.T) {
	keys := func(path, section string) (list []string) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		_, part, ok := strings.Cut(string(text), section)
		if !ok {
			t.Fatalf("%s has no %q", path, section)
		}
		part, _, _ = strings.Cut(part, "```\n")
		for _, m := range regexp.MustCompile(`(?m)^#? ?(\[[a-z]+\]|[a-z_]+ =.*?)(?: +#|$)`).FindAllStringSubmatch(part, -1) {
			list = append(list, m[1])
		}
		return list
	}
	page, file := keys("../docs/cli.md", "```toml\nrun_dir"), keys("coppice.toml", "\n#run_dir")
	if !slices.Equal(page, file) || len(page) < 30 {
		t.Errorf("the page has\n%q\nthe file has\n%q", page, file)
	}
}
