"""What a call gives back: one typed verdict, and everything that is known about it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

import attrs

from faasrt import strict_json
from faasrt.errors import ExecutionError, ReturnValueError


class Outcome(enum.StrEnum):
    """How the user's code ended. Every outcome is about the code, never about the infrastructure."""

    OK = "OK"
    """It ran to its end, with exit code 0."""
    USER_ERROR = "USER_ERROR"
    """An exception, an unhandled rejection, or a non-zero exit."""
    SYNTAX_ERROR = "SYNTAX_ERROR"
    """It does not parse; nothing ran."""
    TIMEOUT = "TIMEOUT"
    """It was ended at its time limit."""
    MEMORY_LIMIT = "MEMORY_LIMIT"
    """The sandbox was ended at its memory limit. A catchable MemoryError or RangeError is a USER_ERROR."""
    OUTPUT_LIMIT = "OUTPUT_LIMIT"
    """It was ended for writing far more than its output limit."""
    CRASHED = "CRASHED"
    """The interpreter ended without saying why: a hard exit, a trap, a signal."""


@attrs.frozen
class UserError:
    """The exception that ended the user's code.

    Attributes:
        name: The type's name, such as "ValueError" or "TypeError".
        message: What the exception says; may be empty.
        traceback: The traceback or stack as the language prints it, with the user's own line numbers; may be empty.
    """

    name: str
    message: str = ""
    traceback: str = ""


@attrs.frozen
class ExecutionOutput:
    """What the user's code wrote, and the text that it gave to `return_val` (last call wins; "" when never called)."""

    stdout: str = ""
    stderr: str = ""
    ret_val: str = ""


@attrs.frozen
class Timings:
    """Where the time of a call went, in seconds, on this side of the wire.

    Attributes:
        queued: Waiting for permits, in all.
        total: From the call until its result.
        attempts: One figure for each attempt, from sending until its answer was read.
    """

    queued: float = 0.0
    total: float = 0.0
    attempts: tuple[float, ...] = ()


@attrs.frozen(kw_only=True)
class ExecutionResult:
    """The verdict on one execution, with everything that is known about it.

    Attributes:
        outcome: How the code ended.
        output: The text of the three streams, each cut to `max_output_bytes`.
        error: The exception that ended the code, or None.
        exit_code: The exit code that the server told, or None.
        truncated: The names of the streams ("stdout", "stderr", "ret_val") that were cut.
        duration_ms: The server's figure for the execution, in milliseconds; None when it told none.
        timings: Seconds by phase, measured here.
        attempts: How many attempts were made, from 1.
        endpoint: The base URL that answered.
        metadata: The server's metadata, untouched.
    """

    outcome: Outcome
    output: ExecutionOutput = ExecutionOutput()
    error: UserError | None = None
    exit_code: int | None = None
    truncated: frozenset[str] = frozenset()
    duration_ms: float | None = None
    timings: Timings = Timings()
    attempts: int = 1
    endpoint: str = ""
    metadata: Mapping[str, Any] = attrs.field(factory=dict, converter=dict, hash=False)

    @property
    def ok(self) -> bool:
        """Whether the outcome is OK."""
        return self.outcome is Outcome.OK

    @property
    def stdout(self) -> str:
        """Short for `output.stdout`."""
        return self.output.stdout

    @property
    def stderr(self) -> str:
        """Short for `output.stderr`."""
        return self.output.stderr

    @property
    def ret_val(self) -> str:
        """Short for `output.ret_val`: exactly what `return_val` was given, as text."""
        return self.output.ret_val

    @property
    def value(self) -> Any:
        """The JSON that `return_val` was given, decoded anew at each reading.

        Raises:
            ReturnValueError: `return_val` was never called, or was given no valid JSON (NaN and Infinity are none),
                or the text was cut at the output limit.
        """
        if not self.ret_val:
            raise ReturnValueError("the code returned no value: it did not call return_val, or passed it nothing")
        if "ret_val" in self.truncated:
            raise ReturnValueError("the return value was cut at the output limit: raise max_output_bytes")
        try:
            return strict_json.loads(self.ret_val)
        except (ValueError, RecursionError) as error:
            raise ReturnValueError(f"the return value is not JSON ({error}): read it as text from ret_val") from None

    def raise_for_outcome(self) -> ExecutionResult:
        """Return the result itself when it is OK.

        Raises:
            ExecutionError: The outcome is another; the error carries this result.
        """
        if self.ok:
            return self
        reason = f": {self.error.name}: {self.error.message[:1_000]}" if self.error else ""
        raise ExecutionError(f"the code ended as {self.outcome}{reason}", self)

    def to_dict(self) -> dict[str, Any]:
        """Give every field as a value that `json.dumps` takes; `value` is None where `ret_val` is not JSON."""
        try:
            value = self.value
        except ReturnValueError:
            value = None
        return {
            "outcome": str(self.outcome),
            "stdout": self.stdout,
            "stderr": self.stderr,
            "ret_val": self.ret_val,
            "value": value,
            "error": attrs.asdict(self.error) if self.error else None,
            "exit_code": self.exit_code,
            "truncated": sorted(self.truncated),
            "duration_ms": self.duration_ms,
            "timings": {**attrs.asdict(self.timings), "attempts": list(self.timings.attempts)},
            "attempts": self.attempts,
            "endpoint": self.endpoint,
            "metadata": dict(self.metadata),
        }


def complete(result: ExecutionResult, *, timings: Timings, attempts: int, endpoint: str) -> ExecutionResult:
    """Tell a result, which was just made and which nobody has seen yet, what is known of its call.

    A copy, as `attrs.evolve` makes it, would take longer than all else that is done for a call here.
    """
    for name, value in (("timings", timings), ("attempts", attempts), ("endpoint", endpoint)):
        object.__setattr__(result, name, value)
    return result


@attrs.frozen
class Diagnostic:
    """One complaint about a program's syntax.

    Attributes:
        message: What is wrong.
        line: The line, from 1; None when the checker does not say.
        column: The column in characters, from 1; None when the checker does not say.
    """

    message: str
    line: int | None = None
    column: int | None = None


@attrs.frozen
class ValidationResult:
    """Whether a program parses. Truthy when it does.

    Attributes:
        valid: Whether the program parses.
        diagnostics: What is wrong with it; empty when valid.
        checked_by: Who judged, such as "CPython 3.15.0".
    """

    valid: bool
    diagnostics: tuple[Diagnostic, ...] = ()
    checked_by: str = ""

    def __bool__(self) -> bool:
        return self.valid

    @classmethod
    def empty_code(cls) -> ValidationResult:
        """The judgement on a program of nothing but white space, which no FaaS needs to be asked for."""
        return cls(False, (Diagnostic("the code is empty", 1, 1),), "faasrt")


@attrs.frozen(kw_only=True)
class EndpointHealth:
    """The answer of one endpoint to a health probe.

    Attributes:
        endpoint: The base URL.
        healthy: Whether it answered 200 and called itself healthy.
        status: The server's own word, such as "healthy" or "degraded"; "failed" when it answered nonsense or a refusal,
            "unreachable" when it did not answer.
        latency_s: Seconds until its answer, or until the probe gave up.
        version: The version that the server names, or "".
        error: Why it is not healthy, or "".
        details: The server's whole answer.
    """

    endpoint: str
    healthy: bool
    status: str
    latency_s: float
    version: str = ""
    error: str = ""
    details: Mapping[str, Any] = attrs.field(factory=dict, hash=False)


@attrs.frozen
class HealthStatus:
    """The health of every endpoint behind a runtime or manager. Truthy when each one is healthy.

    Attributes:
        endpoints: One entry for each base URL, in the order of the settings.
    """

    endpoints: tuple[EndpointHealth, ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether there is an endpoint, and every endpoint is healthy."""
        return bool(self.endpoints) and all(endpoint.healthy for endpoint in self.endpoints)

    def __bool__(self) -> bool:
        return self.healthy
