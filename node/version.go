package node

import (
	"runtime/debug"
	"sync"
)

// release is set by the linker for released binaries:
//
//	go build -ldflags "-X coppice/node.release=1.2.3"
var release string

// Version returns the version of this binary: what the release set, else a
// development version with the commit that it was built from.
var Version = sync.OnceValue(func() string {
	if release != "" {
		return release
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return devVersion
	}
	return versionOf(info.Settings)
})

const devVersion = "0.1.0-dev"

func versionOf(settings []debug.BuildSetting) string {
	commit, dirty := "", ""
	for _, s := range settings {
		switch {
		case s.Key == "vcs.revision" && len(s.Value) >= 12:
			commit = "+" + s.Value[:12]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = ".dirty"
		}
	}
	return devVersion + commit + dirty
}
