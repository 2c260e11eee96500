"""What a report shows of an exception: where, and never what a variable held."""

import json

import pytest

from supervisor import failure, messages

TOKEN = "0123456789abcdef" * 2


def raised(function) -> dict[str, str]:
    try:
        function()
    except BaseException as error:
        return failure.describe(error)
    raise AssertionError("it did not raise")


def test_type_message_and_place():
    def fails():
        raise ValueError("boom")

    seen = raised(fails)
    assert seen["type"] == "ValueError"
    assert seen["message"] == "boom"
    assert 'test_failure.py", line' in seen["traceback"]
    assert "in fails" in seen["traceback"]


def test_a_chain_shows_places_but_only_the_last_message():
    def fails():
        try:
            {}["Jane Doe"]
        except KeyError as error:
            raise RuntimeError("wrapped") from error

    seen = raised(fails)
    assert "KeyError in" in seen["traceback"]
    assert "Jane Doe" not in json.dumps(seen)


def test_secrets_of_the_environment_are_masked(monkeypatch):
    monkeypatch.setenv("MY_API_TOKEN", "not-so-hex-token")
    text = failure.mask("not-so-hex-token and https://me:hunter2@host/db and " + "aB1" * 10 + "ff")
    assert "not-so-hex-token" not in text
    assert "hunter2" not in text
    assert "aB1aB1" not in text
    assert "https://me:***@host/db" in text


@pytest.mark.parametrize("digits", [32, 64])
def test_what_looks_like_a_token_is_masked(digits):
    assert failure.mask(f"token={'A1' * (digits // 2)}.") == "token=***."


def test_a_secret_in_other_letters_is_one(monkeypatch):
    monkeypatch.setenv("REDCAP_API_TOKEN", "0123456789abcdef0123456789ABCDEF")
    assert failure.mask("0123456789ABCDEF0123456789abcdefq") == "***q"


def test_a_secret_in_an_exceptions_name_and_place_is_masked(monkeypatch):
    monkeypatch.setenv("REDCAP_API_TOKEN", TOKEN)
    kind = type(f"Err_{TOKEN}", (Exception,), {})

    def fails():
        raise kind("x")

    assert TOKEN not in json.dumps(raised(fails))
    kind.__qualname__ = "A" * 70_000
    assert raised(fails)["type"] == "A" * failure.TYPE_MAX_CHARACTERS


def test_values_lose_secrets_and_keep_the_rest(monkeypatch):
    monkeypatch.setenv("REDCAP_API_TOKEN", TOKEN)
    monkeypatch.setenv("PGPASSWORD", "records")
    value = {"records": 1, "of": [f"x{TOKEN}", None, 1.5], TOKEN: "é", "sum": "d41d8cd98f00b204e9800998ecf8427e"}
    masked = {"records": 1, "of": ["x***", None, 1.5], "***": "é", "sum": "d41d8cd98f00b204e9800998ecf8427e"}
    assert failure.mask_values(value) == masked
    assert failure.mask_values({"a": (1, 2)}) == {"a": (1, 2)}


def test_a_uuid_stays():
    text = "cycle 965b089e-9aba-4ffd-8b0f-18fd388a3595"
    assert failure.mask(text) == text


def test_an_endless_message_and_recursion_still_fit_a_packet():
    def fails(depth=0):
        if depth > 500:
            raise ValueError("\u0000" * 100_000)
        fails(depth + 1)

    seen = raised(fails)
    assert "frames left out" in seen["traceback"]
    messages.encode({"kind": "result", "ok": False, "error": seen, "peak_rss_bytes": 1})


def test_an_error_whose_text_fails_is_still_told():
    class Broken(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    def fails():
        raise Broken

    assert "RuntimeError" in raised(fails)["message"]
