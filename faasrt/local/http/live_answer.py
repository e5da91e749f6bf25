"""Answers a run with the lines of `faasrt.protocol.json_lines` while the program runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import attrs
from aiohttp import web

from faasrt.local.engines.engine import EngineJob
from faasrt.local.engines.live_output import LiveOutput
from faasrt.local.http.body_memory import Share
from faasrt.local.http.connections import BoundedConnection
from faasrt.local.http.responses import write_pieces
from faasrt.protocol import json_lines
from faasrt.protocol.program import NOT_STARTED_HEADER, PROGRAM_SUSPECT_HEADER
from faasrt.protocol.return_val import defines_return_val


class LineResponse(web.StreamResponse):
    def __init__(self, request: web.BaseRequest, share: Share) -> None:
        # The second header asks nginx not to buffer the answer.
        super().__init__(headers={"Content-Type": json_lines.CONTENT_TYPE, "X-Accel-Buffering": "no"})
        self._request, self._share = request, share
        self.sent_bytes = 0

    async def send(self, line: bytes) -> None:
        if not self.prepared:
            await self.prepare(self._request)
        self.sent_bytes += len(line)
        await write_pieces(self, line, self._share)


async def answer_live(
    request: web.BaseRequest,
    job: EngineJob,
    execute: Callable[[EngineJob], Awaitable[web.Response]],
    make_error: Callable[[Exception], web.Response],
    share: Share,
) -> web.StreamResponse:
    """Run a program, and send its output while it runs.

    `execute` returns the usual answer, and `make_error` returns the answer for a failure. The returned answer was sent
    except for its end. If the program failed before it printed anything, the usual answer is returned.

    Cancellation: ends the program.
    """
    # If the program prints its return value, this must be removed from the output, which is possible only at the end.
    live = LiveOutput(held=defines_return_val(job.code, job.language))
    response = LineResponse(request, share)
    connection = request.protocol
    assert isinstance(connection, BoundedConnection)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_send_chunks(response, live))
            try:
                answer = await execute(attrs.evolve(job, live=live))
            except Exception as error:
                answer = make_error(error)
            finally:
                live.close()
            # While the program ran, its time limit applied to a client that does not read. The request is still held.
            connection.begin_answer(share, share.size + (answer.content_length or 0))
    finally:
        live.discard()
    if answer.status == 200:
        await response.send(json_lines.encode_result(_body_of(answer)))
    elif not response.prepared:
        return answer
    else:
        await response.send(_error_line(answer))
    return response


async def _send_chunks(response: LineResponse, live: LiveOutput) -> None:
    try:
        while (piece := await live.take()) is not None:
            stream, text, elapsed_s = piece
            await response.send(json_lines.encode_chunk(stream, text, round(elapsed_s * 1000, 1)))
    except ConnectionError:
        live.discard()  # the client has gone, and aiohttp is about to cancel the request


def _error_line(answer: web.Response) -> bytes:
    fields: dict[str, object] = {"status": answer.status}
    if "Retry-After" in answer.headers:
        fields["retry_after_s"] = float(answer.headers["Retry-After"])
    for name, header in (("not_started", NOT_STARTED_HEADER), ("program_suspect", PROGRAM_SUSPECT_HEADER)):
        if header in answer.headers:
            fields[name] = True
    return json_lines.encode_error(_body_of(answer), **fields)


def _body_of(answer: web.Response) -> bytes:
    assert isinstance(answer.body, bytes)
    return answer.body
