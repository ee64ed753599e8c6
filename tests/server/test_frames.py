from __future__ import annotations

import socket
import struct
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mme.server.worker import frames

HEADER = {"id": 7, "op": "invoke", "inputs": [{"properties": {"a": "ü\udce9"}, "content": [["data", 3]]}]}


# Messages, and the sizes of the pieces in which their stream arrives.
cut_anywhere = given(
    st.lists(st.tuples(st.dictionaries(st.text(), st.integers()), st.binary(max_size=200)), max_size=8),
    st.lists(st.integers(1, 50), min_size=1),
)


def joined(header, *parts):
    return b"".join(frames.encode(header, *parts))


def test_a_frame_comes_back_as_it_was_sent():
    assert frames.Decoder().feed(joined(HEADER, b"abc", memoryview(b"de"))) == [(HEADER, b"abcde")]


@cut_anywhere
def test_frames_survive_any_cut_of_the_stream(messages, sizes):
    stream = b"".join(joined(header, body) for header, body in messages)
    decoder, got, turn = frames.Decoder(), [], 0
    while stream:
        size = sizes[turn % len(sizes)]
        got += decoder.feed(stream[:size])
        stream, turn = stream[size:], turn + 1
    assert got == messages


@cut_anywhere
def test_frames_survive_where_bodies_are_received_into_their_room(messages, sizes):
    stream = b"".join(joined(header, body) for header, body in messages)
    decoder, got, turn = frames.Decoder(), [], 0
    while stream:
        size, room = sizes[turn % len(sizes)], decoder.room
        if room is None:
            got += decoder.feed(stream[:size])
        else:
            size = min(size, len(room))
            room[:size] = stream[:size]
            got += decoder.filled(size)
        stream, turn = stream[size:], turn + 1
    assert got == messages


@given(st.binary(max_size=300))
def test_hostile_bytes_are_refused_or_waited_for_and_nothing_else(data):
    try:
        for header, body in frames.Decoder(max_frame_bytes=1000).feed(data):
            assert isinstance(header, dict) and isinstance(body, bytes)
    except frames.FrameError:
        pass


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("!II", frames.MAX_FRAME_BYTES + 1, 2),
        struct.pack("!II", 6, 3) + b"{}",
        struct.pack("!II", 3, 0),
        struct.pack("!II", 6, 2) + b"{x",
        struct.pack("!II", 6, 2) + b"[]",
        struct.pack("!II", 6, 2) + b"\xff\xff",
    ],
)
def test_what_is_not_a_frame_is_refused_at_once(data):
    with pytest.raises(frames.FrameError):
        frames.Decoder().feed(data)


def test_a_body_larger_than_the_socket_holds_arrives_whole():
    ours, theirs = socket.socketpair()
    body = bytes(range(256)) * 40_000
    sender = threading.Thread(target=frames.send, args=(ours, frames.encode({"id": 1}, body, b"", body)))
    sender.start()
    decoder, got = frames.Decoder(), []
    while not got:
        got = decoder.feed(theirs.recv(100_000))
    sender.join()
    ours.close()
    theirs.close()
    assert got == [({"id": 1}, body + body)]


def test_a_frame_beyond_the_maximum_is_not_sent(monkeypatch):
    monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 10)
    with pytest.raises(ValueError, match="larger than 10"):
        frames.encode({}, b"12345678")
