"""Executions: a whole `Program`, or a `CaseBatch` of calls of a function. Each makes a `Request` for its endpoint."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

import attrs

from faasrt.config import EnvelopeMode
from faasrt.errors import ServerError
from faasrt.languages import Language
from faasrt.protocol.envelope import GuestJob, wrap
from faasrt.protocol.execution_limits import ExecutionLimits
from faasrt.protocol.frames import GuestReport, Record, take_frames
from faasrt.protocol.health import EndpointProfile, is_pyodide, is_reference_answer
from faasrt.protocol.request import RunRequest
from faasrt.protocol.response import Answer, Verdict, parse_success, read_verdict, success_verdict
from faasrt.protocol.return_val import defines_return_val, take_return_val
from faasrt.protocol.streams import STREAM_NAMES, cut_text
from faasrt.results import ExecutionOutput, Outcome, UserError

T = TypeVar("T")
# Added to the limit that is sent to js-faas: the guest program stops at the limit itself, and returns the output.
_MARGIN_MS = 500
_MIN_WINDOW_MS = 250
_LIMITS = (Outcome.TIMEOUT, Outcome.MEMORY_LIMIT, Outcome.OUTPUT_LIMIT)


@attrs.define(kw_only=True)
class Request(Generic[T]):
    """One request.

    Attributes:
        body: The JSON to send.
        timeout_ms: How long the code may run, in milliseconds.
        read: Reads the answer; None stands for an answer that was too large.
        timed_out: Returns whether the code was stopped at its time limit.
    """

    body: bytes
    timeout_ms: int
    read: Callable[[Answer | None], T]
    timed_out: Callable[[T], bool]


class Execution(Protocol[T]):
    """A program or a batch of cases, which makes a request for an endpoint.

    Attributes:
        run: The request as the caller made it.
        needs_profile: Whether the request depends on the endpoint.
    """

    @property
    def run(self) -> RunRequest: ...

    @property
    def needs_profile(self) -> bool: ...

    def request(self, profile: EndpointProfile, timeout_ms: int) -> Request[T]: ...


@attrs.frozen
class GuestResponse:
    """An answer to an enveloped request.

    Attributes:
        report: The content of the guest program's frames.
        plain: The verdict on the answer without the frames.
        declared: Whether the server named an outcome.
        time_used_up: Whether the execution took as long as its time limit.
        limits: The limits of a program or a case; None adds no errors of limits.
    """

    report: GuestReport
    plain: Verdict
    declared: bool = False
    time_used_up: bool = False
    limits: ExecutionLimits | None = None

    def verdict_of(self, record: Record, definition: Record | None = None, *, limit: int) -> Verdict:
        """Return the verdict of a record.

        Args:
            record: How a program or a case ended.
            definition: How the definitions that cases share ended; their output comes first.
            limit: UTF-8 bytes to keep of each stream.
        """
        texts, truncated = {}, set(record.truncated)
        for name in STREAM_NAMES:
            if name not in record.texts:
                texts[name] = getattr(self.plain.output, name)
                truncated |= self.plain.truncated & {name}
                continue
            before = definition.texts.get(name, "") if definition else ""
            texts[name], was_cut = cut_text(before + record.texts[name], limit)
            truncated |= {name} if was_cut or (definition and name in definition.truncated) else set()
        return Verdict(
            outcome=record.outcome,
            output=ExecutionOutput(**texts),
            error=record.error or self._limit_error(record.outcome),
            exit_code=record.exit_code,
            truncated=frozenset(truncated),
            duration_ms=self.plain.duration_ms if self.plain.duration_ms is not None else record.duration_ms,
            metadata=self.plain.metadata,
        )

    def single_verdict(self, limit: int, *, strict: bool = True) -> Verdict:
        """Return the verdict on an execution with a single record; see `verdict_of` and `killed_verdict`."""
        record = self.report.records.get(0)
        if record is None or not self.report.final:
            return self.killed_verdict(strict=strict)
        return self.verdict_of(record, limit=limit)

    def killed_verdict(self, *, strict: bool = True) -> Verdict:
        """Return the verdict on an execution whose guest program did not come to its end.

        Args:
            strict: Whether the server is known to return frames. Others may lose the frame of a program that ended.
        """
        plain = self.plain
        if not strict and not self.report.started:
            return plain
        if plain.outcome in _LIMITS or (self.declared and plain.outcome is not Outcome.OK):
            return attrs.evolve(plain, error=plain.error or self._limit_error(plain.outcome))
        # The guest program reports every exception and exit, so the process was killed.
        outcome = Outcome.TIMEOUT if self.time_used_up else Outcome.CRASHED
        return attrs.evolve(plain, outcome=outcome, error=self._limit_error(outcome))

    def _limit_error(self, outcome: Outcome) -> UserError | None:
        return None if self.limits is None else self.limits.error(outcome)


@attrs.define
class Program:
    """An execution of a whole program.

    Attributes:
        run: The request as the caller made it.
        mode: Whether the program travels in an envelope.
    """

    run: RunRequest
    mode: EnvelopeMode

    @property
    def needs_profile(self) -> bool:
        """Whether the request depends on the endpoint."""
        return self.mode != "never"

    def request(self, profile: EndpointProfile, timeout_ms: int) -> Request[Verdict]:
        """Return the request for an endpoint, with a time limit in milliseconds."""
        run = self.run if timeout_ms == self.run.timeout_ms else attrs.evolve(self.run, timeout_ms=timeout_ms)
        limit = run.sandbox.max_output_bytes

        def read_plain(answer: Answer | None) -> Verdict:
            if answer is None:
                return _too_large(limit)
            verdict = read_verdict(answer, timeout_ms=run.timeout_ms, max_output_bytes=limit)
            if verdict.outcome is Outcome.OK or verdict.error is not None:
                return verdict
            return attrs.evolve(verdict, error=_limits(run, profile).error(verdict.outcome))

        if self.mode == "never" or (self.mode == "auto" and profile.lossless):
            return Request(body=run.encode(), timeout_ms=run.timeout_ms, read=read_plain, timed_out=_timed_out)
        nonce, limits = secrets.token_hex(8), _limits(run, profile)
        strict = self.mode == "always" or profile.reference

        def read_enveloped(answer: Answer | None) -> Verdict:
            response = read(answer, nonce, timeout_ms=run.timeout_ms, limit=limit, profile=profile, limits=limits)
            verdict = response.single_verdict(limit, strict=strict)
            if verdict.output.ret_val or not defines_return_val(run.code, run.language):
                return verdict
            stdout, ret_val, truncated = take_return_val(verdict.output.stdout, run.language, verdict.truncated)
            output = ExecutionOutput(stdout, verdict.output.stderr, ret_val)
            return attrs.evolve(verdict, output=output, truncated=truncated)

        job = GuestJob(
            code=run.code,
            language=run.language,
            limit_ms=run.timeout_ms,
            max_output_bytes=limits.max_output_bytes,
        )
        body = _enveloped(run, wrap(job, profile, nonce), run.timeout_ms, profile)
        return Request(body=body, timeout_ms=run.timeout_ms, read=read_enveloped, timed_out=_timed_out)


@attrs.frozen(kw_only=True)
class CaseBatch:
    """Several cases of a function, in one execution.

    Attributes:
        run: The request as the caller made it; its time limit is that of a case.
        function: The name of the function.
        cases: JSON of the arguments, `[[args ...], {kwargs}]`, one for each case.
        first: The index of the first case.
        single: Whether this is one call instead of several cases.
        isolate: Whether each case runs the definitions again.
        definition_ms: Milliseconds that the definitions took in an earlier execution; None if unknown.
    """

    run: RunRequest
    function: str
    cases: Sequence[str]
    first: int = 0
    single: bool = False
    isolate: bool = False
    definition_ms: float | None = None
    needs_profile: bool = attrs.field(default=True, init=False)

    def request(self, profile: EndpointProfile, timeout_ms: int) -> Request[GuestResponse]:
        """Return the request for an endpoint, with a time limit for each case in milliseconds."""
        run, nonce = attrs.evolve(self.run, timeout_ms=timeout_ms), secrets.token_hex(8)
        limit, limits, begin_within_ms = run.sandbox.max_output_bytes, _limits(run, profile), 0.0
        if not self.single:
            timeout_ms, begin_within_ms = self._times(profile, timeout_ms)
        job = GuestJob(
            code=run.code,
            language=run.language,
            limit_ms=run.timeout_ms,
            max_output_bytes=limits.max_output_bytes,
            function=self.function,
            cases=self.cases,
            first=self.first,
            single=self.single,
            isolate=self.isolate,
            begin_within_ms=begin_within_ms,
        )
        return Request(
            body=_enveloped(run, wrap(job, profile, nonce), timeout_ms, profile),
            timeout_ms=timeout_ms,
            read=lambda answer: read(answer, nonce, timeout_ms=timeout_ms, limit=limit, profile=profile, limits=limits),
            timed_out=lambda response: (
                any(record.outcome is Outcome.TIMEOUT for record in response.report.records.values())
                or (not response.report.final and _timed_out(response.killed_verdict()))
            ),
        )

    def _times(self, profile: EndpointProfile, each: int) -> tuple[int, float]:
        """Return the limit of the execution, and the time within which a further case may begin, in milliseconds."""
        if not profile.enforces_timeouts:
            # The guest program ends each case at its own limit.
            window = max(1, round(self.run.sandbox.timeout_limit_s * 1000))
            return 2 * each + window, float(window)
        # The server ends executions, not cases, so the limits must be close to each other. Still, a case that begins
        # late must get its whole time, and so must the definitions.
        longest = max(profile.timeout_limit_ms or each, each)
        if self.isolate:
            definitions = 0
        else:
            definitions = each if self.definition_ms is None else min(each, round(1.5 * self.definition_ms) + 50)
        window = max(each // 2, _MIN_WINDOW_MS)
        if each + window > longest:
            window = max(longest - each, longest // 10)
        return min(definitions + each + window, longest), float(window)


def read(
    answer: Answer | None,
    nonce: str,
    *,
    timeout_ms: float,
    limit: int,
    profile: EndpointProfile,
    limits: ExecutionLimits | None = None,
) -> GuestResponse:
    """Read the answer to an enveloped request.

    Args:
        answer: The answer; None when it was too large.
        nonce: The nonce of the request.
        timeout_ms: The time limit of the execution, in milliseconds.
        limit: UTF-8 bytes to keep of each stream.
        profile: The endpoint.
        limits: The limits of the program or of each case; None adds no errors of limits.

    Raises:
        ServiceError: The server failed, refused, did not start its interpreter, or did not follow the protocol.
    """
    if answer is None:
        return GuestResponse(GuestReport(), _too_large(limit))
    sent_ms = timeout_ms
    if profile.cold_start:
        timeout_ms = math.inf  # the start of the interpreter alone can take that long
    if answer.status != 200:
        plain = read_verdict(answer, timeout_ms=timeout_ms, max_output_bytes=limit)
        return GuestResponse(GuestReport(), plain, limits=limits)
    success = parse_success(answer)
    report, success.texts = take_frames(success.texts, nonce, limit)
    plain = success_verdict(success, timeout_ms=timeout_ms, max_output_bytes=limit)
    if limits is not None and plain.error == attrs.evolve(limits, timeout_ms=sent_ms).error(Outcome.TIMEOUT):
        # The server reports the limit of the execution; the caller set the limit of a case.
        plain = attrs.evolve(plain, error=limits.error(Outcome.TIMEOUT))
    response = GuestResponse(report, plain, success.declared is not None, success.used_up(timeout_ms), limits)
    if not (report.started or success.killed or response.declared or plain.outcome is Outcome.TIMEOUT):
        _check_started(plain, profile)
    return response


def _check_started(plain: Verdict, profile: EndpointProfile) -> None:
    """Raise ServerError if the server is known to return frames: without one, its interpreter did not start."""
    if profile.reference or is_reference_answer(plain.metadata):
        reason = plain.output.stderr.strip()[:500] or "no reason given"
        code = "" if plain.exit_code is None else f" (exit code {plain.exit_code})"
        message = f"the FaaS did not start its interpreter{code}: {reason}; see its logs"
        error = ServerError(message, sent="yes", status=200)
        error.details = reason
        # A JavaScript program can write the answer of its server, and so hide that it started.
        error.blames_endpoint = is_pyodide(plain.metadata)
        raise error


def _timed_out(verdict: Verdict) -> bool:
    return verdict.outcome is Outcome.TIMEOUT


def _limits(run: RunRequest, profile: EndpointProfile) -> ExecutionLimits:
    """Return the limits of a program at an endpoint, whose own output limit may be lower."""
    limit = run.sandbox.max_output_bytes
    kept = min(limit, profile.max_output_bytes) if profile.lossless and profile.max_output_bytes else limit
    return ExecutionLimits(
        timeout_ms=run.timeout_ms,
        memory_limit_mb=run.sandbox.memory_limit_mb,
        max_output_bytes=kept,
        set_by_server=(Outcome.OUTPUT_LIMIT,) if kept < limit else (),
    )


def _enveloped(run: RunRequest, code: str, timeout_ms: int, profile: EndpointProfile) -> bytes:
    # The guest program is JavaScript, and imports the user's TypeScript itself.
    language = run.language.family
    margin = 0 if profile.lossless or language is Language.PYTHON else _MARGIN_MS
    return attrs.evolve(run, code=code, language=language, timeout_ms=timeout_ms + margin).encode()


def _too_large(limit: int) -> Verdict:
    message = f"the answer is too large for {limit} bytes of output (limit of the client); it was not read"
    error = UserError("OutputLimit", message)
    return Verdict(outcome=Outcome.OUTPUT_LIMIT, error=error, truncated=frozenset(STREAM_NAMES))
