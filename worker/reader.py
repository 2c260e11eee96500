"""What a cycle asks the server for: ids, rows, and a second look at what did not come."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, NamedTuple

from worker import records
from worker.errors import RecordsUnconfirmed, StructureChanged, SyncError
from worker.ids import IdList
from worker.project import Structure
from worker.records import Record, folded
from worker.redcap import Client
from worker.settings import RedcapSettings
from worker.stream import decoded

GROUP = "redcap_data_access_group"
LOOKED_AT = 3  # records: one that is there shows what the token may see


class Batch(NamedTuple):
    """The answer to one request for records: what was found, and what is confirmed gone."""

    last: str  # the id behind which the next batch begins
    found: dict[str, Record]
    gone: list[str]


def scope(settings: RedcapSettings) -> dict[str, str]:
    """Return the parameters that say what of a record is wanted; names hold no commas."""
    wanted = {"type": "flat", "rawOrLabel": settings.raw_or_label}
    for name, values in (("forms", settings.forms), ("events", settings.events)):
        if values:
            wanted[name] = ",".join(values)
    if settings.filter_logic:
        wanted["filterLogic"] = settings.filter_logic
    return wanted


@dataclass(slots=True)
class Reader:
    """One cycle's questions. What they bring of ids goes into `ids`."""

    client: Client
    settings: RedcapSettings
    structure: Structure
    ids: IdList
    dropped: frozenset[str] | None  # fields that are left out; None: none ever is
    progress: Callable[[int, int | None, str], None]
    keys: records.Keys = field(init=False)
    sees_all: bool | None = None  # whether the token's user is in no data access group
    columns: list[str] | None = None  # that the token gets to see; None until a row came
    batches_done: int = 0
    _visible: list[str] = field(default_factory=list)  # ids of records that should be there
    _kept: dict[str, bool] = field(default_factory=dict)  # columns, whether they are stored
    _size: int = field(init=False)
    _cells: int = field(init=False)  # of a row, where they bound a batch

    def __post_init__(self) -> None:
        self.keys = records.Keys(self.structure.id_field)
        columns = sum(
            one.choices.count("|") + 1 if one.kind == "checkbox" else 1
            for one in self.structure.fields
            if one.kind != "descriptive"
        )
        self._size = records.batch_size(self.settings.batch_size, columns)
        self._cells = columns if self.settings.batch_size == "auto" else 0

    def hidden(self) -> list[str]:
        """Return the fields that are asked for and that the token does not get to see."""
        if self.columns is None or self.settings.events:  # what of other events' forms comes is not documented
            return []
        seen = {self.structure.field_of(column) for column in self.columns}
        fields, forms = self.settings.fields, self.settings.forms
        return [
            one.name
            for one in self.structure.fields
            if one.name not in seen | (self.dropped or frozenset())
            and one.kind != "descriptive"
            and (not (fields or forms) or one.name in fields or one.instrument in forms)
        ]

    def look(self, ids: list[str]) -> None:
        """Find out which columns the token gets to see now, and whether all records, by some that should be there.

        A token whose user is in a data access group sees its own records only, and nothing
        says so but that the server leaves out the column of groups that was asked for.
        """
        self._visible = ids
        if not ids:
            return

        def consume(rows: Iterator[bytes]) -> list[str]:
            first = next(rows, None)
            for _ in rows:
                pass  # read to its end, so that the connection can be used again
            return [] if first is None else list(decoded(first))

        wanted = {**self._wanted(), "records": ids, "exportDataAccessGroups": "true"}
        if columns := self.client.read("record", wanted, consume):
            self.sees_all = GROUP in columns or None
            self.columns = [one for one in columns if one != GROUP and self.keeps(one)]

    def list_changed(self, begin: str) -> None:
        """List the rows of the records that were changed after a local time of the server."""
        self._list({"dateRangeBegin": begin})

    def list_all(self) -> None:
        """List the rows of all records, and find out whether they are all there are."""
        limits = {name: value for name, value in scope(self.settings).items() if name in ("events", "filterLogic")}
        columns = self._list({**limits, "exportDataAccessGroups": "true"})
        self.sees_all = GROUP in columns or self.sees_all

    def sees_all_records(self) -> bool:
        """Return whether there is no record that the token can't see, as far as it can be known."""
        if self.sees_all is None and self._visible:  # without a filter, which may have left out all that was looked at
            _, columns = self._ask_ids(self._visible, {"exportDataAccessGroups": "true"})
            self.sees_all = GROUP in columns or None
        if self.sees_all is None:
            try:
                self.sees_all = not self.client.table("dag")
            except SyncError as error:
                if error.transient:
                    raise
                self.sees_all = False  # the token may not ask: whether there are groups can't be known
        return self.sees_all

    def _still_sees_all(self, found: Mapping[str, Record]) -> bool:
        """Ask it anew: who is put into a group in the middle of a cycle must not take the rest for deleted."""
        if self.sees_all:
            self.sees_all, self._visible = None, list(found)[:LOOKED_AT] or self.ids.listed(LOOKED_AT) or self._visible
        return self.sees_all_records()

    def is_limited(self) -> bool:
        """Return whether a record may be there, and yet not in what is asked for."""
        return bool(self.settings.filter_logic or self.settings.events)

    def _ask_ids(self, ids: list[str], extra: Mapping[str, str]) -> tuple[Counter[str], set[str]]:
        """Ask for nothing but the ids of some records; return the rows of each that came, and their columns."""
        have, columns = Counter[str](), set[str]()

        def count(rows: Iterator[bytes]) -> tuple[Counter[str], bytes]:
            one, last = Counter[str](), b"{}"
            for last in rows:
                one[folded(self.keys.of(last).record_id)] += 1
            return one, last

        for start in range(0, len(ids), records.RECORDS_MAX_PER_REQUEST):  # so never with an empty list
            some = ids[start : start + records.RECORDS_MAX_PER_REQUEST]
            parameters = {"type": "flat", **extra, "fields": self.structure.id_field, "records": some}
            part, last = self.client.read("record", parameters, count)
            have += part
            columns.update(decoded(last))
        return have, columns

    def _list(self, extra: Mapping[str, Any]) -> set[str]:
        """List the rows that `extra` picks; return their columns."""
        id_field = self.structure.id_field

        def consume(rows: Iterator[bytes]) -> set[str]:
            columns: set[str] = set()
            plain = count = 0

            def names() -> Iterator[str]:
                nonlocal plain, count
                for row in rows:
                    columns.update(() if columns else decoded(row))
                    name = self.keys.of(row).record_id
                    count += 1
                    plain += not records.is_hashed(name)
                    if count % 1000 == 0:
                        self.progress(count, None, "record ids")
                    yield name

            self.ids.mark("rows", names(), anew=True)
            if count and not plain and self.structure.fields[0].is_identifier:
                raise records.hidden_ids(id_field)
            return columns

        return self.client.read("record", {"type": "flat", **extra, "fields": id_field}, consume)

    def batches(self, after: str) -> Iterator[Batch]:
        """Yield the wanted records behind an id, in the order of their ids."""
        total = self.ids.count("wanted")
        done = total - self.ids.count("wanted AND id > ?", after)
        while wanted := self._bounded(self.ids.after(after, self._size)):
            try:
                found = self._rows(wanted, divisible=len(wanted) > 1)
            except SyncError as error:
                if not error.smaller or len(wanted) == 1:
                    raise
                self._size = len(wanted) // 2
                self.client.counters.retries += 1
                continue
            gone = self._look_again(found, wanted)
            self.batches_done += 1
            done += len(wanted)
            after = list(wanted)[-1]
            yield Batch(after, found, gone)
            self.progress(done, total, "records")

    def _bounded(self, wanted: dict[str, int]) -> dict[str, int]:
        """Return the first of these records, as many as have no more cells than a batch should."""
        cells = 0
        for number, rows in enumerate(wanted.values()):
            cells += rows * self._cells
            if number and cells > records.CELLS_PER_BATCH:
                return dict(islice(wanted.items(), number))
        return wanted

    def _rows(self, ids: Mapping[str, int] | list[str], *, divisible: bool) -> dict[str, Record]:
        def consume(rows: Iterator[bytes]) -> dict[str, Record]:
            if self.dropped is not None:
                rows = map(self.without_dropped, rows)
            first = next(rows, None)
            if first is None:
                return {}
            columns = list(decoded(first))
            if self.columns is not None and columns != self.columns:
                raise StructureChanged(
                    "the fields that the token gets to see changed during the cycle: the next one reads all anew"
                )
            self.columns = columns
            return records.group(chain([first], rows), records.Keys(self.structure.id_field, columns), ids)

        return self.client.read("record", {**self._wanted(), "records": list(ids)}, consume, divisible=divisible)

    def _wanted(self) -> dict[str, Any]:
        """Return the parameters of a request for rows; the id field is always asked for."""
        parameters: dict[str, Any] = dict(scope(self.settings))
        if self.settings.fields:
            parameters["fields"] = ",".join(dict.fromkeys([self.structure.id_field, *self.settings.fields]))
        elif self.settings.forms:
            parameters["fields"] = self.structure.id_field
        return parameters

    def without_dropped(self, row: bytes) -> bytes:
        """Return a row without the fields that are left out."""
        return records.to_json({column: value for column, value in decoded(row).items() if self.keeps(column)})

    def keeps(self, column: str) -> bool:
        """Return whether a column is stored: where identifiers are left out, none that may be one is.

        What is not in the dictionary may have been added, or removed, since it was read.
        """
        kept = self._kept.get(column)
        if kept is None:
            one = self.structure.field_of(column)
            form = column.removesuffix("_complete") if column.endswith("_complete") else ""
            known = one in self.structure.names or column.startswith("redcap_") or form in self.structure.events
            kept = self._kept[column] = self.dropped is None or (known and one not in self.dropped)
        return kept

    def _look_again(self, found: dict[str, Record], wanted: Mapping[str, int]) -> list[str]:
        """Ask once more for what did not come; return what is confirmed gone.

        A server can lose rows without an error: that a record is not there proves nothing, nor
        that it has fewer rows than were listed.
        """
        doubtful = self._short(found, wanted)
        if doubtful:
            for name, record in self._rows(list(doubtful), divisible=False).items():
                if len(record) >= len(found.get(name, ())):
                    found[name] = record
            self._confirm(found, self._short(found, doubtful))
        have = _rows_by_name(found)
        missing = [one for one in wanted if one not in found]
        # Gone by the log, or spelt in another way now.
        gone = {one for one in missing if have[folded(one)] or self.ids.count("deleted > 0 AND id = ?", one)}
        unsure = [one for one in missing if one not in gone]
        if unsure and self.is_limited():
            there, _ = self._ask_ids(unsure, {})
            gone.update(one for one in unsure if there[folded(one)])  # it has left the filter
        # What a token in a group does not see may have moved to another: that is no deletion.
        if gone.issuperset(unsure) or self._still_sees_all(found):
            return missing
        return [one for one in missing if one in gone]

    def _short(self, found: Mapping[str, Record], wanted: Mapping[str, int]) -> dict[str, int]:
        """Return those of the wanted that did not come, or came with fewer rows than were listed."""
        have, listed = _rows_by_name(found), Counter[str]()
        for one, rows in wanted.items():
            listed[folded(one)] += rows
        short = {one: rows for one, rows in wanted.items() if have[folded(one)] < max(1, listed[folded(one)])}
        if not short or not (self.settings.fields or self.settings.forms or self.settings.events or self.hidden()):
            return short
        # What is hidden, or was not asked for, may leave rows out.
        return {one: rows for one, rows in short.items() if folded(one) not in have}

    def _confirm(self, found: Mapping[str, Record], short: Mapping[str, int]) -> None:
        """Raise RecordsUnconfirmed when a request for nothing but the ids of these brings more than was found."""
        have = _rows_by_name(found)
        present, _ = self._ask_ids(list(short), {k: v for k, v in scope(self.settings).items() if k != "forms"})
        if lost := sum(rows > have[name] for name, rows in present.items()):
            raise RecordsUnconfirmed(
                f"rows of {lost:,} records are on the server, but it left them out when it was asked for their "
                "data: it lost rows. Make REDCAP_BATCH_SIZE smaller"
            )


def _rows_by_name(found: Mapping[str, Record]) -> Counter[str]:
    """Count the rows of each record; ids that the server may take for one are one."""
    have = Counter[str]()
    for name, record in found.items():
        have[folded(name)] += len(record)
    return have
