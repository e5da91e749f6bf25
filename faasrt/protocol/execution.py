"""Makes the request for one execution, and reads its answer.

The choice between a plain request and the envelope is made here, so the transport needs to know neither.
"""

from __future__ import annotations

import copy
import math
import secrets

import attrs

from faasrt._endpoint_urls import configured_url
from faasrt.config import EnvelopeMode
from faasrt.errors import ConnectError, InvalidRequestError, ProtocolError, ServerError, UnsupportedLanguageError
from faasrt.inputs import INPUT_FIELDS, NO_INPUT, ProgramInput
from faasrt.languages import Language, family_of, has_return_val
from faasrt.protocol import cozeloop
from faasrt.protocol.answer import Answer, ParsedAnswer
from faasrt.protocol.envelope import WHOLE_PROGRAM, GuestJob, wrap
from faasrt.protocol.health import EndpointProfile, is_pyodide, is_reference_answer
from faasrt.protocol.interface import ServiceProtocol
from faasrt.protocol.program import Program
from faasrt.protocol.response import Response, limits_of
from faasrt.protocol.return_val import defines_return_val
from faasrt.protocol.streams import STREAM_NAMES
from faasrt.results import ErrorInfo, Outcome

# Added to the time limit that is sent to js-faas, so that the guest program can stop first and return the output.
_MARGIN_MS = 500
# The same for services that kill programs. The start of the interpreter is a part of their time limit.
KILL_MARGIN_MS = 1_000
_MIN_WINDOW_MS = 250
# The fields of the input that the guest program can pass on, on servers that do not.
_GUEST_INPUT = {Language.PYTHON: set(INPUT_FIELDS), Language.JAVASCRIPT: {"stdin", "argv"}}
_LIMITS = (Outcome.TIMEOUT, Outcome.MEMORY_LIMIT, Outcome.OUTPUT_LIMIT)


@attrs.define
class Execution:
    """One execution of a program, or of calls of its function.

    Attributes:
        program: The program of the caller. Its time limit applies to the program, or to each case.
        mode: Whether the program is sent in an envelope; calls always are.
    """

    program: Program
    mode: EnvelopeMode = "always"
    job: GuestJob = WHOLE_PROGRAM
    definition_ms: float | None = None

    @property
    def needs_profile(self) -> bool:
        program = self.program
        has_options = self.mode != "never" or program.input is not NO_INPUT or program.displays
        return has_options or not has_return_val(program.language)

    def request(
        self,
        profile: EndpointProfile,
        timeout_ms: int,
        endpoint: str,
        protocol: ServiceProtocol = cozeloop.PROTOCOL,
    ) -> WireRequest:
        """Return the request for an endpoint.

        Args:
            timeout_ms: The time limit of the program or of each case.
            endpoint: The base URL, for the error message.

        Raises:
            ConnectError: It is unknown whether the server runs the language, or returns displays.
            UnsupportedLanguageError: The server does not run the language.
            InvalidRequestError: There is no guest program that calls functions of the language, the server does not
                return the displays that the caller asks for, or neither the server nor the guest program can pass on
                the input of the program.
        """
        program, job, begin_within_ms = self.program, self.job, 0.0
        if timeout_ms != program.timeout_ms:
            program = attrs.evolve(program, timeout_ms=timeout_ms)
        has_envelope = self.mode == "always" or (self.mode == "auto" and not profile.lossless)
        if not profile.has_guest(program.language):
            if job is not WHOLE_PROGRAM:
                raise InvalidRequestError(
                    f"{endpoint} can run {program.language} programs, but not call their functions"
                )
            if protocol.has_profile:
                _check_runs(program.language, profile, endpoint)
            has_envelope = False
        if program.displays:
            _check_displays(program.language, profile, endpoint)
            has_envelope = False  # the server must see the last expression of the program
        if not has_envelope:
            check_listed(program.language, profile, endpoint)
        guest_input = NO_INPUT
        if program.input is not NO_INPUT:
            guest_input = self._guest_input(profile, endpoint, has_envelope=has_envelope)
        if not has_envelope:
            body = protocol.encode(program, in_envelope=False)
            return WireRequest(body, program, timeout_ms, profile, protocol)
        if not job.single:
            timeout_ms, begin_within_ms = self._time_limits(profile, timeout_ms)
        nonce, limit = secrets.token_hex(8), limits_of(program, profile).max_output_bytes
        job = attrs.evolve(job, input=guest_input)
        code = wrap(program, job, profile, nonce, max_output_bytes=limit, begin_within_ms=begin_within_ms)
        passed_on = {name: getattr(NO_INPUT, name) for name in guest_input.used}
        # The guest program is JavaScript, and imports the user's TypeScript itself.
        language = Language(family_of(program.language))
        margin_ms = 0 if profile.lossless or language is Language.PYTHON else _MARGIN_MS
        margin_ms = KILL_MARGIN_MS if profile.kills_at_limit else margin_ms
        sent = attrs.evolve(
            program,
            code=code,
            language=language,
            timeout_ms=timeout_ms + margin_ms,
            input=attrs.evolve(program.input, **passed_on),
        )
        return WireRequest(
            body=protocol.encode(sent, in_envelope=True),
            program=program,
            timeout_ms=timeout_ms,
            margin_ms=margin_ms,
            profile=profile,
            protocol=protocol,
            nonce=nonce,
            expects_frame=self.mode == "always" or profile.reference,
            own_return_val=job.function is None and defines_return_val(program.code, program.language),
        )

    def _guest_input(self, profile: EndpointProfile, endpoint: str, *, has_envelope: bool) -> ProgramInput:
        """Return the input that the guest program passes on, instead of the server."""
        language, given, job = self.program.language, self.program.input, self.job
        by_server = profile.input_fields.get(language, frozenset() if has_envelope else profile.plain_input)
        if job.has_whole_programs:
            by_server = frozenset()  # the guest program gives each case its own folder
        elif not job.single:
            by_server -= {"stdin"}  # the guest program gives each case the standard input from its start
        by_guest = set(given.used) - by_server
        passes_all = has_envelope and (job.has_whole_programs or not profile.lossless)
        possible = _GUEST_INPUT[Language(family_of(language))] if passes_all else {"stdin"} & by_guest
        if profile.on_cpython_and_node and language is Language.JAVASCRIPT:
            possible = {"argv"}
        if missing := by_guest - possible if has_envelope else by_guest:
            check_listed(language, profile, endpoint)
            server = f" ({profile.version})" if profile.version else ""
            advice = profile.low_levels.get(language, "use another FaaS, such as the embedded one")
            raise InvalidRequestError(
                f"{endpoint}{server} cannot pass {' and '.join(sorted(missing))} to {language} programs: {advice}"
            )
        return attrs.evolve(NO_INPUT, **{name: getattr(given, name) for name in by_guest})

    def _time_limits(self, profile: EndpointProfile, case_ms: int) -> tuple[int, float]:
        if not profile.enforces_timeouts:
            # The guest program stops each case at its own limit. A server that kills programs may have a low limit.
            longest_ms = case_ms if profile.kills_at_limit else self.program.sandbox.timeout_limit_s * 1000
            window = max(1, round(longest_ms))
            return 2 * case_ms + window, float(window)
        # The server stops executions, not cases, so the limit of the execution must be close to the limit of a case.
        # But the definitions, and a case that begins at the end of the window, need their full time.
        longest = max(profile.timeout_limit_ms or case_ms, case_ms)
        definitions = case_ms if self.definition_ms is None else min(case_ms, round(1.5 * self.definition_ms) + 50)
        window = max(case_ms // 2, _MIN_WINDOW_MS)
        if case_ms + window > longest:
            window = max(longest - case_ms, longest // 10)
        return min((0 if self.job.isolate else definitions) + case_ms + window, longest), float(window)


@attrs.define
class WireRequest:
    """A request to one endpoint.

    Attributes:
        program: The program, with the time limit of the program or of each case.
        timeout_ms: The time limit of the execution.
        margin_ms: The milliseconds that are added to the time limit that is sent.
        nonce: The nonce of the frames; None without an envelope.
        expects_frame: Whether the server must return a frame. A server of an unknown kind may lose it.
        own_return_val: Whether the program defines `return_val` itself. The value is then in stdout.
        may_be_replaced: Whether the endpoint has failed since its health report, so that another kind of server may
            have replaced it.
    """

    body: bytes
    program: Program
    timeout_ms: int
    profile: EndpointProfile
    protocol: ServiceProtocol = cozeloop.PROTOCOL
    margin_ms: int = 0
    nonce: str | None = None
    expects_frame: bool = False
    own_return_val: bool = False
    may_be_replaced: bool = False

    @property
    def path(self) -> str:
        """The path of the request, after the base URL."""
        return self.protocol.run_path

    def read(self, answer: Answer | None) -> Response:
        """Read the answer. None means that it was too large.

        Raises:
            ServiceError: The server failed, refused, did not start its interpreter, or did not follow the protocol.
        """
        if answer is None:
            parsed = _too_large(self.program.sandbox.max_output_bytes)
        else:
            if answer.status != 200:
                had_its_time = answer.elapsed_ms >= self.timeout_ms + self.margin_ms
                answer.may_be_timeout = had_its_time and not self.profile.lossless
            # The start of the interpreter can exceed the time limit by itself.
            timeout_ms = math.inf if self.profile.cold_start else self.timeout_ms
            parsed = self.protocol.decode(answer, self.program, nonce=self.nonce, timeout_ms=timeout_ms)
            if not parsed.declared:
                self._check_server()
        if parsed.outcome in _LIMITS:
            limits = limits_of(self.program, self.profile)
            of_execution = attrs.evolve(limits, timeout_ms=self.timeout_ms).error(Outcome.TIMEOUT)
            if parsed.error is None or parsed.error == of_execution:
                parsed.error = limits.error(parsed.outcome)  # the limit of the case, not of the execution
        elif self.nonce is not None:
            self._check_frames(parsed)
        return Response(parsed, self)

    def _check_frames(self, parsed: ParsedAnswer) -> None:
        """Correct the outcome of a program in an envelope, because the guest program reports every exception and exit.
        Raise ServerError if it did not start, or if its frame was cut.
        """
        started = parsed.report.started
        is_taken_for_other = self.protocol is cozeloop.PROTOCOL and not self.profile.lossless
        if is_taken_for_other and parsed.declared and parsed.truncated and not parsed.report.final:
            # The embedded FaaS has stated the outcome. It did not know that a frame was in the output that it cut.
            raise ServerError(
                "the FaaS cut the result of the program, because the client did not know what kind of server it is",
                hint="let the client reach GET /health",
                sent="yes",
                status=200,
                blames_endpoint=False,
            )
        if not (started or parsed.declared or parsed.killed):
            _check_started(parsed, self.profile)
        if (self.expects_frame or started) and not (parsed.declared and parsed.outcome is not Outcome.OK):
            # The process was killed.
            parsed.outcome = Outcome.TIMEOUT if parsed.time_used_up else Outcome.CRASHED
            parsed.error = limits_of(self.program, self.profile).error(parsed.outcome)

    def _check_server(self) -> None:
        """Raise ProtocolError if an answer without an outcome comes from another kind of server."""
        if self.profile.lossless and self.may_be_replaced and self.protocol is cozeloop.PROTOCOL:
            # The server may have damaged the output, or have run a C program as Python.
            message = (
                "the answer has no outcome: another kind of server has replaced the one that sent the health report"
            )
            raise ProtocolError(message, sent="yes", status=200)


def _check_runs(language: Language | str, profile: EndpointProfile, endpoint: str) -> None:
    """Raise an error unless a server has said that it runs a language without a guest program. Servers that do not name
    their languages run only Python, or only JavaScript, whatever the request says.
    """
    if not profile.answered:
        failure = copy.copy(profile.failure)  # without the traceback
        raise failure or ConnectError("no answer to GET /health that names the languages of the server", sent="no")
    if language not in profile.compile_limits_s:
        raise _unsupported_error(language, profile, endpoint)


def check_listed(language: Language | str, profile: EndpointProfile, endpoint: str) -> None:
    """Raise UnsupportedLanguageError if a server lists its languages, and this one is not among them."""
    if profile.languages and language not in profile.languages:
        raise _unsupported_error(language, profile, endpoint)


def _unsupported_error(language: Language | str, profile: EndpointProfile, endpoint: str) -> UnsupportedLanguageError:
    server = f" ({profile.version})" if profile.version else ""
    reason = profile.missing.get(language, "it does not list the language")
    return UnsupportedLanguageError(
        f"{endpoint}{server} does not run {language} programs: {reason}; "
        f"`faasrt languages --url {configured_url(endpoint)}` shows what it runs"
    )


def _check_displays(language: Language | str, profile: EndpointProfile, endpoint: str) -> None:
    if not profile.answered:
        failure = copy.copy(profile.failure)
        raise failure or ConnectError(
            "no answer to GET /health that says whether the server returns displays", sent="no"
        )
    check_listed(language, profile, endpoint)
    if language not in profile.displays:
        server = f" ({profile.version})" if profile.version else ""
        raise InvalidRequestError(
            f"{endpoint}{server} cannot return displays of {language} programs: the embedded FaaS returns those of "
            "Python, JavaScript and TypeScript programs, if it runs them"
        )


def _check_started(plain: ParsedAnswer, profile: EndpointProfile) -> None:
    """Raise ServerError if the server must return frames: without one, its interpreter did not start."""
    if profile.reference or is_reference_answer(plain.metadata):
        reason = plain.output.stderr.strip()[:500] or "no reason given"
        code = "" if plain.exit_code is None else f" (exit code {plain.exit_code})"
        # On js-faas a program can overwrite the answer, and so hide that it started.
        failed = profile.on_cpython_and_node and plain.exit_code not in (None, 0)
        raise ServerError(
            f"the FaaS did not start its interpreter{code}",
            quote=reason,
            hint="see its logs",
            details=reason,
            sent="yes",
            status=200,
            blames_endpoint=is_pyodide(plain.metadata) or failed,
        )


def _too_large(limit: int) -> ParsedAnswer:
    message = f"the answer is too large for {limit} bytes of output (max_output_bytes); it was not read"
    error = ErrorInfo("OutputLimit", message)
    return ParsedAnswer(outcome=Outcome.OUTPUT_LIMIT, error=error, truncated=frozenset(STREAM_NAMES))
