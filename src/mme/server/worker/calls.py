"""Decides how a request's frame becomes a handler's Input, and its Output the frames of the answers."""

from __future__ import annotations

import logging
import re
import struct
from collections.abc import AsyncIterator, Iterator
from typing import Any

from . import frames
from .api import Input, Output

_BATCH_KEY = re.compile(r"batch_(\d+)\.(.*)", re.DOTALL)
_FIRST_ERROR_CODE = 300  # from here on a batch's one answer goes to each of its requests, as in DJL
_CODE = struct.Struct(">h")  # DJL's wire has room for this much, and a handler that answers more loses its worker


def to_input(header: frames.Header, body: bytes | bytearray) -> Input:
    """The request's Input; several requests merged into one by DJL's keys, `batch_000.<key>`."""
    merged = Input()
    requests = header["inputs"]
    at = 0
    if len(requests) == 1:
        merged.properties = requests[0]["properties"]
    else:
        merged.properties["batch_size"] = str(len(requests))
    for index, request in enumerate(requests):
        prefix = ""
        if len(requests) > 1:
            prefix = f"batch_{index:03d}."
            merged.properties.update({prefix + key: value for key, value in request["properties"].items()})
        for key, length in request["content"]:
            is_whole = length == len(body) and isinstance(body, bytearray)
            merged.content.add(prefix + key, body if is_whole else bytearray(body[at : at + length]))
            at += length
    return merged


def answers(header: frames.Header, output: Output, extra: frames.Header) -> Iterator[list[frames.Buffer]]:
    """The frames that answer a request, one for each of its inputs, or the pieces of a streamed answer.

    `extra` is added to the first. Raises struct.error for a code that isn't a short integer, TypeError for a content
    that isn't bytes: the worker that answers so ends, as DJL's does.
    """
    head: frames.Header = {"id": header["id"], "code": output.code, "message": output.message}
    _CODE.pack(output.code)
    head["properties"] = [[_name(key), str(value)] for key, value in output.properties.items()]
    count = len(header["inputs"])
    if output.stream_content is not None and count == 1:
        yield from _stream(head | extra, output)
        return
    contents = output.content.get_values()
    if count == 1 or output.code >= _FIRST_ERROR_CODE:
        for index in range(count):
            yield _answer(head | (extra if index == 0 else {}), index, contents[0] if contents else b"")
        return
    problem, parts = _split(output, count)
    for index in range(count):
        if problem:
            failure = {"kind": "batch", "error": problem, "traceback": ""}
            yield frames.encode({"id": header["id"], "index": index, "failure": failure} | extra)
        else:
            yield _answer(head | (extra if index == 0 else {}), index, parts[index])


def _answer(head: frames.Header, index: int, content: frames.Buffer) -> list[frames.Buffer]:
    return frames.encode(head | {"index": index}, content)


def _name(key: Any) -> str:
    if type(key) is not str:
        raise TypeError(f"an output property's name must be a str, not {key!r}")
    return key


def _split(output: Output, count: int) -> tuple[str, list[frames.Buffer]]:
    """What a batch's Output holds for each request, or what is wrong with it in DJL's words."""
    keys, values = output.content.get_keys(), output.content.get_values()
    if len(keys) != count:
        return f"Batch output size mismatch, expected: {count}, actual: {len(keys)}", []
    parts: list[frames.Buffer] = [b""] * count
    filled = [False] * count
    for key, value in zip(keys, values, strict=True):
        matched = _BATCH_KEY.fullmatch(key or "")
        if not matched:
            return f"Unexpected batch output key: {key}", []
        index = int(matched[1])
        if index >= count:
            return f"Index {index} out of bounds for length {count}", []
        if not filled[index]:
            parts[index], filled[index] = value, True
    return "", parts


def _stream(head: frames.Header, output: Output) -> Iterator[list[frames.Buffer]]:
    closing: frames.Header = {"id": head["id"], "index": 0, "more": False}
    opening: frames.Header = head | {"index": 0, "more": True}
    try:
        for piece in _pieces(output):
            yield frames.encode(opening, _piece_bytes(piece))
            opening = {"id": head["id"], "index": 0, "more": True}
    except Exception as error:
        logging.exception("Failed read streaming content from output")
        closing["error"] = str(error)
    if "code" in opening and "error" not in closing:
        yield _answer(head, 0, b"")  # no piece at all: an answer without a body
        return
    if "code" in opening:
        yield frames.encode(opening)
    yield frames.encode(closing)


def _pieces(output: Output) -> Iterator[Any]:
    """What the handler streams, formatted. As in DJL only an iterator will do: next() of a list is a TypeError."""
    while True:
        try:
            piece = next(output.stream_content)
        except StopIteration:
            return
        yield piece if output.stream_output_formatter is None else output.stream_output_formatter(piece)


async def stream_of_outputs(
    header: frames.Header, outputs: AsyncIterator[Output]
) -> AsyncIterator[list[frames.Buffer]]:
    """The frames of an asynchronous handler's generator: each Output's first content is a piece."""
    closing: frames.Header = {"id": header["id"], "index": 0, "more": False}
    opened = False
    try:
        async for output in outputs:
            opening: frames.Header = {"id": header["id"], "index": 0, "more": True}
            if not opened:
                opening |= {"code": output.code, "message": output.message}
                opening["properties"] = [[_name(key), str(value)] for key, value in output.properties.items()]
            opened = True
            contents = output.content.get_values()
            yield frames.encode(opening, contents[0] if contents else b"")
    except Exception as error:
        logging.exception("Failed read streaming content from output")
        closing["error"] = str(error)
    if not opened:
        yield frames.encode(closing | {"more": True, "code": 200, "message": "OK", "properties": []})
    yield frames.encode(closing)


def _piece_bytes(piece: Any) -> frames.Buffer:
    if isinstance(piece, str):
        return piece.encode("utf-8")
    return piece if isinstance(piece, bytes | bytearray) else Output._encode_json(piece)
