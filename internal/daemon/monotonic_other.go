//go:build !linux

package daemon

// monotonicField is nothing where there is no systemd.
func monotonicField() string { return "" }
