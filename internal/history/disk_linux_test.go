package history

import (
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/internal/lab/labtest"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// TestFullDisk fills a file system: minutes are dropped and counted, what was
// written can be read, and it goes on when there is room.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=3m"); err != nil {
		labtest.Lacks(t, "to mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil { // a process that another test just starts may still hold it
			t.Error(err)
		}
	})
	ballast := dir + "/ballast"
	if err := os.WriteFile(ballast, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	s, stop := start(t, dir+"/history.db", nil)
	n := int64(0)
	put := func() {
		waitFor(t, s, 2)
		s.Put(fleetMinute(noon+60*n, 5, 40))
		n++
	}
	for s.Stats().Dropped == 0 {
		if put(); n > 2000 {
			t.Fatal("the disk is never full")
		}
	}
	if err := s.Record(t.Context(), []Record{{Stream: "CT_AUDIT", Position: Position{1, time.Now()}, Act: &events.Act{What: strings.Repeat("x", 1<<20)}}}); err == nil {
		t.Error("a record that does not fit was written")
	}
	kept := one(t, s, "SELECT count(*) FROM minutes")
	if kept == "0" {
		t.Error("nothing was kept")
	}
	intact(t, s)
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	until(t, "it to go on", func() bool { put(); return one(t, s, "SELECT count(*) > CAST(? AS INTEGER) FROM minutes", kept) == "1" })
	intact(t, s)
	stop()
}
