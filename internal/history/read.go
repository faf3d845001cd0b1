package history

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// How many of a place are kept of each minute: the largest by each metric. The
// firewalls' shares of a realm's largest are kept beside them.
const (
	RowsNew    = 100
	RowsActive = 20
)

// Question asks who was on top.
type Question struct {
	By       string // events.BySrc or ByDst
	Metric   string // events.MetricNew or MetricActive
	At       time.Time
	Realm    string // empty: the firewall's, or the default one
	Firewall string // empty: the realm's sum
	Limit    int
}

// Answer is one minute, largest first.
type Answer struct {
	Minute  time.Time // when it began
	Realm   string
	Rows    []Top
	Partial bool     // counting had not gone on for a minute
	Unknown []string // firewalls whose active count was not known
	Stale   []string // firewalls that were silent
}

// Top is one address and the firewalls' shares of it, as far as they are kept.
type Top struct {
	Address   netip.Addr
	Value     uint64
	Firewalls map[string]uint64
}

// NothingError says that there is nothing of the time that was asked for.
type NothingError struct {
	At          time.Time
	First, Last time.Time // minutes that there are; zero: none at all
}

func (e *NothingError) Error() string {
	const layout = "2006-01-02 15:04 UTC"
	at := e.At.UTC().Format(layout)
	switch {
	case e.First.IsZero():
		return fmt.Sprintf("the history has nothing of %s: it is empty, and gets its first row when a minute is over", at)
	case e.At.Before(e.First) || !e.At.Before(e.Last.Add(time.Minute)):
		return fmt.Sprintf("the history has nothing of %s: it goes from %s to %s", at, e.First.UTC().Format(layout), e.Last.UTC().Format(layout))
	}
	return fmt.Sprintf("the history has nothing of %s: nobody counted then, or it was dropped", at)
}

// metrics are the columns that can be asked for, and how many rows of them are
// complete.
var metrics = map[string]struct {
	column string
	rows   int
}{events.MetricNew: {"new", RowsNew}, events.MetricActive: {"active", RowsActive}}

// Top says who was on top in the minute that At lies in. Its errors are a
// [NothingError], are [daemon.Unavailable] where the history could not be read, or say
// what is wrong with the question.
func (s *Store) Top(ctx context.Context, q Question) (*Answer, error) {
	if q.By != events.BySrc && q.By != events.ByDst {
		return nil, fmt.Errorf("by %q: the history keeps src and dst", q.By)
	}
	if _, ok := metrics[q.Metric]; !ok {
		return nil, fmt.Errorf("metric %q: the history keeps new and active", q.Metric)
	}
	a, err := s.top(ctx, &q)
	if _, nothing := errors.AsType[*NothingError](err); err != nil && !nothing {
		err = daemon.Unavailable(s.opt.fail(err))
	}
	return a, err
}

func (s *Store) top(ctx context.Context, q *Question) (*Answer, error) {
	minute := q.At.Unix() - (q.At.Unix()%60+60)%60
	a := &Answer{Minute: time.Unix(minute, 0), Realm: q.Realm}
	// One transaction: what is deleted meanwhile is deleted for others.
	tx, err := s.read.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer func() { _ = tx.Rollback() }() // nothing was written
	err = tx.QueryRowContext(ctx, "SELECT partial FROM minutes WHERE minute = ?", minute).Scan(&a.Partial)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nothing(ctx, tx, q.At)
	}
	if err != nil {
		return nil, err
	}
	if err := a.health(ctx, tx, minute, q.Firewall); err != nil {
		return nil, err
	}
	if err := a.rank(ctx, tx, minute, q); err != nil {
		return nil, err
	}
	for i := range a.Rows {
		if err := a.Rows[i].shares(ctx, tx, minute, a.Realm, q); err != nil {
			return nil, err
		}
	}
	return a, nil
}

func nothing(ctx context.Context, tx *sql.Tx, at time.Time) error {
	var first, last sql.NullInt64
	if err := tx.QueryRowContext(ctx, "SELECT min(minute), max(minute) FROM minutes").Scan(&first, &last); err != nil {
		return err
	}
	e := &NothingError{At: at}
	if first.Valid {
		e.First, e.Last = time.Unix(first.Int64, 0), time.Unix(last.Int64, 0)
	}
	return e
}

// health says which firewalls' counts were not known, and finds the realm of the
// one that was asked for.
func (a *Answer) health(ctx context.Context, tx *sql.Tx, minute int64, firewall string) error {
	rows, err := tx.QueryContext(ctx, "SELECT realm, firewall, state, active IS NULL FROM table_fill JOIN places ON id = place WHERE minute = ? ORDER BY firewall", minute)
	if err != nil {
		return err
	}
	defer rows.Close()
	type report struct {
		realm, firewall, state string
		unknown                bool
	}
	var reports []report
	for rows.Next() {
		var r report
		if err := rows.Scan(&r.realm, &r.firewall, &r.state, &r.unknown); err != nil {
			return err
		}
		if a.Realm == "" && r.firewall == firewall {
			a.Realm = r.realm
		}
		reports = append(reports, r)
	}
	if a.Realm == "" {
		a.Realm = events.RealmDefault
	}
	for _, r := range reports {
		if r.realm != a.Realm || firewall != "" && r.firewall != firewall {
			continue
		}
		if r.unknown {
			a.Unknown = append(a.Unknown, r.firewall)
		}
		if r.state == events.StateStale || r.state == events.StateSilent {
			a.Stale = append(a.Stale, r.firewall)
		}
	}
	return rows.Err()
}

// rank reads the largest of a place. The names that are put into the text are from
// the lists above.
func (a *Answer) rank(ctx context.Context, tx *sql.Tx, minute int64, q *Question) error {
	m := metrics[q.Metric]
	query := fmt.Sprintf(`
SELECT family, hi, lo, %[1]s FROM flowcount_by_%[2]s
WHERE minute = ? AND place = (SELECT id FROM places WHERE realm = ? AND firewall = ?) AND %[1]s > 0
ORDER BY %[1]s DESC, family, hi, lo LIMIT ?`, m.column, q.By)
	rows, err := tx.QueryContext(ctx, query, minute, a.Realm, q.Firewall, min(q.Limit, m.rows))
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var family, hi, lo, value int64
		if err := rows.Scan(&family, &hi, &lo, &value); err != nil {
			return err
		}
		a.Rows = append(a.Rows, Top{Address: address(family, hi, lo), Value: uint64(value)})
	}
	return rows.Err()
}

// shares reads what each firewall of the realm had of an address.
func (t *Top) shares(ctx context.Context, tx *sql.Tx, minute int64, realm string, q *Question) error {
	t.Firewalls = map[string]uint64{}
	if q.Firewall != "" {
		t.Firewalls[q.Firewall] = t.Value
		return nil
	}
	family, hi, lo := columns(t.Address)
	query := fmt.Sprintf(`
SELECT firewall, %[1]s FROM flowcount_by_%[2]s JOIN places ON id = place
WHERE family = ? AND hi = ? AND lo = ? AND minute = ? AND realm = ? AND firewall <> '' AND %[1]s > 0`, metrics[q.Metric].column, q.By)
	rows, err := tx.QueryContext(ctx, query, family, hi, lo, minute, realm)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var firewall string
		var value int64
		if err := rows.Scan(&firewall, &value); err != nil {
			return err
		}
		t.Firewalls[firewall] = uint64(value)
	}
	return rows.Err()
}
