package history

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"
)

// crashFile tells a process of this test that it is the one that writes.
const crashFile = "CTFLEET_TEST_HISTORY"

func TestMain(m *testing.M) {
	if name := os.Getenv(crashFile); name != "" {
		if err := writeForEver(name); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// writeForEver writes minutes as fast as it can, deletes old ones, and says after
// each commit which the newest is.
func writeForEver(name string) error {
	ctx := context.Background()
	s, err := Open(ctx, Options{File: name, Age: 20 * time.Minute, Bytes: 16 << 20}, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	var at int64
	if err := s.read.QueryRow("SELECT ifnull(max(minute), ?) FROM minutes", noon).Scan(&at); err != nil {
		return err
	}
	for {
		at += 60
		if err := s.writeMinute(ctx, fleetMinute(at, 5, 50)); err != nil {
			return err
		}
		fmt.Println(at)
		s.prune(ctx)
	}
}

// TestKilledWhileWriting kills a process that writes, over and over at another
// moment: the file stays good, and what was committed is there, as a whole.
func TestKilledWhileWriting(t *testing.T) {
	t.Parallel()
	name := file(t)
	kills := 20
	if testing.Short() {
		kills = 5
	}
	r := rand.New(rand.NewPCG(9, uint64(os.Getpid())))
	for n := range kills {
		cmd := exec.Command(os.Args[0], "-test.run=^$")
		cmd.Env = append(os.Environ(), crashFile+"="+name)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		if !lines.Scan() { // the first commit of this process
			t.Fatalf("it ended by itself: %v", cmd.Wait())
		}
		committed := lines.Text()
		time.AfterFunc(time.Duration(r.IntN(120_000))*time.Microsecond, func() { _ = cmd.Process.Kill() })
		for lines.Scan() {
			if _, err := strconv.ParseInt(lines.Text(), 10, 64); err == nil {
				committed = lines.Text()
			}
		}
		_ = cmd.Wait() // it was killed

		s := open(t, name, func(o *Options) { o.Age, o.Bytes = 20*time.Minute, 16<<20 })
		intact(t, s)
		if got := one(t, s, "SELECT count(*) FROM minutes WHERE minute = ?", committed); got != "1" {
			t.Errorf("kill %d: minute %s was committed and is gone", n, committed)
		}
		want := fmt.Sprint(5 * 50)
		for _, rows := range query(t, s, "SELECT minute, (SELECT count(*) FROM flowcount_by_src f WHERE f.minute = m.minute), (SELECT count(*) FROM flowcount_by_dst f WHERE f.minute = m.minute) FROM minutes m") {
			if rows[1] != want || rows[2] != want {
				t.Errorf("kill %d: minute %s has %s and %s rows, not %s", n, rows[0], rows[1], rows[2], want)
			}
		}
		if got := one(t, s, "SELECT count(*) FROM flowcount_by_src WHERE minute NOT IN (SELECT minute FROM minutes)"); got != "0" {
			t.Errorf("kill %d: %s rows are of no minute", n, got)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
