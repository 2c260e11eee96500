"""One cycle of the sync, from top to bottom."""

import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from zoneinfo import ZoneInfo

from worker import project, records, settings
from worker.errors import RecordsUnconfirmed, SyncError, UnexpectedError
from worker.log_export import read_log, server_offset
from worker.project import Structure
from worker.records import Key, Row
from worker.redcap import Client
from worker.settings import RedcapSettings, SyncSettings
from worker.sink import Batch, Checkpoint, SqlSink, open_sink
from worker.window import begin_by_offsets, begin_local, server_format


class Cycle(Protocol):
    """What the supervisor gives a job; anything with these will do."""

    id: str
    state_dir: str
    full: bool
    stopping: bool  # a drain was asked for
    progress: Callable[[int, int | None, str], None]  # how far it is: done, total, unit
    remaining_s: Callable[[], float]


def sync(cycle: Cycle) -> dict[str, Any]:
    """Bring the sink up to date with the project; return the summary.

    Raises SyncError with what to do; nothing but whole batches is ever committed, and the
    next cycle does the rest.
    """
    try:
        redcap, sink_settings = settings.load()
        sink = open_sink(sink_settings.sink, cycle.state_dir)
        try:
            client = Client(redcap, cycle.remaining_s)
            try:
                return Sync(cycle, redcap, sink_settings, client, sink).run()
            finally:
                client.close()
        finally:
            sink.close()
    except (SyncError, MemoryError):
        raise
    except Exception as error:
        # A defect's own text may quote a record, so only its type and place are told.
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise UnexpectedError(
            f"{type(error).__name__} at {last.filename.rpartition('/')[2]}:{last.lineno}: a defect of the sync; "
            "please report it with this line"
        ).with_traceback(error.__traceback__) from None


sync.settings_faults = settings.faults  # type: ignore[attr-defined] # the supervisor asks at its start


@dataclass(slots=True)
class Sync:
    """The state of one cycle."""

    cycle: Cycle
    redcap: RedcapSettings
    settings: SyncSettings
    client: Client
    sink: SqlSink
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    counts: Batch = field(default_factory=Batch)
    records: int = 0
    rows: int = 0
    batches: int = 0
    write_s: float = 0.0
    zone_source: str = ""
    offset_s: int = 0
    seen_offset_s: int | None = None  # what is known of it, to be kept; None for a guess
    started_s: float = field(default_factory=time.monotonic)
    structure: Structure = field(init=False)
    started_at: datetime = field(init=False)  # the server's clock
    mode: str = ""
    begin: datetime | None = None  # of the window, in the server's local time

    def run(self) -> dict[str, Any]:
        """Find what changed, fetch it, write it; move the checkpoint."""
        wanted = {"fields": self.redcap.fields, "drop_identifiers": self.settings.drop_identifiers}
        self.structure = project.read(self.client, wanted | self._scope())
        self.started_at = self.client.server_time or self.now()
        before = self.sink.checkpoint(self.structure.project_id)
        self.offset_s = self._offset(before)
        self.mode = self._mode(before)
        return self._full(before) if self.mode == "full" else self._incremental(before)

    def _mode(self, before: Checkpoint) -> str:
        if self.cycle.full or before.synced_until is None or before.backfill_started_at is not None:
            return "full"
        if before.structure_hash != self.structure.hash:
            return "full"  # a new or renamed field leaves no trace in any record's log
        every_s = self.redcap.reconcile_every
        due = before.reconciled_at is None or self.started_at - before.reconciled_at >= timedelta(seconds=every_s)
        return "reconcile" if every_s and due else "incremental"

    def _offset(self, before: Checkpoint) -> int:
        """Return the server's offset from UTC in seconds, as well as it can be known."""
        if self.redcap.timezone:
            self.zone_source = "setting"
            self.seen_offset_s = _offset_s(self.started_at.astimezone(ZoneInfo(self.redcap.timezone)))
            return self.seen_offset_s
        self.seen_offset_s = server_offset(self.client, before.utc_offset_s)
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
        ids, sees_all = self._all_ids()
        known = self.sink.record_ids(self.structure.project_id)
        if not ids and known:
            ids, sees_all = self._all_ids()  # an empty answer gets a second look
        # What is here and not there is asked for like the rest, and gone only when confirmed.
        ordered = sorted(set(ids) | known) if sees_all else sorted(ids)
        checkpoint = before
        if before.backfill_started_at is None or before.backfill_structure_hash != self.structure.hash:
            checkpoint = replace(
                before,
                utc_offset_s=self.seen_offset_s,
                backfill_started_at=self.started_at,
                backfill_cursor=None,
                backfill_structure_hash=self.structure.hash,
            )
        cursor = checkpoint.backfill_cursor
        left = [one for one in ordered if cursor is None or one > cursor]
        for asked, found, gone in self._fetch(left, total=len(ordered)):
            checkpoint = replace(checkpoint, backfill_cursor=asked[-1])
            self._write(found, gone, checkpoint)
            if self.cycle.stopping:
                return self._summary()
        # Nothing before the first attempt's start needs a second read, all after it does.
        begun_at = checkpoint.backfill_started_at
        done = Checkpoint(
            synced_until=begun_at,
            utc_offset_s=checkpoint.utc_offset_s,  # of when the backfill began, as the window will
            structure_hash=self.structure.hash,
            reconciled_at=begun_at if sees_all else before.reconciled_at,
        )
        return self._finish([], done)

    # An incremental cycle: what the server says was changed since, and what it deleted.

    def _incremental(self, before: Checkpoint) -> dict[str, Any]:
        self.begin = begin = self._window_begin(before)
        changed, _ = self._ids({"dateRangeBegin": server_format(begin)})
        log = read_log(self.client, begin, self.structure.id_field)
        wanted = set(changed) | log.touched
        reconciled_at = before.reconciled_at
        if self.mode == "reconcile" or log.renamed:
            ids, sees_all = self._all_ids()
            if sees_all:
                wanted |= set(ids) ^ self.sink.record_ids(self.structure.project_id)
                reconciled_at = self.started_at
        all_gone: list[str] = []
        for _, found, gone in self._fetch(sorted(wanted), total=len(wanted)):
            all_gone += gone
            self._write(found, [], before)
            if self.cycle.stopping:
                return self._summary()
        done = replace(
            before, synced_until=self.started_at, utc_offset_s=self.seen_offset_s, reconciled_at=reconciled_at
        )
        return self._finish(all_gone, done)

    def _window_begin(self, before: Checkpoint) -> datetime:
        assert before.synced_until is not None
        # The server compares whole seconds, and "after" leaves out the very second.
        begin = before.synced_until - timedelta(seconds=self.redcap.overlap + 1)
        if self.redcap.timezone:
            return begin_local(begin, self.started_at, ZoneInfo(self.redcap.timezone))
        then_s = before.utc_offset_s if before.utc_offset_s is not None else self.offset_s
        return begin_by_offsets(begin, self.started_at, then_s, self.offset_s)

    # Asking for ids and rows.

    def _scope(self) -> dict[str, str]:
        """Return the parameters that say what of a record is wanted; names hold no commas."""
        scope = {"type": "flat", "rawOrLabel": self.redcap.raw_or_label}
        for name, values in (("forms", self.redcap.forms), ("events", self.redcap.events)):
            if values:
                scope[name] = ",".join(values)
        if self.redcap.filter_logic:
            scope["filterLogic"] = self.redcap.filter_logic
        return scope

    def _all_ids(self) -> tuple[list[str], bool]:
        """Return all record ids, and whether they are known to be all there are.

        A token whose user is in a data access group sees its own records only, and nothing
        says so but that the server leaves out the column of groups that was asked for.
        """
        scope = {name: value for name, value in self._scope().items() if name in ("events", "filterLogic")}
        ids, columns = self._ids({**scope, "exportDataAccessGroups": "true"})
        if "redcap_data_access_group" in columns:
            return ids, True
        try:
            return ids, not self.client.table("dag")
        except SyncError as error:
            if error.transient:
                raise
            return ids, False  # the token may not ask: whether there are groups can't be known

    def _ids(self, extra: Mapping[str, str]) -> tuple[list[str], set[str]]:
        """Return the ids of the records that `extra` picks, each once, and the columns seen."""

        def consume(rows: Iterator[Row]) -> tuple[list[str], set[str]]:
            ids: dict[str, None] = {}
            columns: set[str] = set()
            for row in rows:
                ids[records.key_of(row, self.structure.id_field).record_id] = None
                columns = columns or set(row)
                if len(ids) % 1000 == 0:
                    self.cycle.progress(len(ids), None, "record ids")
            return list(ids), columns

        ids, columns = self.client.read("record", {"type": "flat", **extra, "fields": self.structure.id_field}, consume)
        if self.structure.id_is_identifier:
            records.refuse_hashed(ids, self.structure.id_field)
        return ids, columns

    def _fetch(
        self, ids: Sequence[str], *, total: int
    ) -> Iterator[tuple[Sequence[str], dict[str, dict[Key, Row]], list[str]]]:
        """Yield each batch: the ids asked for, their records, and those confirmed gone."""
        size = records.batch_size(self.redcap.batch_size, self.structure.columns)
        done = total - len(ids)
        waiting = list(ids)
        while waiting:
            some, waiting = waiting[:size], waiting[size:]
            try:
                found = self._rows(some, divisible=len(some) > 1)
            except SyncError as error:
                if not error.smaller or len(some) == 1:
                    raise
                size = max(1, len(some) // 2)
                self.client.counters.retries += 1
                waiting = some + waiting
                continue
            gone = self._look_again(found, some)
            self.batches += 1
            done += len(some)
            yield some, found, gone
            self.cycle.progress(done, total, "records")

    def _rows(self, ids: Sequence[str], *, divisible: bool) -> dict[str, dict[Key, Row]]:
        scope: dict[str, Any] = dict(self._scope())
        if self.redcap.fields:
            scope["fields"] = ",".join(dict.fromkeys([self.structure.id_field, *self.redcap.fields]))
        elif self.redcap.forms:
            scope["fields"] = self.structure.id_field

        def consume(rows: Iterator[Row]) -> dict[str, dict[Key, Row]]:
            if self.settings.drop_identifiers:
                rows = (records.without(row, self.structure.identifiers) for row in rows)
            return records.group(rows, self.structure.id_field, ids)

        return self.client.read("record", {**scope, "records": ids}, consume, divisible=divisible)

    def _look_again(self, found: dict[str, dict[Key, Row]], asked: Sequence[str]) -> list[str]:
        """Ask once more for what did not come; return what is confirmed gone.

        A server can lose rows without an error, so that a record is not there proves nothing.
        """
        have = {name.rstrip().casefold() for name in found}
        respelt = [one for one in asked if one not in found and one.rstrip().casefold() in have]
        missing = [one for one in asked if one.rstrip().casefold() not in have]
        if not missing:
            return respelt
        again = self._rows(missing, divisible=False)
        found |= again
        have = {name.rstrip().casefold() for name in again}
        return self._confirm_gone([one for one in missing if one.rstrip().casefold() not in have]) + respelt

    def _confirm_gone(self, ids: Sequence[str]) -> list[str]:
        """Return `ids` when a request for them alone, and only their id, brings none of them."""
        for start in range(0, len(ids), records.RECORDS_MAX_PER_REQUEST):  # so never with an empty list
            some = ids[start : start + records.RECORDS_MAX_PER_REQUEST]
            scope = {name: value for name, value in self._scope().items() if name != "forms"}
            parameters = {**scope, "fields": self.structure.id_field, "records": some}
            present = self.client.read("record", parameters, lambda rows: sum(1 for _ in rows))
            if present:
                raise RecordsUnconfirmed(
                    f"{present:,} rows of {len(some):,} records are on the server, but it left them out when "
                    "it was asked for their data: it lost rows. Make REDCAP_BATCH_SIZE smaller"
                )
        return list(ids)

    # Writing.

    def _write(
        self,
        found: Mapping[str, Mapping[Key, Row]],
        gone: Sequence[str],
        checkpoint: Checkpoint,
        cycle: Mapping[str, Any] | None = None,
    ) -> None:
        started_s = time.monotonic()
        done = self.sink.write(
            self.structure.project_id,
            found,
            gone,
            at=self.now(),
            erase=self.settings.on_delete == "erase",
            checkpoint=checkpoint,
            cycle=cycle,
            counts=self.counts,
        )
        self.write_s += time.monotonic() - started_s
        self.records += len(found)
        self.rows += sum(map(len, found.values()))
        for name, count in asdict(done).items():
            setattr(self.counts, name, getattr(self.counts, name) + count)

    def _finish(self, gone: Sequence[str], checkpoint: Checkpoint) -> dict[str, Any]:
        """Move the checkpoint, with the last changes and the cycle's own row."""
        row = self._summary()
        del row["zone_source"]
        row |= {"cycle_id": self.cycle.id, "finished_at": self.now()}
        self._write({}, gone, checkpoint, row)
        return self._summary()

    def _summary(self) -> dict[str, Any]:
        counters = self.client.counters
        all_s = time.monotonic() - self.started_s
        return {
            "project_id": self.structure.project_id,
            "mode": self.mode,
            "window_begin": server_format(self.begin) if self.begin else None,
            "window_end": server_format(self.started_at + timedelta(seconds=self.offset_s)),
            "zone_source": self.zone_source,
            "records": self.records,
            "rows": self.rows,
            **asdict(self.counts),
            "batches": self.batches,
            "bytes_received": counters.bytes_received,
            "requests": counters.requests,
            "retries": counters.retries,
            "fetch_s": round(counters.fetch_s, 3),
            "process_s": round(max(0.0, all_s - counters.fetch_s - self.write_s), 3),
            "write_s": round(self.write_s, 3),
        }


def _offset_s(moment: datetime) -> int:
    offset = moment.utcoffset()
    assert offset is not None  # it has a zone
    return int(offset.total_seconds())
