"""What an answer says about the program, or about each case, of a request."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from faasrt.languages import Language, family_of
from faasrt.protocol.answer import NO_TIMINGS, ParsedAnswer
from faasrt.protocol.execution_limits import ExecutionLimits
from faasrt.protocol.health import EndpointProfile
from faasrt.protocol.program import Program
from faasrt.protocol.return_val import take_return_val
from faasrt.protocol.streams import cut_texts
from faasrt.results import ExecutionOutput, ExecutionResult, Outcome, Timings

if TYPE_CHECKING:
    from faasrt.protocol.execution import WireRequest

_WITH_FULL_TIME = (Outcome.OK, Outcome.TIMEOUT)


@attrs.define
class Response:
    """The content of the answer to a request that ran code."""

    answer: ParsedAnswer
    request: WireRequest

    @property
    def timed_out(self) -> bool:
        return Outcome.TIMEOUT in self._outcomes()

    @property
    def used_its_time(self) -> bool:
        """Whether all code ran to its end or to its time limit, so that its duration says how fast the server is."""
        return all(outcome in _WITH_FULL_TIME for outcome in self._outcomes())

    def _outcomes(self) -> list[Outcome]:
        report = self.answer.report
        outcomes = [record.outcome for record in report.records.values()]
        if not report.final:
            outcomes.append(self.answer.outcome)
        return outcomes

    def result(self, timings: Timings = NO_TIMINGS, attempts: int = 1, endpoint: str = "") -> ExecutionResult:
        report = self.answer.report
        ended = report.final and 0 in report.records
        answer = self.answer_of(0) if ended else self._take_return_val(self.answer)
        return answer.result(timings, attempts, endpoint)

    def result_of(self, index: int) -> ExecutionResult:
        return self.answer_of(index).result()

    def answer_of(self, index: int) -> ParsedAnswer:
        """Return the answer about a case, with the output of the shared definitions first."""
        program, base, record = self.request.program, self.answer, self.answer.report.records[index]
        definition = base.report.records.get(-1) if index >= 0 else None
        # The server returned the streams that are not in the record.
        texts = attrs.asdict(base.output) | dict(record.texts)
        if self.request.profile.on_cpython_and_node and base.report.final and list(base.report.records) == [0]:
            # Output that did not pass through the guest program, such as output of child processes of Node.js.
            texts["stdout"] = base.output.stdout + texts["stdout"]
            texts["stderr"] = base.output.stderr + texts["stderr"]
        truncated = record.truncated | (base.truncated - record.texts.keys())
        if definition is not None:
            texts |= {name: text + texts[name] for name, text in definition.texts.items()}
            truncated |= definition.truncated
        texts, cut_names = cut_texts(texts, program.sandbox.max_output_bytes)
        answer = attrs.evolve(
            base,
            outcome=record.outcome,
            output=ExecutionOutput(**texts),
            error=record.error or limits_of(program, self.request.profile).error(record.outcome),
            exit_code=record.exit_code,
            truncated=truncated | cut_names,
            files=record.files or base.files,
            duration_ms=record.duration_ms if base.duration_ms is None else base.duration_ms,
        )
        return self._take_return_val(answer)

    def _take_return_val(self, answer: ParsedAnswer) -> ParsedAnswer:
        """Move the value that a program's own `return_val` printed out of stdout."""
        if self.request.own_return_val and not answer.output.ret_val:
            language = Language(family_of(self.request.program.language))
            stdout, ret_val, answer.truncated = take_return_val(answer.output.stdout, language, answer.truncated)
            answer.output = ExecutionOutput(stdout, answer.output.stderr, ret_val)
        return answer


def limits_of(program: Program, profile: EndpointProfile) -> ExecutionLimits:
    limit = program.sandbox.max_output_bytes
    kept = min(limit, profile.max_output_bytes) if profile.lossless and profile.max_output_bytes else limit
    return ExecutionLimits(
        timeout_ms=program.timeout_ms,
        memory_limit_mb=program.sandbox.memory_limit_mb,
        max_output_bytes=kept,
        set_by_server=(Outcome.OUTPUT_LIMIT,) if kept < limit else (),
    )
