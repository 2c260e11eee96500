"""One cycle of the sync, from top to bottom."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from zoneinfo import ZoneInfo

from worker import handler, project, reader, settings
from worker.errors import ProjectMismatch, RecordsUnconfirmed
from worker.ids import IdList
from worker.log_export import read_log, server_offset
from worker.project import Structure
from worker.reader import Reader
from worker.records import Record
from worker.redcap import Client
from worker.settings import RedcapSettings, SyncSettings
from worker.sink import Checkpoint, Counts, SqlSink, views
from worker.window import begin_by_offsets, begin_local, server_format

RENAMED_MAX = 1_000  # records that are gone and are compared with new ones
NAMES_SHOWN = 20
WEST_S = -12 * 3600  # no zone is further behind UTC
# From so many changed records on, and so large a share of all, a full cycle is made of it.
RESUMABLE_RECORDS = 5_000
RESUMABLE_SHARE = 5

logger = logging.getLogger(__name__)  # without a handler a warning goes to standard error, and so into the log


class Cycle(Protocol):
    """What the supervisor gives a job; anything with these will do."""

    id: str
    state_dir: str
    full: bool
    stopping: bool  # a drain was asked for
    progress: Callable[[int, int | None, str], None]  # how far it is: done, total, unit
    remaining_s: Callable[[], float]


@dataclass(slots=True)
class Sync:
    """The state of one cycle."""

    cycle: Cycle
    redcap: RedcapSettings
    settings: SyncSettings
    client: Client
    sink: SqlSink
    ids: IdList
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    counts: Counts = field(default_factory=Counts)
    records: int = 0
    rows: int = 0
    mended: int = 0
    write_s: float = 0.0
    zone: ZoneInfo | None = None  # of the setting, unless the server's log contradicts it
    zone_source: str = ""
    skew_s: float = 0.0  # the server's clock against this host's
    renamed: bool | None = None  # whether the log tells of a renamed record; None: it can't be read
    offset_s: int = 0
    seen_offset_s: int | None = None  # what is known of it, to be kept; None for a guess
    started_s: float = field(default_factory=time.monotonic)
    structure: Structure = field(init=False)
    reader: Reader = field(init=False)
    handle: Any = None  # what the rows go through before they are written
    lost: dict[str, str] = field(default_factory=dict)  # known records that are not there: what is in them, their id
    started_at: datetime = field(init=False)  # the server's clock
    mode: str = ""
    begin: datetime | None = None  # of the window, in the server's local time

    def run(self) -> dict[str, Any]:
        """Find what changed, fetch it, write it; move the checkpoint."""
        wanted: dict[str, object] = dict(reader.scope(self.redcap))
        wanted |= {"fields": self.redcap.fields, **self.settings.model_dump(include=settings.SHAPING)}
        self.structure = structure = project.read(self.client, wanted, labels=self.redcap.raw_or_label == "label")
        self.started_at = self.client.server_time or self.now()
        self.skew_s = (self.started_at - self.now()).total_seconds()
        self.sink.lock(structure.project_id)
        before = self._checkpoint()
        dropped = structure.identifiers if self.settings.drop_identifiers else None
        self.reader = Reader(self.client, self.redcap, structure, self.ids, dropped, self.cycle.progress)
        self.reader.look(list(self.sink.record_ids(structure.project_id, reader.LOOKED_AT)))
        if found := handler.find(self.settings.handler):
            self.handle = handler.at_work(found, self.reader.keys)
        self.offset_s = self._offset(before)
        self.mode = self._mode(before)
        return self._full(before) if self.mode == "full" else self._incremental(before, before)

    def _checkpoint(self) -> Checkpoint:
        before = self.sink.checkpoint(self.structure.project_id)
        created = self.structure.created
        if before.project_created and created and before.project_created != created:
            raise ProjectMismatch(
                f"the database holds a project {self.structure.project_id} that was made at {before.project_created}, "
                f"the server's was made at {created}: it is another server's. Give each a database of its own (SYNC_SINK)"
            )
        return replace(before, project_created=created or before.project_created)

    def _hash(self) -> str:
        return self.structure.hash(self.reader.columns)

    def _mode(self, before: Checkpoint) -> str:
        if self.cycle.full or before.synced_until is None or before.backfill_started_at is not None:
            return "full"
        if self._is_changed(before):
            return "full"  # a new or renamed field, or another right, leaves no trace in any record's log
        every_s = self.redcap.reconcile_every
        due = before.reconciled_at is None or abs(self.started_at - before.reconciled_at) >= timedelta(seconds=every_s)
        return "reconcile" if every_s and due else "incremental"

    def _is_changed(self, before: Checkpoint) -> bool:
        """Return whether the structure or the columns are others, as far as rows showed them by now."""
        known, now = before.structure_hash or "", self._hash()
        unseen = now.endswith(project.UNSEEN) and known.startswith(now.removesuffix(project.UNSEEN))
        return known != now and not unseen

    def _offset(self, before: Checkpoint) -> int:
        """Return the server's offset from UTC in seconds, as well as it can be known."""
        self.seen_offset_s = server_offset(self.client, before.utc_offset_s)
        if self.redcap.timezone:
            self.zone = ZoneInfo(self.redcap.timezone)
            set_s = _offset_s(self.started_at.astimezone(self.zone))
            if self.seen_offset_s in (None, set_s):
                self.zone_source = "setting"
                self.seen_offset_s = set_s
                return set_s
            # With a wrong zone every cycle would be ok, and edits would come late or never.
            self.zone = None
            logger.warning(
                "REDCAP_TIMEZONE is %s, and the server's own log has another offset from UTC (%+d s): the log is believed; "
                "redcap-sync explain ZoneWrong",
                self.redcap.timezone,
                self.seen_offset_s,
            )
        if self.seen_offset_s is not None:
            self.zone_source = "log"
            return self.seen_offset_s
        self.seen_offset_s = before.utc_offset_s
        if before.utc_offset_s is not None:
            self.zone_source = "checkpoint"
            return before.utc_offset_s - 3600  # its clock may have changed since: rather too early
        self.zone_source = "host"
        return _offset_s(self.started_at.astimezone())

    # A full cycle: all ids first, then batches; each commits with a cursor.

    def _full(self, before: Checkpoint) -> dict[str, Any]:
        if before.synced_until:  # it may know of deletions where the list can't prove them
            self._read_log(self._window_begin(before))
        # What is here and not there is asked for like the rest, and gone only when confirmed.
        self._list_all()
        self.ids.want("rows > 0 OR known > 0" if self._sees_what_left() else "rows > 0")
        # Who asks for a full cycle wants all of it read now.
        begun = before.backfill_started_at is not None and not self.cycle.full
        resumed = begun and before.backfill_structure_hash == self._hash()
        checkpoint = before
        if not resumed:
            checkpoint = replace(
                before,
                utc_offset_s=self.seen_offset_s,
                skew_s=self.skew_s,
                backfill_started_at=self.started_at,
                backfill_cursor=None,
            )
        for batch in self.reader.batches(checkpoint.backfill_cursor or ""):
            checkpoint = replace(checkpoint, backfill_cursor=batch.last, backfill_structure_hash=self._hash())
            self._write(batch.found, batch.gone, checkpoint)
            if self.cycle.stopping:
                return self._stopped(checkpoint)
        begun_at = checkpoint.backfill_started_at
        done = Checkpoint(
            synced_until=begun_at,
            utc_offset_s=checkpoint.utc_offset_s,  # of when the backfill began, as the window will
            skew_s=checkpoint.skew_s,
            structure_hash=self._hash(),
            reconciled_at=begun_at,
            project_created=checkpoint.project_created,
        )
        if not resumed:
            return self._finish([], done)
        # What was read before the interruption may have changed since.
        self.ids.forget()
        return self._incremental(done, checkpoint)

    # An incremental cycle: what the server says was changed since, and what it deleted.

    def _incremental(self, before: Checkpoint, meanwhile: Checkpoint) -> dict[str, Any]:
        """Go on from one checkpoint; `meanwhile` stands beside the batches until all is done."""
        self.begin = begin = self._window_begin(before)
        self._read_log(begin)
        self.reader.list_changed(server_format(begin))
        if self.renamed is None and not self.ids.count("rows > 0"):
            self.reader.list_changed(server_format(begin))  # an empty answer gets a second look, where no log tells
        self.ids.want("rows > 0")
        reconciled_at = before.reconciled_at
        if self.mode != "incremental" or self.renamed:
            self._list_all()
            different = "(rows > 0) <> (known > 0)"
            self.ids.want(different if self._sees_what_left() else "rows > 0 AND NOT known")
            reconciled_at = self.started_at
        if self.mode != "full" and self._is_most_of_it():
            return self._full_instead(before)
        all_gone: list[str] = []
        for batch in self.reader.batches(""):
            all_gone += batch.gone
            self._write(batch.found, [], meanwhile)
            if self.cycle.stopping:
                return self._stopped(meanwhile)
        if self.mode != "full" and self._is_changed(before):
            return self._full_instead(before)  # no row had shown it before
        done = replace(
            before,
            synced_until=self.started_at,
            utc_offset_s=self.seen_offset_s,
            skew_s=self.skew_s,
            reconciled_at=reconciled_at,
        )
        return self._finish(all_gone, done)

    def _full_instead(self, before: Checkpoint) -> dict[str, Any]:
        self.mode = "full"
        self.ids.forget()
        return self._full(before)

    def _is_most_of_it(self) -> bool:
        """Return whether so much is to be read that a full cycle, which can be taken up again, is the better way."""
        wanted = self.ids.count("wanted")
        if wanted < RESUMABLE_RECORDS:
            return False
        self.ids.mark("known", self.sink.record_ids(self.structure.project_id))
        return wanted * RESUMABLE_SHARE > self.ids.count("known > 0")

    def _sees_what_left(self) -> bool:
        return self.reader.is_limited() or self.reader.sees_all_records()

    def _read_log(self, begin: datetime) -> None:
        self.renamed = read_log(self.client, begin, self.structure.id_field, self.ids.mark)
        self.ids.want("deleted > 0")

    def _window_begin(self, before: Checkpoint) -> datetime:
        assert before.synced_until is not None
        # The server compares whole seconds, and "after" leaves out the very second.
        overlap = timedelta(seconds=self.redcap.overlap + 1)
        if before.skew_s is not None:  # the server's clock was put back: what came then has times before its last start
            overlap += timedelta(seconds=max(0.0, before.skew_s - self.skew_s))
        begin = min(before.synced_until, self.started_at) - overlap
        if self.zone:
            return begin_local(begin, self.started_at, self.zone)
        # A zone that is but guessed may be wrong, and edits would be missed: rather half a day is read again.
        now_s = WEST_S if self.zone_source == "host" else self.offset_s
        then_s = before.utc_offset_s if before.utc_offset_s is not None else now_s
        return begin_by_offsets(begin, self.started_at, then_s, now_s)

    def _list_all(self) -> None:
        """List what the server has and what the sink has, and look for records that only changed their name."""
        self.reader.list_all()
        self.ids.mark("known", self.sink.record_ids(self.structure.project_id))
        if not self.ids.count("rows > 0") and self.ids.count("known > 0"):
            self.reader.list_all()  # an empty answer gets a second look
            vouched = self.cycle.full or self.renamed is None or self.ids.count("deleted > 0")
            if not self.ids.count("rows > 0") and not vouched:
                raise RecordsUnconfirmed(
                    "the server lists no record at all, and its log tells of no deletion: if they were all erased, "
                    "run redcap-sync once --full"
                )
        if self.ids.count("rows > 0 AND NOT known") and (self.renamed or self.reader.sees_all_records()):
            for record_id in self.ids.some("known > 0 AND rows = 0 AND deleted = 0", RENAMED_MAX):
                content = self._content(self.sink.rows_of(self.structure.project_id, record_id))
                self.lost[content] = "" if content in self.lost else record_id  # of two alike neither can be told

    def _content(self, record: Record) -> str:
        """Return a hash of all that a record holds but its id."""
        rows = []
        for key, row in sorted(record.items()):
            rows.append([*key[1:], {**json.loads(row.data), self.structure.id_field: ""}])
        return hashlib.blake2b(json.dumps(rows, sort_keys=True).encode()).hexdigest()

    # Writing.

    def _write(
        self,
        found: Mapping[str, Record],
        gone: Sequence[str],
        checkpoint: Checkpoint,
        last: Mapping[str, Any] | None = None,
    ) -> None:
        started_s = time.monotonic()
        at, erase = self.now(), self.settings.on_delete == "erase"
        with self.sink.transaction(self.structure.project_id, checkpoint) as transaction:
            self.lost = {
                content: old for content, old in self.lost.items() if old not in found
            }  # it is there after all
            for new in found if self.lost else ():  # a rename leaves its trace in both: one change, not two
                if old := self.lost.pop(self._content(found[new]), None):
                    transaction.rename(old, new)
            done = transaction.put(found, gone, at=at, erase=erase, handle=self.handle)
            counts = Counts(**{name: count + getattr(self.counts, name) for name, count in asdict(done).items()})
            if last is not None:
                if self.mode == "full":
                    self._describe(transaction.connection)
                    if erase:
                        transaction.erase_deleted()
                    if self.reader.dropped is not None:
                        is_read = lambda record_id: self.ids.count("rows > 0 AND id = ?", record_id) > 0  # noqa: E731
                        transaction.keep_columns(self.reader.keeps, is_read)
                transaction.keep_cycle({**last, **asdict(counts)})
        self.counts = counts  # what was rolled back is not counted
        self.write_s += time.monotonic() - started_s
        self.records += len(found)
        for record in found.values():
            self.rows += len(record)
            self.mended += sum(row.mended for row in record.values())

    def _describe(self, connection: Any) -> None:
        """Make the views of what the token gets to see now, and say what it does not."""
        if names := self.reader.hidden():
            logger.warning(
                "%d fields are in the dictionary and not in the server's answers, so they are not in the database: the "
                "token's export rights hide them (%s%s)",
                len(names),
                ", ".join(names[:NAMES_SHOWN]),
                ", ..." if len(names) > NAMES_SHOWN else "",
            )
        if self.sink.has_views:
            columns = self.reader.columns or [one.name for one in self.structure.fields if one.kind != "descriptive"]
            labels = self.redcap.raw_or_label == "label"
            for name in views.make(connection, self.structure, columns, labels=labels):
                logger.warning(
                    "the view %s stays as it was, as another stands on it (table fields has the new one)", name
                )

    def _finish(self, gone: Sequence[str], checkpoint: Checkpoint) -> dict[str, Any]:
        """Move the checkpoint, with the last changes and the cycle's own row."""
        self._write({}, gone, checkpoint, self._row())
        return self.summary()

    def _stopped(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Leave after a batch: what was done is committed, and gets its row."""
        with self.sink.transaction(self.structure.project_id, checkpoint) as transaction:
            transaction.keep_cycle(self._row())
        return self.summary()

    def _row(self) -> dict[str, Any]:
        row = self.summary() | {"cycle_id": self.cycle.id, "finished_at": self.now()}
        return {name: value for name, value in row.items() if name not in ("zone_source", "answers")}

    def summary(self) -> dict[str, Any]:
        """Return what was done until now: numbers, but for `answers`, which has the server's by their status.

        Of a cycle that failed early some things are not known, and null.
        """
        counters = self.client.counters
        all_s = time.monotonic() - self.started_s
        reader = self.reader if hasattr(self, "reader") else None
        end = self.started_at + timedelta(seconds=self.offset_s) if self.mode else None
        return {
            "project_id": self.structure.project_id if hasattr(self, "structure") else None,
            "mode": self.mode or None,
            "window_begin": server_format(self.begin) if self.begin else None,
            "window_end": server_format(end) if end else None,
            "zone_source": self.zone_source or None,
            "records": self.records,
            "rows": self.rows,
            **asdict(self.counts),
            "mended": self.mended,
            "batches": reader.batches_done if reader else 0,
            "bytes_received": counters.bytes_received,
            "requests": counters.requests,
            "retries": counters.retries,
            "answers": counters.answers,
            "fetch_s": round(counters.fetch_s, 3),
            "process_s": round(max(0.0, all_s - counters.fetch_s - self.write_s), 3),
            "write_s": round(self.write_s, 3),
            "fields_hidden": len(reader.hidden()) if reader else 0,
        }


def _offset_s(moment: datetime) -> int:
    offset = moment.utcoffset()
    assert offset is not None  # it has a zone
    return int(offset.total_seconds())
