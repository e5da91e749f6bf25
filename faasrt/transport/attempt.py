"""Attempt: sends an execution to one endpoint, and reads the answer."""

from __future__ import annotations

import attrs

from faasrt.errors import DeadlineExceededError, ProtocolError, ServerError
from faasrt.protocol.answer import max_answer_bytes
from faasrt.protocol.execution import Execution, WireRequest
from faasrt.protocol.health import EndpointProfile
from faasrt.protocol.interface import ServiceProtocol
from faasrt.protocol.registry import protocol_of
from faasrt.protocol.response import Response
from faasrt.transport.call import Call
from faasrt.transport.endpoint_registry import EndpointRegistry
from faasrt.transport.exchange import BodyTooLargeError, RequestBody
from faasrt.transport.live_reader import LiveReader
from faasrt.transport.pool import Permit


@attrs.define(eq=False)
class Attempt:
    """One attempt of a call, at the endpoint of its permit."""

    _registry: EndpointRegistry
    _call: Call
    _execution: Execution
    _permit: Permit
    _body: RequestBody | None = None
    _status: int | None = None
    # The maximum number of seconds for which the server runs the code.
    _run_s: float = 0.0
    # How long the program may wait for a CPU in addition.
    _wait_s: float = 0.0
    _cancels_on_disconnect: bool = False
    # Whether the code has less time than the caller allowed, because part of it is used up.
    _has_reduced_timeout: bool = False
    _sample_s: float | None = None

    async def run(self, live: LiveReader | None, *, needs_profile: bool) -> Response:
        """Send the execution, return the content of the answer, and give the permit back."""
        registry, call, endpoint = self._registry, self._call, self._permit.endpoint
        protocol = protocol_of(endpoint.url)
        if live is not None:
            live.live = False  # as long as this answer is not read; an earlier attempt may have set it
        try:
            began = call.attempt_started(endpoint.url)
            profile = protocol.profile
            if needs_profile:
                profile = self._known_profile(endpoint.url) or await fetch_profile(registry, endpoint.url, call)
                began = registry.clock()  # not before the health report
            if endpoint.limit.set_capacity(profile.capacities.get(endpoint.family)):
                registry.pool.wake()
            request, within_s = self._request(call.deadline - began, profile, protocol)
            self._body = RequestBody(request.body, registry.clock)
            program = request.program
            try:
                answer = await registry.http.send(
                    endpoint.url,
                    request.path,
                    self._body,
                    within_s=within_s,
                    wait_s=self._wait_s,
                    max_body_bytes=max_answer_bytes(
                        program.sandbox.max_output_bytes,
                        collects=program.input.collect != (),
                        displays=program.displays,
                    ),
                    headers=call.headers(),
                    live=None if request.nonce else live,  # the guest program returns the output only at the end
                )
            except BodyTooLargeError:
                self._status = 200  # with any other status, only the beginning of the body is read
                response = request.read(None)
            else:
                self._status = answer.status
                response = request.read(answer)
                # Programs that fail may end early on an endpoint that lacks something, which must not get more calls
                # for that.
                if len(self._permit.group.endpoints) > 1 and response.used_its_time:
                    self._sample_s = registry.clock() - began
                if self._has_reduced_timeout and response.timed_out:
                    # The code had less time than the caller allowed, so a timeout is not its fault.
                    timeout_ms = program.timeout_ms
                    message = (
                        f"the code was stopped after {timeout_ms} ms, which were left until the deadline of the call"
                    )
                    raise DeadlineExceededError(message, sent="yes")
        except BaseException as error:
            if self._has_reduced_timeout and isinstance(error, DeadlineExceededError):
                error.blames_endpoint = False  # earlier attempts used up the time
            self._finish(error)
            raise
        self._finish(None)
        return response

    def _finish(self, error: BaseException | None) -> None:
        try:
            self._call.attempt_finished(error, self._status)
        finally:
            if error is None:
                self._registry.pool.release(self._permit, None, sample_s=self._sample_s)
            else:
                runs_for_s = self._run_s if self._may_still_run(error) else 0.0
                self._registry.record_failure(self._permit, error, runs_for_s=runs_for_s)

    def _may_still_run(self, error: BaseException) -> bool:
        """Return whether the server may still run the code after this error."""
        if self._body is None or not self._body.sending or self._cancels_on_disconnect:
            return False
        if self._status is None:
            return not isinstance(error, ProtocolError)
        # A proxy that answers 408 or 504 did not wait for the code to end. After any other answer the code has ended.
        return isinstance(error, ServerError) and self._status in (408, 504)

    def _request(self, left_s: float, profile: EndpointProfile, protocol: ServiceProtocol) -> tuple[WireRequest, float]:
        """Return the request for the endpoint, and the seconds within which it must be answered."""
        timeouts, program = self._call.settings.timeouts, self._execution.program
        # The time of an interpreter's start, or of a compiler, is not part of the program's.
        startup_s = timeouts.startup_s if profile.cold_start or protocol.may_compile(program.language) else 0.0
        startup_s += profile.compile_limits_s.get(program.language, 0.0)
        left_s += startup_s
        # The server must not run the code for longer than the caller waits.
        timeout_ms = program.timeout_ms
        if left_s * 1000 < timeout_ms:
            timeout_ms, self._has_reduced_timeout = int(left_s * 1000), True
            if timeout_ms < 1:
                raise DeadlineExceededError("the deadline of the call passed before the program was sent", sent="no")
        url = self._permit.endpoint.url
        request = self._execution.request(profile, timeout_ms, url, protocol)
        request.may_be_replaced = self._registry.profiles.is_stale(url)
        self._run_s = (request.timeout_ms + request.margin_ms) / 1000 + startup_s
        self._cancels_on_disconnect = profile.cancels_on_disconnect
        # Several cases take longer than one, and a server that kills programs gets more time than the program.
        left_s += (request.timeout_ms + request.margin_ms - timeout_ms) / 1000
        # While the server is busy, it may take longer to run the program for as long as its limit.
        self._wait_s = profile.wait_limit_s(program.language, request.timeout_ms / 1000)
        return request, min(self._run_s + timeouts.grace_s, left_s)

    def _known_profile(self, url: str) -> EndpointProfile | None:
        profile = self._registry.profiles.cached(url)
        # Only the report says whether a server runs a language without a guest program.
        is_enough = profile is not None and (profile.answered or profile.has_guest(self._call.language))
        return profile if is_enough else None


async def fetch_profile(registry: EndpointRegistry, url: str, call: Call) -> EndpointProfile:
    """Wait for the profile of an endpoint. The time does not count for the deadline of the call. Raise ConnectError if
    the endpoint is not reached, and has no profile yet.
    """
    asked = registry.clock()
    try:
        profile = await registry.profiles.fetch(url, registry.settings.timeouts.health_s)
    finally:
        call.deadline += registry.clock() - asked
    registry.profiles.check_reached(url)
    return profile
