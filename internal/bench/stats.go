//go:build linux

package main

import (
	"fmt"
	"slices"
	"time"
)

// median of at least one value.
func median(v []float64) float64 { return percentile(v, 50) }

// percentile is the smallest value that p percent of all do not exceed.
func percentile(v []float64, p int) float64 {
	s := slices.Clone(v)
	slices.Sort(s)
	return s[max((len(s)*p+99)/100, 1)-1]
}

// spread shows the median and how far the rounds lay apart.
func spread(v []float64, unit string) string {
	return fmt.Sprintf("%.2f %s (%.2f–%.2f)", median(v), unit, slices.Min(v), slices.Max(v))
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
