"""What a supervisor and its worker say to each other: JSON in whole packets, never pickles.

The socket is SOCK_SEQPACKET, so the kernel keeps the boundaries: a worker that is killed in
the middle of a message leaves no half of one behind, and a length that lies can't be sent.
Neither side ever executes or unpickles what the other sent.
"""

import json
import socket
from typing import Any

MESSAGE_MAX_BYTES = 65_536

Message = dict[str, Any]


class ProtocolError(Exception):
    """What came through the channel is no message."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a new channel: the supervisor's (non-blocking), the worker's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    return ours, theirs


def encode(message: Message) -> bytes:
    """Return `message` as a packet.

    Raises ProtocolError when it is larger than the cap, or holds what JSON has no form for.
    """
    try:
        packet = json.dumps(message, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        # The error's text may quote the value, so only its type is passed on.
        raise ProtocolError(f"it has no JSON form ({type(error).__name__})") from None
    if len(packet) > MESSAGE_MAX_BYTES:
        raise ProtocolError(f"it has {len(packet):,} bytes as JSON; at most {MESSAGE_MAX_BYTES:,} go through")
    return packet


def send(channel: socket.socket, message: Message) -> None:
    """Send one message. Raises ProtocolError (see `encode`) or OSError when the peer is gone."""
    channel.sendall(encode(message))


def receive(channel: socket.socket) -> Message | None:
    """Return the next message; None when the peer has closed its end.

    Raises BlockingIOError when there is none yet, ProtocolError when what came is no message.
    """
    try:
        packet, _, flags, _ = channel.recvmsg(MESSAGE_MAX_BYTES)
    except ConnectionResetError:
        # The peer went without reading what we sent. The kernel says so once, and before what the
        # peer had sent itself: that is still to be read.
        packet, _, flags, _ = channel.recvmsg(MESSAGE_MAX_BYTES)
    if flags & socket.MSG_TRUNC:
        raise ProtocolError(f"a packet of more than {MESSAGE_MAX_BYTES:,} bytes")
    if not packet:
        return None
    try:
        message = json.loads(packet)
        # Half a surrogate pair, as os.fsdecode makes them, is no text: strict readers of JSON refuse it.
        if b"\\ud" in packet:
            message = json.loads(json.dumps(message, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        raise ProtocolError("a packet that is not JSON") from None
    if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
        raise ProtocolError("a packet that is JSON, but no message")
    return message
