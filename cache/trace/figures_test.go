package trace_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"coppice/cache/trace"
)

var (
	figuresFile = flag.String("figures", "", "measure in full, and write the page to this file")
	figuresOnly = flag.String("figures-only", "", "measure only the sections whose title holds this")
)

// section is a part of the page: a title, how it was measured, and tables.
type section struct {
	title, how string
	measure    func(f *figures, t *testing.T)
}

// figures measures. A small run takes the beginning of one trace, to prove that the measuring works, and that goals that are counts are met.
type figures struct {
	full   bool
	traces []*trace.Trace
	disk   *trace.Disk // of the first trace
	page   strings.Builder
}

var sections = []section{
	{"What a boot reads", "Recorded boots of Debian, in `cache/trace/testdata`: what was read of the root's disk before the login prompt. Of the chunks that are read, those of zeros are " +
		"not counted: they are fetched by nobody. Compression aside.", (*figures).boots},
	{"Size of a chunk", "The first boot, from images of different chunk sizes, through a cache that is empty. Requests are those to the web server, neighbouring chunks in one. The larger " +
		"a chunk, the fewer requests, and the more bytes; as no size is better in both, that of 64 KiB stays the default.",
		(*figures).chunkSizes},
	{"Second device on a node", "Two devices on one root boot one after the other through one cache. Times are medians of ten rounds, in each of which the first is followed by the second. A third device opens the image anew.", (*figures).second},
	{"Scans", "Boots through a cache in memory that has room for two of them, then another image is read from beginning to end, four times as much as the cache has room for, and then it is counted how " +
		"many of the parts of requests the next boot finds in memory. All policies of the cache, and those of golang-lru as bare indexes over the same chunks.", (*figures).scans},
	{"A cache smaller than the root", "Two boots, one after the other, through caches in memory of different sizes.", (*figures).tenth},
	{"What other thresholds would miss", "Devices on three images boot in turn, ten times in all, through one cache in memory, which predicts what it would have missed with other thresholds (`coppice cache curve`). Then caches with these thresholds are " +
		"asked for the same.", (*figures).curves},
	{"Tiers that are lost", "A device boots on a tier that has everything, which is lost when a part of the boot's reads is done; the memory was empty, and the origin is reached by the LAN. Every read is compared with " +
		"what it should be.", (*figures).losses},
}

// TestFigures measures the figures of the cache. Without -figures, it only proves on little that they can be measured.
func TestFigures(t *testing.T) {
	f := &figures{full: *figuresFile != ""}
	paths, err := filepath.Glob("testdata/boot-*.txt")
	if err != nil || len(paths) == 0 {
		t.Fatalf("traces: %v, %v", paths, err)
	}
	for _, path := range paths {
		tr, err := trace.Load(path)
		if err != nil {
			t.Fatal(err)
		}
		if !f.full {
			tr = tr.Beginning(smallReads, chunk)
		}
		f.traces = append(f.traces, tr)
	}
	f.disk = trace.NewDisk(f.traces[0])
	f.head()
	for _, s := range sections {
		if !strings.Contains(s.title, *figuresOnly) {
			continue
		}
		began := time.Now()
		fmt.Fprintf(&f.page, "\n## %s\n\n%s\n", s.title, s.how)
		s.measure(f, t)
		t.Logf("%s took %.1f s", s.title, time.Since(began).Seconds())
	}
	t.Log(f.page.String())
	if f.full {
		if err := os.WriteFile(*figuresFile, []byte(f.page.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// smallReads is how many reads of a trace a small run takes.
const smallReads = 60

func (f *figures) head() {
	t := f.traces[0]
	fmt.Fprintf(&f.page, `# Figures of the cache

Written by %s on %s, with Go %s on %d CPUs, natively and without a kernel driver, beside a load of %s (one minute's, when it began). Boots are replayed from traces that were recorded in a
virtual machine: every read in its order, as fast as it goes, each compared with what it should be. The image is made up for that: it is as large as the root that
was traced (%d MiB), has data where that has data (%d MiB in chunks of %d KiB), and compresses as well (to %d %%).

Where a network is named, the image comes from a web server through the delaying proxy (%s): LAN is a delay of 0.2 ms before each
answer, WAN one of 20 ms and 100 Mbit/s for all answers together. "Origin bytes" are what that server sent, without headers: descriptions and chunk table of the image included.
`, "`make figures`", time.Now().UTC().Format(time.DateOnly), strings.TrimPrefix(runtime.Version(), "go"), runtime.NumCPU(), load(),
		t.Size>>20, int64(len(t.Held(chunk)))*chunk>>20, chunk>>10, t.Stored, "`image/faultproxy`")
}

// load is how many processes run or want to, of one minute.
func load() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown size"
	}
	return strings.Fields(string(text))[0]
}

// table writes a table, whose first line is its head.
func (f *figures) table(rows ...[]string) {
	f.page.WriteByte('\n')
	for i, row := range rows {
		fmt.Fprintf(&f.page, "| %s |\n", strings.Join(row, " | "))
		if i == 0 {
			fmt.Fprintf(&f.page, "|%s\n", strings.Repeat(" --- |", len(row)))
		}
	}
}

func (f *figures) text(format string, args ...any) { fmt.Fprintf(&f.page, "\n"+format+"\n", args...) }

func mib[T int | int64 | uint64](n T) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

func millis(d time.Duration) string { return fmt.Sprintf("%.1f ms", d.Seconds()*1e3) }

func (f *figures) boots(t *testing.T) {
	for i, tr := range f.traces {
		f.text("Boot %d: %s", i+1, strings.Join(tr.About, " "))
	}
	rows := [][]string{{"boot", "reads", "bytes read", "blocks of 4 KiB, each once", "until the prompt, while it was recorded"}}
	once := make([]int64, len(f.traces))
	for i, tr := range f.traces {
		blocks := map[int64]bool{}
		for _, r := range tr.Reads {
			for b := r.Off / block; b*block < r.Off+r.Len; b++ {
				blocks[b] = true
			}
		}
		once[i] = int64(len(blocks)) * block
		rows = append(rows, []string{fmt.Sprint(i + 1), fmt.Sprint(len(tr.Reads)), mib(tr.Bytes()), mib(once[i]), fmt.Sprintf("%.1f s", tr.Prompt.Seconds())})
	}
	f.table(rows...)
	rows = [][]string{{"chunk", "boot", "chunks", "bytes", "of what the blocks have"}}
	for _, size := range []int64{16 << 10, 32 << 10, 64 << 10, 128 << 10} {
		for i, tr := range f.traces {
			chunks := tr.Chunks(size)
			if len(chunks) == 0 {
				t.Errorf("boot %d reads no chunks of %d bytes", i+1, size)
			}
			bytes := int64(len(chunks)) * size
			rows = append(rows, []string{fmt.Sprintf("%d KiB", size>>10), fmt.Sprint(i + 1), fmt.Sprint(len(chunks)), mib(bytes), fmt.Sprintf("%.2f", float64(bytes)/float64(once[i]))})
		}
	}
	f.table(rows...)
}

// median is that of durations.
func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return (d[(len(d)-1)/2] + d[len(d)/2]) / 2
}
