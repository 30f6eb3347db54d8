package node

import (
	"slices"
	"strings"
	"time"

	"coppice/ebpf"
	"coppice/image"
	"coppice/union"
)

// Overview is what changes from one second to the next, of all that a daemon serves, in one answer. Counters grow from the daemon's start on, those of a device from when
// it was taken into service, and those that the kernel counts for as long as the programs are loaded.
type Overview struct {
	Started  time.Time        `json:"started"`  // when the daemon was: with another one, its counters begin anew
	Measured bool             `json:"measured"` // eBPF programs are loaded
	Devices  []DeviceOverview `json:"devices"`  // by name
	Stores   []StoreOverview  `json:"stores"`   // leaf stores in use, by path
	Roots    []RootOverview   `json:"roots"`    // images in use, by content
	Cache    CacheReport      `json:"cache"`
}

// DeviceOverview is one device. What is read through the cache is in CacheReport.Devices.
type DeviceOverview struct {
	Name      string             `json:"name"`
	State     State              `json:"state"`
	ID        int                `json:"id"`                  // of /dev/ublkbID; negative where there is none yet
	Stats     *union.DeviceStats `json:"stats,omitempty"`     // while it is served
	Latencies []ebpf.Latency     `json:"latencies,omitempty"` // while it is measured
}

// StoreOverview is how full a leaf store is.
type StoreOverview struct {
	Path  string          `json:"path"`
	Space union.SpaceInfo `json:"space"`
}

// RootOverview is an image with its replicas, and the devices that stand on it.
type RootOverview struct {
	Content   string                `json:"content"` // content root
	Devices   []string              `json:"devices"`
	Replicas  []image.ReplicaStatus `json:"replicas"`
	Hydration *Hydration            `json:"hydration,omitempty"`
}

// Overview reports on everything. It waits for no store and no server.
func (d *Daemon) Overview() Overview {
	o := Overview{
		Started: d.began, Measured: d.latency.on(), Devices: []DeviceOverview{}, Stores: []StoreOverview{}, Roots: d.rootOverviews(), Cache: d.CacheStats(),
	}
	stores := map[string]bool{}
	for _, v := range d.all() {
		r := v.measure()
		dev := DeviceOverview{Name: r.name, State: r.state, ID: r.id, Stats: r.stats}
		if disk := v.servedDisk(); disk != nil {
			dev.Latencies, _ = d.latency.of(disk)
		}
		o.Devices = append(o.Devices, dev)
		if r.stats != nil && !stores[r.store] {
			stores[r.store] = true
			o.Stores = append(o.Stores, StoreOverview{r.store, r.space})
		}
	}
	slices.SortFunc(o.Stores, func(a, b StoreOverview) int { return strings.Compare(a.Path, b.Path) })
	return o
}

// rootOverviews are the images that devices stand on.
func (d *Daemon) rootOverviews() []RootOverview {
	list, seen := []RootOverview{}, map[*rootSet]int{}
	for _, v := range d.all() {
		root := v.imageRoot()
		if root == nil {
			continue
		}
		i, ok := seen[root.set]
		if !ok {
			i = len(list)
			seen[root.set] = i
			r := RootOverview{Content: root.set.ContentRoot().String()}
			r.Replicas, r.Hydration = root.set.report()
			list = append(list, r)
		}
		list[i].Devices = append(list[i].Devices, v.record().Device.Name)
	}
	slices.SortFunc(list, func(a, b RootOverview) int { return strings.Compare(a.Content, b.Content) })
	return list
}
