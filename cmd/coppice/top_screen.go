package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"coppice/image"
	"coppice/node"
	"coppice/union"
)

// topStyle is how a line looks on a terminal.
type topStyle int

const (
	stylePlain   topStyle = iota
	styleHeading          // of the table
	styleTrouble          // somebody should do something
)

// topLine is a line of the screen.
type topLine struct {
	text  string
	style topStyle
}

// topScreen is how a report is shown.
type topScreen struct {
	width, height int // 0: as much as there is to show
	sort          int // which of topColumns
	reversed      bool
	paused        bool
	keys          bool // there is somebody who can press some
}

// topColumn is a column of the table of devices.
type topColumn struct {
	title string
	left  bool // aligned
	width int  // at least
	keep  int  // those with the highest go first where the screen is narrow
	cell  func(d *topDevice) string
	// compare has those first that are of most interest; nil where it is no order.
	compare func(a, b *topDevice) int
}

var topColumns = []topColumn{
	{"DEVICE", true, 8, 0, func(d *topDevice) string { return d.Name }, nil},
	{"STATE", true, 5, 5, func(d *topDevice) string { return d.State }, func(a, b *topDevice) int { return cmp.Compare(a.State, b.State) }},
	rateColumn("R/S", 6, 1, func(r *topRates) float64 { return r.Reads }, showRate),
	rateColumn("W/S", 6, 2, func(r *topRates) float64 { return r.Writes }, showRate),
	rateColumn("RMB/S", 6, 3, func(r *topRates) float64 { return r.ReadBytes }, showMegabytes),
	rateColumn("WMB/S", 6, 4, func(r *topRates) float64 { return r.WriteBytes }, showMegabytes),
	{"INFL", false, 4, 6, func(d *topDevice) string { return known(d.InFlight, func(n uint64) string { return fmt.Sprint(n) }) }, downBy(func(d *topDevice) *uint64 { return d.InFlight })},
	{"HIT", false, 6, 7, func(d *topDevice) string { return known(d.HitRatio, percent) }, func(a, b *topDevice) int {
		return cmp.Compare(orElse(a.HitRatio, 2), orElse(b.HitRatio, 2)) // the worst first
	}},
	latencyColumn("50%", 9, 50),
	latencyColumn("99%", 8, 99),
}

func rateColumn(title string, width, keep int, of func(*topRates) float64, show func(float64) string) topColumn {
	value := func(d *topDevice) *float64 {
		if d.Rates == nil {
			return nil
		}
		v := of(d.Rates)
		return &v
	}
	return topColumn{title, false, width, keep, func(d *topDevice) string { return known(value(d), show) }, downBy(value)}
}

// latencyColumn is about all requests of a device together.
func latencyColumn(title string, keep int, percent float64) topColumn {
	value := func(d *topDevice) *time.Duration {
		if len(d.Latencies) == 0 {
			return nil
		}
		all := d.Latencies[0].all
		for _, l := range d.Latencies[1:] {
			all = all.Plus(&l.all)
		}
		took := all.Percentile(percent)
		return &took
	}
	return topColumn{title, false, 7, keep, func(d *topDevice) string { return known(value(d), showTook) }, downBy(value)}
}

func known[T any](v *T, show func(T) string) string {
	if v == nil {
		return "-"
	}
	return show(*v)
}

func orElse[T any](v *T, other T) T {
	if v == nil {
		return other
	}
	return *v
}

// downBy has the largest first, and last what is not known.
func downBy[T cmp.Ordered](of func(*topDevice) *T) func(a, b *topDevice) int {
	return func(a, b *topDevice) int {
		x, y := of(a), of(b)
		switch {
		case x != nil && y != nil:
			return cmp.Compare(*y, *x)
		case x != nil:
			return -1
		case y != nil:
			return 1
		}
		return 0
	}
}

// showRate shows a number in at most six characters.
func showRate(n float64) string {
	switch {
	case n == 0:
		return "0"
	case n < 9.95:
		return fmt.Sprintf("%.1f", n)
	case n < 99999.5:
		return fmt.Sprintf("%.0f", n)
	case n < 9.995e6:
		return fmt.Sprintf("%.0fk", n/1e3)
	}
	return fmt.Sprintf("%.1fM", n/1e6)
}

func showMegabytes(n float64) string {
	const mega = 1e6
	switch {
	case n == 0:
		return "0"
	case n < 99.95*mega:
		return fmt.Sprintf("%.1f", n/mega)
	}
	return fmt.Sprintf("%.0f", n/mega)
}

// showTook shows a bound, as short as can be: the bounds are a factor of 1.4 apart.
func showTook(d time.Duration) string {
	if d > longest {
		return ">" + longest.String()
	}
	for _, unit := range []struct {
		d    time.Duration
		name string
	}{{time.Second, "s"}, {time.Millisecond, "ms"}, {time.Microsecond, "µs"}} {
		if n := float64(d) / float64(unit.d); n >= 0.9995 {
			if n < 9.95 {
				return fmt.Sprintf("%.1f%s", n, unit.name)
			}
			return fmt.Sprintf("%.0f%s", n, unit.name)
		}
	}
	return "1µs"
}

// leastDevices are shown before anything is above them.
const leastDevices = 3

// lines draws a report.
func (s topScreen) lines(r topReport) []topLine {
	devices := s.sorted(r.Devices)
	title, summary := s.title(r), r.summary()
	table, details := s.table(devices)
	footer := s.footer()
	room := math.MaxInt
	if s.height > 0 {
		room = s.height - len(title) - 1 // the heading
		if s.height < 10 {
			footer = nil
		}
		room -= len(footer)
		summary = fewer(summary, room-min(len(devices), max(leastDevices, room/2)))
		room -= len(summary)
	}
	list := slices.Concat(title, summary, table[:1])
	if len(devices) == 0 && room > 0 {
		list = append(list, topLine{"no devices", stylePlain})
	}
	shown := len(devices)
	if shown > room {
		shown = max(room-1, 0)
	}
	full := room < 2*len(devices)
	for i := range shown {
		list = append(list, table[1+i])
		if !full && details[i] != "" {
			list = append(list, topLine{details[i], stylePlain})
		}
	}
	if n := len(devices) - shown; n > 0 && room > 0 {
		list = append(list, topLine{fmt.Sprintf("and %d more", n), stylePlain})
	}
	for s.height > 0 && len(footer) > 0 && len(list) < s.height-len(footer) {
		list = append(list, topLine{})
	}
	list = append(list, footer...)
	if s.height > 0 && len(list) > s.height {
		list = list[:s.height]
	}
	for i := range list {
		list[i].text = s.cut(list[i].text)
	}
	return list
}

// cut makes a line fit. What cannot be printed is not: it may be from another machine.
func (s topScreen) cut(text string) string {
	text = strings.TrimRight(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text), " ")
	if s.width == 0 {
		return text
	}
	return cutTo(text, s.width)
}

func cutTo(text string, width int) string {
	if utf8.RuneCountInString(text) <= width {
		return text
	}
	return string([]rune(text)[:width-1]) + "…"
}

// fewer keeps n lines: trouble first.
func fewer(lines []topLine, n int) []topLine {
	for _, style := range []topStyle{stylePlain, styleTrouble} {
		for i := len(lines) - 1; i >= 0 && len(lines) > max(n, 0); i-- {
			if lines[i].style == style {
				lines = slices.Delete(lines, i, i+1)
			}
		}
	}
	return lines
}

func (s topScreen) sorted(list []topDevice) []topDevice {
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b topDevice) int {
		order := 0
		if by := topColumns[s.sort].compare; by != nil {
			order = by(&a, &b)
		}
		if order == 0 {
			order = strings.Compare(a.Name, b.Name)
		}
		if s.reversed {
			return -order
		}
		return order
	})
	return list
}

func (s topScreen) title(r topReport) []topLine {
	text := "coppice " + r.Time.Format(time.TimeOnly)
	if s.paused {
		text += " PAUSED"
	}
	if r.Seconds > 0 {
		text += fmt.Sprintf(", last %.1f s", r.Seconds)
	}
	text += ", " + count(uint64(len(r.Devices)), "device")
	return []topLine{{text, stylePlain}}
}

func (s topScreen) footer() []topLine {
	if !s.keys {
		return nil
	}
	pause := "p pause"
	if s.paused {
		pause = "p go on"
	}
	order := strings.ToLower(topColumns[s.sort].title)
	if s.reversed {
		order += " reversed"
	}
	return []topLine{{fmt.Sprintf("q quit  %s  < > sort (%s)  r reverse", pause, order), stylePlain}}
}

// summary is what is above the table.
func (r topReport) summary() (list []topLine) {
	add := func(style topStyle, name, format string, args ...any) {
		list = append(list, topLine{fmt.Sprintf("%-7s ", name) + fmt.Sprintf(format, args...), style})
	}
	if r.Error != "" {
		what := r.Error
		if i := strings.LastIndex(what, ": "); i >= 0 { // what is wrong comes last, where a narrow screen ends
			what = what[i+2:] + " (" + what[:i] + ")"
		}
		add(styleTrouble, "daemon", "%s", what)
		if r.Hint != "" {
			add(stylePlain, "", "to do: %s", r.Hint)
		}
	}
	add(stylePlain, "cache", "%s", r.Cache.holds())
	add(stylePlain, "reads", "%s", r.Cache.reads())
	for _, o := range r.Roots {
		r.addRoot(add, o)
	}
	for _, s := range r.Stores {
		style, wait := stylePlain, ""
		if s.Space.Waiting > 0 {
			wait = ", " + count(uint64(s.Space.Waiting), "request") + " WAIT for space"
		}
		if s.Space.State != union.SpaceOK {
			style = styleTrouble
		}
		add(style, "store", "%s: %.0f %% used, %s left%s", s.Path, s.Space.UsedPercent, showBytes(s.Space.AvailableBytes), wait)
	}
	if !r.Measured && r.Error == "" {
		add(stylePlain, "latency", "not measured: coppice ebpf load")
	}
	return list
}

// addRoot tells how the replicas of a root do, and which of them do not well.
func (r topReport) addRoot(add func(topStyle, string, string, ...any), o node.RootOverview) {
	ready := 0
	for _, p := range o.Replicas {
		if p.State == image.StateReady || p.State == image.StateSlow {
			ready++
		}
	}
	name := o.Content
	if len(o.Replicas) > 0 {
		name = o.Replicas[0].Ref
	}
	text, style := fmt.Sprintf("%s: %d of %s ready", name, ready, count(uint64(len(o.Replicas)), "replica")), stylePlain
	if ready == 0 {
		style = styleTrouble
	}
	if h := o.Hydration; h != nil && h.State != node.HydrationComplete {
		text += fmt.Sprintf(", %s to this machine: %d %%", h.State, 100*h.DoneBytes/max(h.TotalBytes, 1))
	}
	add(style, "root", "%s", text)
	for _, p := range o.Replicas {
		if p.State == image.StateReady {
			continue
		}
		text := fmt.Sprintf("%s: %s for %s", p.Ref, p.State, r.Time.Sub(p.Since).Round(time.Second))
		if p.Error != "" {
			text += ": " + p.Error
		}
		add(styleTrouble, "", "%s", text)
	}
}

func (c topCache) holds() string {
	text := fmt.Sprintf("memory %s of %s", showBytes(c.MemoryUsedBytes), showBytes(c.MemoryBytes))
	if c.Disk != nil {
		text += fmt.Sprintf(", disk %s of %s", showBytes(c.Disk.UsedBytes), showBytes(c.Disk.SizeBytes))
		if c.Disk.State != "on" {
			text += ", " + c.Disk.State
		}
	}
	if c.Peers == nil {
		return text
	}
	ready := 0
	for _, state := range c.Peers {
		if state == "ready" {
			ready++
		}
	}
	return text + fmt.Sprintf(", %d of %s ready", ready, count(uint64(len(c.Peers)), "peer"))
}

func (c topCache) reads() string {
	all := 0.0
	for _, n := range c.ReadBytes {
		all += n
	}
	if all == 0 {
		return "of images: none"
	}
	var parts []string
	for _, t := range topTiers {
		if n := c.ReadBytes[t.name]; n > 0 {
			parts = append(parts, t.name+" "+percent(n/all))
		}
	}
	return fmt.Sprintf("of images: %s MB/s, hits %s: %s", showMegabytes(all), known(c.HitRatio, percent), strings.Join(parts, ", "))
}

// table returns the heading and a line for each device; and what there is to say of each beyond that, where it does not fit.
func (s topScreen) table(devices []topDevice) (lines []topLine, details []string) {
	columns, widths := s.columns(devices)
	row := func(cell func(c *topColumn) string) string {
		var b strings.Builder
		for i, c := range columns {
			if i > 0 {
				b.WriteByte(' ')
			}
			text := cutTo(cell(c), widths[i])
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(text))
			if c.left {
				b.WriteString(text + pad)
			} else {
				b.WriteString(pad + text)
			}
		}
		return b.String()
	}
	heading := row(func(c *topColumn) string { return c.title })
	const leastForSources = 45
	beside := s.width == 0 || s.width-utf8.RuneCountInString(heading) >= leastForSources
	if beside {
		heading += "  50%/99% BY SOURCE"
	}
	lines = []topLine{{heading, styleHeading}}
	for i := range devices {
		d := &devices[i]
		text := row(func(c *topColumn) string { return c.cell(d) })
		detail, sources := "", d.sources()
		switch {
		case beside:
			text += "  " + cmp.Or(sources, "-")
		case sources != "":
			detail = "  " + sources
		}
		lines, details = append(lines, topLine{text, stylePlain}), append(details, detail)
	}
	return lines, details
}

// columns are those that fit.
func (s topScreen) columns(devices []topDevice) (columns []*topColumn, widths []int) {
	longestName := min(max(s.width/5, 8), 24)
	all := make([]int, len(topColumns))
	total := -1
	for i, c := range topColumns {
		all[i] = max(c.width, utf8.RuneCountInString(c.title))
		for k := range devices {
			all[i] = max(all[i], utf8.RuneCountInString(c.cell(&devices[k])))
		}
		if i == 0 && s.width > 0 {
			all[i] = min(all[i], longestName)
		}
		total += all[i] + 1
	}
	dropped := make([]bool, len(topColumns))
	for s.width > 0 && total > s.width {
		worst := 0
		for i, c := range topColumns {
			if !dropped[i] && c.keep > topColumns[worst].keep {
				worst = i
			}
		}
		if worst == 0 {
			break
		}
		dropped[worst] = true
		total -= all[worst] + 1
	}
	for i := range topColumns {
		if !dropped[i] {
			columns, widths = append(columns, &topColumns[i]), append(widths, all[i])
		}
	}
	return columns, widths
}

// sources are what half of the requests took, and all but one in a hundred: reads by where their data came from, the rest by operation.
func (d *topDevice) sources() string {
	var parts []string
	add := func(name string, l *topLatency) {
		parts = append(parts, fmt.Sprintf("%s %s/%s", name, showTook(l.all.Percentile(50)), showTook(l.all.Percentile(99))))
	}
	others := map[string]*topLatency{}
	var order []string
	for i := range d.Latencies {
		l := d.Latencies[i]
		if l.Op == "read" {
			add(l.Source, &l)
			continue
		}
		if other := others[l.Op]; other != nil {
			other.all = other.all.Plus(&l.all)
			continue
		}
		others[l.Op] = &l
		order = append(order, l.Op)
	}
	for _, op := range order {
		add(op, others[op])
	}
	return strings.Join(parts, ", ")
}
