package history

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
)

// applicationID marks the file as ours (PRAGMA application_id): "ctfh".
const applicationID = 0x63746668

// migrations make version n+1 of version n: an empty file is version 0. What was
// released is never changed: a file of any earlier version passes through here.
//
// Times are of the bus server's clock: minute in Unix seconds, the others in
// milliseconds. A place whose firewall is empty is the sum of its realm.
var migrations = []func() string{version1, version2}

// version is the newest, which this program reads and writes.
var version = len(migrations)

func version1() string {
	return `
CREATE TABLE places (
  id INTEGER PRIMARY KEY, realm TEXT NOT NULL, firewall TEXT NOT NULL,
  UNIQUE (realm, firewall)
);
CREATE TABLE minutes (minute INTEGER PRIMARY KEY, partial INTEGER NOT NULL);
` + flowcount("src") + flowcount("dst") + `
CREATE TABLE table_fill (
  minute INTEGER NOT NULL, place INTEGER NOT NULL,
  entries INTEGER NOT NULL, entries_peak INTEGER NOT NULL, entries_limit INTEGER NOT NULL, percent REAL NOT NULL,
  lost INTEGER NOT NULL, state TEXT NOT NULL, active INTEGER,
  PRIMARY KEY (minute, place)
) WITHOUT ROWID;
CREATE TABLE alerts (
  id TEXT PRIMARY KEY, rule TEXT NOT NULL, severity TEXT NOT NULL, realm TEXT NOT NULL, scope TEXT NOT NULL,
  track TEXT NOT NULL, metric TEXT NOT NULL, seconds INTEGER NOT NULL,
  key TEXT NOT NULL, family INTEGER, hi INTEGER, lo INTEGER, bits INTEGER,
  threshold REAL NOT NULL, value REAL NOT NULL, peak REAL NOT NULL,
  started INTEGER NOT NULL, updated INTEGER NOT NULL, resolved INTEGER,
  text TEXT NOT NULL, body TEXT NOT NULL
);
CREATE INDEX alerts_address ON alerts (family, hi, lo);
CREATE INDEX alerts_updated ON alerts (updated);
CREATE TABLE audit (
  time INTEGER NOT NULL, seq INTEGER NOT NULL, actor TEXT NOT NULL, verb TEXT NOT NULL, kind TEXT NOT NULL,
  id TEXT NOT NULL, alert TEXT NOT NULL, rule TEXT NOT NULL, realm TEXT NOT NULL,
  key TEXT NOT NULL, family INTEGER, hi INTEGER, lo INTEGER, bits INTEGER,
  outcome TEXT NOT NULL, matched INTEGER, deleted INTEGER, who TEXT NOT NULL, reason TEXT NOT NULL, body TEXT NOT NULL,
  PRIMARY KEY (time, seq)
);
CREATE INDEX audit_address ON audit (family, hi, lo);
CREATE TABLE progress (stream TEXT PRIMARY KEY, seq INTEGER NOT NULL, time INTEGER NOT NULL);
`
}

// flowcount is one of the two tables of talkers. Without a row number it is the
// first of two trees instead of three: by minute and place for "who was on top",
// by address for prefixes.
func flowcount(by string) string {
	return fmt.Sprintf(`
CREATE TABLE flowcount_by_%[1]s (
  minute INTEGER NOT NULL, place INTEGER NOT NULL, family INTEGER NOT NULL, hi INTEGER NOT NULL, lo INTEGER NOT NULL,
  new INTEGER NOT NULL, active INTEGER,
  PRIMARY KEY (minute, place, family, hi, lo)
) WITHOUT ROWID;
CREATE INDEX flowcount_by_%[1]s_address ON flowcount_by_%[1]s (family, hi, lo, minute);
`, by)
}

// version2 adds views in which addresses, places and times are text.
func version2() string {
	view := `
CREATE VIEW top_by_%[1]s AS
SELECT datetime(minute, 'unixepoch') AS utc, realm, firewall,
  ` + addressText() + ` AS address,
  new, active, minute, family, hi, lo
FROM (
  SELECT f.minute, p.realm, p.firewall, f.family, f.hi, f.lo, f.new, f.active,
    ` + groups() + ` AS g
  FROM flowcount_by_%[1]s f JOIN places p ON p.id = f.place
);
`
	return named(view, "src") + named(view, "dst") + `
CREATE VIEW fill AS
SELECT datetime(minute, 'unixepoch') AS utc, realm, firewall, entries, entries_peak, entries_limit, percent, lost, state, active, minute
FROM table_fill JOIN places ON id = place;
`
}

// named puts by where the template has %[1]s: it has other percent signs, which
// are SQL's.
func named(template, by string) string {
	return strings.ReplaceAll(template, "%[1]s", by)
}

// ErrNewer is the error of a file that a later version of ctfleet has written.
var ErrNewer = errors.New("it was written by a newer ctfleet")

// migrate brings a file to the present version, one version in a transaction.
func migrate(ctx context.Context, db *sql.DB) error {
	for {
		have, err := schemaVersion(ctx, db)
		if err != nil {
			return err
		}
		if have == version {
			return nil
		}
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		pragmas := fmt.Sprintf("PRAGMA application_id = %d; PRAGMA user_version = %d;", applicationID, have+1)
		_, err = tx.ExecContext(ctx, migrations[have]()+pragmas)
		if err == nil {
			err = tx.Commit()
		}
		if err != nil {
			return errors.Join(fmt.Errorf("make version %d of it: %w", have+1, err), ignoreDone(tx.Rollback()))
		}
	}
}

// schemaVersion reads which version a file is, and refuses what is not ours.
func schemaVersion(ctx context.Context, db *sql.DB) (int, error) {
	var have, id, objects int
	for query, to := range map[string]*int{
		"PRAGMA user_version": &have, "PRAGMA application_id": &id, "SELECT count(*) FROM sqlite_schema": &objects,
	} {
		if err := db.QueryRowContext(ctx, query).Scan(to); err != nil {
			return 0, err
		}
	}
	switch {
	case objects == 0 && have == 0:
		return 0, nil
	case id != applicationID || have < 1:
		return 0, errors.New("it is a database, but no history of ctfleet")
	case have > version:
		return 0, fmt.Errorf("%w: its schema is version %d, this one knows those up to %d", ErrNewer, have, version)
	}
	return have, nil
}

func ignoreDone(err error) error {
	if errors.Is(err, sql.ErrTxDone) {
		return nil
	}
	return err
}
