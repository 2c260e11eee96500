"""Our tables, as the README's section has them, and how an older version's become these."""

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    DateTime,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    insert,
    inspect,
    select,
    text,
)

# Rows are compared by hash in Python, so `data` is read and written as the text it is.
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import JSON

from worker.errors import SinkNewer

VERSION = 2
# What makes version N + 1 of version N; plain enough for both databases.
_STEPS = {
    1: (
        "ALTER TABLE checkpoints ADD COLUMN project_created TEXT",
        "ALTER TABLE checkpoints ADD COLUMN skew_s FLOAT",
        "ALTER TABLE cycles ADD COLUMN mended BIGINT DEFAULT 0 NOT NULL",
        "ALTER TABLE cycles ADD COLUMN fields_hidden BIGINT DEFAULT 0 NOT NULL",
    )
}

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
    Column("project_created", Text),  # as the server says it, of whichever zone
    Column("skew_s", Float),  # the server's clock against the host's, when that cycle started
)

_CHANGES = ("records", "rows", "inserted", "updated", "unchanged", "deleted", "mended", "fields_hidden")
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

# What the dictionary says, for whoever reads the views: where a field stands, what a code means.
fields = Table(
    "fields",
    metadata,
    Column("project_id", BigInteger, primary_key=True, autoincrement=False),
    Column("view_name", Text, primary_key=True),
    Column("column_name", Text, primary_key=True),
    Column("instrument", Text, nullable=False),
    Column("field_name", Text, nullable=False),  # `column_in_data` without a check box's choice
    Column("column_in_data", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("label", Text, nullable=False),
)
codes = Table(
    "codes",
    metadata,
    Column("project_id", BigInteger, primary_key=True, autoincrement=False),
    Column("field_name", Text, primary_key=True),  # empty: the project's codes of missing data
    Column("code", Text, primary_key=True),
    Column("label", Text, nullable=False),
    Column("position", Integer, nullable=False),
)
_version = Table("schema_version", metadata, Column("version", Integer, nullable=False))


def prepare(connection: Connection) -> None:
    """Make the tables, or bring those of an older version up to this one. Raises SinkNewer."""
    if connection.dialect.name == "postgresql":  # two syncs at once must not both make them
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('redcap-sync schema'))"))
    there = set(inspect(connection).get_table_names())
    made = connection.execute(select(_version.c.version)).scalar_one() if "schema_version" in there else 0
    version = made or (1 if "checkpoints" in there else VERSION)  # the first version kept no number
    if version > VERSION:
        raise SinkNewer(
            f"the database has version {version} of our tables, this program knows {VERSION}: go back to the newer "
            "program, or give this one another SYNC_SINK"
        )
    for older in range(version, VERSION):
        for step in _STEPS[older]:
            connection.execute(text(step))
    metadata.create_all(connection)
    if made != VERSION:
        connection.execute(_version.delete())
        connection.execute(insert(_version).values(version=VERSION))
