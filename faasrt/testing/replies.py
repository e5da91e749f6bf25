from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from aiohttp import web
from attrs.validators import ge, instance_of, le

from faasrt._attribute_docs import list_attributes
from faasrt.protocol.displays import displays_to_wire
from faasrt.results import Display, ErrorInfo, Outcome

_EXIT_CODES = {Outcome.OK: 0, Outcome.USER_ERROR: 1, Outcome.SYNTAX_ERROR: 1}


def _copy(headers: Mapping[str, str]) -> Mapping[str, str]:
    return dict(headers)


@list_attributes
@attrs.frozen(kw_only=True)
class Reply:
    """The answer to one `POST /run_code`, or to a run in a session, and its faults. By default, the program succeeded.

    Raises:
        ValueError: A value is out of range, or the outcome is unknown.
        TypeError: A value has the wrong type.

    Example:
        >>> from faasrt.testing import Reply
        >>> Reply(stdout="hi", delay_s=0.5).executes, Reply(status=503, not_started=True).executes
        (True, False)
    """

    outcome: Outcome = attrs.field(default=Outcome.OK, converter=Outcome)
    """The outcome of the program; an `Outcome` or its name. Default: OK."""
    stdout: str = ""
    """The stdout of the program. Default: ""."""
    stderr: str = ""
    """The stderr of the program. Default: ""."""
    ret_val: str = ""
    """The text that the program passed to `return_val`. Default: ""."""
    exit_code: int | None = None
    """The exit code of the program. Default: None, which means 0 for OK, 1 for USER_ERROR and SYNTAX_ERROR, and null
    for other outcomes."""
    error: ErrorInfo | None = None
    """The exception that ended the program. Default: None."""
    status: int = attrs.field(default=200, validator=[instance_of(int), ge(200), le(599)])
    """The HTTP status, from 200 to 599. With a status other than 200, the body is `{"error", "details"}` instead of a
    result. Default: 200."""
    details: str = ""
    """The `details` in that body. Default: ""."""
    headers: Mapping[str, str] = attrs.field(factory=dict, converter=_copy, hash=False)
    """Additional HTTP headers. They replace default ones of the same name, including `Content-Length`. `Connection:
    close` closes the connection after the response. Default: none."""
    retry_after: str | float | None = None
    """The value of the header `Retry-After`, in seconds or as any text. Default: None, no header."""
    not_started: bool = False
    """Whether to send `x-faasrt-not-started: 1`, which means that the program was refused before it ran. Default:
    False."""
    delay_s: float = attrs.field(default=0.0, validator=[ge(0), le(1e9)])
    """The delay before the answer in seconds, from 0 to 1e9. Default: 0."""
    hang: bool = False
    """Whether to never answer, and keep the connection open until the client disconnects. Default: False."""
    body: bytes | None = None
    """The body of the response, instead of the JSON of the fields above. Default: None."""
    disconnect: bool = False
    """Whether to close the connection in place of an answer, after `delay_s`. Default: False."""
    displays: Sequence[Display] = attrs.field(default=(), converter=tuple[Display, ...])
    """The displays of the program. They are sent in sessions, and if the request asks for them. Default: none."""
    session_ended: str = ""
    """Why the session ends with this program; only for programs of sessions. Default: "", which means that it does
    not."""

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
        """Return a reply with status 429: the program was refused before it ran."""
        return cls(status=429, details="all workers are busy", retry_after=retry_after)

    @classmethod
    def unavailable(cls, retry_after: str | float | None = None, *, not_started: bool = False) -> Reply:
        """Return a reply with status 503. Without `retry_after` and `not_started`, the program may have run."""
        return cls(status=503, details="shutting down", retry_after=retry_after, not_started=not_started)

    @classmethod
    def crash(cls, status: int = 500) -> Reply:
        """Return the reply of a server that failed while it ran the program."""
        return cls(status=status, details="the worker died")

    @property
    def executes(self) -> bool:
        """Whether the program counts as run.

        A program that was refused does not count: `not_started`, a 503 with `Retry-After`, a redirect, or a 4xx other
        than 408 (a timeout).
        """
        if self.not_started or (self.status == 503 and self.retry_after is not None):
            return False
        return self.status < 300 or self.status == 408 or self.status >= 500

    def make_response(
        self, program: Mapping[str, Any] | None = None, duration_ms: int = 0, *, in_session: bool = False
    ) -> web.Response:
        """Return the response.

        Args:
            program: The decoded body of the request.
            duration_ms: The milliseconds since the request was read.
            in_session: Whether it was a request for a run in a session.
        """
        body = self._make_body(program or {}, duration_ms, in_session=in_session)
        response = web.Response(body=body, status=self.status, content_type="application/json")
        if self.retry_after is not None:
            response.headers["Retry-After"] = str(self.retry_after)
        if self.not_started:
            response.headers["x-faasrt-not-started"] = "1"
        response.headers.update(self.headers)
        if response.headers.get("Connection", "").lower() == "close":
            response.force_close()
        return response

    def _make_body(self, program: Mapping[str, Any], duration_ms: int, *, in_session: bool) -> bytes:
        if self.body is not None:
            return self.body
        if self.status != 200:
            return json.dumps({"error": f"scripted failure {self.status}", "details": self.details}).encode()
        fields: dict[str, Any] = {
            "output": {"stdout": self.stdout, "stderr": self.stderr, "ret_val": self.ret_val},
            "metadata": {
                "language": program.get("language"),
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
        if in_session or program.get("displays") is True:
            fields["displays"] = displays_to_wire(self.displays)
        if in_session:
            fields["session"] = {"ended": self.session_ended}
        return json.dumps(fields).encode()
