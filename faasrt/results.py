"""What a call gives back: one typed verdict, and everything that is known about it.

An `Outcome` is always about the user's code; what the infrastructure does wrong is an error of `faasrt.errors`.

    OK             the code ran to its end, with exit code 0
    USER_ERROR     it raised, rejected, or exited with another code: see `result.error` and `result.exit_code`
    SYNTAX_ERROR   it does not parse; nothing ran
    TIMEOUT        it was ended at its time limit
    MEMORY_LIMIT   it was ended at its memory limit (a catchable MemoryError or RangeError is a USER_ERROR)
    OUTPUT_LIMIT   it was ended for writing far more than its output limit (more than twice that, on the embedded FaaS)
    CRASHED        it ended without a word: a hard exit, a trap, a signal

A program calls `return_val(text)` to hand a value to its caller: `result.ret_val` is that text, `result.value` the JSON
in it, decoded. The last call counts.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

import attrs

from faasrt import strict_json
from faasrt.errors import ExecutionError, ReturnValueError


class Outcome(enum.StrEnum):
    """How the user's code ended. Every outcome is about the code, never about the infrastructure.

    Example:
        >>> result = await manager.run_code("while True: pass", "python", timeout_ms=200)
        >>> result.outcome is Outcome.TIMEOUT
        True
    """

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
    r"""The exception that ended the user's code.

    Attributes:
        name: The type's name, such as "ValueError" or "TypeError".
        message: What the exception says; may be empty.
        traceback: The traceback or stack as the language prints it, with the user's own line numbers; may be empty.

    Example:
        >>> result = await manager.run_code("x = 1\nx.nope", "python")
        >>> result.error.name, result.error.message
        ('AttributeError', "'int' object has no attribute 'nope'")
        >>> result.error.traceback.splitlines()[1]
        '  File "main.py", line 2, in <module>'
    """

    name: str
    message: str = ""
    traceback: str = ""


@attrs.frozen
class ExecutionOutput:
    r"""What the user's code wrote, and the text that it gave to `return_val` (last call wins; "" when never called).

    Example:
        >>> code = "import sys; print('out'); print('err', file=sys.stderr); return_val(1)"
        >>> (await manager.run_code(code, "python")).output
        ExecutionOutput(stdout='out\n', stderr='err\n', ret_val='1')
    """

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

    Example:
        >>> timings = (await manager.run_code("print(1)", "python")).timings
        >>> 0 <= timings.queued + sum(timings.attempts) <= timings.total
        True
    """

    queued: float = 0.0
    total: float = 0.0
    attempts: tuple[float, ...] = ()


@attrs.frozen(kw_only=True)
class ExecutionResult:
    r"""The verdict on one execution, with everything that is known about it.

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

    Example:
        >>> result = await manager.run_code("print('hi'); return_val('[1, 2]')", "python")
        >>> result.ok, result.stdout, result.value, result.exit_code, result.attempts
        (True, 'hi\n', [1, 2], 0, 1)
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

        Example:
            >>> (await manager.run_code('return_val(JSON.stringify({ score: 0.5 }))', "js")).value
            {'score': 0.5}
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
        r"""Return the result itself when it is OK.

        Raises:
            ExecutionError: The outcome is another; the error carries this result.

        Example:
            >>> (await manager.run_code("print(1)", "python")).raise_for_outcome().stdout
            '1\n'
        """
        if self.ok:
            return self
        reason = f": {self.error.name}: {self.error.message[:1_000]}" if self.error else ""
        raise ExecutionError(f"the code ended as {self.outcome}{reason}", self)

    def to_dict(self) -> dict[str, Any]:
        r"""Give every field as a value that `json.dumps` takes; `value` is None where `ret_val` is not JSON.

        Example:
            >>> told = (await manager.run_code("print(1)", "python")).to_dict()
            >>> told["outcome"], told["stdout"], told["truncated"]
            ('OK', '1\n', [])
        """
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

    A copy, as `attrs.evolve` makes it, would take five times as long.
    """
    tell = object.__setattr__
    tell(result, "timings", timings)
    tell(result, "attempts", attempts)
    tell(result, "endpoint", endpoint)
    return result


@attrs.frozen
class Diagnostic:
    """One complaint about a program's syntax.

    Attributes:
        message: What is wrong.
        line: The line, from 1; None when the checker does not say.
        column: The column in characters, from 1; None when the checker does not say.

    Example:
        >>> (await manager.validate_code("x = (1,", "python")).diagnostics
        (Diagnostic(message="'(' was never closed", line=1, column=5),)
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

    Example:
        >>> checked = await manager.validate_code("let a = ;", "js")
        >>> if not checked:
        ...     print(checked.diagnostics[0].message, "says", checked.checked_by)
        Expression expected says Deno ...
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

    Example:
        >>> health = (await manager.get_health_status()).endpoints[0]
        >>> health.healthy, health.status, health.error
        (True, 'healthy', '')
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

    Example:
        >>> status = await manager.get_health_status()
        >>> [entry.endpoint for entry in status.endpoints if not entry.healthy]
        []
    """

    endpoints: tuple[EndpointHealth, ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether there is an endpoint, and every endpoint is healthy."""
        return bool(self.endpoints) and all(endpoint.healthy for endpoint in self.endpoints)

    def __bool__(self) -> bool:
        return self.healthy
