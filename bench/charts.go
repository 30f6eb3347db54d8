package bench

import (
	"fmt"
	"io"
	"math"

	"coppice/internal/plot"
)

// WriteCharts writes a chart of each job that was done: how fast each subject was beside the job's base. To opens what a chart is written to.
func (r *Report) WriteCharts(to func(name string) (io.WriteCloser, error)) error {
	for _, job := range Jobs() {
		bars := r.bars(job)
		if len(bars.Bars) == 0 {
			continue
		}
		out, err := to(job.Name + "." + string(plot.SVG))
		if err != nil {
			return fmt.Errorf("write chart of %s: %w", job.Name, err)
		}
		err = bars.Write(out, plot.SVG)
		if closeErr := out.Close(); err == nil {
			err = closeErr
		}
		if err != nil {
			return fmt.Errorf("write chart of %s: %w", job.Name, err)
		}
	}
	return nil
}

// bars is empty where there is nothing to compare with.
func (r *Report) bars(job Job) plot.Bars {
	c := plot.Bars{
		Title:    job.String(),
		Subtitle: fmt.Sprintf("speed as a ratio to %s in the same round: median and 95 %% interval; %s, commit %s", job.Base, r.Date, r.Commit),
		Show:     func(v float64) string { return fmt.Sprintf("%.2f", v) },
		Base:     1,
	}
	if job.RW == "" {
		c.Title = "A device of 10 TiB, from the first command to the first read"
	}
	for _, s := range Subjects() {
		i := Bootstrap(r.Run.Ratios(s.Name, job, job.Base, Speed))
		if i.N == 0 {
			continue
		}
		c.Bars = append(c.Bars, plot.Bar{Label: string(s.Name), Value: i.Median, Low: i.Low, High: i.High, Strong: s.Ours})
		if s.Name != NullBlk || i.High < maxFloor {
			c.Top = math.Max(c.Top, i.High)
		}
	}
	return c
}

// maxFloor is how much faster than the base the floor may be for the chart to have room for it: at depth 1 it answers at once.
const maxFloor = 4
