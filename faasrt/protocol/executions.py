"""An execution: what is sent to an endpoint, according to what the endpoint is, and how its answer is read.

`Program` is a whole program, `Batch` some cases of a function. Each makes a `Request` once the endpoint is known.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import attrs

from faasrt.config import EnvelopeMode
from faasrt.errors import ServerError
from faasrt.languages import Language
from faasrt.protocol.envelope import Job, wrap
from faasrt.protocol.frames import Record, Report, take_frames
from faasrt.protocol.messages import RunRequest
from faasrt.protocol.profile import EndpointProfile, is_reference_answer
from faasrt.protocol.return_val import defines_return_val, take_return_val
from faasrt.protocol.streams import cut_text
from faasrt.protocol.verdict import Answer, judge, judge_success, parse_success
from faasrt.results import ExecutionOutput, ExecutionResult, Outcome

T = TypeVar("T")
# Added to the limit that js-faas is sent: the guest program stops at the limit itself, and still returns the output.
_MARGIN_MS = 500
_LEAST_BATCH_MS = 250
_STREAMS = ("stdout", "stderr", "ret_val")


@attrs.define(kw_only=True)
class Request(Generic[T]):
    """One request.

    Attributes:
        body: The JSON that is sent.
        timeout_ms: How long the code may run, in milliseconds.
        read: Makes the result of the answer; of None when the answer was larger than any may be.
        timed_out: Tells whether a result says that code was ended at its limit.
    """

    body: bytes
    timeout_ms: int
    read: Callable[[Answer | None], T]
    timed_out: Callable[[T], bool]


@attrs.frozen
class Reading:
    """An answer to an enveloped request.

    Attributes:
        report: The content of the guest program's frames.
        plain: The verdict on the answer without the frames.
        declared: Whether the server named an outcome.
        time_used_up: Whether the execution took as long as its time limit.
    """

    report: Report
    plain: ExecutionResult
    declared: bool = False
    time_used_up: bool = False

    def result_of(self, record: Record, definition: Record | None = None, *, limit: int) -> ExecutionResult:
        """Make the result of a record.

        Args:
            record: How a program or a case ended.
            definition: How the definitions went that a case shares with others: what they printed comes first.
            limit: UTF-8 bytes to keep of each stream.
        """
        texts, truncated = {}, set(record.truncated)
        for name in _STREAMS:
            if name not in record.texts:
                texts[name] = getattr(self.plain, name)
                truncated |= self.plain.truncated & {name}
                continue
            before = definition.texts.get(name, "") if definition else ""
            texts[name], was_cut = cut_text(before + record.texts[name], limit)
            truncated |= {name} if was_cut or (definition and name in definition.truncated) else set()
        return ExecutionResult(
            outcome=record.outcome,
            output=ExecutionOutput(**texts),
            error=record.error,
            exit_code=record.exit_code,
            truncated=frozenset(truncated),
            duration_ms=self.plain.duration_ms if self.plain.duration_ms is not None else record.duration_ms,
            metadata=self.plain.metadata,
        )

    def only(self, limit: int, *, strict: bool = True) -> ExecutionResult:
        """The result of an execution with one record, whether it came to its end or not; see the other methods."""
        record = self.report.records.get(0)
        if record is None or not self.report.final:
            return self.killed(strict=strict)
        return self.result_of(record, limit=limit)

    def killed(self, *, strict: bool = True) -> ExecutionResult:
        """The verdict on an execution whose guest program did not come to its end.

        Args:
            strict: Whether the server is known to bring frames back; others may have run the program to its end.
        """
        plain = self.plain
        if not strict and not self.report.begun:
            return plain
        limited = plain.outcome in (Outcome.TIMEOUT, Outcome.MEMORY_LIMIT, Outcome.OUTPUT_LIMIT)
        if limited or (self.declared and plain.outcome is not Outcome.OK):
            return plain
        # The guest program reports every exception and exit, so the execution ended in another way.
        outcome = Outcome.TIMEOUT if self.time_used_up else Outcome.CRASHED
        return attrs.evolve(plain, outcome=outcome, error=None)


@attrs.define
class Program:
    """A whole program.

    Attributes:
        run: The request as the caller made it.
        mode: Whether it travels in an envelope.
    """

    run: RunRequest
    mode: EnvelopeMode

    @property
    def needs_profile(self) -> bool:
        """Whether what is sent depends on the endpoint."""
        return self.mode != "never"

    def request(self, profile: EndpointProfile, timeout_ms: int) -> Request[ExecutionResult]:
        """Make the request for an endpoint, with the time that is left."""
        run = self.run if timeout_ms == self.run.timeout_ms else attrs.evolve(self.run, timeout_ms=timeout_ms)
        limit = run.sandbox.max_output_bytes

        def judge_plain(answer: Answer | None) -> ExecutionResult:
            return _flooded() if answer is None else judge(answer, timeout_ms=run.timeout_ms, max_output_bytes=limit)

        if self.mode == "never" or (self.mode == "auto" and profile.faithful):
            return Request(body=run.encode(), timeout_ms=run.timeout_ms, read=judge_plain, timed_out=_timed_out)
        nonce = _new_nonce()
        strict = self.mode == "always" or profile.reference

        def unwrap(answer: Answer | None) -> ExecutionResult:
            reading = read(answer, nonce, timeout_ms=run.timeout_ms, limit=limit, profile=profile)
            result = reading.only(limit, strict=strict)
            if result.ret_val or not defines_return_val(run.code, run.language):
                return result
            stdout, ret_val, truncated = take_return_val(result.stdout, run.language, result.truncated)
            output = attrs.evolve(result.output, stdout=stdout, ret_val=ret_val)
            return attrs.evolve(result, output=output, truncated=truncated)

        job = Job(code=run.code, language=run.language, limit_ms=run.timeout_ms, max_output_bytes=_kept(run, profile))
        body = _enveloped(run, wrap(job, profile, nonce), run.timeout_ms, profile)
        return Request(body=body, timeout_ms=run.timeout_ms, read=unwrap, timed_out=_timed_out)


@attrs.frozen(kw_only=True)
class Batch:
    """Some cases of a function, in one execution.

    Attributes:
        run: The request as the caller made it; its time limit is that of a case.
        function: The name of the function.
        cases: JSON of the arguments, `[[args ...], {kwargs}]`, one for each case.
        first: The index of the first of them.
        single: It is one call, not the beginning of several.
        isolate: Each case gets the definitions anew.
        definition_ms: How long the definitions took in an execution before, in milliseconds; None when not known.
    """

    run: RunRequest
    function: str
    cases: Sequence[str]
    first: int = 0
    single: bool = False
    isolate: bool = False
    definition_ms: float | None = None
    needs_profile: bool = attrs.field(default=True, init=False)

    def request(self, profile: EndpointProfile, timeout_ms: int) -> Request[Reading]:
        """Make the request for an endpoint, with the time that is left for one case."""
        run, nonce = attrs.evolve(self.run, timeout_ms=timeout_ms), _new_nonce()
        limit, begin_within_ms = run.sandbox.max_output_bytes, 0.0
        if not self.single:
            timeout_ms, begin_within_ms = self._times(profile, timeout_ms)
        job = Job(
            code=run.code,
            language=run.language,
            limit_ms=run.timeout_ms,
            max_output_bytes=_kept(run, profile),
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
            read=lambda answer: read(answer, nonce, timeout_ms=timeout_ms, limit=limit, profile=profile),
            timed_out=lambda reading: (
                any(record.outcome is Outcome.TIMEOUT for record in reading.report.records.values())
                or (not reading.report.final and _timed_out(reading.killed()))
            ),
        )

    def _times(self, profile: EndpointProfile, each: int) -> tuple[int, float]:
        """How long the execution may take in all, and until when a further case may begin, in milliseconds."""
        if not profile.enforces_timeouts:
            # The guest program ends each case at its own limit.
            window = max(1, round(self.run.sandbox.timeout_limit_s * 1000))
            return 2 * each + window, float(window)
        # Here only the execution is ended, so its limit is not far from that of a case; but a case that begins late
        # must have its time, and so must the definitions.
        most = max(profile.timeout_limit_ms or each, each)
        if self.isolate:
            definitions = 0
        else:
            definitions = each if self.definition_ms is None else min(each, round(1.5 * self.definition_ms) + 50)
        window = max(each // 2, _LEAST_BATCH_MS)
        if each + window > most:
            window = max(most - each, most // 10)
        return min(definitions + each + window, most), float(window)


def read(answer: Answer | None, nonce: str, *, timeout_ms: float, limit: int, profile: EndpointProfile) -> Reading:
    """Read the answer to an enveloped request.

    Args:
        answer: The answer; None when it was larger than any may be.
        nonce: The nonce of the request.
        timeout_ms: The time limit of the execution, in milliseconds.
        limit: UTF-8 bytes to keep of each stream.
        profile: The endpoint.

    Raises:
        ServiceError: The server failed, refused, did not start its interpreter, or does not speak the protocol.
    """
    if answer is None:
        return Reading(Report(), _flooded())
    if profile.starts_slowly:
        timeout_ms = math.inf  # the start of the interpreter alone can take as long
    if answer.status != 200:
        return Reading(Report(), judge(answer, timeout_ms=timeout_ms, max_output_bytes=limit))
    success = parse_success(answer)
    report, success.texts = take_frames(success.texts, nonce, limit)
    plain = judge_success(success, timeout_ms=timeout_ms, max_output_bytes=limit)
    reading = Reading(report, plain, success.declared is not None, success.used_up(timeout_ms))
    if not (report.begun or success.killed or reading.declared or plain.outcome is Outcome.TIMEOUT):
        _check_started(plain, profile)
    return reading


def _check_started(plain: ExecutionResult, profile: EndpointProfile) -> None:
    """Raise ServerError for a server that returns what the guest program announces, and returned nothing of it."""
    if profile.reference or is_reference_answer(plain.metadata):
        said = plain.stderr.strip()[:500] or "it gave no reason"
        code = "" if plain.exit_code is None else f" (exit code {plain.exit_code})"
        error = ServerError(
            f"the FaaS did not start its interpreter{code}: {said}; see its logs", sent="yes", status=200
        )
        error.details = said
        raise error


def _timed_out(result: ExecutionResult) -> bool:
    return result.outcome is Outcome.TIMEOUT


def _new_nonce() -> str:
    return secrets.token_hex(8)


def _kept(run: RunRequest, profile: EndpointProfile) -> int:
    """The bytes that the guest program keeps of each stream: more than its own limit a server would cut."""
    limit = run.sandbox.max_output_bytes
    return min(limit, profile.max_output_bytes) if profile.faithful and profile.max_output_bytes else limit


def _enveloped(run: RunRequest, code: str, timeout_ms: int, profile: EndpointProfile) -> bytes:
    # The guest program is JavaScript; it has the user's TypeScript translated by itself.
    language = run.language.family
    margin = 0 if profile.faithful or language is Language.PYTHON else _MARGIN_MS
    return attrs.evolve(run, code=code, language=language, timeout_ms=timeout_ms + margin).encode()


def _flooded() -> ExecutionResult:
    return ExecutionResult(
        outcome=Outcome.OUTPUT_LIMIT,
        output=ExecutionOutput(stderr="the answer was larger than the output limit allows; it was not read"),
        truncated=frozenset(_STREAMS),
    )
