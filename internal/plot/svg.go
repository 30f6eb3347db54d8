package plot

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"image/color"
	"io"
)

type svg struct{ bytes.Buffer }

func writeSVG(w io.Writer, d drawing) error {
	var s svg
	fmt.Fprintf(&s, "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" font-family=\"Go, Helvetica, Arial, sans-serif\">\n", width, height, width, height)
	fmt.Fprintf(&s, "<rect width=\"%d\" height=\"%d\" fill=\"#ffffff\"/>\n", width, height)
	d.draw(&s)
	s.WriteString("</svg>\n")
	_, err := w.Write(s.Bytes())
	return err
}

func hex(c color.RGBA) string { return fmt.Sprintf("#%02x%02x%02x", c.R, c.G, c.B) }

func (s *svg) line(points []Point, width float64, c color.RGBA) {
	fmt.Fprintf(s, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"%g\" stroke-linejoin=\"round\" points=\"", hex(c), width)
	for i, p := range points {
		if i > 0 {
			s.WriteByte(' ')
		}
		fmt.Fprintf(s, "%.1f,%.1f", p.X, p.Y)
	}
	s.WriteString("\"/>\n")
}

// rects makes one path of all.
func (s *svg) rects(list []rect, c color.RGBA) {
	fmt.Fprintf(s, "<path shape-rendering=\"crispEdges\" fill=\"%s\" d=\"", hex(c))
	for _, q := range list {
		wide := q.to.X - q.from.X
		fmt.Fprintf(s, "M%.1f %.1fh%.1fv%.1fh%.1fz", q.from.X, q.from.Y, wide, q.to.Y-q.from.Y, -wide)
	}
	s.WriteString("\"/>\n")
}

func (s *svg) disc(at Point, radius float64, c color.RGBA) {
	fmt.Fprintf(s, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%g\" fill=\"%s\"/>\n", at.X, at.Y, radius, hex(c))
}

func (s *svg) text(at Point, size float64, a anchor, c color.RGBA, text string) {
	fmt.Fprintf(s, "<text x=\"%.1f\" y=\"%.1f\" font-size=\"%g\" text-anchor=\"%s\" fill=\"%s\">", at.X, at.Y, size, [...]string{"start", "middle", "end"}[a], hex(c))
	_ = xml.EscapeText(s, []byte(text)) // a buffer takes everything
	s.WriteString("</text>\n")
}
