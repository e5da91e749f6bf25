"""Distributes the cases of a function over executions, and reads the result of each case.

A case runs once, unless the caller allows more. A case that ends its execution gets the result of the execution, and
the remaining cases go into a new one.
"""

from __future__ import annotations

import json
import math
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs

from faasrt._exact_values import without_tuples
from faasrt._strict_json import JsonCheck
from faasrt.errors import InvalidRequestError, safe_repr
from faasrt.languages import Language
from faasrt.protocol.response import Response
from faasrt.results import ErrorInfo, ExecutionResult, Outcome

MAX_REQUEST_BYTES = 1_048_576
_MAX_JS_INT = 2**53
_MANY_CASES = 500
ToResult = Callable[[ExecutionResult], ExecutionResult]


def encode_case(
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    language: Language | str,
    place: str = "the call",
    *,
    exact: bool = False,
) -> str:
    """Return a case's arguments as ASCII JSON, or raise InvalidRequestError if a value would change in transit. With
    `exact`, Python programs get tuples as tuples.
    """
    if not isinstance(args, (tuple, list)):
        raise InvalidRequestError(f"{place} must be a tuple of arguments, got {type(args).__name__}")
    check = JsonCheck(math.inf if language is Language.PYTHON else _MAX_JS_INT)
    for name, value in [*((f"argument {index}", value) for index, value in enumerate(args)), *kwargs.items()]:
        try:
            check.add(value)
        except ValueError as problem:
            raise InvalidRequestError(f"{name} of {place} {problem}: arguments are sent as JSON") from None
    case = [list(args), dict(kwargs)]
    try:
        return json.dumps(without_tuples(case) if exact and language is Language.PYTHON else case)
    except ValueError as error:
        raise InvalidRequestError(f"an argument of {place} cannot be encoded as JSON: {error}") from None


def check_function(name: object, language: Language | str) -> str:
    """Return the name, normalized for the language, or raise InvalidRequestError."""
    in_python = language is Language.PYTHON
    if not isinstance(name, str) or not (name if in_python else name.replace("$", "_")).isidentifier():
        raise InvalidRequestError(f"function must be a str with the name of a function, got {safe_repr(name)}")
    # Python's parser normalizes identifiers in the same way.
    return unicodedata.normalize("NFKC", name) if in_python else name


def check_keywords(kwargs: Mapping[str, Any], language: Language | str) -> None:
    if kwargs and language is not Language.PYTHON:
        raise InvalidRequestError(
            f"kwargs must be empty for {language}, which has no keyword arguments, got {', '.join(kwargs)[:100]}: "
            "pass an object as the last argument"
        )


def encode_cases(cases: object, language: Language | str) -> list[str]:
    if isinstance(cases, (str, bytes, Mapping)) or not isinstance(cases, Iterable):
        raise InvalidRequestError(f"cases must be an iterable of tuples of arguments, got {type(cases).__name__}")
    return [encode_case(case, {}, language, f"case {index}") for index, case in enumerate(cases)]


@attrs.define
class CaseScheduler:
    """Decides which cases go into the next execution, and collects their results.

    `may_rerun` is whether cases may run again when it is unknown which case ended the execution. Messages name cases by
    their `numbers`, by default by their positions.
    """

    cases: Sequence[str]
    isolate: bool
    may_rerun: bool
    max_bytes: int = MAX_REQUEST_BYTES
    numbers: Sequence[int] = ()
    results: dict[int, ExecutionResult] = attrs.field(factory=dict, init=False)
    definition_ms: float | None = attrs.field(default=None, init=False)
    _pending: list[range] = attrs.field(factory=list, init=False)
    # The most cases to send: about twice the number that fits into an execution, because the others are sent again.
    _max_cases: int = attrs.field(default=sys.maxsize, init=False)

    def __attrs_post_init__(self) -> None:
        self._enqueue(range(len(self.cases)))

    def next_batch(self) -> range | None:
        if not self._pending:
            return None
        waiting = self._pending.pop()
        size, stop = len(self.cases[waiting.start]), waiting.start + 1
        last = min(waiting.stop, waiting.start + self._max_cases)
        while stop < last and size + len(self.cases[stop]) <= self.max_bytes:
            size += len(self.cases[stop])
            stop += 1
        self._enqueue(range(stop, waiting.stop))
        return range(waiting.start, stop)

    def record_results(self, batch: range, response: Response, to_result: ToResult) -> ExecutionResult:
        """Record the results of an execution. Cases that did not begin go into a later one. Return the result of the
        case that stopped the execution, or of the last case.
        """
        report = response.answer.report
        definition = report.records.get(-1)
        if not self.isolate and report.is_complete and (definition is None or definition.outcome is not Outcome.OK):
            # The definitions would fail in the same way for every case.
            ended = to_result(response.answer.result() if definition is None else response.result_of(-1))
            self.results = dict.fromkeys(range(len(self.cases)), ended) | self.results
            self._pending = []
            return ended
        if definition is not None:
            self.definition_ms = definition.duration_ms
        index = batch.start
        while index < batch.stop and index in report.records:
            duration_ms = report.records[index].duration_ms
            self.results[index] = to_result(attrs.evolve(response.result_of(index), duration_ms=duration_ms))
            index += 1
        if index == batch.stop or (report.final and index > batch.start):
            # A case that exits also ends an execution, so a few cases show little.
            if index < batch.stop:
                self._max_cases = max(_MANY_CASES, 2 * (index - batch.start))
            elif len(batch) == self._max_cases:
                self._max_cases *= 2
            self._enqueue(range(index, batch.stop))
            return self.results[index - 1]
        ended = to_result(response.answer.result())
        if report.is_complete or len(batch) == 1:
            self.results[index] = ended
            self._enqueue(range(index + 1, batch.stop))
        elif self.may_rerun:
            middle = (batch.start + batch.stop) // 2
            self._enqueue(range(middle, batch.stop))
            self._enqueue(range(batch.start, middle))
        else:
            # Every case may have run, and the definitions or any of the cases may have stopped the execution.
            first, last = (self.numbers[index] if self.numbers else index for index in (batch.start, batch.stop - 1))
            message = (
                f"the execution of cases {first} to {last} ended, and it is unknown in which case; "
                "pass idempotent=True to run them again in smaller executions"
            )
            ended = attrs.evolve(ended, error=ErrorInfo("UnknownCase", message))
            self.results.update(dict.fromkeys(batch, ended))
        return ended

    def _enqueue(self, indices: range) -> None:
        if indices:
            self._pending.append(indices)
