package daemon

import (
	"fmt"
	"io"
)

// Finding is one thing that an operator should know, and what to do about it.
type Finding struct {
	Fatal  bool   // nothing works until this is mended
	What   string // one sentence
	Remedy string // one sentence or command
}

func (f Finding) String() string { return f.What + " " + f.Remedy }

// Fatal returns a finding without whose remedy nothing works, Note another one.
func Fatal(remedy, format string, args ...any) Finding {
	return Finding{true, fmt.Sprintf(format, args...), remedy}
}

// Note is Fatal for what can be lived with.
func Note(remedy, format string, args ...any) Finding {
	return Finding{false, fmt.Sprintf(format, args...), remedy}
}

// Report prints findings, the fatal ones first, or else ok at the end, and reports
// whether the program can work.
func Report(w io.Writer, findings []Finding) (works bool) {
	works = true
	for _, fatal := range []bool{true, false} {
		for _, f := range findings {
			switch {
			case f.Fatal != fatal:
				continue
			case fatal:
				works = false
				fmt.Fprint(w, "FATAL")
			default:
				fmt.Fprint(w, "note ")
			}
			fmt.Fprintf(w, "  %s\n       %s\n", f.What, f.Remedy)
		}
	}
	if works {
		fmt.Fprintln(w, "ok")
	}
	return works
}
