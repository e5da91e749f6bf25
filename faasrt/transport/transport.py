from __future__ import annotations

import asyncio
import copy
import math
import random as random_module
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from faasrt.config import Settings
from faasrt.errors import (
    ConnectError,
    DeadlineExceededError,
    InvalidRequestError,
    OverloadedError,
    ProtocolError,
    QueueFullError,
    RejectedError,
    RuntimeClosedError,
    ServiceError,
    UnsupportedLanguageError,
)
from faasrt.languages import Language, family_of, has_return_val
from faasrt.protocol.execution import Execution, Request, Response
from faasrt.protocol.health import EndpointProfile
from faasrt.protocol.interface import ServiceProtocol
from faasrt.protocol.registry import protocol_of
from faasrt.protocol.response import Answer, decode_validation, max_answer_bytes, raise_for_status
from faasrt.protocol.sessions import check_answer
from faasrt.results import ValidationResult
from faasrt.transport.call import Call
from faasrt.transport.endpoint import Endpoint, has_alternative
from faasrt.transport.endpoint_registry import EndpointRegistry
from faasrt.transport.groups import EndpointGroup, exclude
from faasrt.transport.http import VALIDATE_PATH, BodyTooLargeError, RequestBody
from faasrt.transport.live_reader import LiveReader
from faasrt.transport.pool import Permit
from faasrt.transport.retry import FailedAttempts, RetryBudget, min_attempt_s

_VALIDATION_BODY_BYTES = 4 * 2**20


class Transport:
    def __init__(
        self,
        endpoints: EndpointRegistry,
        clock: Callable[[], float],
        random: Callable[[], float] = random_module.random,
    ) -> None:
        self.endpoints = endpoints
        self.clock = clock
        self._random = random
        # By family of languages: successes on the servers of one family must not allow retries on those of another.
        self._budgets: dict[str, RetryBudget] = defaultdict(RetryBudget)
        # The owners of the calls that wait before a retry.
        self._backing_off: dict[asyncio.Future[None], object] = {}
        self._pinned: EndpointGroup | None = None

    def pinned(self, language: Language | str, url: str) -> Transport:
        """Return a view of this transport that sends every call to one endpoint."""
        view = copy.copy(self)
        view._pinned = self.endpoints.pool.groups.pin(language, url)
        return view

    @property
    def pinned_url(self) -> str:
        assert self._pinned is not None
        return self._pinned.endpoints[0].url

    async def run(self, call: Call, execution: Execution, *, owner: object, live: LiveReader | None = None) -> Response:
        """Send an execution to an endpoint, retry it if allowed, and return the content of the answer.

        The deadline of the call is the time of one attempt, counted from its first permit. Waiting for the health
        report of an endpoint extends the deadline, by at most `health_s` for each report.

        Args:
            owner: Identifies the call for `fail_waiting`.
            live: Gets the output while the program runs, if the server can send it. After it has delivered any output,
                the call is not retried.

        Raises:
            InvalidRequestError: No endpoint can run the program; nothing was sent.
            UnsupportedLanguageError: No endpoint is configured for the language.
            QueueFullError: Too many calls are waiting already.
            RuntimeClosedError: The owner was closed while the call waited.
            ServiceError: The infrastructure failed; see the error tree.

        Cancellation: returns the permit and closes the connection.
        """
        endpoints, language = self.endpoints, execution.program.language
        endpoints.loop.check()
        settings, timeout_s = endpoints.settings, execution.program.timeout_ms / 1000
        failed = FailedAttempts(settings.retry, idempotent=execution.program.idempotent)
        needs_profile = execution.needs_profile
        try:
            while True:
                try:
                    group = self._pinned or endpoints.known_group(language, failed.excluded)
                    if group is None:
                        group = await endpoints.group(language, excluded=failed.excluded, deadline=call.deadline)
                except UnsupportedLanguageError as error:
                    raise failed.error or error from None
                except ConnectError as error:
                    if failed.error is None:
                        call.deadline = self.clock() + timeout_s + settings.timeouts.grace_s
                    call.attempt_started(error.endpoint)
                    call.attempt_finished(error, None)
                    failed.add(error, self.clock())
                else:
                    if not needs_profile:
                        group.skip_capacity()
                    permit = endpoints.pool.try_acquire(group, avoid=failed.tried)
                    permit = permit or await self._wait_for_permit(call, settings, group, failed, owner, timeout_s)
                    if permit is None:
                        continue  # all endpoints have left, and others may have come
                    if failed.error is None:
                        call.deadline = self.clock() + timeout_s + settings.timeouts.grace_s
                    try:
                        return await self._attempt(permit, execution, call, settings, needs_profile, live)
                    except InvalidRequestError as error:
                        if not self._exclude(permit.endpoint.url, language, failed, error):
                            raise
                        if failed.error is None:
                            call.deadline = math.inf
                        continue
                    except ServiceError as error:
                        failed.add(error, self.clock(), permit.endpoint.url)
                assert failed.error is not None
                if live is not None and live.has_delivered:
                    raise failed.error
                wait_s = self._retry_delay_s(call, failed, timeout_s)
                call.retry_scheduled(failed.error, wait_s)
                await self._back_off(wait_s, owner)
        except ServiceError as error:
            call.attach(error)
            raise
        finally:
            failed.clear()

    async def validate(self, call: Call, body: bytes, *, owner: object) -> ValidationResult:
        """Send a program to be parsed, without retries. Raise QueueFullError or ServiceError."""
        endpoints = self.endpoints
        endpoints.loop.check()
        settings = endpoints.settings
        within_s = settings.sandbox.timeout_limit_s + settings.timeouts.grace_s
        try:
            permit = None
            while permit is None:
                group = await endpoints.group(call.language, validates=True)
                group.skip_capacity()
                permit = endpoints.pool.try_acquire(group)
                permit = permit or await self._wait_for_permit(
                    call, settings, group, FailedAttempts(settings.retry), owner
                )
            self._use_default_capacity(permit.endpoint)
            call.attempts, call.endpoint = 1, permit.endpoint.url
            try:
                if not has_return_val(call.language):
                    # A compiler parses the program, which may take longer than the time limit of a program.
                    profile = endpoints.profiles.cached(call.endpoint)
                    profile = profile or await self._fetch_profile(call.endpoint, call)
                    within_s += profile.compile_limits_s.get(call.language, 0.0)
                answer = await self._send_once(
                    call, VALIDATE_PATH, body, within_s=within_s, max_body_bytes=_VALIDATION_BODY_BYTES
                )
                raise_for_status(answer)
                result = decode_validation(answer.body)
            except BaseException as error:
                self._release(permit, error)
                raise
            self._release(permit, None)
            return result
        except ServiceError as failure:
            call.attach(failure)
            raise

    async def ask_session(
        self,
        call: Call,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        within_s: float,
        max_body_bytes: int,
        owner: object = None,
    ) -> dict[str, Any]:
        """Send a request about a session to its pinned endpoint, and return the decoded answer.

        While the endpoint cannot be reached, the request is repeated like that of a program. Without an owner, it is
        sent once, without a permit. Raise the errors of `run`.
        """
        endpoints, group = self.endpoints, self._pinned
        assert group is not None
        endpoints.loop.check()
        settings = endpoints.settings
        failed = FailedAttempts(settings.retry)
        call.endpoint = self.pinned_url
        try:
            while True:
                permit = None
                if owner is not None:
                    permit = await self._wait_for_permit(call, settings, group, failed, owner)
                if failed.error is None:
                    call.deadline = self.clock() + within_s
                call.attempts += 1
                left_s = call.deadline - self.clock()
                try:
                    answer = await self._send_once(
                        call, path, body, within_s=left_s, max_body_bytes=max_body_bytes, method=method
                    )
                    fields = check_answer(answer)
                except BaseException as error:
                    if permit is not None:
                        self._release(permit, error)
                    if owner is None or not isinstance(error, ConnectError):
                        raise
                    failed.add(error, self.clock(), call.endpoint)
                else:
                    if permit is not None:
                        self._release(permit, None)
                    return fields
                await self._back_off(self._retry_delay_s(call, failed), owner)
        except ServiceError as failure:
            call.attach(failure)
            raise
        finally:
            failed.clear()

    async def _send_once(
        self, call: Call, path: str, body: bytes, *, within_s: float, max_body_bytes: int, method: str = "POST"
    ) -> Answer:
        try:
            return await self.endpoints.http.send(
                call.endpoint,
                path,
                RequestBody(body, self.clock),
                within_s=within_s,
                max_body_bytes=max_body_bytes,
                headers=call.headers(),
                method=method,
            )
        except BodyTooLargeError:
            raise ProtocolError("the answer is larger than this request allows", sent="yes") from None

    def fail_waiting(self, owner: object) -> None:
        """Raise RuntimeClosedError in the calls that wait for a permit or for their next attempt."""
        error = RuntimeClosedError("this runtime was closed while the call waited for a permit")
        self.endpoints.pool.fail_waiting(owner, error)
        for ended, each in self._backing_off.items():
            if each is owner and not ended.done():
                ended.set_result(None)

    async def _wait_for_permit(
        self,
        call: Call,
        settings: Settings,
        group: EndpointGroup,
        failed: FailedAttempts,
        owner: object,
        timeout_s: float = 0.0,
    ) -> Permit | None:
        """Return None if the group has no endpoint any more. If there is no permit for a retry, raise the error of the
        attempt before it.
        """
        if not group.endpoints and failed.unable_error is not None:
            raise failed.error or failed.unable_error  # those that might run the program have left
        asked = self.clock()
        within_s = call.deadline - asked
        if failed.error is not None:
            within_s -= min_attempt_s(timeout_s)
        queue_timeout_s = settings.limiter.queue_timeout_s
        if queue_timeout_s is not None:
            left_s = queue_timeout_s - (call.queued_s - failed.queued_s)
            if not group.is_initialized:
                left_s += settings.timeouts.health_s  # the first caller may wait for a health report
            within_s = min(within_s, left_s)
        try:
            return await self.endpoints.pool.wait(
                group,
                avoid=failed.tried,
                within_s=within_s if within_s < math.inf else None,
                owner=owner,
                since=failed.down_since,
            )
        except (QueueFullError, ServiceError) as error:
            raise failed.error or error from None
        finally:
            call.queued_s += self.clock() - asked

    def _exclude(self, url: str, language: Language | str, failed: FailedAttempts, error: InvalidRequestError) -> bool:
        failed.unable_error = error
        failed.unable += (url,)
        failed.excluded = exclude(failed.unable)
        if self._pinned is None and self.endpoints.replicas(language, failed.excluded):
            return True
        for unable in failed.unable:
            self.endpoints.profiles.mark_stale(unable)  # a toolchain may be installed until the next call
        return False

    def _retry_delay_s(self, call: Call, failed: FailedAttempts, timeout_s: float = 0.0) -> float:
        """Return the seconds until the next attempt, or raise the last error if there must be none."""
        assert failed.error is not None
        now = self.clock()
        wait_s = failed.retry_delay_s(
            has_alternative=has_alternative(
                self._pinned.endpoints if self._pinned else self.endpoints.replicas(call.language, failed.excluded),
                now,
                failed.tried,
            ),
            remaining_s=call.deadline - now - min_attempt_s(timeout_s),
            budget=self._budgets[family_of(call.language)],
            random=self._random,
        )
        if wait_s is None:
            raise failed.error
        failed.queued_s = call.queued_s
        return wait_s

    async def _back_off(self, wait_s: float, owner: object) -> None:
        """Wait before the next attempt. `fail_waiting` ends the wait."""
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._backing_off[ended] = owner
        try:
            await asyncio.wait([ended], timeout=wait_s)
        finally:
            del self._backing_off[ended]
        if ended.done():
            raise RuntimeClosedError("this runtime was closed while the call waited for a retry")

    def _use_default_capacity(self, endpoint: Endpoint) -> None:
        if not endpoint.limit.is_initialized:
            endpoint.limit.set_capacity(None)
            self.endpoints.pool.wake()

    def _finish_attempt(self, permit: Permit, call: Call, error: BaseException | None) -> None:
        try:
            call.attempt_finished(error, permit.status)
        finally:
            self._release(permit, error)

    def _release(self, permit: Permit, error: BaseException | None) -> None:
        if isinstance(error, ServiceError) and not isinstance(error, (OverloadedError, RejectedError)):
            is_replaced = isinstance(error, ProtocolError)
            self.endpoints.profiles.mark_stale(permit.endpoint.url, is_replaced=is_replaced)
        self.endpoints.pool.release(permit, error)

    async def _attempt(
        self,
        permit: Permit,
        execution: Execution,
        call: Call,
        settings: Settings,
        needs_profile: bool,
        live: LiveReader | None,
    ) -> Response:
        endpoint, program = permit.endpoint, execution.program
        protocol = protocol_of(endpoint.url)
        try:
            began = call.attempt_started(endpoint.url)
            profile = protocol.profile
            if needs_profile:
                profile = await self._profile(endpoint.url, call)
                endpoint.limit.set_capacity(profile.capacities.get(endpoint.family))
                self.endpoints.pool.wake()
                began = self.clock()  # not before the health report
            else:
                self._use_default_capacity(endpoint)
            request, within_s = self._request(permit, execution, call.deadline - began, settings, profile, protocol)
            permit.body = RequestBody(request.body, self.clock)
            try:
                answer = await self.endpoints.http.send(
                    endpoint.url,
                    request.protocol.run_path,
                    permit.body,
                    within_s=within_s,
                    max_body_bytes=max_answer_bytes(
                        program.sandbox.max_output_bytes,
                        collects=program.input.collect != (),
                        displays=program.displays,
                    ),
                    headers=call.headers(),
                    live=None if request.nonce else live,  # the guest program returns the output only at the end
                )
            except BodyTooLargeError:
                permit.status = 200  # with any other status, only the beginning of the body is read
                response = request.read(None)
            else:
                permit.status = answer.status
                response = request.read(answer)
                if permit.has_alternatives and response.used_its_time:
                    permit.sample_from = began
                if permit.has_reduced_timeout and response.timed_out:
                    # The code had less time than the caller allowed, so a timeout is not its fault.
                    timeout_ms = request.program.timeout_ms
                    message = (
                        f"the code was stopped after {timeout_ms} ms, which were left until the deadline of the call"
                    )
                    raise DeadlineExceededError(message, sent="yes")
        except BaseException as error:
            self._finish_attempt(permit, call, error)
            raise
        self._finish_attempt(permit, call, None)
        self._budgets[endpoint.family].deposit()
        return response

    def _request(
        self,
        permit: Permit,
        execution: Execution,
        left_s: float,
        settings: Settings,
        profile: EndpointProfile,
        protocol: ServiceProtocol,
    ) -> tuple[Request, float]:
        timeouts, program = settings.timeouts, execution.program
        # The time of an interpreter's start, or of a compiler, is not part of the program's.
        startup_s = timeouts.startup_s if profile.cold_start or protocol.may_compile(program.language) else 0.0
        startup_s += profile.compile_limits_s.get(program.language, 0.0)
        left_s += startup_s
        # The server must not run the code for longer than the caller waits.
        timeout_ms = program.timeout_ms
        if left_s * 1000 < timeout_ms:
            timeout_ms, permit.has_reduced_timeout = int(left_s * 1000), True
            if timeout_ms < 1:
                raise DeadlineExceededError("the deadline of the call passed before the program was sent", sent="no")
        request = execution.request(profile, timeout_ms, permit.endpoint.url, protocol)
        permit.run_s = request.timeout_ms / 1000 + startup_s
        permit.cancels_on_disconnect = profile.cancels_on_disconnect
        left_s += (request.timeout_ms - timeout_ms) / 1000  # several cases take longer than one
        return request, min(permit.run_s + timeouts.grace_s, left_s)

    async def _profile(self, url: str, call: Call) -> EndpointProfile:
        profile = self.endpoints.profiles.cached(url)
        # Only the report says whether a server runs a language without a guest program.
        if profile is not None and (profile.answered or profile.has_guest(call.language)):
            return profile
        return await self._fetch_profile(url, call)

    async def _fetch_profile(self, url: str, call: Call) -> EndpointProfile:
        asked = self.clock()
        try:
            return await self.endpoints.profiles.fetch(url, self.endpoints.settings.timeouts.health_s)
        finally:
            call.deadline += self.clock() - asked
