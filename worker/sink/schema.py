"""Our tables, as the README's section has them."""

from sqlalchemy import BigInteger, Column, DateTime, Float, Index, Integer, MetaData, String, Table, Text

# Rows are compared by hash in Python, so `data` is read and written as the text it is.
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import JSON

metadata = MetaData()

_JSON = JSON().with_variant(JSONB(), "postgresql")
_TIME = DateTime(timezone=True)

records = Table(
    "records",
    metadata,
    Column("project_id", BigInteger, primary_key=True, autoincrement=False),
    Column("record_id", Text, primary_key=True),
    Column("event", Text, primary_key=True),
    Column("repeat_instrument", Text, primary_key=True),
    Column("repeat_instance", Integer, primary_key=True, autoincrement=False),
    Column("data", _JSON, nullable=False),
    Column("data_hash", String(32), nullable=False),
    Column("first_seen_at", _TIME, nullable=False),
    Column("changed_at", _TIME, nullable=False),
    Column("deleted_at", _TIME),
)
Index("records_changed_at", records.c.project_id, records.c.changed_at)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("project_id", BigInteger, primary_key=True, autoincrement=False),
    Column("revision", BigInteger, nullable=False),  # moves with every commit: two syncs collide
    Column("synced_until", _TIME),  # the server's clock at the start of the last good cycle
    Column("utc_offset_s", Integer),  # the server's, when that cycle started
    Column("structure_hash", String(32)),
    Column("reconciled_at", _TIME),
    Column("backfill_started_at", _TIME),  # null: no full read is under way
    Column("backfill_cursor", Text),  # the last record of it that is committed
    Column("backfill_structure_hash", String(32)),
)

_CHANGES = ("records", "rows", "inserted", "updated", "unchanged", "deleted")
_TRAFFIC = ("batches", "bytes_received", "requests", "retries")

cycles = Table(
    "cycles",
    metadata,
    Column("cycle_id", String(36), primary_key=True),
    Column("project_id", BigInteger, nullable=False),
    Column("finished_at", _TIME, nullable=False),
    Column("mode", String(16), nullable=False),
    Column("window_begin", Text),  # the server's local time, as it was asked for
    Column("window_end", Text),
    *(Column(name, BigInteger, nullable=False) for name in (*_CHANGES, *_TRAFFIC)),
    *(Column(name, Float, nullable=False) for name in ("fetch_s", "process_s", "write_s")),
)
