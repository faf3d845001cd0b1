package history

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// Position is where a stream has been read up to; the zero Position is nowhere.
type Position struct {
	Seq  uint64
	Time time.Time
}

// Record is one message of a stream: an alert, or an entry of the audit. One
// without either only moves the position.
type Record struct {
	Stream string
	Position
	Alert *events.Alert

	// Of the audit: who wrote it and what it is, by its subject; and one of these.
	Actor, Verb string
	Receipt     *events.Receipt
	Decision    *events.Decision
	Act         *events.Act
}

type recording struct {
	records []Record
	done    chan error
}

// Record writes records and the position behind the last of each stream, all in
// one transaction, and waits for that. After an error none of them is there. What
// comes again is there once. [Store.Run] must be running.
func (s *Store) Record(ctx context.Context, records []Record) error {
	r := recording{records, make(chan error, 1)}
	select {
	case s.records <- r:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-r.done:
		return s.opt.fail(err)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Position returns where a stream has been read up to.
func (s *Store) Position(ctx context.Context, stream string) (p Position, err error) {
	var seq, at int64
	err = s.read.QueryRowContext(ctx, "SELECT seq, time FROM progress WHERE stream = ?", stream).Scan(&seq, &at)
	if errors.Is(err, sql.ErrNoRows) {
		return p, nil
	}
	return Position{uint64(seq), time.Unix(0, at)}, s.opt.fail(err)
}

func (s *Store) writeRecords(ctx context.Context, records []Record) error {
	rows := 0
	err := s.in(ctx, func(tx *sql.Tx) error {
		rows = 0
		last := map[string]Position{}
		for i := range records {
			r := &records[i]
			var res sql.Result
			var err error
			switch {
			case r.Alert != nil:
				res, err = writeAlert(ctx, tx, r.Alert)
			case r.Receipt != nil || r.Decision != nil || r.Act != nil:
				res, err = writeAudit(ctx, tx, r)
			}
			if err != nil {
				return err
			}
			if res != nil {
				if n, err := res.RowsAffected(); err == nil {
					rows += int(n)
				}
			}
			last[r.Stream] = r.Position
		}
		for stream, p := range last {
			// In nanoseconds: it is compared with the stream's time.
			_, err := tx.ExecContext(ctx, `INSERT INTO progress (stream, seq, time) VALUES (?, ?, ?)
				ON CONFLICT (stream) DO UPDATE SET seq = excluded.seq, time = excluded.time`, stream, int64(p.Seq), p.Time.UnixNano())
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		s.written.Add(uint64(rows))
	}
	return err
}

// keyColumns are the columns of an address or a prefix; nil for any other key.
func keyColumns(key string) (family, hi, lo, bits any) {
	p, err := events.ParsePrefix(key)
	if err != nil {
		return nil, nil, nil, nil
	}
	f, h, l := columns(p.Addr())
	return f, h, l, int64(p.Bits())
}

// writeAlert makes one row of all messages about an alert: when it began, its
// highest value, when it ended. An older message than the row's changes nothing.
func writeAlert(ctx context.Context, tx *sql.Tx, a *events.Alert) (sql.Result, error) {
	body, err := json.Marshal(a)
	if err != nil {
		return nil, fmt.Errorf("alert %s: %w", a.ID, err)
	}
	family, hi, lo, bits := keyColumns(a.Key)
	var resolved any
	if a.State == events.Resolved {
		resolved = a.Updated
	}
	return tx.ExecContext(ctx, `
INSERT INTO alerts (id, rule, severity, realm, scope, track, metric, seconds, key, family, hi, lo, bits, threshold, value, peak, started, updated, resolved, text, body)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET value = excluded.value, peak = max(peak, excluded.peak), updated = excluded.updated,
  resolved = excluded.resolved, text = excluded.text, body = excluded.body
WHERE excluded.updated > updated OR excluded.updated = updated AND resolved IS NULL AND excluded.resolved IS NOT NULL`,
		a.ID, a.Rule, a.Severity, a.Realm, a.Scope, a.Track, a.Metric, a.Seconds, a.Key, family, hi, lo, bits, a.Count, a.Value, a.Peak,
		a.Started, a.Updated, resolved, a.Text, string(body))
}

// writeAudit writes an entry of the audit. Its time and number in the stream are
// its key, so that one that comes again is there once.
func writeAudit(ctx context.Context, tx *sql.Tx, r *Record) (sql.Result, error) {
	var kind, id, alert, rule, realm, key, outcome, who, reason string
	var matched, deleted any
	var message any
	switch {
	case r.Receipt != nil:
		m := r.Receipt
		kind, id, alert, rule, who, reason, message = "receipt", m.ID, m.Alert, m.Rule, m.Who, m.Reason, m
		matched, deleted = int64(m.Matched), int64(m.Deleted)
		outcome = receiptOutcome(m)
		if len(m.Addresses) > 0 {
			key = m.Addresses[0] // all of them are in the body
		}
	case r.Decision != nil:
		m := r.Decision
		kind, id, alert, rule, realm, key, outcome, who, reason, message = "decision", m.ID, m.Alert, m.Rule, m.Realm, m.Key, m.Outcome, m.Who, m.Reason, m
		if m.Address != "" {
			key = m.Address
		}
	default:
		m := r.Act
		kind, id, realm, key, who, reason, message = "act", m.ID, m.Realm, m.Key, m.Who, m.Reason, m
		outcome = m.What
	}
	body, err := json.Marshal(message)
	if err != nil {
		return nil, fmt.Errorf("audit %d: %w", r.Seq, err)
	}
	family, hi, lo, bits := keyColumns(key)
	return tx.ExecContext(ctx, `
INSERT OR IGNORE INTO audit (time, seq, actor, verb, kind, id, alert, rule, realm, key, family, hi, lo, bits, outcome, matched, deleted, who, reason, body)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		r.Time.UnixMilli(), int64(r.Seq), r.Actor, r.Verb, kind, id, alert, rule, realm, key, family, hi, lo, bits, outcome, matched, deleted, who, reason, string(body))
}

// receiptOutcome says in a word or two what became of a command.
func receiptOutcome(r *events.Receipt) string {
	switch {
	case r.Error != "" && len(r.Refused) == 0:
		return "failed: " + r.Error
	case r.DryRun:
		return "dry run"
	case r.Residual != nil:
		return fmt.Sprintf("%d match again", *r.Residual)
	case len(r.Refused) > 0 && r.Deleted == 0:
		return "refused: " + r.Refused[0].Reason
	case r.BlockedUntil != nil && r.Verb == events.VerbBlock:
		return "blocked"
	}
	return "done"
}
