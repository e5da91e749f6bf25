"""Reads an answer whose output arrives while the program runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import aiohttp

from faasrt.errors import ConnectionLostError, ProtocolError
from faasrt.protocol.answer import Answer
from faasrt.protocol.json_lines import decode_line
from faasrt.results import OutputChunk

_MOST_SKIPPED_LINES = 10_000
"""Lines without text in one answer. A server may send some to keep the connection open."""
_LINES_PER_TURN = 100
"""Lines without text that are read before the event loop can do other work."""
_BLOCKED_S = 0.05
"""A turn of the event loop that takes longer was blocked by the caller, such as by writing to a full pipe."""


class LineTooLongError(Exception):
    """Callers convert this into another error."""


class LiveReader:
    """Reads the answers of one call, and delivers the output in them.

    Once `has_delivered` is true, the call must not be retried.
    """

    def __init__(self, deliver: Callable[[OutputChunk], Awaitable[None]]) -> None:
        self.live = self.has_delivered = False
        self._deliver = deliver
        self._skipped_lines = 0

    async def read(self, content: aiohttp.StreamReader, max_body_bytes: int, timeout: asyncio.Timeout) -> Answer:
        """Read an answer to its end, and return what it says about the program.

        Args:
            max_body_bytes: The largest line that is read. It is also the limit of the output, in characters, because it
                is larger than twice the maximum size of both streams, at which the server stops the program.
            timeout: It is extended by the time for which output waits for the caller.

        Raises:
            LineTooLongError: A line is too long.
            ProtocolError: A line is malformed, or there are too many, or too much output.
            ConnectionLostError: The last line is missing.
        """
        self.live = True
        self._skipped_lines = text_size = 0
        answer: Answer | None = None
        pending = bytearray()
        while piece := await content.readany():
            searched = len(pending)
            pending += piece
            begin = 0
            while (end := pending.find(b"\n", max(begin, searched))) >= 0:
                decoded = decode_line(bytes(pending[begin:end])) if end > begin else None
                begin = end + 1
                if decoded is None:
                    await self._skip_line()
                elif answer is not None:
                    raise ProtocolError("the answer goes on after its result", sent="yes", status=200)
                elif isinstance(decoded, Answer):
                    answer = decoded
                elif decoded.text:
                    text_size += len(decoded.text)
                    if text_size > max_body_bytes:
                        raise ProtocolError("the server sent more output than allowed", sent="yes", status=200)
                    await self._wait_delivered(decoded, timeout)
                else:
                    await self._skip_line()
            del pending[:begin]
            if len(pending) > max_body_bytes:
                raise LineTooLongError
        if answer is None or pending:
            message = "the connection broke: the answer has no result at its end"
            raise ConnectionLostError(message, sent="maybe")
        return answer

    async def _skip_line(self) -> None:
        self._skipped_lines += 1
        if self._skipped_lines > _MOST_SKIPPED_LINES:
            message = "the answer has too many lines without text"
            raise ProtocolError(message, sent="yes", status=200)
        if self._skipped_lines % _LINES_PER_TURN == 0:
            await asyncio.sleep(0)

    async def _wait_delivered(self, chunk: OutputChunk, timeout: asyncio.Timeout) -> None:
        loop, when = asyncio.get_running_loop(), timeout.when()
        if when is not None and loop.time() >= when:
            # While lines arrive without a pause, each delivery stops the timeout before it can cancel this task.
            timeout.reschedule(when)
            await asyncio.sleep(0)  # the timeout cancels this task here
        self.has_delivered = True
        timeout.reschedule(None)
        waits_since = began = loop.time()

        def begin_wait() -> None:
            nonlocal waits_since
            waits_since = loop.time()

        # A caller that already waits for output takes it in the next turn of the event loop. This turn does not count,
        # because the event loop also receives data from the server in it, unless the caller has blocked the loop.
        loop.call_soon(loop.call_soon, begin_wait)
        await self._deliver(chunk)
        waited_s = loop.time() - (began if waits_since - began > _BLOCKED_S else waits_since)
        timeout.reschedule(None if when is None else when + waited_s)
