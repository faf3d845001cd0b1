package tui

import (
	"fmt"
	"strings"
	"unicode"

	"github.com/charmbracelet/x/ansi"
)

// ink is how a text is to be read. What it looks like is the palette's business; no
// meaning is in the colour alone.
type ink uint8

const (
	plain ink = iota
	strong
	faint
	good
	warn
	bad
	accent
)

// span is a text in one ink, and line what stands in one row of the screen.
type (
	span struct {
		text string
		ink  ink
	}
	line []span
)

func say(i ink, format string, args ...any) span { return span{clean(fmt.Sprintf(format, args...)), i} }

func (l line) width() (n int) {
	for _, s := range l {
		n += ansi.StringWidth(s.text)
	}
	return n
}

// clean makes a text safe on a terminal, whoever wrote it.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

// fit cuts a text that is longer, and fills up one that is shorter, to so many
// columns; right: the text stands at their end.
func fit(s string, columns int, right bool) string {
	s = ansi.Truncate(clean(s), max(columns, 0), "…")
	gap := strings.Repeat(" ", max(columns-ansi.StringWidth(s), 0))
	if right {
		return gap + s
	}
	return s + gap
}

// palette is how inks look.
type palette [accent + 1]ansi.Style

// The first sixteen colours are what the person chose for a dark background; many
// choices are hard to read on a light one, where the others are fixed.
var (
	onDark = palette{
		strong: ansi.NewStyle(ansi.AttrBold), faint: ansi.NewStyle(ansi.AttrFaint),
		good:   ansi.NewStyle().ForegroundColor(ansi.Green),
		warn:   ansi.NewStyle().ForegroundColor(ansi.Yellow),
		bad:    ansi.NewStyle(ansi.AttrBold).ForegroundColor(ansi.Red),
		accent: ansi.NewStyle().ForegroundColor(ansi.Cyan),
	}
	onLight = palette{
		strong: ansi.NewStyle(ansi.AttrBold), faint: ansi.NewStyle(ansi.AttrFaint),
		good:   ansi.NewStyle().ForegroundColor(ansi.IndexedColor(22)),
		warn:   ansi.NewStyle().ForegroundColor(ansi.IndexedColor(94)),
		bad:    ansi.NewStyle(ansi.AttrBold).ForegroundColor(ansi.IndexedColor(124)),
		accent: ansi.NewStyle().ForegroundColor(ansi.IndexedColor(24)),
	}
)

// draw is a line on the terminal, cut at so many columns. A chosen one is a bar
// across all of them.
func (p *palette) draw(l line, columns int, chosen bool) string {
	var b strings.Builder
	left := columns
	for i, s := range l {
		if s.text == "" {
			continue
		}
		text := clean(s.text) // again: nobody has to look whether all came through say
		if w := ansi.StringWidth(text); w > left || w == left && i < len(l)-1 && l[i+1:].width() > 0 {
			text = ansi.Truncate(text+" ", left, "…")
		}
		left -= ansi.StringWidth(text)
		if chosen && strings.Trim(text, "█") != "" { // a gauge keeps its colour
			b.WriteString(barred.Styled(text))
		} else {
			b.WriteString(p[s.ink].Styled(text))
		}
		if left <= 0 {
			break
		}
	}
	if chosen && left > 0 {
		b.WriteString(barred.Styled(strings.Repeat(" ", left)))
	}
	return b.String()
}

// barred is how the chosen row looks.
var barred = ansi.NewStyle(ansi.AttrReverse)

// pack puts items side by side, with a gap between them, into as many lines as they
// need. A line that begins with an item too long for it is cut when it is drawn.
func pack(items []span, gap string, columns int) (lines []line) {
	for _, s := range items {
		last := len(lines) - 1
		if last >= 0 && lines[last].width()+ansi.StringWidth(gap+s.text) <= columns {
			lines[last] = append(lines[last], span{gap, faint}, s)
			continue
		}
		lines = append(lines, line{s})
	}
	return lines
}

// names lists the first of many names.
func names(list []string, most int) string {
	if len(list) <= most {
		return strings.Join(list, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(list[:most], ", "), len(list)-most)
}
