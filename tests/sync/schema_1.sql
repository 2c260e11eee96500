CREATE TABLE checkpoints (
    project_id BIGINT NOT NULL,
    revision BIGINT NOT NULL,
    synced_until DATETIME,
    utc_offset_s INTEGER,
    structure_hash VARCHAR(32),
    reconciled_at DATETIME,
    backfill_started_at DATETIME,
    backfill_cursor TEXT,
    backfill_structure_hash VARCHAR(32),
    PRIMARY KEY (project_id)
);
CREATE TABLE cycles (
    cycle_id VARCHAR(36) NOT NULL,
    project_id BIGINT NOT NULL,
    finished_at DATETIME NOT NULL,
    mode VARCHAR(16) NOT NULL,
    window_begin TEXT,
    window_end TEXT,
    records BIGINT NOT NULL,
    rows BIGINT NOT NULL,
    inserted BIGINT NOT NULL,
    updated BIGINT NOT NULL,
    unchanged BIGINT NOT NULL,
    deleted BIGINT NOT NULL,
    batches BIGINT NOT NULL,
    bytes_received BIGINT NOT NULL,
    requests BIGINT NOT NULL,
    retries BIGINT NOT NULL,
    fetch_s FLOAT NOT NULL,
    process_s FLOAT NOT NULL,
    write_s FLOAT NOT NULL,
    PRIMARY KEY (cycle_id)
);
CREATE TABLE records (
    project_id BIGINT NOT NULL,
    record_id TEXT NOT NULL,
    event TEXT NOT NULL,
    repeat_instrument TEXT NOT NULL,
    repeat_instance INTEGER NOT NULL,
    data JSON NOT NULL,
    data_hash VARCHAR(32) NOT NULL,
    first_seen_at DATETIME NOT NULL,
    changed_at DATETIME NOT NULL,
    deleted_at DATETIME,
    PRIMARY KEY (project_id, record_id, event, repeat_instrument, repeat_instance)
);
CREATE INDEX records_changed_at ON records (project_id, changed_at);
INSERT INTO checkpoints VALUES (4242, 1, '2026-01-01 10:00:00', 0, 'x', '2026-01-01 10:00:00', NULL, NULL, NULL);
INSERT INTO cycles VALUES ('c', 4242, '2026-01-01 10:00:00', 'full', NULL, NULL, 2, 2, 2, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0);
INSERT INTO records VALUES (4242, '1', 'enrolment_arm_1', '', 0, '{}', 'x', '2026-01-01', '2026-01-01', NULL);
INSERT INTO records VALUES (4242, 'gone', 'enrolment_arm_1', '', 0, '{}', 'x', '2026-01-01', '2026-01-01', NULL);
