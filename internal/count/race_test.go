//go:build race

package count

func init() { raceEnabled = true }
