"""Messages: whole or not at all, capped, and never trusted."""

import json
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor import messages
from supervisor.messages import MESSAGE_MAX_BYTES, ProtocolError
from supervisor.run import is_result


@pytest.fixture
def ends():
    ours, theirs = messages.pair()
    with ours, theirs:
        yield ours, theirs


def test_a_message_arrives_as_it_was_sent(ends):
    ours, theirs = ends
    messages.send(theirs, {"kind": "progress", "done": 1})
    assert messages.receive(ours) == {"kind": "progress", "done": 1}


def test_nothing_there_is_not_the_end(ends):
    ours, theirs = ends
    with pytest.raises(BlockingIOError):
        messages.receive(ours)
    theirs.close()
    assert messages.receive(ours) is None


def test_what_was_sent_before_the_end_is_read(ends):
    ours, theirs = ends
    messages.send(theirs, {"kind": "result"})
    theirs.close()
    assert messages.receive(ours) == {"kind": "result"}
    assert messages.receive(ours) is None


@pytest.mark.parametrize("packet", [b"\x80\x04.", b"[]", b"{}", b'{"kind": 1}', b"null", b"[" * 50_000])
def test_what_is_no_message_is_refused(ends, packet):
    ours, theirs = ends
    theirs.send(packet)
    with pytest.raises(ProtocolError):
        messages.receive(ours)


def test_a_packet_above_the_cap_is_refused_unread(ends):
    ours, theirs = ends
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MESSAGE_MAX_BYTES)
    theirs.send(b'{"kind":"' + b"x" * MESSAGE_MAX_BYTES + b'"}')
    with pytest.raises(ProtocolError, match="more than"):
        messages.receive(ours)


def test_what_is_too_large_is_not_sent():
    with pytest.raises(ProtocolError, match="bytes"):
        messages.encode({"kind": "x" * MESSAGE_MAX_BYTES})


@pytest.mark.parametrize("value", [object(), float("nan"), {1, 2}, b"bytes"])
def test_what_has_no_json_form_is_not_sent_nor_quoted(value):
    with pytest.raises(ProtocolError) as caught:
        messages.encode({"kind": value})
    assert str(value)[:20] not in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=50),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=10), json_values, max_size=5))
def test_any_message_comes_back_equal(fields):
    message = {**fields, "kind": "x"}
    assert json.loads(messages.encode(message)) == message


@given(st.dictionaries(st.sampled_from(["kind", "ok", "summary", "error", "peak_rss_bytes"]), json_values))
def test_a_result_is_whole_or_no_result(message):
    if is_result(message):
        assert isinstance(message["peak_rss_bytes"], int)
        assert isinstance(message["summary"], dict) if message["ok"] else set(message["error"]) >= {"type"}


def test_half_a_surrogate_pair_does_not_go_on_into_the_journal():
    ours, theirs = messages.pair()
    with ours, theirs:
        messages.send(theirs, {"kind": "result", "text": "a \udcff b \U0001f600 \\ud800", "key\ud800": ["\udfff"]})
        message = messages.receive(ours)
        assert message == {"kind": "result", "text": "a ? b \U0001f600 \\ud800", "key?": ["?"]}
