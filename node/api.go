package node

import (
	"time"

	"coppice/cache"
	"coppice/image"
	"coppice/union"
)

// Limits and names of the API.
const (
	// APIVersion is in every path.
	APIVersion = "v1"
	// MaxBody is the size in bytes of the largest request body.
	MaxBody = 64 << 10
	// VersionHeader carries the version of the program in both directions.
	VersionHeader = "Coppice-Version"
	// AutoID in CreateRequest.ID asks for the lowest free number.
	AutoID = -1
)

// VersionInfo answers GET /v1/version, for any client version.
type VersionInfo struct {
	Version string `json:"version"`
	API     string `json:"api"`
	PID     int    `json:"pid"`
	// Upgrade tells of the last upgrade; nil where the daemon was started otherwise.
	Upgrade *Upgrade `json:"upgrade,omitempty"`
}

// CreateRequest asks for one device. The zero values of SizeBytes, Queues,
// Depth and BlockSize mean the default; an ID of [AutoID] means any.
type CreateRequest struct {
	Name      string `json:"name"`
	Root      string `json:"root"`       // absolute path of a raw file or block device, or an image; "" for a layer that needs none
	Store     string `json:"store"`      // absolute path of a leaf store
	Layer     string `json:"layer"`      // "" for the layer named as the device
	From      string `json:"from"`       // sealed layer of the store that a new layer stands on; "" for the root alone
	SizeBytes int64  `json:"size_bytes"` // 0 for the size of the root, or of the layer From
	Queues    int    `json:"queues"`
	Depth     int    `json:"depth"`
	BlockSize int    `json:"block_size"` // 512 or 4096 bytes
	ReadOnly  bool   `json:"read_only"`
	ID        int    `json:"id"`
	// QuotaBytes bounds the data of a layer that is made; 0 for none.
	QuotaBytes int64 `json:"quota_bytes,omitempty"`
	// Roots are references of replicas of one image, for a root that has several. Root is the first of them, or empty.
	Roots []string `json:"roots,omitempty"`
	// Hydrate has the image copied to this machine in the background.
	Hydrate bool `json:"hydrate,omitempty"`
	// Save has the device declared, so that it is there whenever the daemon runs.
	Save bool `json:"save,omitempty"`
}

// State is where a device is in its life.
type State string

// The states of a device.
const (
	StateCreating  State = "creating"
	StateRestoring State = "restoring" // taken over from an earlier daemon
	StateLive      State = "live"
	StateDeleting  State = "deleting"
	StateStopping  State = "stopping"
	StateFreezing  State = "freezing"  // served, while its layer is being sealed
	StateExporting State = "exporting" // served, while its content is written elsewhere
	StateReading   State = "reading"   // served, while its content is read as it was at one moment
	StateFailed    State = "failed"    // not served; Device.Error says why
)

// Device is one device as list and inspect report it.
type Device struct {
	Name      string `json:"name"`
	State     State  `json:"state"`
	Error     string `json:"error,omitempty"`
	Hint      string `json:"hint,omitempty"`
	ID        int    `json:"id"`
	Path      string `json:"path"`
	SizeBytes int64  `json:"size_bytes"`
	BlockSize int    `json:"block_size"`
	Queues    int    `json:"queues"`
	Depth     int    `json:"depth"`
	ReadOnly  bool   `json:"read_only"`
	// Recoverable devices outlive the daemon: while none runs, their I/O waits.
	Recoverable bool               `json:"recoverable"`
	Root        Root               `json:"root"`
	Leaf        Leaf               `json:"leaf"`
	Created     time.Time          `json:"created"`
	CreateMS    float64            `json:"create_ms"` // how long the creation took, in milliseconds
	Restored    *time.Time         `json:"restored,omitempty"`
	Declared    string             `json:"declared,omitempty"` // path of the file that declares it; inspect, and after a creation or deletion
	Holders     []string           `json:"holders,omitempty"`  // what has the device in use, where it can be found out
	Stats       *union.DeviceStats `json:"stats,omitempty"`    // inspect only
	// Cache tells where the bytes of the root came from, where that is an image; inspect only.
	Cache    *cache.ReaderStats `json:"cache,omitempty"`
	InFlight *InFlight          `json:"in_flight,omitempty"` // inspect only
	Detach   *DetachStatus      `json:"detach,omitempty"`    // inspect only; of its layer, while it goes on
}

// InFlight tells how many requests are being served, and which has been for longest.
type InFlight struct {
	Requests int            `json:"requests"`
	Oldest   *OldestRequest `json:"oldest,omitempty"`
}

// OldestRequest is where to look when a device is stuck.
type OldestRequest struct {
	Op       string `json:"op"`
	Off      int64  `json:"off"` // bytes
	Len      int64  `json:"len"` // bytes
	AgeNanos int64  `json:"age_nanos"`
	TargetIO int    `json:"target_io"` // its reads, writes and syncs of leaf and root that have not ended
	Waits    string `json:"waits"`     // what it waits for, in words
}

// Root is the root image below a device, and what the layer's pin says of it. All but the path and the references is
// absent while the device is not served, and all of it where the layer is complete.
type Root struct {
	Path      string     `json:"path"`           // or the reference of an image
	Refs      []string   `json:"refs,omitempty"` // of all replicas, where there are several
	SizeBytes int64      `json:"size_bytes,omitempty"`
	Content   string     `json:"content,omitempty"`  // in hex: of an image its content root, of a raw root the SHA-256 of samples
	Modified  *time.Time `json:"modified,omitempty"` // files only
	// ChunkSize is the length of the chunks that an image is in, in bytes; inspect only.
	ChunkSize int `json:"chunk_size,omitempty"`
	// Verified tells whether each chunk is checked against a digest as it is read.
	// A raw root cannot be: it is only recognised, when it is opened.
	Verified bool `json:"verified"`
	// Replicas are those of an image, Hydration is how far it is copied to this machine; inspect only. Both are shared by all devices on the content.
	Replicas  []image.ReplicaStatus `json:"replicas,omitempty"`
	Hydration *Hydration            `json:"hydration,omitempty"`
}

// Hydration tells how far an image is copied to this machine.
type Hydration struct {
	State      HydrationState `json:"state"`
	Ref        string         `json:"ref"` // of the copy
	DoneBytes  int64          `json:"done_bytes"`
	TotalBytes int64          `json:"total_bytes"`     // of the image as it is stored
	Error      string         `json:"error,omitempty"` // why it waits
}

// HydrationState is where a hydration is.
type HydrationState string

// The states of a hydration.
const (
	HydrationCopying  HydrationState = "copying"
	HydrationWaiting  HydrationState = "waiting" // to try again: Error says why
	HydrationComplete HydrationState = "complete"
)

// Leaf is the writable top of a device.
type Leaf struct {
	Store string           `json:"store"`
	Layer string           `json:"layer"`
	Info  *union.StoreInfo `json:"info,omitempty"` // inspect only
	// StoreSpace tells how full the store is, Quota how full the quota of the layer is, which has QuotaBytes. Absent while
	// the device is not served, and where there is no quota.
	StoreSpace *union.SpaceInfo `json:"store_space,omitempty"`
	Quota      *union.SpaceInfo `json:"quota,omitempty"`
	QuotaBytes int64            `json:"quota_bytes,omitempty"`
}

type errorBody struct {
	Error *Error `json:"error"`
}

type listBody struct {
	Devices []Device `json:"devices"`
}
