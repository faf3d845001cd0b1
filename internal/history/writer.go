package history

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

var (
	errBehind = errors.New("the disk cannot keep up")
	errLog    = fmt.Errorf("its log has more than %d MiB: somebody reads it in one long transaction", walBytes>>20)
)

const (
	// drainFor is how long what waits may be written after ctx has ended.
	drainFor = 2 * time.Second
	// prunePause is the shortest pause between two steps of what is deleted; it is
	// three times as long as the step took, so that a quarter of a processor does.
	// After idleEvery it is looked again whether anything has to go.
	prunePause = 20 * time.Millisecond
	idleEvery  = 10 * time.Second
	// pruneAfter is how many steps are taken after each minute: more than one, so
	// that what is deleted keeps up with what is written.
	pruneAfter = 2
)

// Run writes until ctx ends, and then what still waits, for 2 s at most. A write
// that fails is dropped and counted; it does not end Run.
func (s *Store) Run(ctx context.Context) error {
	late, cancel := context.WithCancel(context.WithoutCancel(ctx)) // what is being written is not given up at once
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(drainFor, cancel) })()
	prune := time.NewTimer(prunePause)
	defer prune.Stop()
	for {
		select {
		case <-ctx.Done():
			s.writeQueued(ctx, late)
			return nil
		case <-s.queue.some:
			s.writeQueued(ctx, late)
		case r := <-s.records:
			r.done <- s.writeRecords(late, r.records)
		case <-prune.C:
			if began := time.Now(); s.prune(ctx) {
				prune.Reset(max(prunePause, 3*time.Since(began)))
			} else {
				prune.Reset(idleEvery)
			}
		}
	}
}

// writeQueued writes the minutes that wait until late ends, with some steps of
// pruning behind each until ctx ends.
func (s *Store) writeQueued(ctx, late context.Context) {
	for {
		m := s.queue.take()
		if m == nil {
			return
		}
		if err := s.writeMinute(late, m); err != nil {
			s.drop(m, err)
		}
		for n := 0; n < pruneAfter && ctx.Err() == nil && s.prune(ctx); n++ {
		}
	}
}

func (s *Store) drop(m *Minute, err error) {
	s.dropped.Add(uint64(m.rows()))
	s.throttle.Warn(s.log, "history: a minute was dropped", "minute", time.Unix(m.At, 0).UTC(), "rows", m.rows(), "error", err)
}

// in calls fn in a transaction.
func (s *Store) in(ctx context.Context, fn func(*sql.Tx) error) error {
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err = fn(tx); err == nil {
		err = tx.Commit()
	}
	if err != nil {
		clear(s.noted) // what the transaction noted is undone
		return errors.Join(err, ignoreDone(tx.Rollback()))
	}
	return nil
}

// writeMinute writes a minute as a whole. One that is there already stays: another
// aggregator wrote it, or the clock was set back.
func (s *Store) writeMinute(ctx context.Context, m *Minute) error {
	// For the steps of pruning that make room: they must know, even if this fails.
	s.rows = m.rows()
	if size(s.opt.File+"-wal") > s.walBytes {
		var busy, pages, moved int
		err := s.write.QueryRowContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)").Scan(&busy, &pages, &moved)
		if err != nil || busy != 0 {
			return errors.Join(errLog, err)
		}
	}
	written := 0
	err := s.in(ctx, func(tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, "INSERT OR IGNORE INTO minutes (minute, partial) VALUES (?, ?)", m.At, m.Partial)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return err
		}
		w := minuteWriter{ctx: ctx, s: s, tx: tx, at: m.At}
		w.talkers("INSERT INTO flowcount_by_src (minute, place, family, hi, lo, new, active) VALUES (?, ?, ?, ?, ?, ?, ?)", m.BySrc)
		w.talkers("INSERT INTO flowcount_by_dst (minute, place, family, hi, lo, new, active) VALUES (?, ?, ?, ?, ?, ?, ?)", m.ByDst)
		w.fill(m.Fill)
		written = m.rows()
		return w.err
	})
	if err != nil {
		return err
	}
	s.written.Add(uint64(written))
	s.newest = max(s.newest, m.At)
	return nil
}

// minuteWriter writes the parts of a minute; after an error it does nothing.
type minuteWriter struct {
	ctx context.Context
	s   *Store
	tx  *sql.Tx
	at  int64
	err error
}

// each prepares a statement, hands it to fn and closes it.
func (w *minuteWriter) each(query string, fn func(*sql.Stmt) error) {
	if w.err != nil {
		return
	}
	stmt, err := w.tx.PrepareContext(w.ctx, query)
	if err != nil {
		w.err = err
		return
	}
	w.err = errors.Join(fn(stmt), stmt.Close())
}

func (w *minuteWriter) talkers(query string, places []Talkers) {
	w.each(query, func(stmt *sql.Stmt) error {
		for i := range places {
			t := &places[i]
			place, err := w.place(t.Place)
			if err != nil {
				return err
			}
			for _, r := range t.Rows {
				family, hi, lo := columns(r.Address)
				active := sql.NullInt64{Int64: int64(r.Active), Valid: t.ActiveKnown}
				if _, err := stmt.ExecContext(w.ctx, w.at, place, family, hi, lo, int64(r.New), active); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

func (w *minuteWriter) fill(fills []Fill) {
	const query = "INSERT INTO table_fill (minute, place, entries, entries_peak, entries_limit, percent, lost, state, active) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
	w.each(query, func(stmt *sql.Stmt) error {
		for i := range fills {
			f := &fills[i]
			place, err := w.place(f.Place)
			if err != nil {
				return err
			}
			active := sql.NullInt64{Int64: int64(f.Active), Valid: f.ActiveKnown}
			_, err = stmt.ExecContext(w.ctx, w.at, place, int64(f.Entries), int64(f.Peak), int64(f.Limit), f.Percent, int64(f.Lost), f.State, active)
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// place returns the number of a place, which it gets when it is first written.
func (w *minuteWriter) place(p Place) (id int64, err error) {
	if id, ok := w.s.noted[p]; ok {
		return id, nil
	}
	if _, err := w.tx.ExecContext(w.ctx, "INSERT OR IGNORE INTO places (realm, firewall) VALUES (?, ?)", p.Realm, p.Firewall); err != nil {
		return 0, err
	}
	err = w.tx.QueryRowContext(w.ctx, "SELECT id FROM places WHERE realm = ? AND firewall = ?", p.Realm, p.Firewall).Scan(&id)
	if err == nil {
		w.s.noted[p] = id
	}
	return id, err
}
