package history

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

const (
	// recordStep is how many alerts or entries of the audit go in one step.
	recordStep = 500
	// vacuumPages is how many pages are given back to the file system in one.
	vacuumPages = 512
	// rowBytes is what a row of talkers takes at most, in both of its trees.
	rowBytes = 128
)

// prune takes one step of what has to go, and reports whether there is more to do.
func (s *Store) prune(ctx context.Context) bool {
	more, err := s.pruneStep(ctx)
	if err != nil {
		if ctx.Err() == nil {
			s.throttle.Warn(s.log, "history: cannot delete what is old", "error", err)
		}
		return false
	}
	return more
}

// pruneStep deletes the oldest minute, or some old records, if they are too old or
// the file is too large. How old something is, is measured from the newest minute
// of this run, not by our clock: one that starts wrong must not cost the history.
func (s *Store) pruneStep(ctx context.Context) (more bool, err error) {
	used, pages, err := s.pages(ctx)
	if err != nil {
		return false, err
	}
	limit := s.opt.Bytes / pageBytes
	// There has to be room for the next minute before it comes.
	full := used > limit-limit/10-min(int64(s.rows)*rowBytes/pageBytes, limit/2)
	var oldest, last sql.NullInt64
	if err := s.write.QueryRowContext(ctx, "SELECT min(minute), max(minute) FROM minutes").Scan(&oldest, &last); err != nil {
		return false, err
	}
	cut := s.newest - int64(s.opt.Age/time.Second)
	switch {
	case oldest.Valid && s.newest > 0 && oldest.Int64 < cut, full && oldest.Int64 < last.Int64:
		return true, s.deleteMinute(ctx, oldest.Int64)
	case full:
		// It is not the minutes that take the room.
		n, err := s.deleteRecords(ctx, time.Now().Add(time.Hour).UnixMilli())
		return n > 0, err
	}
	if s.newest > 0 {
		if n, err := s.deleteRecords(ctx, cut*1000); n > 0 || err != nil {
			return true, err
		}
	}
	if pages > limit && used < pages {
		// The limit is less than it was. Free pages go from the end of the file.
		rows, err := s.write.QueryContext(ctx, fmt.Sprintf("PRAGMA incremental_vacuum(%d)", vacuumPages))
		if err != nil {
			return false, err
		}
		for rows.Next() { // it frees a page at each step
		}
		err = errors.Join(rows.Err(), rows.Close())
		_, now, sizeErr := s.pages(ctx)
		return now < pages, errors.Join(err, sizeErr)
	}
	return false, nil
}

// pages is how much of the file is used, and how much there is.
func (s *Store) pages(ctx context.Context) (used, all int64, err error) {
	var free int64
	err = errors.Join(
		s.write.QueryRowContext(ctx, "PRAGMA page_count").Scan(&all),
		s.write.QueryRowContext(ctx, "PRAGMA freelist_count").Scan(&free),
	)
	return all - free, all, err
}

func (s *Store) deleteMinute(ctx context.Context, minute int64) error {
	return s.in(ctx, func(tx *sql.Tx) error {
		for _, query := range []string{
			"DELETE FROM flowcount_by_src WHERE minute = ?",
			"DELETE FROM flowcount_by_dst WHERE minute = ?",
			"DELETE FROM table_fill WHERE minute = ?",
			"DELETE FROM minutes WHERE minute = ?",
		} {
			if _, err := tx.ExecContext(ctx, query, minute); err != nil {
				return err
			}
		}
		return nil
	})
}

// deleteRecords deletes some of the oldest alerts and entries of the audit from
// before a time, Unix ms, and says how many.
func (s *Store) deleteRecords(ctx context.Context, before int64) (n int64, err error) {
	err = s.in(ctx, func(tx *sql.Tx) error {
		n = 0
		for _, query := range []string{
			"DELETE FROM alerts WHERE id IN (SELECT id FROM alerts WHERE updated < ? ORDER BY updated LIMIT ?)",
			"DELETE FROM audit WHERE rowid IN (SELECT rowid FROM audit WHERE time < ? ORDER BY time LIMIT ?)",
		} {
			res, err := tx.ExecContext(ctx, query, before, recordStep)
			if err != nil {
				return err
			}
			gone, err := res.RowsAffected()
			if err != nil {
				return err
			}
			n += gone
		}
		return nil
	})
	return n, err
}
