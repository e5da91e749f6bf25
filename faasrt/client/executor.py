"""Runs executions: the one step between the methods of a runtime and the transport.

The cache is such a step too, so no caller needs to know whether there is one.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence

import attrs

from faasrt.client.cache import ResultCache, StoredResults
from faasrt.protocol.cases import CaseScheduler
from faasrt.protocol.envelope import GuestJob
from faasrt.protocol.execution import Execution
from faasrt.protocol.program import Program
from faasrt.results import ExecutionResult
from faasrt.transport.lifecycle import CallsInFlight
from faasrt.transport.live_reader import LiveReader
from faasrt.transport.requests import ProgramRequest
from faasrt.transport.transport import Transport


@attrs.frozen(eq=False)
class Executor:
    transport: Transport
    calls: CallsInFlight

    async def run(self, execution: Execution, live: LiveReader | None = None) -> ExecutionResult:
        program = execution.program
        self.calls.check_open()  # before the call, which would report that it has ended without having started
        # If the runtime is closed meanwhile, `track` turns the cancellation into an error, which the call reports.
        with self.transport.call(self.calls, program.language, program) as call, self.calls.track():
            call.call_started()
            response = await self.transport.run(call, ProgramRequest(execution, live))
        return call.finish(response.result(call.timings, call.attempts, call.endpoint))

    async def run_cases(
        self, program: Program, job: GuestJob, *, numbers: Sequence[int] = ()
    ) -> AsyncGenerator[dict[int, ExecutionResult]]:
        """Yield the results of each execution by the position of the case, in order. After the generator is closed, no
        further case runs.
        """
        cases = job.cases
        # All executions count as one call, so that closing waits for the last one.
        with self.calls.track():
            scheduler = CaseScheduler(
                cases,
                isolate=job.isolate,
                may_rerun=program.idempotent,
                max_bytes=self.transport.registry.max_cases_bytes(program.language),
                numbers=numbers,
            )
            position = 0
            while (indices := scheduler.next_batch()) is not None:
                batch = attrs.evolve(job, cases=[cases[index] for index in indices], first=indices.start)
                execution = Execution(program=program, job=batch, definition_ms=scheduler.definition_ms)
                with self.transport.call(self.calls, program.language, program) as call, self.calls.track():
                    call.call_started()
                    response = await self.transport.run(call, ProgramRequest(execution))
                call.finish(scheduler.record_results(indices, response, call.describe))
                found = {}
                while position in scheduler.results:  # removed from the scheduler, because results may be large
                    found[position] = scheduler.results.pop(position)
                    position += 1
                yield found


@attrs.frozen(eq=False)
class CachingExecutor:
    _executor: Executor
    _cache: ResultCache

    async def run(self, execution: Execution, live: LiveReader | None = None) -> ExecutionResult:
        with self._executor.calls.track():
            stored_results = self._stored_results(execution)
            if found := await stored_results.find():
                return found[0]
            result = await self._executor.run(execution, live)
            if live is not None and result.truncated:
                return result  # without live output, less may be cut
            return await stored_results.keep(result)

    async def run_cases(self, program: Program, job: GuestJob) -> AsyncGenerator[dict[int, ExecutionResult]]:
        """Yield the stored results first. Only the other cases run."""
        with self._executor.calls.track():
            stored_results = self._stored_results(Execution(program=program, job=job))
            found = await stored_results.find(range(len(job.cases)))
            yield found
            numbers = [number for number in range(len(job.cases)) if number not in found]
            new = attrs.evolve(job, cases=[job.cases[number] for number in numbers])
            async with contextlib.aclosing(self._executor.run_cases(program, new, numbers=numbers)) as executions:
                async for ran in executions:
                    yield {
                        numbers[position]: await stored_results.keep(result, numbers[position])
                        for position, result in ran.items()
                    }

    def _stored_results(self, execution: Execution) -> StoredResults:
        fingerprints = self._executor.transport.registry.fingerprints
        return StoredResults(self._cache, execution, lambda: fingerprints(execution.program.language))
