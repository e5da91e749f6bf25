"""The requests of a call: to run a program, to parse one, or about a session."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

import attrs

from faasrt.config import Settings
from faasrt.errors import ProtocolError
from faasrt.languages import Language, has_return_val
from faasrt.protocol.answer import Answer, read_validation
from faasrt.protocol.execution import Execution
from faasrt.protocol.program import encode_json
from faasrt.protocol.response import Response
from faasrt.results import ValidationResult
from faasrt.transport.attempt import Attempt, fetch_profile
from faasrt.transport.call import Call
from faasrt.transport.endpoint_registry import EndpointRegistry
from faasrt.transport.exchange import BodyTooLargeError, RequestBody
from faasrt.transport.http import VALIDATE_PATH
from faasrt.transport.live_reader import LiveReader
from faasrt.transport.pool import Permit

_VALIDATION_BYTES = 4 * 2**20
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Request(Protocol[T_co]):
    """A request of a call, which each attempt sends.

    Attributes:
        validates: Whether only endpoints that validate programs can answer it.
        needs_profile: Whether the health report of the endpoint must be known.
        needs_permit: Whether it counts as a call in flight. Without a permit, it is sent at once.
        may_be_repeated: Whether another attempt is allowed after a failed attempt.
    """

    @property
    def validates(self) -> bool: ...
    @property
    def needs_profile(self) -> bool: ...
    @property
    def needs_permit(self) -> bool: ...
    @property
    def may_be_repeated(self) -> bool: ...

    def within_s(self, settings: Settings) -> float:
        """Return the seconds from the first permit of the call to its deadline."""

    def send(self, registry: EndpointRegistry, call: Call, permit: Permit | None) -> Awaitable[T_co]:
        """Send it to the endpoint of the permit, give the permit back, and return the content of the answer."""


class ProgramRequest:
    """Runs a program. `live` gets the output while it runs, if the server can send it. After it has delivered any
    output, the request is not repeated.
    """

    validates = False
    needs_permit = True

    def __init__(self, execution: Execution, live: LiveReader | None = None) -> None:
        self._execution = execution
        self._live = live
        self.needs_profile = execution.needs_profile

    @property
    def may_be_repeated(self) -> bool:
        return self._live is None or not self._live.has_delivered

    def within_s(self, settings: Settings) -> float:
        return self._execution.program.timeout_ms / 1000 + settings.timeouts.grace_s

    def send(self, registry: EndpointRegistry, call: Call, permit: Permit | None) -> Awaitable[Response]:
        assert permit is not None
        attempt = Attempt(registry, call, self._execution, permit)
        return attempt.run(self._live, needs_profile=self.needs_profile)


@attrs.frozen(eq=False, kw_only=True)
class ControlRequest(Generic[T]):
    """A request that runs no program.

    Attributes:
        read: Returns the content of the answer, or raises a ServiceError.
        limit_s: The seconds from the first permit of the call to its deadline.
        endpoint: The base URL of the endpoint that gets it at once, without a permit; "" waits for a permit.
        compiles: The language whose compiler may have to run, with a time limit of its own.
    """

    path: str
    body: bytes
    read: Callable[[Answer], T]
    limit_s: float
    max_body_bytes: int
    method: str = "POST"
    validates: bool = False
    endpoint: str = ""
    compiles: str = ""
    may_be_repeated = True

    @property
    def needs_permit(self) -> bool:
        return not self.endpoint

    @property
    def needs_profile(self) -> bool:
        return self.compiles != ""

    def within_s(self, settings: Settings) -> float:
        return self.limit_s

    async def send(self, registry: EndpointRegistry, call: Call, permit: Permit | None) -> T:
        try:
            call.attempt_started(self.endpoint if permit is None else permit.endpoint.url)
            result = await self._exchange(registry, call)
        except BaseException as error:
            if permit is not None:
                registry.record_failure(permit, error)
            raise
        if permit is not None:
            registry.pool.release(permit, None)
        return result

    async def _exchange(self, registry: EndpointRegistry, call: Call) -> T:
        compile_s = 0.0
        if self.compiles:
            profile = registry.profiles.cached(call.endpoint) or await fetch_profile(registry, call.endpoint, call)
            compile_s = profile.compile_limits_s.get(self.compiles, 0.0)
        try:
            answer = await registry.http.send(
                call.endpoint,
                self.path,
                RequestBody(self.body, registry.clock),
                within_s=call.deadline - registry.clock() + compile_s,
                max_body_bytes=self.max_body_bytes,
                headers=call.headers(),
                method=self.method,
            )
        except BodyTooLargeError:
            raise ProtocolError("the answer is larger than this request allows", sent="yes") from None
        return self.read(answer)


def validation(language: Language | str, code: str, settings: Settings) -> ControlRequest[ValidationResult]:
    """Return the request to parse a program."""
    return ControlRequest(
        path=VALIDATE_PATH,
        body=encode_json({"language": str(language), "code": code}),
        read=read_validation,
        limit_s=settings.sandbox.timeout_limit_s + settings.timeouts.grace_s,
        max_body_bytes=_VALIDATION_BYTES,
        validates=True,
        # A compiler parses the program, which may take longer than the time limit of a program.
        compiles="" if has_return_val(language) else language,
    )
