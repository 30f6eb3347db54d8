package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"time"

	"coppice/cache"
	"coppice/internal/plot"
	"coppice/node"
)

// leastRequests is how many requests there have to be for a curve to be shown.
const leastRequests = 1000

type cacheCurveCmd struct {
	output
	Plot string `placeholder:"FILE" type:"path" help:"Also draw it: FILE ends with .svg or .png, and one that exists is replaced."`
}

// Validate refuses a plot in another format.
func (c *cacheCurveCmd) Validate() error { return validPlot(c.Plot) }

// Run shows the curve.
func (c *cacheCurveCmd) Run(env *environment) error {
	v, err := env.client().CacheCurve(env.ctx)
	if err != nil {
		return err
	}
	if v.Requests < leastRequests && (c.Plot != "" || c.Output == "text") {
		return &node.Error{
			Code:    node.CodeFailed,
			Message: fmt.Sprintf("show the curve of the cache: only %s of chunks of images so far, which tell nothing", count(v.Requests, "request")),
			Hint:    fmt.Sprintf("let devices that stand on images read for a while, and ask again: there have to be %d", leastRequests),
		}
	}
	if c.Plot != "" {
		if err := drawPlot("the curve of the cache", curveChart(v), c.Plot); err != nil {
			return err
		}
	}
	return c.print(env.out, v, func(w io.Writer) {
		writeCurve(w, v)
		if c.Plot != "" {
			fmt.Fprintf(w, "plot: %s\n", c.Plot)
		}
	})
}

func percent(ratio float64) string { return fmt.Sprintf("%.1f %%", 100*ratio) }

// perGiB is how much is fetched for each GiB that is read.
func perGiB(fetched, read uint64) string {
	if read == 0 {
		return "-"
	}
	return showBytes(int64(float64(fetched) / float64(read) * (1 << 30)))
}

func writeCurve(w io.Writer, v cache.Curve) {
	var lines [][]string
	at := func(p cache.CurvePoint) []string {
		line := []string{showBytes(p.ThresholdBytes), percent(p.MissRatio), "", perGiB(p.FetchedBytes, v.ReadBytes)}
		if p.Coarse {
			line[1], line[3] = "-", "-"
		}
		return line
	}
	now := []string{showBytes(v.ThresholdBytes), "-", percent(v.MissRatio) + ", as it is now", "-"}
	for _, p := range v.Points {
		line := at(p)
		switch {
		case p.ThresholdBytes == v.ThresholdBytes:
			line[2], now = now[2], nil
		case p.ThresholdBytes > v.ThresholdBytes && now != nil:
			lines, now = append(lines, now), nil
		}
		lines = append(lines, line)
	}
	if now != nil {
		lines = append(lines, now)
	}
	table(w, []string{"THRESHOLD", "MISSES", "MEASURED", "FETCHED PER GIB READ"}, lines)
	fmt.Fprintf(w, "\nof %s since %s, those of a day ago counting half; %s, %s\n", count(v.Requests, "request"), v.Since.Local().Format(time.DateTime), v.Policy, sampledOf(v))
	fmt.Fprintf(w, "hint: %s\n", advice(v))
}

func sampledOf(v cache.Curve) string {
	text := "every chunk is looked at"
	if v.SampledOneOf > 1 {
		text = fmt.Sprintf("one of %d chunks is looked at", v.SampledOneOf)
	}
	if v.LostRequests > 0 {
		text += fmt.Sprintf(", %s lost", count(v.LostRequests, "request"))
	}
	return text
}

// What advice goes by.
const (
	worthPoints = 0.01 // fewer misses than that are not worth more memory
	mostOfIt    = 0.8  // of what any threshold would spare
	samePoints  = 0.005
)

// advice says what to do about the threshold: the smallest one that spares most of what can be spared, or else the smallest that misses no more.
func advice(v cache.Curve) string {
	known := slices.DeleteFunc(slices.Clone(v.Points), func(p cache.CurvePoint) bool { return p.Coarse })
	least := v.MissRatio
	for _, p := range known {
		if p.ThresholdBytes > v.ThresholdBytes {
			least = min(least, p.MissRatio)
		}
	}
	spared := v.MissRatio - least
	for _, p := range known {
		switch {
		case spared >= worthPoints && p.ThresholdBytes > v.ThresholdBytes && v.MissRatio-p.MissRatio >= mostOfIt*spared:
			return fmt.Sprintf("%s would miss %s instead of %s: coppice cache set --memory %s", showBytes(p.ThresholdBytes), percent(p.MissRatio), percent(v.MissRatio), flagBytes(p.ThresholdBytes))
		case spared < worthPoints && p.ThresholdBytes < v.ThresholdBytes && p.MissRatio <= v.MissRatio+samePoints:
			return fmt.Sprintf("%s would miss hardly more, and more memory hardly less: coppice cache set --memory %s", showBytes(p.ThresholdBytes), flagBytes(p.ThresholdBytes))
		}
	}
	return "the threshold is right: less memory would miss more, and more memory hardly less"
}

// flagBytes is a size as a flag takes it.
func flagBytes(n int64) string {
	if n%(1<<20) != 0 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%dM", n>>20)
}

// curveChart draws misses over thresholds, the latter on a logarithmic axis.
func curveChart(v cache.Curve) plot.Chart {
	from, to, most := v.ThresholdBytes, v.ThresholdBytes, v.MissRatio
	for _, p := range v.Points {
		if !p.Coarse {
			from, to, most = min(from, p.ThresholdBytes), max(to, p.ThresholdBytes), max(most, p.MissRatio)
		}
	}
	x := func(n int64) float64 {
		if from == to {
			return 0.5
		}
		return math.Log2(float64(n)/float64(from)) / math.Log2(float64(to)/float64(from))
	}
	step := stepFor(most)
	ceiling := step * max(1, math.Ceil(most/step))
	c := plot.Chart{
		Title:    "What memory misses, by its threshold",
		Subtitle: fmt.Sprintf("%s, %s until %s, those of a day ago counting half; %s", v.Policy, count(v.Requests, "request"), time.Now().Format(time.DateTime), sampledOf(v)),
		X:        plot.Axis{Title: "threshold of the memory tier"},
		Y:        plot.Axis{Title: "requests that memory misses"},
		Mark:     &plot.Mark{Point: plot.Point{X: x(v.ThresholdBytes), Y: v.MissRatio / ceiling}, Label: fmt.Sprintf("now %s, measured %s", showBytes(v.ThresholdBytes), percent(v.MissRatio))},
	}
	for i := 0; float64(i)*step <= ceiling+step/2; i++ {
		c.Y.Ticks = append(c.Y.Ticks, plot.Tick{At: float64(i) * step / ceiling, Label: fmt.Sprintf("%g %%", math.Round(float64(i)*step*1e4)/100)})
	}
	last := math.Inf(-1)
	for _, p := range v.Points {
		if p.Coarse {
			continue
		}
		at := x(p.ThresholdBytes)
		c.Line = append(c.Line, plot.Point{X: at, Y: p.MissRatio / ceiling})
		const apart = 0.12
		if at-last >= apart {
			c.X.Ticks = append(c.X.Ticks, plot.Tick{At: at, Label: showBytes(p.ThresholdBytes)})
			last = at
		}
	}
	return c
}

// stepFor is the distance of lines that cut what is to be shown into four to ten.
func stepFor(most float64) float64 {
	for _, step := range []float64{0.001, 0.002, 0.005, 0.01, 0.02, 0.05} {
		if most <= 8*step {
			return step
		}
	}
	return 0.1
}
