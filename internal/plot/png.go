package plot

import (
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"io"
	"math"

	"golang.org/x/image/font"
	"golang.org/x/image/font/gofont/goregular"
	"golang.org/x/image/font/opentype"
	"golang.org/x/image/math/fixed"
	"golang.org/x/image/vector"
)

// pngScale is how many pixels a PNG has for one of an SVG, in each direction.
const pngScale = 2

type raster struct {
	*image.RGBA
	font  *opentype.Font
	faces map[float64]font.Face // by size
	err   error                 // the first one
}

func writePNG(w io.Writer, d drawing) error {
	f, err := opentype.Parse(goregular.TTF)
	if err != nil {
		return fmt.Errorf("read font: %w", err)
	}
	r := &raster{RGBA: image.NewRGBA(image.Rect(0, 0, width*pngScale, height*pngScale)), font: f, faces: map[float64]font.Face{}}
	draw.Draw(r, r.Rect, image.White, image.Point{}, draw.Src)
	d.draw(r)
	if r.err != nil {
		return r.err
	}
	return png.Encode(w, r)
}

// fill fills what outline goes around.
func (r *raster) fill(c color.RGBA, outline ...Point) {
	low, high := Point{math.Inf(1), math.Inf(1)}, Point{math.Inf(-1), math.Inf(-1)}
	for _, p := range outline {
		low, high = Point{min(low.X, p.X), min(low.Y, p.Y)}, Point{max(high.X, p.X), max(high.Y, p.Y)}
	}
	box := image.Rect(int(low.X*pngScale)-1, int(low.Y*pngScale)-1, int(high.X*pngScale)+2, int(high.Y*pngScale)+2)
	v := vector.NewRasterizer(box.Dx(), box.Dy())
	for i, p := range outline {
		x, y := float32(p.X*pngScale)-float32(box.Min.X), float32(p.Y*pngScale)-float32(box.Min.Y)
		if i == 0 {
			v.MoveTo(x, y)
		} else {
			v.LineTo(x, y)
		}
	}
	v.ClosePath()
	v.Draw(r, box, image.NewUniform(c), image.Point{})
}

func (r *raster) line(points []Point, width float64, c color.RGBA) {
	for i := 1; i < len(points); i++ {
		p, q := points[i-1], points[i]
		length := math.Hypot(q.X-p.X, q.Y-p.Y)
		if length == 0 {
			continue
		}
		dx, dy := (q.Y-p.Y)/length*width/2, (p.X-q.X)/length*width/2
		r.fill(c, Point{p.X + dx, p.Y + dy}, Point{q.X + dx, q.Y + dy}, Point{q.X - dx, q.Y - dy}, Point{p.X - dx, p.Y - dy})
	}
}

// rects fills whole pixels, so that rectangles beside each other leave no line between them.
func (r *raster) rects(list []rect, c color.RGBA) {
	pixel := func(x float64) int { return int(math.Round(x * pngScale)) }
	for _, q := range list {
		draw.Draw(r, image.Rect(pixel(q.from.X), pixel(q.from.Y), pixel(q.to.X), pixel(q.to.Y)), image.NewUniform(c), image.Point{}, draw.Src)
	}
}

func (r *raster) disc(at Point, radius float64, c color.RGBA) {
	const corners = 48
	var outline []Point
	for i := range corners {
		sin, cos := math.Sincos(2 * math.Pi * float64(i) / corners)
		outline = append(outline, Point{at.X + radius*cos, at.Y + radius*sin})
	}
	r.fill(c, outline...)
}

func (r *raster) face(size float64) font.Face {
	f := r.faces[size]
	if f == nil {
		const pointsAnInch = 72 // so that a point is a pixel
		made, err := opentype.NewFace(r.font, &opentype.FaceOptions{Size: size * pngScale, DPI: pointsAnInch})
		if err != nil {
			r.err = fmt.Errorf("use font: %w", err)
			return nil
		}
		f, r.faces[size] = made, made
	}
	return f
}

func (r *raster) text(at Point, size float64, a anchor, c color.RGBA, text string) {
	f := r.face(size)
	if f == nil {
		return
	}
	d := font.Drawer{Dst: r, Src: image.NewUniform(c), Face: f}
	x := fixed.Int26_6(at.X * pngScale * 64)
	switch long := d.MeasureString(text); a {
	case atMiddle:
		x -= long / 2
	case atEnd:
		x -= long
	}
	d.Dot = fixed.Point26_6{X: x, Y: fixed.Int26_6(at.Y * pngScale * 64)}
	d.DrawString(text)
}
