"""The loop of attempts: permits, deadline and retries of programs, validations and requests about sessions."""

from __future__ import annotations

import asyncio
import copy
import math
import random
from collections import defaultdict
from typing import Any

from faasrt.errors import (
    ConnectError,
    InvalidRequestError,
    ProtocolError,
    QueueFullError,
    RuntimeClosedError,
    ServiceError,
    UnsupportedLanguageError,
)
from faasrt.languages import Language, family_of, has_return_val
from faasrt.protocol.execution import Execution, Response
from faasrt.protocol.program import Program
from faasrt.protocol.response import Answer, decode_validation, raise_for_status
from faasrt.protocol.sessions import check_answer
from faasrt.results import ValidationResult
from faasrt.telemetry.dispatch import EventDispatcher
from faasrt.telemetry.metrics import Counters
from faasrt.transport.attempt import Attempt, fetch_profile
from faasrt.transport.call import Call
from faasrt.transport.endpoint import has_alternative
from faasrt.transport.endpoint_registry import EndpointRegistry
from faasrt.transport.groups import EndpointGroup, exclude
from faasrt.transport.http import VALIDATE_PATH, BodyTooLargeError, RequestBody
from faasrt.transport.live_reader import LiveReader
from faasrt.transport.pool import Permit
from faasrt.transport.retry import RetryBudget, is_permanent

_VALIDATION_BODY_BYTES = 4 * 2**20


class Transport:
    def __init__(self, endpoints: EndpointRegistry, emit: EventDispatcher, counters: Counters) -> None:
        self.endpoints = endpoints
        self.counters = counters
        self._emit = emit
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

    def call(self, owner: object, language: Language | str, program: Program | None = None) -> Call:
        """Return the state of a new call. `owner` identifies it for `fail_waiting`."""
        endpoints = self.endpoints
        return Call(self._emit, self.counters, endpoints.clock, endpoints.settings, owner, language, program)

    async def run(self, call: Call, execution: Execution, live: LiveReader | None = None) -> Response:
        """Send an execution to an endpoint, retry it if allowed, and return the content of the answer.

        The deadline of the call is the time of one attempt, counted from its first permit. Waiting for the health
        report of an endpoint extends the deadline, by at most `health_s` for each report.

        `live` gets the output while the program runs, if the server can send it. After it has delivered any output,
        the call is not retried.

        Raises:
            InvalidRequestError, UnsupportedLanguageError: No endpoint can run the program; nothing was sent.
            UnsupportedLanguageError: No endpoint is configured for the language.
            QueueFullError: Too many calls are waiting already.
            RuntimeClosedError: The owner was closed while the call waited.
            ServiceError: The infrastructure failed; see the error tree.

        Cancellation: returns the permit and closes the connection.
        """
        endpoints, failed, language = self.endpoints, call.failed, call.language
        endpoints.loop.check()
        within_s = execution.program.timeout_ms / 1000 + call.settings.timeouts.grace_s
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
                    call.start_deadline(within_s)
                    call.attempt_started(error.endpoint)
                    call.attempt_finished(error, None)
                    failed.add(error, endpoints.clock())
                else:
                    if not needs_profile:
                        group.skip_capacity()
                    permit = endpoints.pool.try_acquire(group, avoid=failed.tried)
                    permit = permit or await self._wait_for_permit(call, group)
                    if permit is None:
                        continue  # all endpoints have left, and others may have come
                    call.start_deadline(within_s)
                    try:
                        attempt = Attempt(endpoints, call, execution, permit)
                        response = await attempt.run(live, needs_profile=needs_profile)
                        self._budgets[permit.endpoint.family].deposit()
                        return response
                    except (InvalidRequestError, UnsupportedLanguageError) as error:
                        failed.unable_error = error
                        if not self._exclude(call, permit.endpoint.url):
                            # An endpoint with a wrong certificate might run the program.
                            if failed.error is not None and is_permanent(failed.error):
                                raise failed.error from None
                            raise
                        if failed.error is None:
                            call.deadline = math.inf
                        continue
                    except ServiceError as error:
                        failed.add(error, endpoints.clock(), permit.endpoint.url, started=call.attempt_began)
                        if is_permanent(error) and not self._exclude(call, permit.endpoint.url):
                            raise
                assert failed.error is not None
                if live is not None and live.has_delivered:
                    raise failed.error
                wait_s = self._retry_delay_s(call)
                call.retry_scheduled(failed.error, wait_s)
                await self._back_off(wait_s, call.owner)
        except ServiceError as error:
            call.describe_error(error)
            raise
        finally:
            failed.error = failed.unable_error = None  # their tracebacks refer to this frame

    async def validate(self, call: Call, body: bytes) -> ValidationResult:
        """Send a program to be parsed. As in `run`, repeat the request if it reached no endpoint or was refused.

        Raise the errors of `run`.
        """
        endpoints, failed = self.endpoints, call.failed
        endpoints.loop.check()
        within_s = call.settings.sandbox.timeout_limit_s + call.settings.timeouts.grace_s
        try:
            while True:
                group = None
                try:
                    group = await endpoints.group(
                        call.language, validates=True, excluded=failed.excluded, deadline=call.deadline
                    )
                except ConnectError as error:
                    call.start_deadline(within_s)
                    call.attempts, call.endpoint = call.attempts + 1, error.endpoint
                    failed.add(error, endpoints.clock())
                else:
                    group.skip_capacity()
                    permit = endpoints.pool.try_acquire(group, avoid=failed.tried)
                    permit = permit or await self._wait_for_permit(call, group)
                    if permit is None:
                        continue  # as in `run`
                    call.start_deadline(within_s)
                    try:
                        return await self._validate_once(call, body, permit)
                    except ServiceError as error:
                        failed.add(error, endpoints.clock(), permit.endpoint.url)
                        if is_permanent(error) and not self._exclude(call, permit.endpoint.url):
                            raise
                await self._back_off(self._retry_delay_s(call, group), call.owner)
        except ServiceError as failure:
            call.describe_error(failure)
            raise
        finally:
            failed.error = failed.unable_error = None  # their tracebacks refer to this frame

    async def _validate_once(self, call: Call, body: bytes, permit: Permit) -> ValidationResult:
        endpoints = self.endpoints
        if permit.endpoint.limit.set_capacity(None):
            endpoints.pool.wake()
        call.attempts, call.endpoint = call.attempts + 1, permit.endpoint.url
        compile_s = 0.0
        try:
            if not has_return_val(call.language):
                # A compiler parses the program, which may take longer than the time limit of a program.
                profile = endpoints.profiles.cached(call.endpoint)
                profile = profile or await fetch_profile(endpoints, call.endpoint, call)
                compile_s = profile.compile_limits_s.get(call.language, 0.0)
            left_s = call.deadline - endpoints.clock() + compile_s
            answer = await self._send_once(
                call, VALIDATE_PATH, body, within_s=left_s, max_body_bytes=_VALIDATION_BODY_BYTES
            )
            raise_for_status(answer)
            result = decode_validation(answer.body)
        except BaseException as error:
            endpoints.record_failure(permit, error)
            raise
        self._succeed(permit)
        return result

    async def ask_session(
        self,
        call: Call,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        within_s: float,
        max_body_bytes: int,
        needs_permit: bool,
    ) -> dict[str, Any]:
        """Send a request about a session to its pinned endpoint, and return the decoded answer.

        The request is repeated like that of a program while the endpoint refuses it and, with a permit, while the
        endpoint cannot be reached. Raise the errors of `run`.
        """
        endpoints, group, failed = self.endpoints, self._pinned, call.failed
        assert group is not None
        endpoints.loop.check()
        call.endpoint = self.pinned_url
        try:
            while True:
                permit = None
                if needs_permit:
                    permit = endpoints.pool.try_acquire(group) or await self._wait_for_permit(call, group)
                call.start_deadline(within_s)
                call.attempts += 1
                left_s = call.deadline - endpoints.clock()
                try:
                    answer = await self._send_once(
                        call, path, body, within_s=left_s, max_body_bytes=max_body_bytes, method=method
                    )
                    fields = check_answer(answer)
                except BaseException as error:
                    if permit is not None:
                        endpoints.record_failure(permit, error)
                    if not isinstance(error, ServiceError) or is_permanent(error):
                        raise
                    if isinstance(error, ConnectError) and not needs_permit:
                        raise  # without a permit, no circuit breaker limits the attempts
                    failed.add(error, endpoints.clock(), call.endpoint)
                else:
                    if permit is not None:
                        self._succeed(permit)
                    return fields
                await self._back_off(self._retry_delay_s(call), call.owner)
        except ServiceError as failure:
            call.describe_error(failure)
            raise
        finally:
            failed.error = failed.unable_error = None  # their tracebacks refer to this frame

    def _succeed(self, permit: Permit) -> None:
        self.endpoints.pool.release(permit, None)
        self._budgets[permit.endpoint.family].deposit()

    async def _send_once(
        self, call: Call, path: str, body: bytes, *, within_s: float, max_body_bytes: int, method: str = "POST"
    ) -> Answer:
        try:
            return await self.endpoints.http.send(
                call.endpoint,
                path,
                RequestBody(body, self.endpoints.clock),
                within_s=within_s,
                max_body_bytes=max_body_bytes,
                headers=call.headers(),
                method=method,
            )
        except BodyTooLargeError:
            raise ProtocolError("the answer is larger than this request allows", sent="yes") from None

    def fail_waiting(self, owner: object) -> None:
        """Raise RuntimeClosedError in the calls that wait for a permit or for their next attempt."""
        error = RuntimeClosedError("this runtime was closed while the call waited for a free endpoint")
        self.endpoints.pool.fail_waiting(owner, error)
        for ended, each in self._backing_off.items():
            if each is owner and not ended.done():
                ended.set_result(None)

    async def _wait_for_permit(self, call: Call, group: EndpointGroup) -> Permit | None:
        """Return None if the group has no endpoint any more. If there is no permit for a retry, raise the error of the
        attempt before it.
        """
        settings, failed = call.settings, call.failed
        if not group.endpoints and failed.excluded and (last_error := failed.error or failed.unable_error):
            raise last_error  # those that might run the program have left
        asked = self.endpoints.clock()
        within_s = (call.deadline if failed.error is None else call.retry_until) - asked
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
                owner=call.owner,
                since=failed.down_since,
            )
        except (QueueFullError, ServiceError) as error:
            raise failed.error or error from None
        finally:
            call.queued_s += self.endpoints.clock() - asked

    def _exclude(self, call: Call, url: str) -> bool:
        """Exclude an endpoint that cannot run the program, and return whether others are left."""
        failed = call.failed
        failed.unable += (url,)
        failed.excluded = exclude(failed.unable)
        if self._pinned is None and self.endpoints.replicas(call.language, failed.excluded):
            return True
        for unable in failed.unable:
            self.endpoints.profiles.mark_stale(unable)  # a toolchain may be installed until the next call
        return False

    def _retry_delay_s(self, call: Call, group: EndpointGroup | None = None) -> float:
        """Return the seconds until the next attempt, or raise the last error if there must be none. Without a group,
        every replica of the language may get the attempt.
        """
        failed, now, group = call.failed, self.endpoints.clock(), group or self._pinned
        assert failed.error is not None
        wait_s = failed.retry_delay_s(
            has_alternative=has_alternative(
                group.endpoints if group else self.endpoints.replicas(call.language, failed.excluded),
                now,
                failed.tried,
            ),
            remaining_s=call.retry_until - now,
            budget=self._budgets[family_of(call.language)],
            random=random.random,
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
