package boot

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"coppice/node"
)

func TestSplitCommandLine(t *testing.T) {
	for line, want := range map[string][]string{
		"":                                 nil,
		"  quiet\t ro\n":                   {"quiet", "ro"},
		`a="b c" "d e=f" g=h`:              {"a=b c", "d e=f", "g=h"},
		`open="to the end`:                 {"open=to the end"},
		`coppice.root=x root=/dev/ublkb0 `: {"coppice.root=x", "root=/dev/ublkb0"},
	} {
		if got := splitCommandLine(line); !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}

func TestParse(t *testing.T) {
	const web = "http://10.0.2.2:8080/root:debian:1"
	plain := Leaf{Device: "/dev/vda", Layer: "root", Policy: PolicyRefuse, Wait: defaultWait}
	change := func(f func(*Leaf)) Leaf {
		l := plain
		f(&l)
		return l
	}
	for leaf, want := range map[string]Leaf{
		"/dev/vda":               plain,
		"/dev/vda:web1":          change(func(l *Leaf) { l.Layer = "web1" }),
		"/dev/vda,layer=web1":    change(func(l *Leaf) { l.Layer = "web1" }),
		"/dev/vda,format":        change(func(l *Leaf) { l.Format = true }),
		"/dev/vda,policy=fresh":  change(func(l *Leaf) { l.Policy = PolicyFresh }),
		"/dev/vda,policy=keep":   change(func(l *Leaf) { l.Policy = PolicyKeep }),
		"/dev/vda,wait=5m":       change(func(l *Leaf) { l.Wait = 5 * time.Minute }),
		"/dev/vda,cache=1G":      change(func(l *Leaf) { l.CacheBytes = 1 << 30 }),
		"PARTUUID=0a-1:w,format": change(func(l *Leaf) { l.Device, l.Layer, l.Format = "PARTUUID=0a-1", "w", true }),
		"LABEL=two words":        change(func(l *Leaf) { l.Device = "LABEL=two words" }),
		"ram":                    change(func(l *Leaf) { l.Device, l.RAM = "", true }),
		"ram:2G,layer=x":         change(func(l *Leaf) { l.Device, l.RAM, l.RAMBytes, l.Layer = "", true, 2<<30, "x" }),
		"/dev/disk/by-path/pci-0000:00:04.0,format": change(func(l *Leaf) {
			l.Device, l.Format = "/dev/disk/by-path/pci-0000:00:04.0", true
		}),
	} {
		p, err := parse(map[string]string{keyRoot: web, keyLeaf: leaf})
		if err != nil || p.Leaf != want {
			t.Errorf("%s: %+v, %v; want %+v", leaf, p.Leaf, err, want)
		}
	}
	p, err := parse(map[string]string{keyRoot: web + ",reg.example/debian:1", keyLeaf: "/dev/vda", keyName: "node7", keySize: "10G"})
	if err != nil || len(p.Roots) != 2 || p.Name != "node7" || p.Leaf.Layer != "node7" || p.SizeBytes != 10<<30 || !p.Remote() {
		t.Errorf("%+v, %v", p, err)
	}
	if p, err := parse(nil); err != nil || p.Wanted() || !reflect.DeepEqual(p, Params{}) {
		t.Errorf("nothing given: %+v, %v", p, err)
	}
	if p, err := parse(map[string]string{keyRoot: "/dev/vdb", keyLeaf: "ram"}); err != nil || p.Remote() {
		t.Errorf("raw root: %+v, %v", p, err)
	}
}

func TestParseRefuses(t *testing.T) {
	const web = "http://10.0.2.2:8080/root:debian:1"
	for _, c := range []struct{ root, leaf, name, size, want string }{
		{"", "/dev/vda", "", "", "coppice.leaf is given without coppice.root"},
		{web, "", "", "", "no leaf is given"},
		{"debian", "/dev/vda", "", "", "no path from / on"},
		{"http://host", "/dev/vda", "", "", "http://HOST/DIR:NAME:TAG"},
		{web + "," + web, "/dev/vda", "", "", "named twice"},
		{"/dev/vdb," + web, "/dev/vda", "", "", "can have no replicas"},
		{web + strings.Repeat(","+web, 40), "/dev/vda", "", "", "more than"},
		{web, "vda", "", "", "neither the path of a disk"},
		{web, "/etc/passwd", "", "", "neither the path of a disk"},
		{web, "UUID=", "", "", "UUID has no value"},
		{web, "UUID=../sda", "", "", "UUID has no value"},
		{web, "/dev/vda:", "", "", "layer name"},
		{web, "/dev/vda:a:b", "", "", "layer name"},
		{web, "/dev/vda:a,layer=b", "", "", "a layer is given twice"},
		{web, "/dev/vda,format,format", "", "", "format is given twice"},
		{web, "/dev/vda,format=yes", "", "", `option "format=yes" is not known`},
		{web, "/dev/vda,frmat", "", "", `option "frmat" is not known`},
		{web, "/dev/vda,", "", "", `option "" is not known`},
		{web, "/dev/vda,policy=wipe", "", "", "none of refuse, fresh and keep"},
		{web, "/dev/vda,wait=long", "", "", "is not a time"},
		{web, "/dev/vda,wait=-1s", "", "", "is not a time"},
		{web, "/dev/vda,cache=x", "", "", "unknown unit"},
		{web, "ram:x", "", "", "unknown unit"},
		{web, "ram,format", "", "", "mean nothing for a leaf in memory"},
		{web, "/dev/vda", "a/b", "", "coppice.name=a/b"},
		{web, "/dev/vda", "", "1T2", "coppice.size=1T2"},
		{web, "/dev/vda", "", "1000", "not a multiple of 4096"},
	} {
		_, err := parse(map[string]string{keyRoot: c.root, keyLeaf: c.leaf, keyName: c.name, keySize: c.size})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: error %v", c, err)
		}
	}
	_, err := parse(map[string]string{keyRoot: "debian", keyLeaf: "vda"})
	if err == nil || !strings.Contains(err.Error(), keyRoot) || !strings.Contains(err.Error(), keyLeaf) {
		t.Errorf("two mistakes: error %v does not name both", err)
	}
}

// Whatever is typed, what is taken can be used as it is, and what cannot be is refused.
func FuzzParse(f *testing.F) {
	f.Add(`coppice.root=http://10.0.2.2/r:d:1 coppice.leaf=/dev/vda:l,format,policy=keep,wait=1m quiet`)
	f.Add(`coppice.root="a,b" "coppice.leaf=ram:1G" coppice.name=x coppice.size=1G`)
	f.Add("coppice.leaf=LABEL=a\x00b coppice.root=oci:/x:y:z")
	f.Fuzz(func(t *testing.T, line string) {
		values, err := commandLine(line)
		if err != nil {
			return
		}
		p, err := parse(values)
		if err != nil || !p.Wanted() {
			return
		}
		if p.Leaf.RAM == (p.Leaf.Device != "") || p.Leaf.Layer == "" || !node.ValidName(p.Name) || !slices.Contains(policies, p.Leaf.Policy) {
			t.Fatalf("%q: %+v", line, p)
		}
		if p.SizeBytes < 0 || p.Leaf.Wait < 0 || p.Leaf.RAMBytes < 0 || p.Leaf.CacheBytes < 0 {
			t.Fatalf("%q: %+v", line, p)
		}
		if link := linkOf(p.Leaf.Device); !p.Leaf.RAM && (!strings.HasPrefix(link, "/dev/") || strings.Contains(link, "\x00")) {
			t.Fatalf("%q: disk at %q", line, link)
		}
	})
}

func TestLinkOf(t *testing.T) {
	for device, want := range map[string]string{
		"/dev/vda":           "/dev/vda",
		"UUID=AB-cd":         "/dev/disk/by-uuid/ab-cd",
		"LABEL=two words/x":  `/dev/disk/by-label/two\x20words\x2fx`,
		"PARTLABEL=Leaf":     "/dev/disk/by-partlabel/Leaf",
		"PARTUUID=0A":        "/dev/disk/by-partuuid/0a",
		"/dev/disk/by-id/=x": "/dev/disk/by-id/=x",
	} {
		if got := linkOf(device); got != want {
			t.Errorf("%s: %s, want %s", device, got, want)
		}
	}
}
