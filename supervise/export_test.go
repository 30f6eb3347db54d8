package supervise

// MountsBelow is [mountsBelow].
var MountsBelow = mountsBelow

// Mount is a [mount].
type Mount = mount

// OnDisk is a mount of a disk, and InMemory one of none.
func OnDisk(path string) Mount   { return mount{path, true} }
func InMemory(path string) Mount { return mount{path, false} }
