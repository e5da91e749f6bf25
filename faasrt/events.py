"""What happens during a call, as frozen records: the single source that every telemetry sink is fed from.

The life of a call is `CallStarted`, then for each attempt `AttemptStarted` and `AttemptFinished`, with `RetryScheduled`
between two of them, then `CallFinished`. `EndpointChanged` and `LimitChanged` belong to no call. `ExecutionStarted` and
`ExecutionFinished` come from the embedded FaaS, which lives in the same process, and tell of its side of a request.

A sink is called with each of them. It may have a method `hears`, which tells whether it cares for a kind of event that
tells of no failure: what nobody hears is not even made.

Records hold ids, sizes, hashes and times. They never hold code, input or output of a user.

Example:
    >>> told = []
    >>> async with faasrt.RuntimeManager.from_env(telemetry=[told.append]) as manager:
    ...     result = await manager.run_code("print(6 * 7)", "python")
    >>> [type(event).__name__ for event in told]
    ['CallStarted', 'AttemptStarted', 'LimitChanged', 'AttemptFinished', 'CallFinished']
    >>> told[-1].outcome, told[-1].output_bytes
    ('OK', 3)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias, runtime_checkable

import attrs


@attrs.frozen(kw_only=True)
class CallStarted:
    """A call was checked and accepted.

    Attributes:
        call_id: Names the call in its later events.
        language: The wire name of the language.
        code_bytes: The size of the program in UTF-8 bytes.
        code_hash: The first 16 hex digits of the program's SHA-256.
        timeout_ms: The limit of the execution in milliseconds.
    """

    call_id: str
    language: str
    code_bytes: int
    code_hash: str
    timeout_ms: float


@attrs.frozen(kw_only=True)
class AttemptStarted:
    """A permit is held, and a request is about to be sent.

    Attributes:
        call_id: The id of its `CallStarted`.
        language: The wire name of the language.
        attempt: The number of the attempt, from 1.
        endpoint: The base URL it goes to.
    """

    call_id: str
    language: str
    attempt: int
    endpoint: str


@attrs.frozen(kw_only=True)
class AttemptFinished:
    """The answer to a request was read and judged, or will not come.

    Attributes:
        call_id: The id of its `CallStarted`.
        language: The wire name of the language.
        attempt: The number of the attempt, from 1.
        endpoint: The base URL it went to.
        duration_s: Seconds from sending to the end of the answer.
        status: The HTTP status of the answer; None when there was none.
        error: The class name of the error, or None.
    """

    call_id: str
    language: str
    attempt: int
    endpoint: str
    duration_s: float
    status: int | None
    error: str | None


@attrs.frozen(kw_only=True)
class RetryScheduled:
    """An attempt failed, and another will be made.

    Attributes:
        call_id: The id of its `CallStarted`.
        language: The wire name of the language.
        attempt: The number of the attempt that failed, from 1.
        endpoint: The base URL that it went to.
        error: The class name of its error.
        wait_s: Seconds until the next one, at the earliest.
    """

    call_id: str
    language: str
    attempt: int
    endpoint: str
    error: str
    wait_s: float


@attrs.frozen(kw_only=True)
class EndpointChanged:
    """An endpoint was ejected, or is back.

    Attributes:
        endpoint: Its base URL.
        family: The languages for which it is: "python" or "javascript".
        state: "ejected" or "closed" (which is well).
        ejected_s: Seconds until a call tries it again; 0 when it is back.
    """

    endpoint: str
    family: str
    state: str
    ejected_s: float


@attrs.frozen(kw_only=True)
class LimitChanged:
    """An endpoint gets more calls at once than before, or fewer.

    Attributes:
        endpoint: Its base URL.
        family: The languages for which it is: "python" or "javascript".
        limit: Calls that it gets at once at most; of a fraction the whole part counts.
    """

    endpoint: str
    family: str
    limit: float


@attrs.frozen(kw_only=True)
class CallFinished:
    """A call ended with a result or an error; a cancelled one has the error "CancelledError".

    Attributes:
        call_id: The id of its `CallStarted`.
        language: The wire name of the language.
        endpoint: The base URL that was tried last, or "".
        outcome: The outcome, or None when the call failed.
        error: The class name of the error, or None.
        attempts: Attempts made.
        queued_s: Seconds until a permit was held.
        total_s: Seconds in all.
        output_bytes: UTF-8 bytes of stdout, stderr and ret_val together.
    """

    call_id: str
    language: str
    endpoint: str
    outcome: str | None
    error: str | None
    attempts: int
    queued_s: float
    total_s: float
    output_bytes: int


@attrs.frozen(kw_only=True)
class ExecutionStarted:
    """The embedded FaaS was sent a program, which is right so far and waits for its turn.

    Attributes:
        execution_id: Names the execution in its later event; the `task_id` in the metadata of its result.
        language: The wire name of the language.
        path: "/run_code", or "/validate_code" when the program is only to be parsed.
        code_bytes: The size of the program in UTF-8 bytes. Programs may come in an envelope.
        code_hash: The first 16 hex digits of the program's SHA-256.
        timeout_ms: The limit of the execution in milliseconds.
        traceparent: The W3C trace context that the request came with; None when it has none, or a wrong one.
        tracestate: What came along for it, 512 characters at most; None without a `traceparent`.
    """

    execution_id: str
    language: str
    path: str
    code_bytes: int
    code_hash: str
    timeout_ms: float
    traceparent: str | None
    tracestate: str | None


@attrs.frozen(kw_only=True)
class ExecutionFinished:
    """It has run, was refused, or was given up because its client went away: then the error is "CancelledError".

    Attributes:
        execution_id: The id of its `ExecutionStarted`.
        language: The wire name of the language.
        outcome: The outcome, or None when there is no verdict.
        error: The class name of the error, or None.
        status: The HTTP status of the answer; None when nobody waits for one.
        total_s: Seconds in all.
    """

    execution_id: str
    language: str
    outcome: str | None
    error: str | None
    status: int | None
    total_s: float


Event: TypeAlias = (
    CallStarted
    | AttemptStarted
    | AttemptFinished
    | RetryScheduled
    | EndpointChanged
    | LimitChanged
    | CallFinished
    | ExecutionStarted
    | ExecutionFinished
)
Sink: TypeAlias = Callable[[Event], None]


@runtime_checkable
class HeaderSink(Protocol):
    """A sink that adds headers to the requests of a call, such as the trace that the server is to continue."""

    def __call__(self, event: Event, /) -> None:
        """Take an event."""

    def request_headers(self, call_id: str, /) -> Mapping[str, str]:
        """Give the headers for the next request of a call.

        Names and values are printable ASCII, a name of 100 characters at most, a value of 4,096; all sinks together
        may add 32. What the client sets itself, or leaves to HTTP, cannot be set here. A header that is refused is left
        out with those behind it, and told of once in the log.

        Args:
            call_id: As in the call's events. The check of a program by the server is a call without events.
        """
        ...


def hash_code(code: bytes) -> str:
    """Give the name under which a program appears in events: enough to find it again, nothing to read it by."""
    return hashlib.sha256(code).hexdigest()[:16]
