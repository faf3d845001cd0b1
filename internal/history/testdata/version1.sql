-- A history as schema version 1 made it, with a minute and one of each record.
-- Written by hand from that schema; never changed: every later version must read it.
PRAGMA application_id = 1668572776;
CREATE TABLE places (
  id INTEGER PRIMARY KEY, realm TEXT NOT NULL, firewall TEXT NOT NULL,
  UNIQUE (realm, firewall)
);
CREATE TABLE minutes (minute INTEGER PRIMARY KEY, partial INTEGER NOT NULL);
CREATE TABLE flowcount_by_src (
  minute INTEGER NOT NULL, place INTEGER NOT NULL, family INTEGER NOT NULL, hi INTEGER NOT NULL, lo INTEGER NOT NULL,
  new INTEGER NOT NULL, active INTEGER,
  PRIMARY KEY (minute, place, family, hi, lo)
) WITHOUT ROWID;
CREATE INDEX flowcount_by_src_address ON flowcount_by_src (family, hi, lo, minute);
CREATE TABLE flowcount_by_dst (
  minute INTEGER NOT NULL, place INTEGER NOT NULL, family INTEGER NOT NULL, hi INTEGER NOT NULL, lo INTEGER NOT NULL,
  new INTEGER NOT NULL, active INTEGER,
  PRIMARY KEY (minute, place, family, hi, lo)
) WITHOUT ROWID;
CREATE INDEX flowcount_by_dst_address ON flowcount_by_dst (family, hi, lo, minute);
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
INSERT INTO places VALUES (1, 'default', ''), (2, 'default', 'fw-a');
INSERT INTO minutes VALUES (1795608000, 0);
-- 2001:db8::7 and 198.18.0.7
INSERT INTO flowcount_by_src VALUES
  (1795608000, 1, 6, -6917232468739227648, -9223372036854775801, 900, 12),
  (1795608000, 1, 4, 0, 3323068423, 200, NULL),
  (1795608000, 2, 4, 0, 3323068423, 200, NULL);
INSERT INTO table_fill VALUES (1795608000, 2, 10, 12, 100, 10.0, 0, 'fresh', NULL);
INSERT INTO progress VALUES ('CT_AUDIT', 17, 1795608000000000000);
PRAGMA user_version = 1;
