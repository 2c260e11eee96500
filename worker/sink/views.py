"""One view an instrument, typed by the dictionary; where a field stands is in `fields`, what a code means in `codes`."""

import re
from collections.abc import Iterator, Sequence

from sqlalchemy import Connection, delete, insert, select
from sqlalchemy.exc import DBAPIError

from worker.project import Field, Structure
from worker.records import Key
from worker.sink.schema import codes, fields, metadata

COLUMNS_MAX = 1_500  # SQLite takes 2,000 in a result, PostgreSQL 1,600 in a view
NAMES_TRIED = 5
NAME_MAX_BYTES = 63  # of PostgreSQL, where what is longer is cut off without a word
_KEYS = ("project_id", *Key._fields)
_SHOWABLE = re.compile(r"\w[\w.-]*", re.ASCII)
_DAY = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]"

# What a value must look like to be of a type, and what it is then; `{x}` is the text, which is
# never empty here. A code of missing data or a value that the field's rule came too late for is
# NULL in a typed column, and stands in `records.data` as it is.
_SQLITE = {
    "integer": "CASE WHEN ({x} GLOB '[0-9]*' OR {x} GLOB '[-+][0-9]*') AND substr({x}, 2) NOT GLOB '*[^0-9]*' "
    "AND {x} GLOB '*[0-9]*' AND length({x}) < 19 THEN CAST({x} AS INTEGER) END",
    "number": "CASE WHEN {x} GLOB '*[0-9]*' AND {x} NOT GLOB '?*[-+]*' AND {x} NOT GLOB '*[^-+0-9.]*' "
    "AND {x} NOT GLOB '*.*.*' THEN CAST({x} AS REAL) END",
    "date": f"CASE WHEN {{x}} GLOB '{_DAY}' THEN {{x}} END",
    "datetime": f"CASE WHEN {{x}} GLOB '{_DAY} [0-9]*' THEN {{x}} END",
    "time": "CASE WHEN {x} GLOB '[0-9]*:[0-9][0-9]*' THEN {x} END",
    "boolean": "CASE {x} WHEN '1' THEN 1 WHEN '0' THEN 0 END",
    "text": "{x}",
}
_POSTGRESQL = {
    "integer": "CASE WHEN {x} ~ '^[-+]?[0-9]{{1,18}}$' THEN CAST({x} AS bigint) END",
    "number": "CASE WHEN {x} ~ '^[-+]?([0-9]+[.]?[0-9]*|[.][0-9]+)$' THEN CAST({x} AS numeric) END",
    "date": "CASE WHEN {x} ~ '^[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}$' AND pg_input_is_valid({x}, 'date') THEN CAST({x} AS date) END",
    "datetime": "CASE WHEN {x} ~ '^[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}} [0-9:.]+$' AND pg_input_is_valid({x}, 'timestamp') "
    "THEN CAST({x} AS timestamp) END",
    "time": "CASE WHEN {x} ~ '^([01]?[0-9]|2[0-3]):' AND pg_input_is_valid({x}, 'time') THEN CAST({x} AS time) END",
    "boolean": "CASE {x} WHEN '1' THEN true WHEN '0' THEN false END",
    "text": "{x}",
}
_INPUT_IS_VALID_SINCE = (16,)  # without it a value like 2023-02-30 would make the whole view fail


def make(connection: Connection, structure: Structure, columns: Sequence[str], *, labels: bool) -> list[str]:
    """Make the project's views, `fields` and `codes` anew; return the views that could not be, as others stand on them."""
    kept = _drop(connection, structure.project_id)
    # Other projects' views are known: a hundred of them may have the same instruments.
    taken = {table.name for table in metadata.sorted_tables}
    taken |= {name.lower() for name in connection.execute(select(fields.c.view_name).distinct()).scalars()}
    listed = []
    for instrument, part, chosen in _parts(structure, columns):
        used = set(_KEYS)
        lines, entries = [], []
        for column, one in chosen:
            kind = "text" if labels else _type(column, one)
            shown = _free(column, used)
            lines.append(f"{_expression(connection, column, kind, one)} AS {_quoted(shown)}")
            entries.append(
                {
                    "project_id": structure.project_id,
                    "column_name": shown,
                    "instrument": instrument,
                    "field_name": structure.field_of(column),
                    "column_in_data": column,
                    "type": kind,
                    "label": one.label if one else "Complete?",
                }
            )
        select_list = ", ".join([*_KEYS, *lines])
        rows = _rows_of(instrument, structure)
        body = (
            f"SELECT {select_list} FROM records "
            f"WHERE project_id = {structure.project_id} AND deleted_at IS NULL AND ({rows})"
        )
        name = _create(connection, instrument if part == 1 else f"{instrument}_part{part}", body, taken)
        listed += [entry | {"view_name": name} for entry in entries]
    if listed:
        connection.execute(insert(fields), listed)
    connection.execute(delete(codes).where(codes.c.project_id == structure.project_id))
    if coded := list(_codes(structure)):
        connection.execute(insert(codes), coded)
    return kept


def _create(connection: Connection, wanted: str, body: str, taken: set[str]) -> str:
    """Make a view under the first name that the database takes: an index, or something of somebody's, may have one."""
    for attempt in range(NAMES_TRIED):
        name = _free(wanted if attempt < NAMES_TRIED - 1 else f"view_{wanted}", taken)
        try:
            with connection.begin_nested():
                _run(connection, f"CREATE VIEW {_quoted(name)} AS {body}")
        except DBAPIError:
            if attempt == NAMES_TRIED - 1:
                raise
        else:
            break
    return name


def _drop(connection: Connection, project_id: int) -> list[str]:
    ours = fields.c.project_id == project_id
    kept = []
    for name in connection.execute(select(fields.c.view_name).where(ours).distinct()).scalars().all():
        try:
            with connection.begin_nested():
                _run(connection, f"DROP VIEW IF EXISTS {_quoted(name)}")
        except DBAPIError:  # somebody's own view stands on it, which is not ours to drop
            kept.append(name)
    connection.execute(delete(fields).where(ours, fields.c.view_name.not_in(kept)))
    return kept


def _parts(structure: Structure, columns: Sequence[str]) -> Iterator[tuple[str, int, list[tuple[str, Field | None]]]]:
    """Yield each instrument, the number of the part, and the exported columns in it with their fields."""
    by_name = {one.name: one for one in structure.fields}
    of: dict[str, list[tuple[str, Field | None]]] = {one.instrument: [] for one in structure.fields}
    for column in columns:
        one = by_name.get(column) or by_name.get(structure.field_of(column))
        instrument = one.instrument if one else column.removesuffix("_complete")
        if column != structure.id_field and instrument in of and _SHOWABLE.fullmatch(column):
            of[instrument].append((column, one))
    for instrument, all_of_it in of.items():  # one of which no column comes has no view: `fields` could not list it
        for start in range(0, len(all_of_it), COLUMNS_MAX):
            yield instrument, start // COLUMNS_MAX + 1, all_of_it[start : start + COLUMNS_MAX]


def _type(column: str, one: Field | None) -> str:
    if one is None or one.kind == "slider":
        return "integer"
    if one.kind in ("yesno", "truefalse") or column != one.name:
        return "boolean"
    if one.kind == "calc":
        return "number"
    if one.kind != "text":
        return "text"
    for start in ("integer", "number", "datetime", "date"):
        if one.validation.startswith(start):
            return start
    return "time" if one.validation in ("time", "time_hh_mm_ss") else "text"


def _expression(connection: Connection, column: str, kind: str, one: Field | None) -> str:
    if connection.dialect.name == "sqlite":
        table, value = _SQLITE, f"""NULLIF(json_extract(data, '$."{column}"'), '')"""
    else:
        table, value = _POSTGRESQL, f"NULLIF(data ->> '{column}', '')"
        if (
            kind in ("date", "datetime", "time")
            and (connection.dialect.server_version_info or ()) < _INPUT_IS_VALID_SINCE
        ):
            kind = "text"
    if one and "comma_decimal" in one.validation:
        value = f"replace({value}, ',', '.')"
    return table[kind].format(x=value)


def _rows_of(instrument: str, structure: Structure) -> str:
    """Return the condition on the rows that can hold data of an instrument."""
    if structure.labels:  # events and instruments are stored by their labels, whose form is REDCap's affair
        repeating = any(form == instrument for _, form in structure.repeats)
        return f"repeat_instrument = {_text(structure.labels.get(instrument, instrument) if repeating else '')}"
    conditions = []
    for repeating in (False, True):
        events = [
            e for e in structure.events.get(instrument, ()) if ((e, instrument) in structure.repeats) is repeating
        ]
        if events:
            name = instrument if repeating else ""
            conditions.append(f"repeat_instrument = {_text(name)} AND event IN ({', '.join(map(_text, events))})")
    return " OR ".join(conditions) or "1 = 0"  # it belongs to no event


def _codes(structure: Structure) -> Iterator[dict[str, object]]:
    """Yield the choices of each field; those of missing data under the empty name."""
    fixed = {"yesno": "1, Yes | 0, No", "truefalse": "1, True | 0, False"}
    texts = [(one.name, one.choices) for one in structure.fields if one.kind in ("radio", "dropdown", "checkbox")]
    texts += [(one.name, fixed[one.kind]) for one in structure.fields if one.kind in fixed]
    for name, text in [*texts, ("", structure.missing_codes)]:
        pairs = [part.partition(",") for part in text.split("|") if part.strip()]
        for position, (code, label) in enumerate({code.strip(): label.strip() for code, _, label in pairs}.items()):
            yield {
                "project_id": structure.project_id,
                "field_name": name,
                "code": code,
                "label": label,
                "position": position,
            }


def _free(name: str, taken: set[str]) -> str:
    """Return a name that is not taken, and take it; of a clash the later gets a number."""
    short, number = name.encode()[:NAME_MAX_BYTES].decode(errors="ignore"), 1
    while short.lower() in taken:
        number += 1
        short = f"{name.encode()[: NAME_MAX_BYTES - 5].decode(errors='ignore')}_{number}"
    taken.add(short.lower())
    return short


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _run(connection: Connection, statement: str) -> None:
    connection.exec_driver_sql(statement.replace("%", "%%") if connection.dialect.name == "postgresql" else statement)
