package ebpf

// The compiler is one that Debian 12 and 13 both have, so that the object comes out the same. c/SHA256SUMS ties the object to its source for those who have none: see
// TestObjectFitsSource.
//
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -output-stem latency_bpf -go-package ebpf latency c/latency.bpf.c -- -Wall -Wextra -Wno-unused-parameter -Werror
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -output-stem trace_bpf -go-package ebpf -type event trace c/trace.bpf.c -- -Wall -Wextra -Wno-unused-parameter -Werror
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -output-stem readers_bpf -go-package ebpf readers c/readers.bpf.c -- -Wall -Wextra -Wno-unused-parameter -Werror
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -output-stem pagecache_bpf -go-package ebpf pagecache c/pagecache.bpf.c -- -Wall -Wextra -Wno-unused-parameter -Werror
//go:generate sh -c "sha256sum c/*.c c/*.h *_bpfel.o *_bpfel.go gen.go >c/SHA256SUMS"
