package boot

import (
	"strings"
	"testing"
)

func TestParseTrace(t *testing.T) {
	given := map[string]string{keyRoot: "http://10.0.2.2:8080/root:debian:1", keyLeaf: "ram"}
	for text, ring := range map[string]int{"on": 0, "4K": 4 << 10, "16M": 16 << 20} {
		given[keyTrace] = text
		if p, err := parse(given); err != nil || !p.Trace || p.TraceBytes != ring {
			t.Errorf("%s: %+v, %v", text, p, err)
		}
	}
	for _, text := range []string{"off", "yes", "5000", "1G", "1", "-4K", "99999999G"} {
		given[keyTrace] = text
		if _, err := parse(given); err == nil || !strings.Contains(err.Error(), keyTrace+"="+text) || !strings.Contains(err.Error(), "such as 8M") {
			t.Errorf("%s: %v", text, err)
		}
	}
	delete(given, keyTrace)
	if p, err := parse(given); err != nil || p.Trace {
		t.Errorf("not asked for: %+v, %v", p, err)
	}
}

// A machine whose kernel cannot record is told so, and goes on.
func TestBootThatCannotBeRecorded(t *testing.T) {
	s, out := newStarter(t, Params{})
	s.record(t.Context())
	if out.String() != "" {
		t.Errorf("nobody has asked: %s", out)
	}
	s.params.Trace = true // where there is nowhere to mount a bpf file system
	s.record(t.Context())
	if !strings.Contains(out.String(), "this boot is not recorded: look for a bpf file system: ") {
		t.Errorf("said: %q", out)
	}
}
