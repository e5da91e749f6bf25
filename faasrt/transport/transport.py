"""The attempt loop: one call from its permit to its answer, with deadline and retries."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection

from faasrt.config import Settings
from faasrt.errors import (
    ConnectError,
    DeadlineExceededError,
    FaasrtError,
    InvalidRequestError,
    OverloadedError,
    ProtocolError,
    QueueFullError,
    RejectedError,
    ServiceError,
    UnsupportedLanguageError,
)
from faasrt.languages import family_of, has_return_val
from faasrt.protocol.health import EndpointProfile
from faasrt.protocol.program import Execution, GuestResponse
from faasrt.protocol.registry import protocol_of
from faasrt.protocol.response import decode_validation, max_answer_bytes, raise_for_status
from faasrt.results import ValidationResult
from faasrt.transport.call_context import CallContext
from faasrt.transport.endpoint import Endpoint, has_alternative
from faasrt.transport.endpoint_registry import EndpointRegistry
from faasrt.transport.groups import EndpointGroup, exclude
from faasrt.transport.http import BodyTooLargeError, RequestBody
from faasrt.transport.live_reader import LiveReader
from faasrt.transport.pool import Permit
from faasrt.transport.retry import Outage, SendState, wait_before_retry

_VALIDATION_BODY_BYTES = 4 * 2**20


class Transport(EndpointRegistry):
    """Sends the requests of all runtimes of a factory."""

    async def run(
        self,
        context: CallContext,
        execution: Execution,
        *,
        idempotent: bool,
        owner: object,
        live: LiveReader | None = None,
    ) -> GuestResponse:
        """Send an execution to an endpoint, retry it if allowed, and return the content of the answer.

        The deadline of the call is the time of one attempt, counted from its first permit. Waiting for the health
        report of an endpoint extends the deadline, by at most `health_s` for each report.

        Args:
            context: The call.
            execution: The program or the calls to run.
            idempotent: Whether it may run more than once.
            owner: An object that identifies the call for `fail_waiting`.
            live: Gets the output while the program runs, if the server can send it. After it has delivered any output,
                the call is not retried. None asks for no live output.

        Raises:
            InvalidRequestError: No endpoint can run the program; nothing was sent.
            UnsupportedLanguageError: No endpoint is configured for the language.
            QueueFullError: Too many calls are waiting already.
            ServiceError: The infrastructure failed; see the error tree.

        Cancellation: returns the permit and closes the connection.
        """
        self._loop.check()
        settings, run = self.settings, execution.run
        family = family_of(run.language)
        timeout_s = run.timeout_ms / 1000
        failed: ServiceError | None = None
        state = SendState()
        tried: tuple[str, ...] = ()
        unable: list[str] = []
        excluded: Collection[str] = ()
        refused: InvalidRequestError | None = None
        queued_s = 0.0  # before this attempt
        min_attempt_s = min(timeout_s, max(0.1, timeout_s / 10))
        outage = Outage()
        try:
            while True:
                try:
                    group = await self._group(run.language, excluded=excluded, within_s=context.deadline - self.clock())
                except UnsupportedLanguageError as error:
                    raise (failed or error) from None
                except ConnectError as error:
                    if failed is None:
                        context.deadline = self.clock() + timeout_s + settings.timeouts.grace_s
                    context.attempt_started(error.endpoint)
                    context.attempt_finished(error, None)
                    failed = error
                else:
                    if not group.endpoints and refused is not None:
                        raise failed or refused  # those that might run it have left
                    if not execution.needs_profile:
                        group.skip_capacity()
                    try:
                        permit = self._pool.try_acquire(group, avoid=tried)
                        if permit is None:
                            within_s = context.deadline - self.clock() - (min_attempt_s if failed else 0.0)
                            permit = await self._wait_for_permit(
                                context, settings, group, tried, owner, queued_s, within_s, outage.since
                            )
                    except (QueueFullError, ServiceError) as error:
                        # If there is no permit for a retry, raise the failure that led to the retry.
                        raise (failed or error) from None
                    if permit is None:
                        continue  # all endpoints have left, and others may have come
                    if failed is None:
                        context.deadline = self.clock() + timeout_s + settings.timeouts.grace_s
                    url = permit.endpoint.url
                    try:
                        context.attempt_started(url)
                        response = await self._attempt(permit, execution, context, settings, live)
                    except InvalidRequestError as error:
                        # Nothing was sent. Replicas may be of different kinds, so another one may be able to run it.
                        self._finish_attempt(permit, context, error)
                        unable.append(url)
                        refused = error
                        excluded = exclude(unable)
                        if not self._endpoints(run.language, excluded):
                            for url in unable:
                                self._profiles.mark_stale(url)  # a toolchain may be installed until the next call
                            raise
                        if failed is None:
                            context.deadline = math.inf
                        continue
                    except BaseException as error:
                        self._finish_attempt(permit, context, error)
                        if not isinstance(error, ServiceError):
                            raise
                        failed = error
                    else:
                        self._finish_attempt(permit, context, None)
                        self._budgets[family].deposit()
                        return response
                    tried += (url,)
                state.add(failed)
                if live is not None and live.has_delivered:
                    raise failed
                outage_s = outage.add(failed, self.clock(), settings.retry)
                counted = context.attempts - len(unable) - outage.attempts
                wait_s = wait_before_retry(
                    failed,
                    attempt=counted if outage_s is None else outage.attempts,
                    idempotent=idempotent,
                    has_alternative=has_alternative(self._endpoints(run.language, excluded), self.clock(), tried),
                    remaining_s=context.deadline - self.clock(),
                    min_attempt_s=min_attempt_s,
                    settings=settings.retry,
                    budget=self._budgets[family],
                    random=self._random,
                    outage_s=outage_s,
                )
                if wait_s is None:
                    raise failed
                context.retry_scheduled(failed, wait_s)
                await asyncio.sleep(wait_s)
                queued_s = context.queued_s
        except ServiceError as error:
            context.attach(error)
            raise
        finally:
            failed = refused = None  # the traceback of an error refers to this frame: they would keep each other alive

    async def validate(self, context: CallContext, body: bytes, *, owner: object) -> ValidationResult:
        """Send a program to be parsed, without retries, and return the result. Raise QueueFullError or ServiceError."""
        self._loop.check()
        settings = self.settings
        within_s = settings.sandbox.timeout_limit_s + settings.timeouts.grace_s
        try:
            permit = None
            while permit is None:
                group = await self._group(context.language, validates=True)
                group.skip_capacity()
                permit = self._pool.try_acquire(group) or await self._wait_for_permit(
                    context, settings, group, (), owner
                )
            self._use_default_capacity(permit.endpoint)
            context.attempts, context.endpoint = 1, permit.endpoint.url
            error: BaseException | None = None
            try:
                if not has_return_val(context.language):
                    # A compiler parses the program, which may take longer than the time limit of a program.
                    profile = self._profiles.cached(context.endpoint)
                    profile = profile or await self._fetch_profile(context.endpoint, context)
                    within_s += profile.compile_limits_s.get(context.language, 0.0)
                answer = await self._http.post(
                    permit.endpoint.url,
                    "/validate_code",
                    RequestBody(body, self.clock),
                    within_s=within_s,
                    max_body_bytes=_VALIDATION_BODY_BYTES,
                    headers=context.headers(),
                )
                raise_for_status(answer)
                return decode_validation(answer.body)
            except BodyTooLargeError:
                error = ProtocolError("the answer is larger than any validation", sent="yes")
                raise error from None
            except BaseException as caught:
                error = caught
                raise
            finally:
                self._pool.release(permit, error)
        except ServiceError as failure:
            context.attach(failure)
            raise

    def fail_waiting(self, owner: object, error: FaasrtError) -> None:
        """Raise an error in the waiting calls with this owner."""
        self._pool.fail_waiting(owner, error)

    async def _wait_for_permit(
        self,
        context: CallContext,
        settings: Settings,
        group: EndpointGroup,
        avoid: Collection[str],
        owner: object,
        queued_before_s: float = 0.0,
        within_s: float = math.inf,
        since: float | None = None,
    ) -> Permit | None:
        asked = self.clock()
        queue_timeout_s = settings.limiter.queue_timeout_s
        if queue_timeout_s is not None:
            timeout_s = queue_timeout_s - (context.queued_s - queued_before_s)
            if not group.is_initialized:
                timeout_s += settings.timeouts.health_s  # the first caller may wait for a health report
            within_s = min(within_s, timeout_s)
        try:
            return await self._pool.acquire(
                group,
                avoid=avoid,
                within_s=within_s if within_s < math.inf else None,
                owner=owner,
                since=since,
            )
        finally:
            context.queued_s += self.clock() - asked

    def _use_default_capacity(self, endpoint: Endpoint) -> None:
        """Let waiting calls use an endpoint that has come while they waited, and whose health is not requested."""
        if not endpoint.limit.is_initialized:
            endpoint.limit.set_capacity(None)
            self._pool.wake()

    def _finish_attempt(self, permit: Permit, context: CallContext, error: BaseException | None) -> None:
        try:
            context.attempt_finished(error, permit.status)
            if isinstance(error, ServiceError) and not isinstance(error, (OverloadedError, RejectedError)):
                self._profiles.mark_stale(permit.endpoint.url, is_replaced=isinstance(error, ProtocolError))
        finally:
            self._pool.release(permit, error)

    async def _attempt(
        self,
        permit: Permit,
        execution: Execution,
        context: CallContext,
        settings: Settings,
        live: LiveReader | None,
    ) -> GuestResponse:
        timeouts, run, endpoint = settings.timeouts, execution.run, permit.endpoint
        protocol = protocol_of(endpoint.url)
        profile = protocol.profile
        if execution.needs_profile:
            profile = await self._profile(endpoint.url, context)
            endpoint.limit.set_capacity(profile.capacities.get(family_of(run.language)))
            self._pool.wake()
        else:
            self._use_default_capacity(endpoint)
        # The time of the attempt starts only here, after the health report.
        now, deadline = self.clock(), context.deadline
        started = now
        # The time of an interpreter's start, or of a compiler, is not part of the program's.
        startup_s = timeouts.startup_s if profile.cold_start or protocol.may_compile(run.language) else 0.0
        startup_s += profile.compile_limits_s.get(run.language, 0.0)
        deadline += startup_s
        started += startup_s
        # The server must not run the code for longer than the caller waits.
        timeout_ms = run.timeout_ms
        if (deadline - now) * 1000 < timeout_ms:
            timeout_ms, permit.has_reduced_timeout = int((deadline - now) * 1000), True
            if timeout_ms < 1:
                raise DeadlineExceededError("the deadline of the call passed before the program was sent", sent="no")
        request = execution.request(profile, timeout_ms, endpoint.url, protocol)
        permit.body, timeout_s = RequestBody(request.body, self.clock), request.timeout_ms / 1000
        permit.run_s = timeout_s + startup_s
        permit.cancels_on_disconnect = profile.cancels_on_disconnect
        deadline += (request.timeout_ms - timeout_ms) / 1000  # several cases take longer than one
        try:
            answer = await self._http.post(
                endpoint.url,
                protocol.run_path,
                permit.body,
                within_s=min(started + timeout_s + timeouts.grace_s, deadline) - now,
                max_body_bytes=max_answer_bytes(run.sandbox.max_output_bytes, collects=bool(run.input.collect)),
                headers=context.headers(),
                live=None if request.nonce else live,  # the guest program returns the output only at the end
            )
        except BodyTooLargeError:
            permit.status = 200  # with any other status, only the beginning of the body is read
            return request.read(None)
        permit.status = answer.status
        response = request.read(answer)
        permit.sample_from = now if response.used_its_time else None
        if permit.has_reduced_timeout and response.timed_out:
            # The code had less time than the caller allowed, so a timeout is not its fault.
            message = f"the code was stopped after the {timeout_ms} ms that were left until the deadline of the call"
            raise DeadlineExceededError(message, sent="yes")
        return response

    async def _profile(self, url: str, context: CallContext) -> EndpointProfile:
        profile = self._profiles.cached(url)
        # Only the report says whether a server runs a language without a guest program.
        if profile is not None and (profile.answered or profile.has_guest(context.language)):
            return profile
        return await self._fetch_profile(url, context)

    async def _fetch_profile(self, url: str, context: CallContext) -> EndpointProfile:
        asked = self.clock()
        try:
            return await self._profiles.fetch(url, self.settings.timeouts.health_s)
        finally:
            context.deadline += self.clock() - asked
