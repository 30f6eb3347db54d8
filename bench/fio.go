package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// A Figure is what one job did on one device. A job that makes devices has their number per second as IOPS, and
// the time for one as latency.
type Figure struct {
	IOPS        float64 `json:"iops"`
	BytesPerSec float64 `json:"bytes_per_sec"`
	MeanUS      float64 `json:"mean_us"` // latency seen by fio, microseconds
	P50US       float64 `json:"p50_us"`
	P99US       float64 `json:"p99_us"`
	IOs         int64   `json:"ios"`
	// CPUPerIOUS is the guest's busy time, fio included, per request, in microseconds.
	CPUPerIOUS float64 `json:"cpu_per_io_us"`
	// SyscallsPerIO is how many system calls the process that serves the device made per request, counted in a pass of its own; AllocsPerIO
	// how many objects it allocated, where it is a program in Go. nil: not known, or there is no such process.
	SyscallsPerIO *float64 `json:"syscalls_per_io,omitempty"`
	AllocsPerIO   *float64 `json:"allocs_per_io,omitempty"`
}

type fioOutput struct {
	Jobs []fioJob `json:"jobs"`
}

type fioJob struct {
	Name  string  `json:"jobname"`
	Error int     `json:"error"`
	Read  fioSide `json:"read"`
	Write fioSide `json:"write"`
}

type fioSide struct {
	IOPS        float64    `json:"iops"`
	BytesPerSec float64    `json:"bw_bytes"`
	IOs         int64      `json:"total_ios"`
	Latency     fioLatency `json:"lat_ns"`
	Completion  fioLatency `json:"clat_ns"`
}

type fioLatency struct {
	Mean       float64            `json:"mean"`
	Percentile map[string]float64 `json:"percentile"`
}

// ParseFio reads fio's JSON report of one job. What fio prints before the opening brace (a
// warning, say) becomes part of the error when the job failed.
func ParseFio(output []byte) (Figure, error) {
	text := string(output)
	brace := strings.Index(text, "{")
	if brace < 0 {
		return Figure{}, fmt.Errorf("parse fio output: no JSON in %q", clip(text))
	}
	var out fioOutput
	if err := json.NewDecoder(strings.NewReader(text[brace:])).Decode(&out); err != nil {
		return Figure{}, fmt.Errorf("parse fio output: %w", err)
	}
	if len(out.Jobs) != 1 {
		return Figure{}, fmt.Errorf("parse fio output: %d jobs, not 1", len(out.Jobs))
	}
	job := out.Jobs[0]
	if job.Error != 0 {
		return Figure{}, fmt.Errorf("fio job %s ended with error %d: %s", job.Name, job.Error, clip(text[:brace]))
	}
	side := job.Read
	if job.Write.IOs > 0 {
		side = job.Write
	}
	if side.IOs == 0 || side.IOPS <= 0 {
		return Figure{}, errors.New("parse fio output: the job did no I/O")
	}
	return Figure{
		IOPS:        side.IOPS,
		BytesPerSec: side.BytesPerSec,
		MeanUS:      side.Latency.Mean / 1000,
		P50US:       side.Completion.Percentile["50.000000"] / 1000,
		P99US:       side.Completion.Percentile["99.000000"] / 1000,
		IOs:         side.IOs,
	}, nil
}

// clip shortens text for an error message.
func clip(text string) string {
	const limit = 300
	text = strings.TrimSpace(text)
	if len(text) > limit {
		return text[:limit] + "…"
	}
	return text
}
