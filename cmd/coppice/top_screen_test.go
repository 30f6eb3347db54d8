package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

var updateScreens = flag.Bool("update-screens", false, "write testdata/top anew, to look at")

// markOf shows a line's style where there is no terminal to show it.
var markOf = map[topStyle]string{stylePlain: " ", styleHeading: "=", styleTrouble: "!"}

func screenText(lines []topLine) string {
	var b strings.Builder
	for _, l := range lines {
		fmt.Fprintf(&b, "%s|%s\n", markOf[l.style], l.text)
	}
	return b.String()
}

// Screens of some sizes are as they have been looked at.
func TestTopScreens(t *testing.T) {
	many := busyReport()
	for i := range 30 {
		d := many.Devices[i%2]
		d.Name = fmt.Sprintf("node%02d", i)
		many.Devices = append(many.Devices, d)
	}
	gone := busyReport()
	gone.Error, gone.Hint = "look at the devices: connect to /run/coppice/coppice.sock: no daemon is running", "start it: coppice daemon"
	unmeasured := busyReport()
	unmeasured.Measured = false
	for i := range unmeasured.Devices {
		unmeasured.Devices[i].Latencies = nil
	}
	for name, c := range map[string]struct {
		report topReport
		screen topScreen
	}{
		"80x24":            {busyReport(), topScreen{width: 80, height: 24, keys: true}},
		"200x50":           {busyReport(), topScreen{width: 200, height: 50, keys: true, sort: 2, paused: true}},
		"20x5":             {busyReport(), topScreen{width: 20, height: 5, keys: true}},
		"80x24-many":       {many, topScreen{width: 80, height: 24, keys: true, sort: 7}},
		"80x24-gone":       {gone, topScreen{width: 80, height: 24, keys: true, sort: 6, reversed: true}},
		"80x24-unmeasured": {unmeasured, topScreen{width: 80, height: 24}},
		"80x24-none":       {topReport{Time: topStart, Measured: true}, topScreen{width: 80, height: 24, keys: true}},
		"lines":            {busyReport(), topScreen{}},
	} {
		t.Run(name, func(t *testing.T) {
			lines := c.screen.lines(c.report)
			for i, l := range lines {
				if c.screen.width > 0 && utf8.RuneCountInString(l.text) > c.screen.width {
					t.Errorf("line %d has %d characters", i, utf8.RuneCountInString(l.text))
				}
				if strings.ContainsRune(l.text, '\x1b') {
					t.Errorf("line %d: %q", i, l.text)
				}
			}
			if c.screen.height > 0 && len(lines) > c.screen.height {
				t.Errorf("%d lines", len(lines))
			}
			path := filepath.Join("testdata", "top", name+".screen")
			got := screenText(lines)
			if *updateScreens {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil || got != string(want) {
				t.Errorf("%v\ngot:\n%swant:\n%s", err, got, want)
			}
		})
	}
}

// However small the screen is, all that is drawn fits.
func TestTopSmallScreens(t *testing.T) {
	r := busyReport()
	for width := 1; width < 130; width++ {
		for height := 1; height < 30; height++ {
			lines := (topScreen{width: width, height: height, keys: true}).lines(r)
			if len(lines) == 0 || len(lines) > height {
				t.Fatalf("%dx%d: %d lines", width, height, len(lines))
			}
			for _, l := range lines {
				if utf8.RuneCountInString(l.text) > width {
					t.Fatalf("%dx%d: %q", width, height, l.text)
				}
			}
		}
	}
}

func TestTopNumbers(t *testing.T) {
	for n, want := range map[float64]string{0: "0", 0.4: "0.4", 9.94: "9.9", 9.96: "10", 12345.6: "12346", 99999: "99999", 123456: "123k", 12.3e6: "12.3M"} {
		if got := showRate(n); got != want {
			t.Errorf("%g is %s, want %s", n, got, want)
		}
	}
	for n, want := range map[float64]string{0: "0", 12e3: "0.0", 51.2e6: "51.2", 1234.5e6: "1234"} {
		if got := showMegabytes(n); got != want {
			t.Errorf("%g is %s, want %s", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{953: "1µs", 88 * time.Microsecond: "88µs", 999950 * time.Nanosecond: "1.0ms", 1381 * time.Microsecond: "1.4ms", 16 * time.Second: "16s", time.Minute: ">16s"} {
		if got := showTook(d); got != want {
			t.Errorf("%s is %s, want %s", d, got, want)
		}
	}
}
