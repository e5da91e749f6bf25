"""The parts of live output: decoding, buffers, filters, the queue, and the lines of an answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re

import pytest
from hypothesis import given, strategies as st

from faasrt import OutputChunk, ProtocolError
from faasrt.local.engines.deno.output_filter import OutputFilter
from faasrt.local.engines.live_output import PIECE_BYTES, LiveOutput
from faasrt.protocol.answer import Answer
from faasrt.protocol.json_lines import accepts_lines, decode_line, encode_chunk, encode_error, encode_result
from faasrt.protocol.streams import OutputBuffer, TextDecoder, cut, decode

# Bytes of characters of one to four bytes, a lone surrogate, and bytes that are never valid.
PIECES = st.lists(
    st.one_of(
        st.binary(max_size=4),
        st.sampled_from(["é".encode(), "€".encode()[:2], "😀".encode()[:3], b"\xed\xa0\x80", b"\xed\xa0", b"\xff"]),
    )
)


@given(PIECES)
def test_pieces_decode_to_the_same_text_as_the_whole(pieces: list[bytes]) -> None:
    """Characters that are split between pieces, lone surrogates and invalid bytes are decoded as in the whole."""
    decoder = TextDecoder()
    texts = [decoder.feed(piece) for piece in pieces]
    assert "".join([*texts, decoder.finish()]) == decode(b"".join(pieces))


def test_lone_surrogates_survive_next_to_invalid_bytes() -> None:
    assert decode(b"a\xed\xa0\x80\xff\xf0\x9f") == "a\ud800\ufffd\ufffd"


@given(PIECES, st.integers(1, 100))
def test_a_buffer_of_twice_the_limit_cuts_like_the_whole(pieces: list[bytes], limit: int) -> None:
    """Up to twice the limit and one byte, the text is that of `cut`."""
    data = b"".join(pieces)[: 2 * limit + 1]
    buffer = OutputBuffer(limit)
    for start in range(0, len(data), 7):
        buffer.add(data[start : start + 7])
    assert (buffer.data, buffer.size, buffer.cut()) == (data, len(data), cut(data, limit))


def test_a_buffer_keeps_the_head_and_the_tail_of_a_long_stream() -> None:
    """The memory is bounded, and the marker states the number of bytes that are missing."""
    buffer = OutputBuffer(100)
    for number in range(10_000):
        buffer.add(b"%09d\n" % number)
        assert len(buffer.data) <= 302
    text, was_cut = buffer.cut()
    assert was_cut
    assert len(text) <= 100
    head, _, tail = text.partition("... ")
    size, _, tail = tail.partition(" bytes cut ...\n")
    assert head.startswith("000000000\n")
    assert tail.endswith("000009999\n")
    assert len(head) - 1 + int(size) + len(tail) == buffer.size == 100_000


def test_a_long_stream_keeps_its_lone_surrogates() -> None:
    """The cut is between characters, also between those that UTF-8 cannot encode."""
    buffer = OutputBuffer(100)
    buffer.add(b"\xed\xa0\x80" * 1_000)
    text, _ = buffer.cut()
    assert re.fullmatch("\ud800+\n... [0-9]+ bytes cut ...\n\ud800+", text)


URL = b"blob:null/0123"


@given(st.lists(st.sampled_from([URL, URL[:5], URL[5:], b"b", b"bl", b"\n", b"x"])))
def test_the_url_of_the_program_is_replaced_across_pieces(pieces: list[bytes]) -> None:
    output_filter = OutputFilter(URL, b"main.ts", False)
    parts = [output_filter.feed(piece) for piece in pieces]
    assert b"".join([*parts, output_filter.finish()]) == b"".join(pieces).replace(URL, b"main.ts")


@given(st.lists(st.sampled_from([URL, URL[:5], URL[5:], b"b", b":", b"1", b"\n", b":2:3"])))
def test_a_url_with_a_position_is_replaced_across_pieces(pieces: list[bytes]) -> None:
    """In the folder of a program, only a URL before a line number is part of a stack."""
    output_filter = OutputFilter(URL, b"main.ts", True)
    parts = [output_filter.feed(piece) for piece in pieces]
    whole = re.sub(re.escape(URL) + rb"(?=:\d)", b"main.ts", b"".join(pieces))
    assert b"".join([*parts, output_filter.finish()]) == whole


def test_the_diagnostics_of_v8_are_held_back() -> None:
    """Output from the start of the diagnostics on is kept until the end, unless it is too long for diagnostics."""
    output_filter = OutputFilter(b"", b"main.ts", False)
    output_filter.holds_diagnostics = True
    diagnostics = b"\n<--- Last few GCs --->\n"
    assert output_filter.feed(b"mine" + diagnostics) == b"mine"
    assert output_filter.feed(b"more") == b""
    assert output_filter.held == diagnostics + b"more"
    assert output_filter.feed(b"x" * 70_000) == diagnostics + b"more" + b"x" * 70_000
    assert output_filter.feed(b"on" + diagnostics) == b"on" + diagnostics


async def test_the_queue_is_full_until_the_reader_has_taken_enough() -> None:
    """The reader gets large pieces in order, and the engine learns how many bytes were taken."""
    live, taken = LiveOutput(), list[int]()
    live.on_taken = taken.append
    for _ in range(70_000):
        live.put("stdout", b"x")
    live.put("stderr", b"e")
    assert live.full
    assert await live.take() == ("stdout", "x" * PIECE_BYTES, pytest.approx(0, abs=30))
    assert not live.full
    live.close()
    rest = [piece[:2] async for piece in _pieces(live)]
    assert rest == [("stdout", "x" * PIECE_BYTES), ("stdout", "x" * (70_000 - 2 * PIECE_BYTES)), ("stderr", "e")]
    assert sum(taken) == 70_001


async def test_the_queue_joins_split_characters_and_ends_with_incomplete_ones() -> None:
    live = LiveOutput()
    for piece in ("é".encode()[:1], "é".encode()[1:], b"a\xf0\x9f"):
        live.put("stdout", piece)
    live.put("stderr", b"\xe2")
    live.close()
    texts = [piece[:2] async for piece in _pieces(live)]
    assert "".join(text for stream, text in texts if stream == "stdout") == "éa\ufffd"
    assert "".join(text for stream, text in texts if stream == "stderr") == "\ufffd"


async def test_discarded_output_counts_as_taken() -> None:
    """A program whose reader has gone, or whose stdout is held, does not wait for room."""
    for held in (True, False):
        live, taken = LiveOutput(held=held), list[int]()
        live.on_taken = taken.append
        if not held:
            live.discard()
        live.put("stdout", b"x" * 100_000)
        assert (live.full, sum(taken)) == (False, 100_000)


async def _pieces(live: LiveOutput):  # type: ignore[no-untyped-def]
    while (piece := await live.take()) is not None:
        yield piece


def test_lines_are_decoded_as_they_were_encoded() -> None:
    assert decode_line(encode_chunk("stderr", "\ud800\n", 12.5)) == OutputChunk(
        stream="stderr", text="\ud800\n", elapsed_s=0.0125
    )
    assert decode_line(encode_result(b'{"a": {}}')) == Answer(status=200, body=b'{"a": {}}')
    failure = Answer(status=503, body=b'{"error": "x"}', retry_after_s=1.0, not_started=True)
    line = encode_error(b'{"error": "x"}', status=503, retry_after_s=1.0, not_started=True)
    assert decode_line(line) == failure
    assert decode_line(b" \r") is None


@pytest.mark.parametrize(
    "line",
    [
        b"[]", b"nope", b"\xff", b"{}", b'{"stream": "stdin", "text": "", "elapsed_ms": 0}', b"[" * 100_000,
        b'{"stream": "stdout", "text": 1, "elapsed_ms": 0}', b'{"stream": "stdout", "text": "a"}',
        b'{"stream": "stdout", "text": "a", "elapsed_ms": -1}',
        b'{"stream": "stdout", "text": "a", "elapsed_ms": 1e999}',
        b'{"stream": "stdout", "text": "a", "elapsed_ms": true}', b'{"error": {}}', b'{"error": {"status": 200}}',
        b'{"error": {"status": "500"}}', b'{"error": "x"}', b'{"stream": [], "text": "a", "elapsed_ms": 0}',
    ],
)  # fmt: skip
def test_malformed_lines_are_protocol_errors(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_line(line)


@given(st.binary(max_size=200))
def test_no_line_raises_anything_else(line: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        decode_line(line)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [("application/x-ndjson", True), ("a/b, Application/X-NDJSON;q=0.5", True), ("*/*", False), ("", False),
     ("application/x-ndjson;q=0", False), ("application/x-ndjson; q=0.000 , */*", False), ("application/json", False)],
)  # fmt: skip
def test_only_a_header_that_names_the_type_asks_for_lines(accept: str, expected: bool) -> None:
    assert accepts_lines(accept) is expected


def test_a_queue_is_read_in_another_task() -> None:
    """The reader waits for output, and for its end."""

    async def main() -> list[str]:
        live = LiveOutput()

        async def read() -> list[str]:
            return [piece[1] async for piece in _pieces(live)]

        reader = asyncio.create_task(read())
        for text in ("a", "b"):
            live.put("stdout", text.encode())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        live.close()
        return await reader

    assert "".join(asyncio.run(main())) == "ab"
    assert json.loads(encode_chunk("stdout", "a", 1))["elapsed_ms"] == 1
