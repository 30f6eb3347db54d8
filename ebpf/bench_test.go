package ebpf

import (
	"testing"

	cilium "github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// BenchmarkRequest reads 4 KiB of a loop device, measured and not, and tells what the kernel itself says of the programs' part.
func BenchmarkRequest(b *testing.B) {
	if !supported(b) {
		return // it has said why
	}
	disk := newLoopDisk(b)
	read := disk.readAgain
	b.Run("off", read)
	pins := pinsDir(b)
	tables := openTables(b, loadAt(b, LoadConfig{Pins: pins}).Maps)
	b.Run("of others", read)
	if _, err := tables.Enter(disk.id, disk.queues, disk.depth); err != nil {
		b.Fatal(err)
	}
	b.Run("on", read)
	counted := func(b *testing.B) {
		counting, err := cilium.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
		if err != nil {
			b.Fatal(err)
		}
		defer counting.Close()
		before := programsTime(b, pins)
		read(b)
		b.ReportMetric(float64(programsTime(b, pins)-before)/float64(b.N), "ns-in-programs/op")
	}
	b.Run("counted", counted)
	if err := loadAt(b, LoadConfig{Pins: pins, Readers: true}).Close(); err != nil {
		b.Fatal(err)
	}
	b.Run("with readers", counted)
}

// BenchmarkRecordedRequest reads 4 KiB of a loop device, recorded and not, and tells what the kernel itself says of the programs' part.
func BenchmarkRecordedRequest(b *testing.B) {
	if !supported(b) {
		return // it has said why
	}
	disk := newLoopDisk(b)
	read := disk.readAgain
	b.Run("off", read)
	counting, err := cilium.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		b.Fatal(err)
	}
	defer counting.Close()
	for name, disks := range map[string]string{"on": disk.name, "of others": "sda"} {
		b.Run(name, func(b *testing.B) {
			objects, err := newTrace(TraceConfig{RingBytes: defaultRing, Disks: disks}, nil)
			if err != nil {
				b.Fatal(err)
			}
			defer objects.Close()
			programs := objects.programs()
			for _, at := range tracePoints {
				l, err := link.AttachTracing(link.TracingOptions{Program: programs[at.program]})
				if err != nil {
					b.Fatal(err)
				}
				defer l.Close()
			}
			read(b)
			nanos := 0.0
			for _, p := range programs {
				stats, err := p.Stats()
				if err != nil {
					b.Fatal(err)
				}
				nanos += float64(stats.Runtime.Nanoseconds())
			}
			b.ReportMetric(nanos/float64(b.N), "ns-in-programs/op")
		})
	}
}

// readAgain reads 4 KiB, as often as the benchmark wants.
func (d *loopDisk) readAgain(b *testing.B) {
	for b.Loop() {
		if _, err := d.f.ReadAt(d.buf[:4096], 0); err != nil {
			b.Fatal(err)
		}
	}
}

func programsTime(b *testing.B, pins string) (nanos uint64) {
	b.Helper()
	list, err := Status(pins)
	if err != nil {
		b.Fatal(err)
	}
	for _, p := range list {
		nanos += p.Nanos
	}
	return nanos
}
