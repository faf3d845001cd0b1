// Command bench measures what ctfleet promises, as ratios against a competitor
// in the same run, and prints one table. A missed target stays in the table as
// missed. It needs root; `make bench` runs it.
//
// Competitors run as processes of their own, so that the CPU time of one is not
// that of the traffic generator or of the NATS server. Runs are paired and the
// medians are compared: the machine may be shared.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
)

// figure is one row of the table.
type figure struct {
	name, target, measured string
	met                    bool
}

// suite are the measurements, in the order of the table.
var suite = []struct {
	name string
	run  func(context.Context) ([]figure, error)
}{
	{"wire", benchWire},
	{"capture", benchCapture},
	{"response", benchResponse},
}

func main() {
	role := flag.String("role", "", "run one competitor and answer on standard output (used by this program itself)")
	netns := flag.String("netns", "", "network namespace of the competitor")
	url := flag.String("nats-url", "", "NATS server of the competitor")
	only := flag.String("only", "", "run only this part: wire, capture or response")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *role, *netns, *url, *only); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, role, netns, url, only string) error {
	if role != "" {
		return compete(ctx, role, netns, url)
	}
	var rows []figure
	for _, s := range suite {
		if only != "" && only != s.name {
			continue
		}
		fmt.Fprintf(os.Stderr, "measuring %s …\n", s.name)
		figures, err := s.run(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		rows = append(rows, figures...)
	}
	fmt.Println("| Figure | Target | Measured | |\n|---|---|---|---|")
	for _, f := range rows {
		verdict := "met"
		if f.target == "" {
			verdict = ""
		} else if !f.met {
			verdict = "**missed**"
		}
		fmt.Printf("| %s | %s | %s | %s |\n", f.name, f.target, f.measured, verdict)
	}
	return nil
}

// median of at least one value.
func median(v []float64) float64 { return percentile(v, 50) }

// percentile is the smallest value that p percent of all do not exceed.
func percentile(v []float64, p int) float64 {
	s := slices.Clone(v)
	slices.Sort(s)
	return s[max((len(s)*p+99)/100, 1)-1]
}

// list writes values for a person who wants to see the spread.
func list(v []float64, unit string) string {
	var parts []string
	for _, x := range v {
		parts = append(parts, fmt.Sprintf("%.2f", x))
	}
	return strings.Join(parts, " ") + " " + unit
}
