"""The events of calls, as frozen records. Every telemetry sink is called with them.

A call is `CallStarted`, then `AttemptStarted` and `AttemptFinished` for each attempt, with `RetryScheduled` between two
attempts, then `CallFinished`. `EndpointChanged`, `LimitChanged`, `ReplicasChanged` and `ReplicaRemoved` belong to no
call. `ExecutionStarted` and `ExecutionFinished` come from the embedded FaaS, which runs in the same process, and report
its side of a request.

A sink may have a method `is_enabled_for(kind)`. It returns whether the sink wants events of this class that do not
report a failure; it gets all that report one. Events that no sink wants are not created.

Events contain ids, sizes, hashes and times. They never contain the code, input or output of a user. `reason` is the
part of an error message that faasrt wrote; the text of a server is left out.

Example:
    >>> seen = []
    >>> async with faasrt.RuntimeManager.from_env(telemetry=[seen.append]) as manager:
    ...     result = await manager.run_code("print(6 * 7)", "python")
    >>> [type(event).__name__ for event in seen]
    ['CallStarted', 'AttemptStarted', 'LimitChanged', 'AttemptFinished', 'CallFinished']
    >>> seen[-1].outcome, seen[-1].output_bytes
    ('OK', 3)
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias, get_args, runtime_checkable

import attrs

from faasrt._attribute_docs import list_attributes

__all__ = [
    "AttemptFinished",
    "AttemptStarted",
    "CallFinished",
    "CallStarted",
    "EndpointChanged",
    "Event",
    "ExecutionFinished",
    "ExecutionStarted",
    "HeaderSink",
    "LimitChanged",
    "ReplicaRemoved",
    "ReplicasChanged",
    "RetryScheduled",
    "Sink",
]


@attrs.frozen(kw_only=True)
class _CallEvent:
    call_id: str
    """The id of the call in all its events."""
    language: str
    """The wire name of the language."""


@attrs.frozen(kw_only=True)
class _AttemptEvent(_CallEvent):
    attempt: int
    """The number of the attempt, from 1."""
    endpoint: str
    """The base URL of the server."""


@list_attributes
@attrs.frozen(kw_only=True)
class CallStarted(_CallEvent):
    """A call was checked and accepted."""

    code_bytes: int
    """The size of the program in UTF-8 bytes."""
    code_hash: str
    """The first 16 hex digits of the program's SHA-256."""
    timeout_ms: float
    """The limit of the execution in milliseconds."""


@list_attributes
@attrs.frozen(kw_only=True)
class AttemptStarted(_AttemptEvent):
    """A request is about to be sent."""


@list_attributes
@attrs.frozen(kw_only=True)
class AttemptFinished(_AttemptEvent):
    """A request ended, with an answer or without one."""

    duration_s: float
    """The seconds from sending the request to the end of the answer."""
    status: int | None
    """The HTTP status of the answer; None without an answer."""
    error: str | None
    """The class name of the error, or None."""
    reason: str | None = None
    """The reason of the error, or None."""


@list_attributes
@attrs.frozen(kw_only=True)
class RetryScheduled(_AttemptEvent):
    """An attempt failed, and another will follow."""

    error: str
    """The class name of the error."""
    wait_s: float
    """The delay before the next attempt in seconds. It may also have to wait for a permit."""
    reason: str | None = None
    """The reason of the error, or None."""


@list_attributes
@attrs.frozen(kw_only=True)
class EndpointChanged:
    """The circuit breaker of an endpoint opened or closed."""

    endpoint: str
    """The base URL."""
    family: str
    """The family of languages: "javascript" for JavaScript and TypeScript, else the language."""
    state: str
    """The new state: "open" or "closed"."""
    open_s: float
    """The seconds until a call probes the endpoint, at most; 0 if the breaker closed."""


@list_attributes
@attrs.frozen(kw_only=True)
class LimitChanged:
    """The concurrency limit of an endpoint changed."""

    endpoint: str
    """The base URL."""
    family: str
    """The family of languages: "javascript" for JavaScript and TypeScript, else the language."""
    limit: float
    """The maximum number of calls in flight. It may have a fraction; the client rounds it down."""


@list_attributes
@attrs.frozen(kw_only=True)
class ReplicasChanged:
    """A look-up of the name in a `dns+` URL found other addresses, began to fail, or succeeded again."""

    endpoint: str
    """The URL in the settings."""
    replicas: int
    """The number of replicas now."""
    added: tuple[str, ...] = ()
    """The endpoints of the new replicas."""
    removed: tuple[str, ...] = ()
    """The endpoints of the replicas that have left. They may still have calls in flight."""
    error: str | None = None
    """The class name of the error, or None."""
    reason: str | None = None
    """The reason of the error, or None."""


@list_attributes
@attrs.frozen(kw_only=True)
class ReplicaRemoved:
    """An endpoint has left the settings or the addresses of its name, and its last call has ended; or a `dns+` URL has
    left the settings. When the last runtime is closed, each replica that was discovered is removed, too.
    """

    endpoint: str
    """The endpoint, or the URL."""


@list_attributes
@attrs.frozen(kw_only=True)
class CallFinished(_CallEvent):
    """A call ended with a result or an error. A cancelled call has the error "CancelledError"."""

    endpoint: str
    """The base URL of the last attempt, or "". If it is a replica that has left since, its `dns+` URL."""
    outcome: str | None
    """The outcome, or None when the call failed."""
    error: str | None
    """The class name of the error, or None."""
    attempts: int
    """The number of attempts."""
    queued_s: float
    """The seconds spent waiting for permits."""
    total_s: float
    """The seconds from the start of the call to its end."""
    output_bytes: int
    """The size of stdout, stderr and ret_val together, in UTF-8 bytes."""
    reason: str | None = None
    """The reason of the error, or None."""


@list_attributes
@attrs.frozen(kw_only=True)
class ExecutionStarted:
    """The embedded FaaS accepted a program and queued it."""

    execution_id: str
    """The id of the execution in its events, and the `task_id` in the metadata of its result."""
    language: str
    """The wire name of the language."""
    path: str
    """The path of the request: "/run_code"; "/sessions/{id}/run" for a program in a session, without its id;
    "/validate_code" when the program is only parsed; or the path of another service."""
    code_bytes: int
    """The size of the program in UTF-8 bytes, including its envelope."""
    code_hash: str
    """The first 16 hex digits of the program's SHA-256."""
    timeout_ms: float
    """The limit of the execution in milliseconds."""
    traceparent: str | None
    """The W3C trace context of the request; None when it is missing or invalid."""
    tracestate: str | None
    """The vendors' part of the trace context, at most 512 characters; None without a `traceparent`."""


@list_attributes
@attrs.frozen(kw_only=True)
class ExecutionFinished:
    """An execution ended or was refused. When its client disconnected, the error is "CancelledError"."""

    execution_id: str
    """The id of its `ExecutionStarted`."""
    language: str
    """The wire name of the language."""
    outcome: str | None
    """The outcome, or None when it failed."""
    error: str | None
    """The class name of the error, or None."""
    status: int | None
    """The HTTP status of the answer; None if the client disconnected."""
    total_s: float
    """The seconds from the acceptance of the program to its end."""


Event: TypeAlias = (
    CallStarted
    | AttemptStarted
    | AttemptFinished
    | RetryScheduled
    | EndpointChanged
    | LimitChanged
    | ReplicasChanged
    | ReplicaRemoved
    | CallFinished
    | ExecutionStarted
    | ExecutionFinished
)
Sink: TypeAlias = Callable[[Event], None]

EVENT_NAMES = {kind: re.sub("(?<!^)(?=[A-Z])", "_", kind.__name__).lower() for kind in get_args(Event)}
"""The names of events in logs and traces: "call_started" for `CallStarted`, and so on."""


@runtime_checkable
class HeaderSink(Protocol):
    """A sink that adds headers to the requests of a call, such as a trace context."""

    def __call__(self, event: Event, /) -> None:
        """Process an event."""

    def request_headers(self, call_id: str, /) -> Mapping[str, str]:
        """Return the headers for the next request of a call.

        Names and values must be printable ASCII, names with at most 100 characters and values with at most 4,096. All
        sinks together may add 32 headers. Headers that the client or HTTP sets are refused. If a header is refused, it
        and the sink's headers after it are not sent, and the error is logged once.

        Args:
            call_id: The id of the call, as in its events. A validation by the server has an id but no events.
        """
        ...


def hash_code(code: bytes) -> str:
    return hashlib.sha256(code).hexdigest()[:16]
