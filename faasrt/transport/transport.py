"""The loop of attempts: permits, deadline and retries of all requests."""

from __future__ import annotations

import asyncio
import copy
import math
import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, TypeVar

from faasrt.config import Settings
from faasrt.errors import (
    ConnectError,
    InvalidRequestError,
    QueueFullError,
    RuntimeClosedError,
    ServiceError,
    UnsupportedLanguageError,
)
from faasrt.languages import Language, family_of
from faasrt.protocol.program import Program
from faasrt.telemetry.dispatch import EventDispatcher
from faasrt.telemetry.metrics import Counters
from faasrt.transport.call import Call
from faasrt.transport.endpoint import Endpoint, has_alternative
from faasrt.transport.endpoint_registry import EndpointRegistry
from faasrt.transport.groups import EndpointGroup, exclude
from faasrt.transport.pool import Permit
from faasrt.transport.requests import Request
from faasrt.transport.retry import RetryBudget, is_permanent

T = TypeVar("T")


class Transport:
    def __init__(self, registry: EndpointRegistry, emit: EventDispatcher, counters: Counters) -> None:
        self.registry = registry
        self.counters = counters
        self._emit = emit
        # By family of languages: successes on the servers of one family must not allow retries on the servers of
        # another family.
        self._budgets: dict[str, RetryBudget] = defaultdict(RetryBudget)
        # The owners of the calls that wait before a retry.
        self._backing_off: dict[asyncio.Future[None], object] = {}
        self._pinned: EndpointGroup | None = None

    def pinned(self, language: Language | str, url: str) -> Transport:
        """Return a view of this transport that sends every call to one endpoint."""
        view = copy.copy(self)
        view._pinned = self.registry.pool.groups.pin(language, url)
        return view

    @property
    def pinned_url(self) -> str:
        assert self._pinned is not None
        return self._pinned.endpoints[0].url

    @property
    def settings(self) -> Settings:
        return self.registry.settings

    def call(self, owner: object, language: Language | str, program: Program | None = None) -> Call:
        """Return the state of a new call. `owner` identifies it for `fail_waiting`."""
        registry = self.registry
        return Call(self._emit, self.counters, registry.clock, registry.settings, owner, language, program)

    async def run(self, call: Call, request: Request[T]) -> T:
        """Send a request to an endpoint, repeat it if allowed, and return the content of the answer.

        The deadline of the call is the time of one attempt, counted from its first permit. Waiting for the health
        report of an endpoint extends the deadline, by at most `health_s` for each report.

        Raises:
            InvalidRequestError, UnsupportedLanguageError: No endpoint can run the program; nothing was sent.
            UnsupportedLanguageError: No endpoint is configured for the language.
            QueueFullError: Too many calls are waiting already.
            RuntimeClosedError: The owner was closed while the call waited.
            ServiceError: The infrastructure failed; see the error tree.

        Cancellation: returns the permit and closes the connection.
        """
        registry, failed, language = self.registry, call.failed, call.language
        registry.loop.check()
        within_s = request.within_s(call.settings)
        try:
            while True:
                try:
                    group = self._pinned or registry.known_group(language, failed.excluded, request.validates)
                    if group is None:
                        group = await registry.group(
                            language, validates=request.validates, excluded=failed.excluded, deadline=call.deadline
                        )
                except UnsupportedLanguageError as error:
                    raise failed.error or error from None
                except ConnectError as error:
                    call.start_deadline(within_s)
                    call.attempt_started(error.endpoint)
                    call.attempt_finished(error, None)
                    failed.add(error, registry.clock())
                else:
                    permit = None
                    if request.needs_permit:
                        if not request.needs_profile:
                            group.skip_capacity()
                        permit = registry.pool.try_acquire(group, avoid=failed.tried)
                        permit = permit or await self._wait_for_permit(call, group)
                        if permit is None:
                            continue  # all endpoints have left, and others may have come
                    call.start_deadline(within_s)
                    try:
                        answer = await request.send(registry, call, permit)
                        if permit is not None:
                            self._budgets[permit.endpoint.family].deposit()
                        return answer
                    except (InvalidRequestError, UnsupportedLanguageError) as error:
                        failed.unable_error = error
                        if not self._exclude(call, request):
                            # An endpoint with a wrong certificate might run the program.
                            if failed.error is not None and is_permanent(failed.error):
                                raise failed.error from None
                            raise
                        if failed.error is None:
                            call.deadline = math.inf
                        continue
                    except ServiceError as error:
                        failed.add(error, registry.clock(), call.endpoint, started=call.attempt_began)
                        if is_permanent(error) and not self._exclude(call, request):
                            raise
                        if isinstance(error, ConnectError) and not request.needs_permit:
                            raise  # without a permit, no circuit breaker limits the attempts
                assert failed.error is not None
                if not request.may_be_repeated:
                    raise failed.error
                wait_s = self._retry_delay_s(call, request)
                call.retry_scheduled(failed.error, wait_s)
                await self._back_off(wait_s, call.owner)
        except ServiceError as error:
            call.describe_error(error)
            raise
        finally:
            failed.error = failed.unable_error = None  # their tracebacks refer to this frame

    def fail_waiting(self, owner: object) -> None:
        """Raise RuntimeClosedError in the calls that wait for a permit or for their next attempt."""
        error = RuntimeClosedError("this runtime was closed while the call waited for a free endpoint")
        self.registry.pool.fail_waiting(owner, error)
        for ended, each in self._backing_off.items():
            if each is owner and not ended.done():
                ended.set_result(None)

    async def _wait_for_permit(self, call: Call, group: EndpointGroup) -> Permit | None:
        """Return None if the group has no endpoint any more. If there is no permit for a retry, raise the error of the
        attempt before it.
        """
        settings, failed = call.settings, call.failed
        if not group.endpoints and failed.excluded and (last_error := failed.error or failed.unable_error):
            raise last_error  # the replicas that might run the program have left
        asked = self.registry.clock()
        within_s = (call.deadline if failed.error is None else call.retry_until) - asked
        queue_timeout_s = settings.limiter.queue_timeout_s
        if queue_timeout_s is not None:
            left_s = queue_timeout_s - (call.queued_s - failed.queued_s)
            if not group.is_initialized:
                left_s += settings.timeouts.health_s  # the first caller may wait for a health report
            within_s = min(within_s, left_s)
        try:
            return await self.registry.pool.wait(
                group,
                avoid=failed.tried,
                within_s=within_s if within_s < math.inf else None,
                owner=call.owner,
                since=failed.down_since,
            )
        except (QueueFullError, ServiceError) as error:
            raise failed.error or error from None
        finally:
            call.queued_s += self.registry.clock() - asked

    def _exclude(self, call: Call, request: Request[Any]) -> bool:
        """Exclude the endpoint of the last attempt, which cannot answer, and return whether others are left."""
        failed = call.failed
        failed.unable += (call.endpoint,)
        failed.excluded = exclude(failed.unable)
        if self._pinned is None and self._replicas(call, request):
            return True
        for unable in failed.unable:
            self.registry.profiles.mark_stale(unable)  # a toolchain may be installed until the next call
        return False

    def _replicas(self, call: Call, request: Request[Any]) -> Sequence[Endpoint]:
        """Return the endpoints that may get the next attempt."""
        if self._pinned is not None:
            return self._pinned.endpoints
        return self.registry.replicas(call.language, call.failed.excluded, validates=request.validates)

    def _retry_delay_s(self, call: Call, request: Request[Any]) -> float:
        """Return the seconds until the next attempt, or raise the last error if there must be none."""
        failed, now = call.failed, self.registry.clock()
        assert failed.error is not None
        wait_s = failed.retry_delay_s(
            has_alternative=has_alternative(self._replicas(call, request), now, failed.tried),
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
