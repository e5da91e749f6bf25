"""The permits: how many calls are in flight, which caller gets the next permit and at which endpoint, and when waiting
makes no sense.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import math
from collections.abc import Callable, Collection, Sequence

import attrs

from faasrt.config import Settings
from faasrt.errors import (
    ConnectError,
    ConnectionLostError,
    DeadlineExceededError,
    FaasrtError,
    OverloadedError,
    QueueFullError,
    RejectedError,
    ServiceError,
)
from faasrt.languages import Language
from faasrt.telemetry.events import Sink
from faasrt.transport.endpoint import Endpoint, choose
from faasrt.transport.groups import EndpointGroup, EndpointGroups, Waiter
from faasrt.transport.http import max_calls
from faasrt.transport.retry import is_outage, outage_wait_s, throttled_delay_s

# A server may still run a program for this number of seconds after its time limit.
_MARGIN_S = 1.0
# The number of probes of an endpoint that is down, in the time for which a call waits for it.
_EARLY_PROBES = 30


@attrs.define
class Permit:
    """The permission to send one call. `probe` is the number of a probe of a circuit breaker."""

    endpoint: Endpoint
    group: EndpointGroup
    started: float
    probe: int | None = None


class PermitPool:
    """Limits the calls in flight: of the manager, and of each endpoint.

    A permit covers both limits. A caller that waits for one of them does not count for the other.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Callable[[], float],
        random: Callable[[], float],
        emit: Sink = lambda event: None,
        replicas_of: Callable[[Sequence[str]], Sequence[str]] = lambda urls: urls,
        capacity_of: Callable[[str, str], int | None] = lambda url, family: None,
        on_idle: Callable[[str], None] = lambda url: None,
    ) -> None:
        self.groups = EndpointGroups(
            settings,
            clock=clock,
            random=random,
            emit=emit,
            replicas_of=replicas_of,
            capacity_of=capacity_of,
            on_idle=on_idle,
        )
        self.in_flight = 0
        self.queued = 0
        self._clock = clock
        self._random = random
        # The groups with waiting callers, in any order. A dict, because a set has no order that tests can repeat.
        self._waiting: dict[EndpointGroup, None] = {}
        self._tickets = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._use(settings)

    def _use(self, settings: Settings) -> None:
        self._settings = settings
        self._max_concurrency, _ = max_calls(settings)
        self._outage_wait_s = outage_wait_s(settings.retry)

    def reconfigure(self, settings: Settings, urls_of: Callable[[EndpointGroup], Sequence[str]]) -> None:
        """Use other settings. Endpoints that stay keep their breakers and limits. Waiting callers get one of the URLs
        that `urls_of` returns for their group.
        """
        self._use(settings)
        self.groups.reconfigure(settings, urls_of)
        self._serve_changed_groups()

    def refresh(self) -> None:
        """Grant waiting callers permits for new replicas, or None if there is none."""
        self.groups.refresh()
        self._serve_changed_groups()

    def _serve_changed_groups(self) -> None:
        for group in list(self._waiting):
            while group in self._waiting and not group.endpoints:
                waiter = group.first
                self._remove(group, waiter)
                if not waiter.granted.done():
                    waiter.granted.set_result(None)
        self.wake()

    def queued_for(self, languages: Collection[Language | str]) -> int:
        groups = (group for group in self._waiting if group.language in languages)
        return sum(len(group.waiters) + len(group.retries) for group in groups)

    def try_acquire(self, group: EndpointGroup, *, avoid: Collection[str] = ()) -> Permit | None:
        """Return a permit for one of the endpoints, or None if the caller must wait. Endpoints whose base URL is in
        `avoid`, because an earlier attempt has failed there, are used only if no other one has room.
        """
        if group in self._waiting or self.in_flight >= self._max_concurrency:
            return None
        return self._grant(group, group.endpoints, avoid, self._clock())

    async def wait(
        self,
        group: EndpointGroup,
        *,
        avoid: Collection[str] = (),
        within_s: float | None = None,
        owner: object = None,
        since: float | None = None,
    ) -> Permit | None:
        """Wait for a permit, because `try_acquire` has just returned None; first come, first served, but retries before
        other calls. Return None if the group has no endpoint, or has none any more.

        Args:
            owner: Identifies the caller for `fail_waiting`.
            since: When the caller first found an endpoint down, in the outage that lasts.

        Raises:
            QueueFullError: `max_queue` callers are waiting already.
            DeadlineExceededError: No permit was free in time; nothing was sent.
            ServiceError: The breaker of every endpoint is open, and the caller has waited for `connect_retry_s` or
                `within_s`; nothing was sent. The error comes from an earlier call.

        Cancellation: leaves the queue, and holds no permit.
        """
        if not group.endpoints:
            return None
        self._check_queue(group)
        since = self._clock() if since is None else since
        queue, ticket = group.retries if avoid else group.waiters, next(self._tickets)
        waiter = Waiter(queue, ticket, asyncio.get_running_loop().create_future(), avoid, owner, since)
        # A retry comes before other calls, but after earlier retries.
        may_be_next = group not in self._waiting or self.groups.limits_changed or bool(avoid and not group.retries)
        queue[ticket] = waiter
        self._waiting[group] = None
        self.queued += 1
        if may_be_next:
            self.wake()
        try:
            granted: Permit | None
            if within_s is None:
                granted = await waiter.granted
            else:
                async with asyncio.timeout(within_s):
                    granted = await waiter.granted
            return granted
        except TimeoutError:
            self._leave(group, waiter)
            if self._outage_wait_s and (error := group.unavailable_error()):
                raise error from None
            abandoned = sum(endpoint.limit.abandoned(self._clock()) for endpoint in group.endpoints)
            still_run = f" ({abandoned} abandoned calls may still run there)" if abandoned else ""
            raise DeadlineExceededError(
                f"all endpoints were busy for {round(within_s or 0.0, 2):g} s{still_run}, see get_metrics().states; "
                "add replicas, or raise max_concurrency or queue_timeout_s",
                sent="no",
            ) from None
        except BaseException:
            self._leave(group, waiter)
            raise

    def release(
        self, permit: Permit, error: BaseException | None, *, runs_for_s: float = 0.0, sample_s: float | None = None
    ) -> None:
        """Take a permit back, and record how its call ended.

        Args:
            permit: The permit.
            error: None if the call has a result.
            runs_for_s: The seconds for which the server may still run the code of a call that failed.
            sample_s: The duration of the call, if it says how fast the endpoint is.
        """
        endpoint = permit.endpoint
        now, is_failure = self._clock(), False
        try:
            if error is None:
                endpoint.latency.add_answer()
                if sample_s is not None:
                    permit.group.add_sample(endpoint, sample_s, now)
                endpoint.limit.grow()
                endpoint.breaker.succeed(now, permit.started)
            else:
                if runs_for_s:
                    # The code may have started only now.
                    endpoint.limit.charge_abandoned(now + runs_for_s + _MARGIN_S)
                if isinstance(error, ServiceError):
                    is_failure = self._record_failure(permit, error, now)
        finally:  # a telemetry sink may raise KeyboardInterrupt
            self.in_flight -= 1
            endpoint.limit.in_flight -= 1
            if permit.probe is not None:
                endpoint.breaker.release_probe(now, permit.probe)
            if self.queued:
                if is_failure and not self._outage_wait_s:
                    self._fail_unavailable_groups(now)
                was_full = self.in_flight + 1 >= self._max_concurrency
                if error is not None or was_full or self.groups.limits_changed or endpoint.breaker.state != "closed":
                    self.wake()
                else:
                    self._pass_on(endpoint, now)
            self.groups.drop_if_idle(endpoint)

    def fail_waiting(self, owner: object, error: FaasrtError) -> None:
        for group in list(self._waiting):
            for waiter in [each for each in (*group.retries.values(), *group.waiters.values()) if each.owner is owner]:
                # A copy for each, because raising an error adds the frames of its caller to it.
                self._fail(group, waiter, copy.copy(error))

    def wake(self) -> None:
        if not self.queued:
            return
        now = self._clock()
        self.groups.limits_changed = False
        give_up_at = self._fail_unavailable_groups(now) if self._outage_wait_s else []
        groups = list(self._waiting)
        blocked: list[EndpointGroup] = []
        while groups and self.in_flight < self._max_concurrency:
            # Retries come first, then the caller that has waited longest, unless none of its endpoints has room.
            group = min(groups, key=_place_of)
            if not self._serve_first(group, group.endpoints, now):
                blocked.append(group)
                groups.remove(group)
            elif group not in self._waiting:
                groups.remove(group)
        self.cancel_timer()
        self._wake_later([endpoint for group in blocked for endpoint in group.endpoints], give_up_at, now)

    def _pass_on(self, endpoint: Endpoint, now: float) -> None:
        """Grant the permit of a call that has ended to a waiting caller. Nothing else has changed, so no other endpoint
        has room for the waiting callers.
        """
        groups = [group for group in self._waiting if endpoint in group.members]
        in_flight = self.in_flight
        while groups and self.in_flight == in_flight:
            group = groups[0] if len(groups) == 1 else min(groups, key=_place_of)
            if not self._serve_first(group, (endpoint,), now) or group not in self._waiting:
                groups.remove(group)

    def _serve_first(self, group: EndpointGroup, endpoints: Sequence[Endpoint], now: float) -> bool:
        waiter = group.first
        if not waiter.granted.done():  # the future is done if its caller has just been cancelled
            permit = self._grant(group, endpoints, waiter.avoid, now)
            if permit is None:
                return False
            waiter.granted.set_result(permit)
        self._remove(group, waiter)
        return True

    def cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check_queue(self, group: EndpointGroup) -> None:
        if self.groups.failing and not self._wait_s(group):
            error = group.unavailable_error()
            if error is not None and not any(endpoint.limit.in_flight for endpoint in group.endpoints):
                raise error
        max_queue = self._settings.limiter.max_queue
        if max_queue is None:
            return
        # Callers that only wait until the capacity is known do not count: they will then be sent.
        growth = sum(endpoint.limit.expected_growth for endpoint in group.endpoints)
        if self.queued >= max_queue + min(growth, self._max_concurrency - self.in_flight):
            raise QueueFullError(
                f"{self.queued} calls are already waiting for a permit: send fewer calls, or increase max_queue "
                f"({max_queue}) or max_concurrency ({self._max_concurrency})"
            )

    def _record_failure(self, permit: Permit, error: ServiceError, now: float) -> bool:
        limit, breaker = permit.endpoint.limit, permit.endpoint.breaker
        if isinstance(error, DeadlineExceededError) and (not error.blames_endpoint or error.sent == "no"):
            return False  # earlier attempts, or the wait for a connection, used up the time, not this endpoint
        if isinstance(error, OverloadedError) and not error.blames_endpoint:
            breaker.succeed(now, permit.started)  # it has no room for another session, and runs programs as before
            return False
        if isinstance(error, (OverloadedError, DeadlineExceededError)):
            limit.shrink(now, permit.started)
        if isinstance(error, OverloadedError):
            retry = self._settings.retry
            delay_s = throttled_delay_s(retry) if error.retry_after_s is None else error.retry_after_s
            limit.back_off(now + min(delay_s, retry.max_retry_after_s))
        if isinstance(error, ConnectError) and error.connection_refused:
            limit.clear_abandoned()  # the server has stopped, and so have its programs
        if isinstance(error, RejectedError) or (isinstance(error, OverloadedError) and error.status == 429):
            breaker.succeed(now, permit.started)  # the endpoint works
            return False
        if not error.blames_endpoint:
            return False
        # A copy, because the traceback would keep the program and the answer of this call in memory.
        permit.endpoint.last_error = copy.copy(error)
        is_away = isinstance(error, (ConnectError, OverloadedError, DeadlineExceededError))
        permit.endpoint.latency.add_failure(now, is_away=is_away)
        is_lost = isinstance(error, ConnectionLostError)
        early_probe_s = self._outage_wait_s / _EARLY_PROBES if is_lost or is_outage(error) else math.inf
        if is_lost and permit.probe is None:
            early_probe_s = 0.0  # the next call shows whether the server has stopped, and its programs with it
        breaker.fail(now, permit.started, probe=permit.probe, early_probe_s=early_probe_s)
        return True

    def _grant(
        self, group: EndpointGroup, endpoints: Sequence[Endpoint], avoid: Collection[str], now: float
    ) -> Permit | None:
        """Return a permit for one of the endpoints, or None if none may be used now.

        A call to an endpoint whose breaker may be probed is the probe. While every breaker is open, only probes are
        sent if callers wait, or if the endpoint is down.
        """
        endpoint: Endpoint | None
        if len(endpoints) == 1 and endpoints[0].breaker.state == "closed":
            endpoint = endpoints[0]
            if not endpoint.limit.has_room(now):
                return None
        else:
            endpoint = choose(endpoints, now, avoid=avoid, random=self._random, recent=group.recent)
        probe = None
        if endpoint is None or endpoint.breaker.state != "closed":
            waits = self._waits_for(group)
            last_error = None if endpoint is None else endpoint.last_error
            if waits and (group in self._waiting or last_error is None or is_outage(last_error)):
                endpoint = group.next_probe(now)
            if endpoint is None:
                return None
            if endpoint.breaker.may_probe(now, is_needed=waits):
                probe = endpoint.breaker.start_probe()
        self.in_flight += 1
        endpoint.limit.in_flight += 1
        endpoint.latency.add_start(now)
        return Permit(endpoint, group, now, probe)

    def _waits_for(self, group: EndpointGroup) -> bool:
        return bool(self.groups.failing) and not group.is_available and self._wait_s(group) > 0

    def _wait_s(self, group: EndpointGroup) -> float:
        return 0.0 if group.fails_permanently else self._outage_wait_s

    def _fail_unavailable_groups(self, now: float) -> list[float]:
        """Fail the callers that have waited long enough for an endpoint, and return the times when others will have.

        A probe that is due before a caller has waited long enough may be a long program, or there may be no room for it
        yet, so the caller waits for its end. It does not wait for later probes: of many endpoints, one is always being
        probed.
        """
        times: list[float] = []
        for group in list(self._waiting):
            if group.is_available:
                continue
            wait_s = self._wait_s(group)
            failing_since = max((endpoint.breaker.failing_since for endpoint in group.endpoints), default=now)
            latest = min(now, group.next_probe_at) - wait_s if wait_s else now
            if failing_since <= latest:
                expired = [waiter for waiter in group.retries.values() if waiter.since <= latest]
                for waiter in group.waiters.values():
                    if waiter.since > latest:
                        break  # later callers have not waited for longer
                    expired.append(waiter)
                for waiter in expired:
                    if error := group.unavailable_error():
                        self._fail(group, waiter, error)
            left = (*group.retries.values(), *itertools.islice(group.waiters.values(), 1))
            times += [max(waiter.since, failing_since) + wait_s for waiter in left]
        return times

    def _fail(self, group: EndpointGroup, waiter: Waiter, error: FaasrtError) -> None:
        self._remove(group, waiter)
        if not waiter.granted.done():
            waiter.granted.set_exception(error)

    def _remove(self, group: EndpointGroup, waiter: Waiter) -> None:
        if waiter.queue.pop(waiter.ticket, None) is not None:
            self.queued -= 1
            if not (group.waiters or group.retries):
                self._waiting.pop(group, None)

    def _leave(self, group: EndpointGroup, waiter: Waiter) -> None:
        granted = waiter.granted
        if granted.done() and not granted.cancelled():
            permit: Permit | None = granted.result() if granted.exception() is None else None
            if permit is not None:
                # It was granted just when the caller left. The next caller gets it.
                self.in_flight -= 1
                permit.endpoint.limit.in_flight -= 1
                if permit.probe is not None:
                    permit.endpoint.breaker.release_probe(self._clock(), permit.probe)
                self.wake()
                self.groups.drop_if_idle(permit.endpoint)
        else:
            self._remove(group, waiter)

    def _wake_later(self, endpoints: Sequence[Endpoint], give_up_at: Sequence[float], now: float) -> None:
        times = [moment for moment in give_up_at if moment > now]
        times += [
            moment
            for endpoint in endpoints
            for moment in (
                endpoint.limit.next_release(),
                endpoint.breaker.early_probe_at if endpoint.breaker.state == "open" else None,
                endpoint.breaker.open_until if endpoint.breaker.state == "open" else None,
                endpoint.latency.next_trial(now),
            )
            if moment is not None and moment > now
        ]
        if not times:
            return
        loop = asyncio.get_running_loop()
        at = loop.time() + min(times) - now
        if self._timer is None or self._timer.cancelled() or self._timer.when() > at:
            self.cancel_timer()
            self._timer = loop.call_at(at, self._wake_all)

    def _wake_all(self) -> None:
        self._timer = None
        self.wake()


def _place_of(group: EndpointGroup) -> tuple[bool, int]:
    return not group.retries, group.first.ticket
