"""The pure parts: windows, keys, hashes, the reader of arrays."""

import json
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker import errors, records, stream
from worker.records import Key
from worker.window import begin_by_offsets, begin_local, offset_of, server_format

BERLIN = ZoneInfo("Europe/Berlin")
HOUR = timedelta(hours=1)


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)


def test_a_window_in_summer_and_in_winter():
    assert begin_local(utc(2026, 7, 1, 10), utc(2026, 7, 1, 11), BERLIN) == datetime(2026, 7, 1, 12)
    assert begin_local(utc(2026, 1, 1, 10), utc(2026, 1, 1, 11), BERLIN) == datetime(2026, 1, 1, 11)


def test_the_hour_that_comes_twice_is_covered_from_its_start():
    # On 2026-10-25 at 01:00 UTC the clock in Berlin goes from 03:00 back to 02:00.
    begin = begin_local(utc(2026, 10, 25, 0, 30), utc(2026, 10, 25, 1, 30), BERLIN)
    assert begin == datetime(2026, 10, 25, 2, 0)  # and not 02:30, when the window began


def test_the_hour_that_is_left_out_moves_nothing():
    # On 2026-03-29 at 01:00 UTC the clock in Berlin goes from 02:00 to 03:00.
    assert begin_local(utc(2026, 3, 29, 0, 30), utc(2026, 3, 29, 1, 30), BERLIN) == datetime(2026, 3, 29, 1, 30)


@settings(deadline=None)
@given(
    begin=st.datetimes(datetime(2025, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC)),
    length=st.timedeltas(timedelta(0), timedelta(days=3)),
    share=st.floats(0, 1),
    zone=st.sampled_from(["Europe/Berlin", "America/Chicago", "Australia/Lord_Howe", "Asia/Kolkata", "UTC"]),
)
def test_no_moment_of_the_interval_is_before_its_begin(begin, length, share, zone):
    # Whatever was logged in the interval, in the server's wall time, is found by "after begin".
    info = ZoneInfo(zone)
    end = begin + length
    moment = begin + length * share
    local = moment.astimezone(info).replace(tzinfo=None)
    assert begin_local(begin, end, info) <= local
    then_s, now_s = (int(one.astimezone(info).utcoffset().total_seconds()) for one in (begin, end))
    assert begin_by_offsets(begin, end, then_s, now_s) <= local


def test_over_half_a_year_an_offset_that_came_and_went_is_covered():
    begin, end = utc(2026, 7, 1), utc(2027, 7, 1)
    assert begin_by_offsets(begin, end, 7200, 7200) == datetime(2026, 7, 1, 1)


@pytest.mark.parametrize(
    ("local", "offset_s"),
    [
        (datetime(2026, 7, 1, 12, 0), 7200),
        (datetime(2026, 7, 1, 11, 59), 7200),
        (datetime(2026, 7, 1, 15, 30), 19_800),
        (datetime(2026, 7, 1, 5, 0), -18_000),
        (datetime(2026, 7, 1, 11, 53), None),  # seven minutes off: not a row of now
        (datetime(2026, 6, 29, 10, 0), None),
    ],
)
def test_the_servers_offset(local, offset_s):
    assert offset_of(local, utc(2026, 7, 1, 10, 0)) == offset_s


def test_the_format_of_the_server():
    assert server_format(datetime(2026, 7, 1, 2, 3, 4)) == "2026-07-01 02:03:04"


def row(record="1", **fields):
    return {"record_id": record, **fields}


KEYS = records.Keys("record_id")


def raw(*rows):
    return [records.to_json(one) for one in rows]


def test_keys():
    assert KEYS.of(*raw(row())) == Key("1", "", "", 0)
    full = row(redcap_event_name="e", redcap_repeat_instrument="f", redcap_repeat_instance=3)
    assert KEYS.of(*raw(full)) == Key("1", "e", "f", 3)
    assert KEYS.of(*raw(full | {"redcap_repeat_instance": "3"})) == Key("1", "e", "f", 3)
    assert KEYS.of(*raw(row(redcap_repeat_instance=""))).repeat_instance == 0
    for bad in ({}, row(""), row(None), row(redcap_repeat_instance="x"), row(5), row("a\0"), row(redcap_event_name=[])):
        with pytest.raises(errors.AnswerMalformed):
            KEYS.of(*raw(bad))


def test_a_row_is_kept_as_it_came():
    one = records.stored(b'{"b":"1","a":"\\u00e4"}')
    assert one.data == '{"b":"1","a":"\\u00e4"}'
    assert not one.mended
    assert records.stored(b'{"b":"1","a":"\\u00e4"}') == one
    for other in ({"b": "1", "a": ""}, {"b": "1"}, {"b": "1", "a": "a"}, {"b": 1, "a": "ä"}):
        assert records.stored(*raw(other)).data_hash != one.data_hash


@pytest.mark.parametrize("text", ["\0", "a\0b", "\\\0"])
def test_a_character_that_no_database_takes_is_marked(text):
    kept = records.stored(*raw({"a": text, "b": 3, "c": "\\u0000"}))
    assert kept.mended
    assert json.loads(kept.data) == {"a": text.replace("\0", "\ufffd"), "b": 3, "c": "\\u0000"}


def test_a_backslash_before_u0000_is_text():
    kept = records.stored(*raw({"c": "\\u0000"}))
    assert not kept.mended
    assert json.loads(kept.data) == {"c": "\\u0000"}


def test_a_record_nobody_asked_for_and_a_row_that_comes_twice():
    with pytest.raises(errors.AnswerMalformed, match="not asked for"):
        records.group(raw(row("2")), KEYS, ["1"])
    with pytest.raises(errors.AnswerMalformed, match="one key"):
        records.group(raw(row(), row()), KEYS, ["1"])
    assert set(records.group(raw(row("a ")), KEYS, ["A"])) == {"a "}  # as MySQL compares
    assert set(records.group(raw(row("e\u0301"), row("Ö")), KEYS, ["É", "o"])) == {"e\u0301", "Ö"}
    with pytest.raises(errors.IdsHashed, match="rights"):
        records.group(raw(row("a" * 32)), KEYS, ["1"])


@pytest.mark.parametrize(
    ("setting", "columns", "size"), [("auto", 60, 900), ("auto", 3000, 66), ("auto", 10**6, 1), (100, 5, 100)]
)
def test_the_size_of_a_batch_goes_by_cells(setting, columns, size):
    assert records.batch_size(setting, columns) == size


def test_a_column_that_comes_twice_is_never_believed():
    keys = records.Keys("record_id", ["record_id", "a", "b"])
    good = [
        b'{"record_id":"1","a":"x","b":""}',
        b'{"record_id":"2","a":"\\":","b":"x"}',
        b'{"record_id":"3","a":":","b":5}',
    ]
    assert set(records.group(good, keys, "1234")) == {"1", "2", "3"}
    for bad in (
        b'{"record_id":"4","a":"x","b":"y","a":"x"}',
        b'{"record_id":"5","record_id":"4","a":"x","b":"y"}',
        b'{"record_id":"4","a":"x","a":"y"}',
        b'{"record_id":"4","a" :"x","a":"y"}',
        b'{"record_id":"4","a":"x"}',
        b'{"record_id":"4"}',
        b'{"record_id":"4","a":"x","b":"y","c":"z"}',
        b'{"record_id":"4","a":[[["x"]]],"b":"y"}',
        b'{"record_id":"4","a":{"b":1},"b":"y"}',
        b'{"record_id":"4","a":' + b"9" * 10_000 + b',"b":"y"}',
        b'{"record_id":"4","a":' + b"[" * 900 + b"]" * 900 + b',"b":"y"}',
    ):
        for at in range(4):
            with pytest.raises(errors.AnswerMalformed):
                records.group([*good[:at], bad, *good[at:]], keys, "1234")


def read(body: bytes, step: int = 7) -> list[dict]:
    pieces = iter([body[at : at + step] for at in range(0, len(body), step)])
    return [stream.decoded(one) for one in stream.rows(lambda: next(pieces, b""), errors.RequestRefused)]


ROWS = [{"record_id": "1", "note": 'a "quoted" \\ line\nä😀'}, {"record_id": "2", "n": 5}]
BODY = json.dumps(ROWS).encode()


@pytest.mark.parametrize("step", [1, 2, 3, 16, 1000])
def test_rows_come_out_whatever_the_pieces(step):
    assert read(BODY, step) == ROWS
    assert read(b"\xef\xbb\xbf \n" + json.dumps(ROWS, ensure_ascii=False).encode() + b"\n", step) == ROWS
    assert read(b" [ ] ", step) == []


@pytest.mark.parametrize("cut", range(len(BODY)))
def test_a_body_cut_at_any_byte_is_no_answer(cut):
    with pytest.raises(errors.AnswerCutOff):
        read(BODY[:cut])


rows_strategy = st.lists(
    st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.integers(-(10**9), 10**9), max_size=4), max_size=8
)


@given(rows_strategy, st.integers(1, 50), st.booleans())
def test_any_array_of_rows_is_read_as_the_standard_library_reads_it(rows, step, ascii_only):
    assert (
        read(
            json.dumps(rows, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
            if ascii_only
            else json.dumps(rows).encode(),
            step,
        )
        == rows
    )


@given(st.binary(max_size=200), st.integers(1, 50))
def test_rubbish_is_a_named_error_or_rows(body, step):
    try:
        assert isinstance(read(body, step), list)
    except errors.SyncError:
        pass


@pytest.mark.parametrize(
    ("body", "error", "match"),
    [
        (b"", errors.AnswerCutOff, "empty"),
        (b"  \n", errors.AnswerCutOff, "empty"),
        (b"<!DOCTYPE html><html>", errors.NotRedcap, "web page"),
        (b"The hostname (x) / username (y) could not connect", errors.NotRedcap, "database"),
        (b"\x00\x01", errors.NotRedcap, "something else"),
        (b'{"error":"You have no rights"}', errors.RequestRefused, "rights"),
        (b'{"records":[]}', errors.AnswerMalformed, "object"),
        (b'[{"a":"1"}]<br>', errors.AnswerMalformed, "behind"),
        (b'[{"a":"1"}][]', errors.AnswerMalformed, "behind"),
        (b'[{"a":"1"} {"b":"2"}]', errors.AnswerMalformed, "broken JSON"),
        (b'[{"a":"1","a":"2"}]', errors.AnswerMalformed, "twice"),
        (b'[{"a":"\x01"}, {"padding":"longer than a token"}]', errors.AnswerMalformed, "invalid character"),
        (b'[{"a":"\xa0\xff"}]', errors.AnswerMalformed, "UTF-8"),
        (b"[1, 2]", errors.AnswerMalformed, "row should be"),
        (b'["a"]', errors.AnswerMalformed, "row should be"),
        (b"[null]", errors.AnswerMalformed, "row should be"),
        (b'[{"a":NaN}]', errors.AnswerMalformed, "broken JSON"),
        (b'[{"a":' + b"9" * 10_000 + b"}]", errors.AnswerMalformed, "digits"),
        (b"[" * 100_000 + b"]" * 100_000, errors.AnswerMalformed, "nested"),
    ],
)
def test_each_fault_has_its_name(body, error, match):
    with pytest.raises(error, match=match):
        read(body, 4096)


def test_blanks_without_end_take_no_memory():
    pieces = iter([b"["] + [b" " * 65_536] * 500 + [b"]"])
    assert list(stream.rows(lambda: next(pieces, b""), errors.RequestRefused)) == []


def test_notes_full_of_what_looks_like_rows_do_not_hold_up_the_rows():
    note = ("[" + "},{".join(["a"] * 200) + "]") * 150
    body = json.dumps([{"record_id": str(n), "note": note} for n in range(40)], separators=(",", ":")).encode()
    read_bytes = 0

    def piece():
        nonlocal read_bytes
        read_bytes += 65_536
        return body[read_bytes - 65_536 : read_bytes]

    ahead = [
        read_bytes - (number + 1) * len(body) / 40 for number, _ in enumerate(stream.rows(piece, errors.RequestRefused))
    ]
    assert len(ahead) == 40
    assert max(ahead) < 1_000_000


@pytest.mark.parametrize("text", ["x" * 1_000_000, "},{" * 300_000, '"},{"a":"' * 100_000])
@pytest.mark.parametrize("between", [",", " ,\n "])
def test_long_rows_are_read_whatever_is_in_them(text, between):
    rows = [{"note": text}, {"note": "short"}] * 3
    body = f"[{between.join(map(json.dumps, rows))}]".encode()
    assert read(body, 65_536) == rows


def test_rows_come_before_the_body_has_ended():
    part = json.dumps(ROWS).encode()[1:-1] + b","
    pieces = iter([b"[", *[part * 5_000] * 3])
    assert stream.decoded(next(stream.rows(lambda: next(pieces), errors.RequestRefused))) == ROWS[0]


@given(rows_strategy, st.integers(1, 40), st.sampled_from([",", ", ", " ,\n"]))
def test_a_small_part_at_a_time_is_the_same(rows, step, between):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "PART_BYTES", 16)
        assert read(f"[{between.join(map(json.dumps, rows))}]".encode(), step) == rows


def test_an_object_is_read_as_one():
    def single(body):
        pieces = iter([body])
        return stream.single(lambda: next(pieces, b""), errors.RequestRefused)

    assert single(b'{"project_id": 1}') == {"project_id": 1}
    for body, error in (
        (b"[]", errors.AnswerMalformed),
        (b'{"error":"no"}', errors.RequestRefused),
        (b'{"project_id"', errors.AnswerCutOff),
        (b"", errors.AnswerCutOff),
        (b"<html>", errors.NotRedcap),
        (b"{} {}", errors.AnswerMalformed),
    ):
        with pytest.raises(error):
            single(body)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("The value of the parameter 'no_such'", "The value of the parameter 'no_such'"),
        ("You do not have 'Jane Doe'", "You do not have '…'"),
        ('You cannot export "4711"', "You cannot export '…'"),
        ("record 'Jane Doe' is locked", "(27 characters that may hold values: not shown)"),
    ],
)
def test_a_servers_words_are_shown_without_values(text, shown):
    assert errors.server_text(text) == shown
