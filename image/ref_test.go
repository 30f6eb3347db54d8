package image

import (
	"errors"
	"os"
	"strings"
	"testing"
)

func TestParseRef(t *testing.T) {
	digest := Digest{1}.String()
	for text, want := range map[string]Ref{
		"debian.img":                         {KindFile, "debian.img", "", "", "", Digest{}, false},
		"/srv/roots/debian.img":              {KindFile, "/srv/roots/debian.img", "", "", "", Digest{}, false},
		"/dev/vdb":                           {KindFile, "/dev/vdb", "", "", "", Digest{}, false},
		"images.d/debian.img":                {KindFile, "images.d/debian.img", "", "", "", Digest{}, false},
		"./registry.example/debian:12":       {KindFile, "./registry.example/debian:12", "", "", "", Digest{}, false},
		"oci:/srv/images:debian:12":          {KindLayout, "/srv/images", "debian:12", "debian", "", Digest{}, false},
		"oci:images:os/debian:12.1-rc_1":     {KindLayout, "images", "os/debian:12.1-rc_1", "os/debian", "", Digest{}, false},
		"oci:/mnt/a:b:debian:12":             {KindLayout, "/mnt/a:b", "debian:12", "debian", "", Digest{}, false},
		"oci:/srv/images:debian@" + digest:   {KindLayout, "/srv/images", digest, "debian", "", Digest{}, false},
		"http://web/images:debian:12":        {KindWeb, "http://web/images", "debian:12", "debian", "", Digest{}, false},
		"https://web:8443/a/b/:debian:12":    {KindWeb, "https://web:8443/a/b/", "debian:12", "debian", "", Digest{}, false},
		"http://[::1]:80/a:debian@" + digest: {KindWeb, "http://[::1]:80/a", digest, "debian", "", Digest{}, false},
		"localhost/debian:12":                {KindRegistry, "localhost/debian", "12", "debian", "", Digest{}, false},
		"localhost:5000/os/debian:12":        {KindRegistry, "localhost:5000/os/debian", "12", "os/debian", "", Digest{}, false},
		"registry.example/debian@" + digest:  {KindRegistry, "registry.example/debian", digest, "debian", "", Digest{}, false},
	} {
		got, err := ParseRef(text)
		if want.text = text; got != want || err != nil {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{
		"", "oci:", "oci:dir", "oci:dir:name", "oci::name:tag", "oci:dir:na me:tag", "oci:dir:../x:tag", "oci:dir:name:ta/g", "oci:dir:name:",
		"oci:dir:name@sha256:12", "oci:dir@" + digest, "http://web:name:tag", "http://web/dir", "http://web/dir:name", "https://web:443/dir:name",
		"http://web/dir:name:-tag", "localhost/Debian:12", "registry.example/debian:", "registry.example/a b:1", "registry.example/debian@sha256:1",
		"oci:dir:" + strings.Repeat("a", 300) + ":1",
	} {
		if got, err := ParseRef(text); !errors.Is(err, ErrBadRef) || !strings.Contains(err.Error(), "rite") && text != "" {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for text, kind := range map[string]Kind{
		"oci:images": KindLayout, "http://web/images": KindWeb, "localhost:5000/debian": KindRegistry,
		"images": "", "./images": "", "oci:": "", "localhost:5000/debian:12": "", "": "",
	} {
		if got, err := ParsePlace(text); got.Kind != kind || (err != nil) != (kind == "") {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

func TestAbsoluteRefs(t *testing.T) {
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"disk.img":              dir + "/disk.img",
		"/disk.img":             "/disk.img",
		"oci:images:debian:1":   "oci:" + dir + "/images:debian:1",
		"oci:/images/:debian:1": "oci:/images:debian:1",
		"http://web/a:debian:1": "http://web/a:debian:1",
		"localhost/debian:1":    "localhost/debian:1",
	} {
		ref, err := ParseRef(text)
		if err == nil {
			ref, err = ref.Abs()
		}
		again, againErr := ParseRef(ref.String())
		if ref.String() != want || err != nil || again != ref || againErr != nil {
			t.Errorf("%s: %s, %v", text, ref, err)
		}
		if local := strings.Contains(want, dir) || want[0] == '/' || strings.HasPrefix(want, "oci:"); (ref.Path() != "") != local {
			t.Errorf("%s leads to %q", text, ref.Path())
		}
	}
}

func FuzzParseRef(f *testing.F) {
	for _, text := range []string{"oci:d:n:t", "http://h/d:n:t", "h:1/r:t", "a", "oci:d:n@" + (Digest{}).String()} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseRef(text)
		if err != nil {
			if !errors.Is(err, ErrBadRef) {
				t.Errorf("%q: %v", text, err)
			}
			return
		}
		if r.Place == "" || (r.Name == "") != (r.Kind == KindFile) || !strings.Contains(text, r.Place) || !strings.Contains(text, r.Name) {
			t.Errorf("%q: %+v", text, r)
		}
	})
}
