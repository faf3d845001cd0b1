package history

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/ctfleet/ctfleet/internal/daemon"
)

// Options say where the history is and how much of it is kept.
type Options struct {
	File  string
	Age   time.Duration // what is older goes
	Bytes int64         // and what makes the file larger, oldest first
}

// Check returns what is wrong with the options and with the file, if it is there.
// It creates nothing.
func (o *Options) Check() error {
	if err := o.check(); err != nil {
		return err
	}
	switch info, err := os.Stat(o.File); {
	case errors.Is(err, fs.ErrNotExist):
		if info, err = os.Stat(filepath.Dir(o.File)); err == nil && !info.IsDir() {
			err = errors.New("its directory is none")
		}
		return o.fail(err)
	case err != nil:
		return o.fail(err)
	case !info.Mode().IsRegular():
		return o.fail(errors.New("it is no file"))
	}
	db, err := sql.Open("sqlite", o.source("mode=ro"))
	if err == nil {
		_, err = schemaVersion(context.Background(), db)
		err = errors.Join(err, db.Close())
	}
	return o.fail(err)
}

func (o *Options) check() error {
	if o.Age < time.Minute {
		return fmt.Errorf("--history-age: %s is less than 1m", o.Age)
	}
	if o.Bytes < 1<<20 {
		return fmt.Errorf("--history-bytes: %d is less than 1 MiB", o.Bytes)
	}
	return nil
}

func (o *Options) fail(err error) error {
	if err != nil {
		return fmt.Errorf("history %s: %w", o.File, err)
	}
	return nil
}

// source is the name by which the driver opens the file.
func (o *Options) source(params string) string {
	return "file:" + (&url.URL{Path: o.File}).EscapedPath() + "?_pragma=busy_timeout(2000)&" + params
}

const (
	pageBytes = 4096
	// walBytes is how large the log may become before nothing more is written: it
	// grows as long as somebody reads in one transaction, and is beside the file.
	walBytes = 256 << 20
)

// Store is a history, open for writing and reading.
type Store struct {
	opt Options
	log *slog.Logger

	write, read *sql.DB
	queue       queue
	records     chan recording
	newest      int64 // the newest minute written, Unix s
	rows        int   // that it had
	noted       map[Place]int64
	walBytes    int64

	written, dropped atomic.Uint64
	throttle         daemon.Throttle
}

// Open opens the history, or creates it. [Store.Run] writes to it.
func Open(ctx context.Context, opt Options, log *slog.Logger) (*Store, error) {
	file, err := filepath.Abs(opt.File)
	if err != nil {
		return nil, opt.fail(err)
	}
	opt.File = file
	// Before it is opened for writing: a file that is not ours stays as it is.
	if err := opt.Check(); err != nil {
		return nil, err
	}
	// Who talks to whom is not for everybody on this host. (SQLite's own files take
	// the mode of this one.)
	created, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o640)
	if err == nil {
		err = created.Close()
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("history: %w", err)
	}
	s := &Store{opt: opt, log: log, records: make(chan recording), noted: map[Place]int64{}, walBytes: walBytes}
	s.queue.init()
	// auto_vacuum must come before the first table; 2 is incremental.
	s.write, err = sql.Open("sqlite", opt.source(fmt.Sprintf("_txlock=immediate&_pragma=auto_vacuum(2)&_pragma=journal_mode(wal)&_pragma=synchronous(normal)"+
		"&_pragma=cache_size(-16384)&_pragma=journal_size_limit(%d)&_pragma=max_page_count(%d)", 16<<20, opt.Bytes/pageBytes)))
	if err != nil {
		return nil, opt.fail(err)
	}
	s.write.SetMaxOpenConns(1)
	err = migrate(ctx, s.write)
	if err == nil {
		s.read, err = sql.Open("sqlite", opt.source("mode=ro&_pragma=query_only(1)"))
	}
	if err != nil {
		return nil, errors.Join(opt.fail(err), s.write.Close())
	}
	s.read.SetMaxOpenConns(2)
	s.read.SetConnMaxIdleTime(time.Minute)
	return s, nil
}

// Close closes the file. Run must have returned, or never been called.
func (s *Store) Close() error { return s.opt.fail(errors.Join(s.read.Close(), s.write.Close())) }

// Stats is for metrics.
type Stats struct {
	Rows    uint64 // written, of all tables
	Dropped uint64 // not written: the disk was slow, full, or broken
	Bytes   int64  // of the file and its log
}

// Stats returns the numbers of this run.
func (s *Store) Stats() Stats {
	return Stats{Rows: s.written.Load(), Dropped: s.dropped.Load(), Bytes: size(s.opt.File) + size(s.opt.File+"-wal")}
}

// size is how long a file is; one that is not there has no bytes. It is not opened:
// closing a second descriptor would end SQLite's locks.
func size(file string) int64 {
	info, err := os.Stat(file)
	if err != nil {
		return 0
	}
	return info.Size()
}
