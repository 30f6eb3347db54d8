package boot

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// structure is one of an SMBIOS table.
func structure(kind byte, texts ...string) []byte {
	b := []byte{kind, 5, 1, 0, byte(len(texts))}
	for _, s := range texts {
		b = append(append(b, s...), 0)
	}
	if len(texts) == 0 {
		b = append(b, 0)
	}
	return append(b, 0)
}

func table(structures ...[]byte) (all []byte) {
	for _, s := range structures {
		all = append(all, s...)
	}
	return append(all, structure(127)...)
}

// machine makes the files in which a kernel shows what it was given.
func machine(t *testing.T, line string, dmi []byte, fwcfg map[string]string) string {
	t.Helper()
	root := t.TempDir()
	put := func(path, data string) {
		if err := writeFile(filepath.Join(root, path), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put(procCommandLine, line+"\n")
	if dmi != nil {
		put(sysTable, string(dmi))
	}
	for name, value := range fwcfg {
		put(filepath.Join(sysFwcfg, "opt/io.systemd.credentials", name, "raw"), value)
	}
	return root
}

func TestRead(t *testing.T) {
	dmi := table(structure(0), structure(1, "a maker", textCredential+"coppice.root=/dev/no"), structure(11, "a vendor", textCredential+"coppice.root=http://s/d:n:1",
		textCredential+"other=x", textCredential+"coppice.leaf=/dev/vda"), structure(11, binaryCredential+"coppice.hostname="+base64.StdEncoding.EncodeToString([]byte("node7"))))
	root := machine(t, "quiet coppice.leaf=/dev/vdb,format", dmi, map[string]string{"coppice.leaf": "/dev/vdc", "coppice.size": "1G\n", "other": "y"})
	g, err := Read(root)
	if err != nil {
		t.Fatal(err)
	}
	if g.Roots[0] != "http://s/d:n:1" || g.Leaf.Device != "/dev/vdb" || !g.Leaf.Format || g.SizeBytes != 1<<30 {
		t.Errorf("%+v", g.Params)
	}
	want := "coppice.hostname from SMBIOS, coppice.leaf from command line, coppice.root from SMBIOS, coppice.size from fw_cfg"
	if got := strings.Join(g.Sources(), ", "); got != want {
		t.Errorf("sources: %s", got)
	}
	if traits := g.traits(); len(traits) != 1 || traits[0].data != "node7" {
		t.Errorf("traits: %+v", traits)
	}
}

func TestReadOfAnotherMachine(t *testing.T) {
	g, err := Read(machine(t, "root=/dev/sda1 ro quiet", nil, nil))
	if err != nil || g.Wanted() || g.Asked() {
		t.Errorf("%+v, %v", g, err)
	}
}

func TestReadRefuses(t *testing.T) {
	const rest = " coppice.root=http://s/d:n:1 coppice.leaf=/dev/vda"
	for _, c := range []struct {
		line  string
		dmi   []byte
		fwcfg map[string]string
		want  string
	}{
		{line: "coppice.rot=x", want: "coppice.rot on the kernel's command line is not known"},
		{line: "coppice.leaf=ram" + rest, want: "coppice.leaf is given twice"},
		{line: "coppice.name=" + rest, want: "coppice.name on the kernel's command line has no value"},
		{line: "coppice.ssh_host_rsa_key=x" + rest, want: "as a credential only"},
		{line: "coppice.root=debian coppice.leaf=vda", want: "no path from / on"},
		{line: rest, dmi: table(structure(11, binaryCredential+"coppice.name=***")), want: "credential coppice.name in SMBIOS"},
		{line: rest, dmi: []byte{11, 200, 0, 0, 1}, want: "longer than the table"},
		{line: rest, fwcfg: map[string]string{"coppice.name": strings.Repeat("x", maxCredential+1)}, want: "more than 1048576 bytes"},
	} {
		g, err := Read(machine(t, c.line, c.dmi, c.fwcfg))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.60s: error %v, want %q", c.line, err, c.want)
		}
		if asked := strings.Contains(c.line, keyRoot); g.Asked() != asked {
			t.Errorf("%.60s: asked is %v", c.line, g.Asked())
		}
	}
	if _, err := Read(t.TempDir()); err == nil || !strings.Contains(err.Error(), "command line") {
		t.Errorf("no /proc: %v", err)
	}
}

// A table with strings that are cut short, or none, gives what is whole.
func FuzzSMBIOS(f *testing.F) {
	f.Add(table(structure(11, textCredential+"coppice.root=x", binaryCredential+"coppice.leaf=eA==")))
	f.Add([]byte{11, 4, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		found, _ := smbiosCredentials(data)
		for name := range found {
			if !known(name) {
				t.Fatalf("credential %q", name)
			}
		}
	})
}

func TestReadBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("12345"), 0o600); err != nil {
		t.Fatal(err)
	}
	if data, err := readBounded(path, 5); err != nil || string(data) != "12345" {
		t.Errorf("%q, %v", data, err)
	}
	if _, err := readBounded(path, 4); err == nil {
		t.Error("a file of 5 bytes was taken for one of 4")
	}
}
