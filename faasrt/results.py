"""The results of calls: executions, validation and health.

An `Outcome` says how the user's code ended. Failures of the infrastructure are the errors of `faasrt.errors`.
`faasrt/docs/error-handling.md` says how to handle each.

A program returns a value by calling `return_val(text)`. `result.ret_val` is the text passed to the last call, and
`result.value` is this text decoded as JSON; None if the program returned nothing.
"""

from __future__ import annotations

import base64
import enum
from collections.abc import Mapping
from typing import Any, Literal

import attrs

from faasrt import _strict_json
from faasrt._attribute_docs import list_attributes
from faasrt.errors import ExecutionError, ReturnValueError, rounded_repr, safe_repr
from faasrt.inputs import files_to_wire

__all__ = [
    "Diagnostic",
    "Display",
    "EndpointHealth",
    "ErrorInfo",
    "ExecutionOutput",
    "ExecutionResult",
    "HealthStatus",
    "Outcome",
    "OutputChunk",
    "Timings",
    "ValidationResult",
]


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
    """It raised an exception, left a promise rejection unhandled, or exited with another code: see `result.error` and
    `result.exit_code`."""
    SYNTAX_ERROR = "SYNTAX_ERROR"
    """It does not parse; nothing ran."""
    TIMEOUT = "TIMEOUT"
    """It was stopped at its time limit."""
    MEMORY_LIMIT = "MEMORY_LIMIT"
    """It was stopped at its memory limit; in the embedded FaaS, or by an uncaught MemoryError."""
    OUTPUT_LIMIT = "OUTPUT_LIMIT"
    """It was stopped for output above twice its limit, or its answer was too large to read."""
    CRASHED = "CRASHED"
    """Its process ended without reporting an error, for example by `os._exit`, a signal or a WebAssembly trap."""


@list_attributes
@attrs.frozen
class ErrorInfo:
    r"""The reason why the user's code did not end with OK. This is a record, not an exception that can be raised.

    Example:
        >>> result = await manager.run_code("x = 1\nx.nope", "python")
        >>> result.error.name, result.error.message
        ('AttributeError', "'int' object has no attribute 'nope'")
        >>> result.error.traceback.splitlines()[1]
        '  File "main.py", line 2, in <module>'
        >>> (await manager.run_code("while True: pass", "python", timeout_ms=200)).error.message
        'timeout after 200 ms (timeout_ms)'
    """

    name: str
    """The name of the exception's type, such as "ValueError". For an exit with another code than 0, "SystemExit"
    (Python) or "Exit" (JavaScript). For a limit, "Timeout", "MemoryLimit" or "OutputLimit". For a crash, the signal,
    such as "SIGSEGV", or "Trap" (WebAssembly). "UnknownCase": see `Runtime.run_cases`."""
    message: str = attrs.field(default="", repr=safe_repr)
    """The message of the exception; may be empty. For a limit, it contains the value of the limit, and the argument
    that set it, or "limit of the server"."""
    traceback: str = attrs.field(default="", repr=safe_repr)
    """The traceback or stack as the language prints it, with line numbers of the user's code; may be empty."""


@list_attributes
@attrs.frozen
class ExecutionOutput:
    r"""The output of the user's code.

    Example:
        >>> code = "import sys; print('out'); print('err', file=sys.stderr); return_val(1)"
        >>> (await manager.run_code(code, "python")).output
        ExecutionOutput(stdout='out\n', stderr='err\n', ret_val='1')
    """

    stdout: str = attrs.field(default="", repr=safe_repr)
    """The text that it wrote to stdout."""
    stderr: str = attrs.field(default="", repr=safe_repr)
    """The text that it wrote to stderr."""
    ret_val: str = attrs.field(default="", repr=safe_repr)
    """The text of its last call of `return_val`; "" if it made none."""


@list_attributes
@attrs.frozen(kw_only=True)
class OutputChunk:
    r"""A part of the output of a program that runs, see `Runtime.stream_code`.

    Example:
        >>> async with manager.stream_code("print('hi')", "python") as run:
        ...     chunks = [chunk async for chunk in run]
        >>> [(chunk.stream, chunk.text) for chunk in chunks]
        [('stdout', 'hi\n')]
    """

    stream: Literal["stdout", "stderr"]
    """The stream: "stdout" or "stderr"."""
    text: str = attrs.field(repr=safe_repr)
    """The text; not empty."""
    elapsed_s: float = attrs.field(repr=rounded_repr)
    """Seconds since the program began, as measured by the server. Without streaming by the server, this is the duration
    of the execution."""


@list_attributes
@attrs.frozen
class Timings:
    """The durations of a call in seconds, as measured by the client, except for `waited_s`.

    Example:
        >>> timings = (await manager.run_code("print(1)", "python")).timings
        >>> 0 <= timings.queued_s + sum(timings.attempts_s) <= timings.total_s
        True
    """

    queued_s: float = attrs.field(default=0.0, repr=rounded_repr)
    """The total time spent waiting for permits."""
    total_s: float = attrs.field(default=0.0, repr=rounded_repr)
    """The time from the call to its result."""
    attempts_s: tuple[float, ...] = attrs.field(default=(), repr=rounded_repr)
    """The time of each attempt, from sending the request to the end of the answer."""
    waited_s: float | None = attrs.field(default=None, repr=rounded_repr)
    """The part of `duration_ms`, in seconds, in which the program was ready to run and had no CPU, as measured by the
    server. It does not count towards the time limit. None if the server does not state it."""


def _copy(data: Mapping[str, str | bytes]) -> dict[str, str | bytes]:
    return dict(data)


@list_attributes
@attrs.frozen
class Display:
    r"""Something that a program displayed, in one or more formats.

    Example:
        >>> code = "class Bold:\n    def _repr_html_(self): return '<b>'\ndisplay('one')\nBold()"
        >>> one, two = (await manager.run_code(code, "python", displays=True)).displays
        >>> one.text, two.html
        ("'one'", '<b>')
    """

    data: Mapping[str, str | bytes] = attrs.field(converter=_copy, hash=False, repr=lambda data: safe_repr(list(data)))
    """The content by MIME type. Images and PDF are bytes, and all other content is text."""
    omitted: tuple[str, ...] = ()
    """The sorted MIME types of content that did not fit into the output limit."""

    def to_dict(self) -> dict[str, Any]:
        """Return both fields as values that `json.dumps` accepts. Bytes are in Base64."""
        data = {
            mime_type: base64.b64encode(content).decode() if isinstance(content, bytes) else content
            for mime_type, content in self.data.items()
        }
        return {"data": data, "omitted": list(self.omitted)}

    @property
    def text(self) -> str:
        """The content of the type text/plain; "" if there is none."""
        text = self.data.get("text/plain", "")
        return text if isinstance(text, str) else ""

    @property
    def html(self) -> str | None:
        """The content of the type text/html; None if there is none."""
        html = self.data.get("text/html")
        return html if isinstance(html, str) else None

    @property
    def png(self) -> bytes | None:
        """The content of the type image/png; None if there is none."""
        png = self.data.get("image/png")
        return png if isinstance(png, bytes) else None


@list_attributes
@attrs.frozen(slots=False)  # with slots, a call costs 1 % more instructions
class ExecutionResult:
    r"""The result of one execution: how the code ended, its output, and the details of the call.

    Example:
        >>> result = await manager.run_code("print('hi'); return_val('[1, 2]')", "python")
        >>> result.ok, result.stdout, result.value, result.exit_code, result.attempts
        (True, 'hi\n', [1, 2], 0, 1)
    """

    outcome: Outcome
    """How the code ended."""
    output: ExecutionOutput = ExecutionOutput()
    """The text of the three streams, each cut to `max_output_bytes`."""
    error: ErrorInfo | None = None
    """The reason why the code did not end with OK; None if it did, or if the reason is unknown."""
    exit_code: int | None = None
    """The exit code according to the server; None if unknown."""
    truncated: frozenset[str] = frozenset()
    """The names of the streams ("stdout", "stderr", "ret_val") that were cut, and "files" if not all files were
    collected, or "displays" if data of displays was left out."""
    duration_ms: float | None = attrs.field(default=None, repr=rounded_repr)
    """The duration of the execution in milliseconds, according to the server; None if unknown."""
    timings: Timings = Timings()
    """The seconds spent in each phase, as measured by the client."""
    attempts: int = 1
    """The number of attempts, from 1; 0 if the result came from the cache."""
    endpoint: str = ""
    """The base URL that answered; `http://local` for the embedded FaaS of a manager, for any port."""
    metadata: Mapping[str, Any] = attrs.field(factory=dict, converter=dict, hash=False, repr=False)
    """The server's metadata. For a run in a session, it also has `session`. For services other than FaaS servers, it
    consists of fields of their answers."""
    files: Mapping[str, bytes] = attrs.field(factory=dict, hash=False, repr=lambda files: safe_repr(list(files)))
    """The contents of the files that `collect` asked for, by path. If some do not fit into `max_output_bytes` or cannot
    be read, they are missing here, and "files" is in `truncated`."""
    cached: bool = False
    """Whether the result came from the cache, so that nothing ran; see `faasrt/docs/caching.md`."""
    displays: tuple[Display, ...] = ()
    """The displays of the program, in order, if `displays` asked for them: the value of the last expression, figures of
    matplotlib, and the arguments of `display`. A session always returns this."""

    @property
    def ok(self) -> bool:
        """Whether the outcome is OK."""
        return self.outcome is Outcome.OK

    @property
    def stdout(self) -> str:
        """The same as `output.stdout`."""
        return self.output.stdout

    @property
    def stderr(self) -> str:
        """The same as `output.stderr`."""
        return self.output.stderr

    @property
    def ret_val(self) -> str:
        """The same as `output.ret_val`: the argument of `return_val` as text."""
        return self.output.ret_val

    @property
    def value(self) -> Any:
        """`ret_val` decoded as JSON; None if the program returned nothing. Decoded again at each access.

        `call_function` and `run_cases` encode return values of Python functions as follows. Lists: tuples, sets (sorted
        if possible), NumPy arrays and pandas columns; a DataFrame is a list of rows. Objects: dataclasses, attrs
        classes, mappings, and objects with a `__dict__`; keys that are numbers, bools or None become text, as in
        `json`. Enums are encoded as their value, dates and times in ISO 8601, time deltas as seconds, NumPy scalars as
        numbers, and Decimal, UUID and paths as text. In JavaScript, `undefined` is null, or omitted in objects; a Map
        is an object; Sets and typed arrays are lists; `toJSON` is called; other objects are encoded by their own
        properties. Any other value (NaN, bytes, functions, BigInt, a value that contains itself) is a USER_ERROR whose
        message says where in the return value it is. `judge` accepts fewer values; see `FunctionTest`.

        Raises:
            ReturnValueError: The text is not valid JSON (which excludes NaN and Infinity), or was cut at the output
                limit.

        Example:
            >>> (await manager.run_code('return_val(JSON.stringify({ score: 0.5 }))', "js")).value
            {'score': 0.5}
        """
        return self.value_or(None)

    def value_or(self, default: Any) -> Any:
        """Return `value`, or a default if the program did not call `return_val`, or called it with an empty text.

        Args:
            default: Returned unless there is a value. The JSON text `null` is a value.

        Raises:
            ReturnValueError: As for `value`.

        Example:
            >>> (await manager.run_code("print(1)", "python")).value_or("nothing")
            'nothing'
        """
        if "ret_val" in self.truncated:
            raise ReturnValueError("the return value was cut, at max_output_bytes or after a test: use ret_val")
        if not self.ret_val:
            return default
        try:
            return _strict_json.loads(self.ret_val)
        except (ValueError, RecursionError) as error:
            raise ReturnValueError(f"the return value is not JSON ({error}): use ret_val, which is its text") from None

    def raise_for_outcome(self) -> ExecutionResult:
        r"""Return this result if its outcome is OK.

        Raises:
            ExecutionError: The outcome is not OK. The error's `result` is this result.

        Example:
            >>> (await manager.run_code("print(1)", "python")).raise_for_outcome().stdout
            '1\n'
        """
        if self.ok:
            return self
        reason = f": {self.error.name}: {self.error.message[:1_000]}" if self.error else ""
        raise ExecutionError(f"the code ended as {self.outcome}{reason}", self)

    def to_dict(self) -> dict[str, Any]:
        r"""Return every field as a value that `json.dumps` accepts. `value` is also None if `ret_val` is not JSON, or
        is nested more than 200 levels deep.

        Example:
            >>> fields = (await manager.run_code("print(1)", "python")).to_dict()
            >>> fields["outcome"], fields["stdout"], fields["truncated"]
            ('OK', '1\n', [])
        """
        try:
            value = self.value
        except ReturnValueError:
            value = None
        if _strict_json.is_deep(value):  # the encoder may accept fewer levels than the decoder
            value = None
        fields = attrs.asdict(self, recurse=False) | {
            "error": attrs.asdict(self.error) if self.error else None,
            "truncated": sorted(self.truncated),
            "timings": {
                "queued_s": round(self.timings.queued_s, 6),
                "total_s": round(self.timings.total_s, 6),
                "attempts_s": [round(seconds, 6) for seconds in self.timings.attempts_s],
                "waited_s": None if self.timings.waited_s is None else round(self.timings.waited_s, 6),
            },
            "metadata": dict(self.metadata),
            "files": files_to_wire(self.files),
            "displays": [display.to_dict() for display in self.displays],
        }
        outcome, output = str(fields.pop("outcome")), attrs.asdict(fields.pop("output"))
        return {"outcome": outcome, **output, "value": value, **fields}

    def to_json(self) -> str:
        r"""Return `to_dict()` as JSON on one line. Lone surrogates are escaped.

        Example:
            >>> (await manager.run_code("print(1)", "python")).to_json()[:40]
            '{"outcome": "OK", "stdout": "1\\n", "stde'
        """
        return _strict_json.dump_bytes(self.to_dict()).decode()


@list_attributes
@attrs.frozen
class Diagnostic:
    """A syntax error in a program.

    Example:
        >>> (await manager.validate_code("x = (1,", "python")).diagnostics
        (Diagnostic(message="'(' was never closed", line=1, column=5),)
    """

    message: str
    """The error message."""
    line: int | None = None
    """The line, from 1; None when unknown."""
    column: int | None = None
    """The column in characters, from 1; None when unknown."""


@list_attributes
@attrs.frozen
class ValidationResult:
    """Whether a program parses.

    Example:
        >>> checked = await manager.validate_code("let a = ;", "js")
        >>> if not checked.valid:
        ...     print(checked.diagnostics[0].message, "says", checked.checked_by)
        Expression expected says Deno ...
    """

    valid: bool
    """Whether the program parses."""
    diagnostics: tuple[Diagnostic, ...] = ()
    """The syntax errors; empty when valid."""
    checked_by: str = ""
    """The name of the parser, such as "CPython 3.15.0"."""

    @classmethod
    def empty_code(cls) -> ValidationResult:
        """Return the result for a program that is only whitespace."""
        return cls(False, (Diagnostic("the code is empty", 1, 1),), "faasrt")


@list_attributes
@attrs.frozen(kw_only=True)
class EndpointHealth:
    """The result of a health probe of one endpoint.

    Example:
        >>> health = (await manager.get_health_status()).endpoints[0]
        >>> health.healthy, health.status, health.error
        (True, 'healthy', '')
    """

    endpoint: str
    """The base URL; `http://local` for the embedded FaaS of a manager."""
    healthy: bool
    """Whether the server answered 200 with the status "healthy"."""
    status: str
    """The status in the answer, such as "healthy" or "degraded"; "failed" if the answer is an error or malformed, and
    "unreachable" if there is no answer."""
    latency_s: float = attrs.field(repr=rounded_repr)
    """Seconds until the answer, or until the probe failed."""
    version: str = ""
    """The version in the answer, or ""."""
    error: str = ""
    """The reason why the endpoint is not healthy, or ""."""
    details: Mapping[str, Any] = attrs.field(factory=dict, hash=False)
    """The decoded answer."""


@list_attributes
@attrs.frozen
class HealthStatus:
    """The health of every endpoint behind a runtime or manager.

    Example:
        >>> status = await manager.get_health_status()
        >>> [entry.endpoint for entry in status.endpoints if not entry.healthy]
        []
    """

    endpoints: tuple[EndpointHealth, ...] = ()
    """One entry for each base URL, in the order of the settings. A `dns+` URL has an entry for each address of its
    name, or one that is unreachable if no address is known."""

    @property
    def healthy(self) -> bool:
        """Whether there is an endpoint, and all endpoints are healthy."""
        return bool(self.endpoints) and all(endpoint.healthy for endpoint in self.endpoints)
