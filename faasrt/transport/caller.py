"""One call of a runtime, from its beginning to what its caller gets, with the events that tell of both."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Self, TypeVar

from faasrt.config import Settings
from faasrt.emitter import Emitter
from faasrt.protocol.cases import Stamp
from faasrt.results import ExecutionResult
from faasrt.transport.calls import CallsInFlight
from faasrt.transport.counters import Counters
from faasrt.transport.dispatcher import Dispatcher, Execution
from faasrt.transport.trace import CallTrace

T = TypeVar("T")


class Caller:
    """Has executions run for a runtime.

    Args:
        settings: Endpoints, and whether code may run more than once.
        dispatcher: Runs them.
        calls: Refuses them once closing has begun.
        emit: Takes the events.
        counters: Counts for `get_metrics()`.
    """

    def __init__(
        self, settings: Settings, dispatcher: Dispatcher, calls: CallsInFlight, emit: Emitter, counters: Counters
    ) -> None:
        self._settings = settings
        self._dispatcher = dispatcher
        self._calls = calls
        self._emit = emit
        self._counters = counters
        self._patient = False

    def patiently(self) -> Self:
        """Give this caller for calls whose number is bounded, and which wait for a permit without limit."""
        other = copy.copy(self)
        other._patient = True
        return other

    async def run(
        self, execution: Execution[T], idempotent: bool | None, conclude: Callable[[T, Stamp], ExecutionResult]
    ) -> ExecutionResult:
        """Have something run, make of what was said of it what the call gives, and tell the sinks.

        Args:
            execution: What to run.
            idempotent: Whether it may run more than once; the settings' word when None.
            conclude: Makes the result, given what tells a result all that is known of its call.

        Raises:
            FaasrtError: See `Runtime.run_code`.
        """
        request = execution.run
        trace = CallTrace(self._emit, self._counters, self._dispatcher.clock, request.language)
        try:
            trace.call_started(request.code, request.timeout_ms)
            with self._calls.one_call():
                said = await self._dispatcher.run(
                    self._settings.endpoints[request.language],
                    execution,
                    idempotent=self._settings.retry.idempotent if idempotent is None else idempotent,
                    trace=trace,
                    patient=self._patient,
                )
            result = conclude(said, trace.stamp())
        except BaseException as error:
            trace.call_finished(None, error)
            raise
        trace.call_finished(result, None)
        return result
