"""Executor: runs the executions of a runtime, or returns their stored results."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import attrs

from faasrt.client.cache import ResultCache, Reuse
from faasrt.protocol.cases import MAX_REQUEST_BYTES, CaseScheduler
from faasrt.protocol.envelope import GuestJob
from faasrt.protocol.program import Execution
from faasrt.protocol.registry import protocol_of
from faasrt.protocol.request import RunRequest
from faasrt.results import ExecutionResult
from faasrt.telemetry.dispatch import EventDispatcher
from faasrt.telemetry.metrics import Counters
from faasrt.transport.call_context import CallContext
from faasrt.transport.lifecycle import CallsInFlight
from faasrt.transport.live_reader import LiveReader
from faasrt.transport.transport import Transport


@attrs.frozen(eq=False)
class Executor:
    """Runs executions, reports them, and reuses stored results.

    Args:
        transport: Sends requests.
        counters: The counters of `get_metrics()`.
        emit: Called with the events of calls.
        calls: The calls in flight of the runtime.
        cache: The stored results; None for no cache.
    """

    _transport: Transport
    _counters: Counters
    _emit: EventDispatcher
    _calls: CallsInFlight
    _cache: ResultCache | None = None

    async def run(self, execution: Execution, may_rerun: bool, live: LiveReader | None = None) -> ExecutionResult:
        """Return the result of a program or a single call. `live` gets the output of a program while it runs."""
        with self._calls.track():
            reuse = self._reuse(execution)
            if stored := await reuse.find():
                return stored
            with self._call(execution) as context:
                response = await self._transport.run(
                    context, execution, idempotent=may_rerun, owner=self._calls, live=live
                )
            result = context.finish(context.result(response.result()))
            if live is not None and result.truncated:
                return result  # without live output, less may be cut
            return await reuse.keep(result)

    async def run_cases(
        self, request: RunRequest, function: str | None, cases: Sequence[str], *, isolate: bool, may_rerun: bool
    ) -> list[ExecutionResult]:
        """Return the result of each case: of a function, or of the whole program (see `envelope`).

        Only the cases without a stored result run.
        """
        # All executions count as one call, so that closing waits for the last one.
        with self._calls.track():
            whole = GuestJob(function=function, cases=cases, single=False, isolate=isolate)
            reuse = self._reuse(Execution(run=request, job=whole))
            stored = [await reuse.find(number) for number in range(len(cases))]
            numbers = [number for number, result in enumerate(stored) if result is None]
            new = [cases[number] for number in numbers]
            limits = (protocol_of(url).profile.max_cases_bytes for url in self._transport.urls(request.language))
            max_bytes = min((limit for limit in limits if limit is not None), default=MAX_REQUEST_BYTES)
            scheduler = CaseScheduler(new, isolate=isolate, may_rerun=may_rerun, max_bytes=max_bytes, numbers=numbers)
            while (indices := scheduler.next_batch()) is not None:
                batch = [new[index] for index in indices]
                job = GuestJob(function=function, cases=batch, first=indices.start, single=False, isolate=isolate)
                execution = Execution(run=request, job=job, definition_ms=scheduler.definition_ms)
                with self._call(execution) as context:
                    response = await self._transport.run(context, execution, idempotent=may_rerun, owner=self._calls)
                context.finish(scheduler.record_results(indices, response, context.result))
            results = iter([await reuse.keep(*ran) for ran in zip(scheduler.all_results(), numbers, strict=True)])
        return [result or next(results) for result in stored]

    def _reuse(self, execution: Execution) -> Reuse:
        return Reuse(self._cache, execution, lambda: self._transport.fingerprints(execution.run.language))

    @contextlib.contextmanager
    def _call(self, execution: Execution) -> Iterator[CallContext]:
        """Yield the context of a call, and report its start and its failure."""
        request = execution.run
        context = CallContext(self._emit, self._counters, self._transport.clock, request.language)
        try:
            context.call_started(request.code, request.timeout_ms)
            with self._calls.track():  # if the runtime is closed, this turns a cancellation into an error
                yield context
        except BaseException as error:
            context.fail(error)
            raise
