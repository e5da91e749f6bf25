"""Reply: the answer of a `FakeFaas` to one program."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from typing import Any

import attrs
from attrs.validators import and_, ge, instance_of, le, optional

from faasrt._record_type import RecordType
from faasrt.results import Outcome, UserError

_EXIT_CODES = {Outcome.OK: 0, Outcome.USER_ERROR: 1, Outcome.SYNTAX_ERROR: 1}
_BYTES = optional(and_(instance_of(int), ge(0)))


def _copy(headers: Mapping[str, str]) -> Mapping[str, str]:
    return dict(headers)


@attrs.frozen(kw_only=True)
class Reply(metaclass=RecordType):
    """The answer to one `POST /run_code`, and its faults. By default, that of a program that succeeded.

    Attributes:
        outcome: How the program ended; an `Outcome`, or its name.
        stdout: Its output.
        stderr: Its output on stderr.
        ret_val: The text that it passed to `return_val`.
        exit_code: Its exit code; with None 0 for OK, 1 for USER_ERROR and SYNTAX_ERROR, and null for the others.
        error: The exception that ended it.
        status: The HTTP status, from 200 to 599. Any other than 200 sends `{"error", "details"}` instead of a result.
        details: The `details` of such a failure.
        headers: HTTP headers to send; they replace the default ones, `Content-Length` included. `Connection: close`
            ends the connection after the response.
        retry_after: The header `Retry-After`, in seconds or as any text; not sent when None.
        not_started: Send `x-faasrt-not-started: 1`: the program was refused before it ran.
        delay_s: Seconds, from 0 to 1e9, before the answer, unless the client disconnects.
        hang: Never answer; the connection stays open until the client disconnects.
        body: The body to send, in place of the JSON of the fields above.
        reset_after: Reset the connection (RST) after this number of bytes of the response, its head included: with 0
            when the request has been read, with a number above the length of the response at its end.
        reset_on_request_byte: Reset the connection when this number of bytes of the request, its head included, has
            arrived: with 0 at the first byte. A request that is not longer is read completely before the reset.

    Raises:
        ValueError: A value is out of range, or the outcome is unknown.
        TypeError: A value has the wrong type.

    Example:
        >>> from faasrt.testing import Reply
        >>> Reply(stdout="hi", delay_s=0.5).executes, Reply(status=503, not_started=True).executes
        (True, False)
    """

    outcome: Outcome = attrs.field(default=Outcome.OK, converter=Outcome)
    stdout: str = ""
    stderr: str = ""
    ret_val: str = ""
    exit_code: int | None = None
    error: UserError | None = None
    status: int = attrs.field(default=200, validator=[instance_of(int), ge(200), le(599)])
    details: str = ""
    headers: Mapping[str, str] = attrs.field(factory=dict, converter=_copy, hash=False)
    retry_after: str | float | None = None
    not_started: bool = False
    delay_s: float = attrs.field(default=0.0, validator=[ge(0), le(1e9)])
    hang: bool = False
    body: bytes | None = None
    reset_after: int | None = attrs.field(default=None, validator=_BYTES)
    reset_on_request_byte: int | None = attrs.field(default=None, validator=_BYTES)

    @classmethod
    def ok(cls, stdout: str = "", value: Any = None) -> Reply:
        """Return the reply of a program that succeeded.

        Args:
            stdout: The output of the program.
            value: The value passed to `return_val`, which is sent as JSON; None if it was not called.
        """
        return cls(stdout=stdout, ret_val="" if value is None else json.dumps(value))

    @classmethod
    def overloaded(cls, retry_after: str | float | None = None) -> Reply:
        """Return a 429: the program was refused before it ran."""
        return cls(status=429, details="all workers are busy", retry_after=retry_after)

    @classmethod
    def unavailable(cls, retry_after: str | float | None = None, *, not_started: bool = False) -> Reply:
        """Return a 503: the program may have run, unless there is `retry_after` or `not_started`."""
        return cls(status=503, details="shutting down", retry_after=retry_after, not_started=not_started)

    @classmethod
    def crash(cls, status: int = 500) -> Reply:
        """Return a failure of the server while it ran the program."""
        return cls(status=status, details="the worker died")

    @property
    def executes(self) -> bool:
        """Whether the program counts as run.

        A refused program does not: `not_started`, a 503 with `Retry-After`, a redirect, or a 4xx other than 408 (a
        timeout).
        """
        if self.not_started or (self.status == 503 and self.retry_after is not None):
            return False
        return self.status < 300 or self.status == 408 or self.status >= 500

    def render(self, language: Any = "", duration_ms: int = 0, *, keep_alive: bool = True) -> bytes:
        """Return the bytes of the response, its head included.

        Args:
            language: The language in the request.
            duration_ms: Milliseconds since the request was read.
            keep_alive: Whether the connection can be used again.
        """
        body = self._render_body(language, duration_ms)
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Connection": "keep-alive" if keep_alive else "close",
        }
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        if self.not_started:
            headers["x-faasrt-not-started"] = "1"
        # A header of the reply replaces the default one; names are compared without case.
        fields = {name.lower(): (name, value) for name, value in [*headers.items(), *self.headers.items()]}
        status = f"HTTP/1.1 {self.status} {http.client.responses.get(self.status, '')}"
        lines = [status, *(f"{name}: {value}" for name, value in fields.values())]
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body

    def _render_body(self, language: Any, duration_ms: int) -> bytes:
        if self.body is not None:
            return self.body
        if self.status != 200:
            return json.dumps({"error": f"scripted failure {self.status}", "details": self.details}).encode()
        fields: dict[str, Any] = {
            "output": {"stdout": self.stdout, "stderr": self.stderr, "ret_val": self.ret_val},
            "metadata": {
                "language": language,
                "runtime": "fake",
                "duration": duration_ms,
                "status": "success" if self.outcome is Outcome.OK else "error",
                "exit_code": _EXIT_CODES.get(self.outcome) if self.exit_code is None else self.exit_code,
                "timed_out": self.outcome is Outcome.TIMEOUT,
            },
            "outcome": self.outcome,
            "error_info": attrs.asdict(self.error) if self.error else None,
            "truncated": [],
        }
        return json.dumps(fields).encode()
