//go:build linux

package block

// SetMax lowers MaxEntries for one Blocker.
func (b *Blocker) SetMax(n int) { b.max = n }
