package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"coppice/ebpf"
)

// latencies has the kernel measure the requests of devices that are served, while eBPF programs are loaded for that. It is safe for concurrent use.
type latencies struct {
	log *slog.Logger

	mu     sync.Mutex   // guards what follows; held while threads that serve are told, which never take it
	tables *ebpf.Tables // nil: nothing is measured
	disks  map[Disk]*ebpf.Disk
}

func newLatencies(log *slog.Logger) *latencies {
	return &latencies{log: log, disks: make(map[Disk]*ebpf.Disk)}
}

// enter begins to measure a disk, where that is done at all. A disk that cannot be is served without.
func (l *latencies) enter(name string, disk Disk) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.tables == nil || l.disks[disk] != nil {
		return
	}
	if err := l.measure(disk); err != nil {
		l.log.Warn("requests of the device are not measured", "device", name, "error", oneLine(err))
	}
}

func (l *latencies) measure(disk Disk) error {
	id, err := disk.Identity()
	if err != nil {
		return err
	}
	p := disk.Params()
	entry, err := l.tables.Enter(id, p.Queues, p.Depth)
	if err != nil {
		return err
	}
	l.disks[disk] = entry
	for q := range p.Queues {
		if err := disk.SetMarks(q, entry.Marks(q)); err != nil {
			entry.Leave()
			l.silence(disk)
			return err
		}
	}
	return nil
}

// silence has the threads that serve a disk let the memory go that it is measured by. Those that are gone have.
func (l *latencies) silence(disk Disk) {
	delete(l.disks, disk)
	for q := range disk.Params().Queues {
		_ = disk.SetMarks(q, nil)
	}
}

// leave ends the measuring of a disk that is served no more. Its entry stays where it is left to another daemon, which goes on with the numbers.
func (l *latencies) leave(disk Disk, toAnother bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if entry := l.disks[disk]; entry != nil && !toAnother {
		entry.Leave()
	}
	delete(l.disks, disk)
}

// of returns what was measured of a disk; ok is false where it is not measured.
func (l *latencies) of(disk Disk) (list []ebpf.Latency, ok bool) {
	l.mu.Lock()
	entry := l.disks[disk]
	l.mu.Unlock()
	if entry == nil {
		return nil, false
	}
	return entry.Latencies(), true
}

// on tells whether anything is measured.
func (l *latencies) on() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tables != nil
}

// install measures with these maps from now on, or with none where tables is nil. The caller enters the disks: where the maps are the same as before, they go on with
// their numbers.
func (l *latencies) install(tables *ebpf.Tables) (err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for disk := range l.disks {
		l.silence(disk)
	}
	if l.tables != nil {
		err = l.tables.Close()
	}
	l.tables = tables
	return err
}

// end ends the measuring of all disks.
func (l *latencies) end() error {
	l.mu.Lock()
	for _, entry := range l.disks {
		entry.Leave()
	}
	l.mu.Unlock()
	return l.install(nil)
}

// keepForExec has the maps stay open for the program that this process executes next; nil where there are none.
func (l *latencies) keepForExec() *ebpf.Inherited {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.tables == nil {
		return nil
	}
	in, err := l.tables.Maps().KeepForExec()
	if err != nil {
		l.log.Warn("the next program has to be given the eBPF maps anew", "error", err)
		return nil
	}
	return &in
}

// inherit measures with what the program before this one has left open.
func (d *Daemon) inherit(in *ebpf.Inherited) {
	if in == nil {
		return
	}
	maps, err := in.Take()
	if err == nil {
		_, err = d.measureWith(maps)
	}
	if err != nil {
		d.log.Warn("requests are not measured until the eBPF programs are loaded again (coppice ebpf load)", "error", err)
	}
}

// measureWith has all devices measured with maps, which are the daemon's from then on, and returns how many are.
func (d *Daemon) measureWith(maps ebpf.Maps) (int, error) {
	tables, err := ebpf.Open(maps)
	if err != nil {
		return 0, err
	}
	if err := d.latency.install(tables); err != nil {
		d.log.Warn("former eBPF maps not given back", "error", oneLine(err))
	}
	n := 0
	for _, v := range d.all() {
		if disk := v.servedDisk(); disk != nil {
			d.latency.enter(v.record().Device.Name, disk)
			if _, ok := d.latency.of(disk); ok {
				n++
			}
		}
	}
	return n, nil
}

// servedDisk returns the disk while it is served, else nil.
func (v *device) servedDisk() Disk {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.disk
}

// MeasureReport tells what came of a change of what is measured.
type MeasureReport struct {
	Devices int `json:"devices"` // that are measured
}

// Measure has the kernel measure all devices, with maps from [ebpf.Load] that are the daemon's from then on, also where it fails.
func (d *Daemon) Measure(ctx context.Context, maps ebpf.Maps) (MeasureReport, error) {
	if err := d.begin(ctx); err != nil {
		return MeasureReport{}, errors.Join(err, maps.Close())
	}
	defer d.ops.Done()
	n, err := d.measureWith(maps)
	if err != nil {
		return MeasureReport{}, fail(CodeBadRequest, "load them with the program that the daemon is of: coppice ebpf load", "%w", err)
	}
	d.log.Info("requests are measured by eBPF programs", "devices", n)
	return MeasureReport{n}, nil
}

// EndMeasure ends what Measure began.
func (d *Daemon) EndMeasure(ctx context.Context) (MeasureReport, error) {
	if err := d.begin(ctx); err != nil {
		return MeasureReport{}, err
	}
	defer d.ops.Done()
	if err := d.latency.end(); err != nil {
		return MeasureReport{}, fmt.Errorf("end measuring: %w", err)
	}
	d.log.Info("requests are measured no more")
	return MeasureReport{}, nil
}

// LatencyReport is how long the requests of a device took, as the kernel saw them, by operation and by where their data came from, since the device was first measured.
type LatencyReport struct {
	Device    string         `json:"device"`
	Latencies []ebpf.Latency `json:"latencies"`
}

// Latency reports on one device. It fails where that is not measured.
func (d *Daemon) Latency(name string) (LatencyReport, error) {
	v, err := d.find(name)
	if err != nil {
		return LatencyReport{}, err
	}
	disk := v.servedDisk()
	if disk == nil {
		return LatencyReport{}, fail(CodeBusy, "`coppice list` shows why", "the device is not served")
	}
	list, ok := d.latency.of(disk)
	switch {
	case ok:
		return LatencyReport{name, list}, nil
	case d.latency.on():
		return LatencyReport{}, fail(CodeFailed, "the daemon's log says why; coppice ebpf load --devices and --tags make room for more", "the device is not measured")
	}
	return LatencyReport{}, fail(CodeNotMeasured, "load the eBPF programs: coppice ebpf load (or systemctl enable --now coppice-ebpf); coppice doctor says whether this machine can",
		"nothing is measured: no eBPF programs are loaded")
}
