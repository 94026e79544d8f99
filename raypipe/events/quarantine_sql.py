"""The tables of the quarantine, and its longer statements. Values are always bound."""

from __future__ import annotations

SCHEMA = """
CREATE TABLE IF NOT EXISTS refused (
    id INTEGER PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    tenant TEXT NOT NULL,
    source TEXT NOT NULL,
    event_type TEXT NOT NULL,
    body TEXT NOT NULL,
    reasons TEXT NOT NULL
) STRICT
"""

ADDED = {
    "state": "TEXT NOT NULL DEFAULT 'open'",
    "resolved_at": "INTEGER",
    "note": "TEXT NOT NULL DEFAULT ''",
    "request": "TEXT NOT NULL DEFAULT ''",
    "batch": "TEXT NOT NULL DEFAULT ''",
}
"""Columns that files of the first version lack."""

REST = """
BEGIN IMMEDIATE;
CREATE INDEX IF NOT EXISTS refused_by_tenant ON refused (tenant, source);
CREATE INDEX IF NOT EXISTS refused_by_state ON refused (tenant, state);
CREATE INDEX IF NOT EXISTS refused_by_request ON refused (tenant, request) WHERE request <> '';
CREATE INDEX IF NOT EXISTS refused_by_batch ON refused (batch) WHERE batch <> '';
CREATE TABLE IF NOT EXISTS sending (
    key TEXT PRIMARY KEY, tenant TEXT NOT NULL, event_type TEXT NOT NULL, body BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS tally (
    tenant TEXT PRIMARY KEY,
    kept INTEGER NOT NULL,
    unkept INTEGER NOT NULL DEFAULT 0,
    forgotten INTEGER NOT NULL DEFAULT 0
) STRICT;
INSERT INTO tally (tenant, kept) SELECT tenant, count(*) FROM refused
    WHERE NOT EXISTS (SELECT 1 FROM tally) GROUP BY tenant;
CREATE TRIGGER IF NOT EXISTS refused_kept AFTER INSERT ON refused BEGIN
    INSERT INTO tally (tenant, kept) VALUES (new.tenant, 1)
        ON CONFLICT (tenant) DO UPDATE SET kept = kept + 1;
END;
CREATE TRIGGER IF NOT EXISTS refused_gone AFTER DELETE ON refused BEGIN
    UPDATE tally SET kept = kept - 1 WHERE tenant = old.tenant;
END;
COMMIT;
"""

SELECTED = """
(:tenant IS NULL OR tenant = :tenant)
AND (:settled OR state = 'open')
AND (:ids IS NULL OR id IN (SELECT value FROM json_each(:ids)))
AND (:event_type IS NULL OR event_type = :event_type)
AND (:source IS NULL OR substr(source, 1, length(:source)) = :source)
AND (:reason IS NULL OR EXISTS (SELECT 1 FROM json_each(reasons) WHERE instr(value, :reason)))
"""


# No outside text is in these: values are bound.
COUNTS = f"""
SELECT event_type, r.value, count(*) FROM refused, json_each(reasons) AS r
WHERE refused.id IN (SELECT id FROM refused WHERE {SELECTED})
GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2
"""  # noqa: S608
ROWS = f"""
SELECT id, at_ms, tenant, source, event_type, body, reasons, state, resolved_at, note
FROM refused WHERE {SELECTED}
"""  # noqa: S608
DROP = f"""
UPDATE refused SET state = 'dropped', resolved_at = :now, note = :note
WHERE {SELECTED} AND state = 'open' AND batch = ''
"""  # noqa: S608
