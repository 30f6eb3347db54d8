package powercut

// What host and guest agree on. Disks have these names; the first partition of LeafDisk is the store, the second for marks.
const (
	LeafDisk = "leaf"
	Ext4Disk = "ext4root"
	XFSDisk  = "xfsroot"
	RawDisk  = "rawroot"
)

// Layers, which are clients in events too, but for the raw device: it has two.
const (
	Ext4Layer = "ext4"
	XFSLayer  = "xfs"
	RawLayer  = "raw"
)

// RawClients work on RawBlocks blocks of the raw device each, one after the other.
var RawClients = []string{"raw0", "raw1"}

// RawBlocks is what each raw client has. The rest of the device's RawBytes bytes is left alone.
const (
	RawBlocks = 192
	RawBytes  = 3 * RawBlocks * BlockBytes
)

// FileNames are how many names there are for files: f00, f01 ...
const FileNames = 28

// Initial are the files of both roots, as events of the client.
func Initial(client string) []Event {
	var events []Event
	for i := range FileNames / 2 {
		events = append(events,
			Event{Client: client, Kind: Create, Name: FileName(i), ID: uint64(1000 + i), Size: int64(4096*(i%5) + 8*(i+1))},
			Event{Client: client, Kind: Synced, Name: FileName(i)})
	}
	return events
}

// FileName is the i-th name.
func FileName(i int) string { return "f" + string(rune('0'+i/10)) + string(rune('0'+i%10)) }
