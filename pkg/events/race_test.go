//go:build race

package events_test

func init() { raceEnabled = true }
