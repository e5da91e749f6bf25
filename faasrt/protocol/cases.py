"""Many cases of one function: which of them go into the next execution, and what its answer says of each.

Nothing is run again unless the caller allows it. A case that ends its execution gets that verdict, and those behind it,
which have not begun, go into the next one. So N cases with k such cases among them take k + 1 executions, and more only
where arguments, results or times are too much for one.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs

from faasrt.errors import InvalidRequestError, shown
from faasrt.languages import Language
from faasrt.protocol.executions import Reading
from faasrt.results import ExecutionResult, Outcome, UserError

MAX_REQUEST_BYTES = 1_048_576
_LARGEST_JS_INT = 2**53
Stamp = Callable[[ExecutionResult], ExecutionResult]


def encode_case(args: Sequence[Any], kwargs: Mapping[str, Any], language: Language, what: str = "the call") -> str:
    """Give a case's arguments as JSON in ASCII.

    Raises:
        InvalidRequestError: A value is not JSON, or would come out as another one.
    """
    for name, value in [*((f"argument {index}", value) for index, value in enumerate(args)), *kwargs.items()]:
        problem = _problem(value, None if language is Language.PYTHON else _LARGEST_JS_INT, ())
        if problem:
            raise InvalidRequestError(f"{name} of {what} {problem}: arguments travel as JSON")
    try:
        return json.dumps([list(args), dict(kwargs)])
    except ValueError as error:
        raise InvalidRequestError(f"an argument of {what} cannot be written: {error}") from None


def check_function(name: object, language: Language) -> str:
    """Give the name of a function back.

    Raises:
        InvalidRequestError: It is no identifier of the language.
    """
    plain = name.replace("$", "_") if isinstance(name, str) and language is not Language.PYTHON else name
    if not isinstance(name, str) or not isinstance(plain, str) or not plain.isidentifier():
        raise InvalidRequestError(f"function must be the name of a function, got {shown(name)}")
    # Python's own names are normalized so when it reads them.
    return unicodedata.normalize("NFKC", name) if language is Language.PYTHON else name


def check_kwargs(kwargs: Mapping[str, Any], language: Language) -> None:
    """Refuse what a language does not have.

    Raises:
        InvalidRequestError: There are keyword arguments, and the language is not Python.
    """
    if kwargs and language is not Language.PYTHON:
        raise InvalidRequestError(
            f"{language} has no keyword arguments ({', '.join(kwargs)[:100]}): pass an object as the last argument"
        )


def encode_cases(cases: object, language: Language) -> list[str]:
    """Give the arguments of each case as JSON.

    Raises:
        InvalidRequestError: They are no iterable of tuples or lists, or a value is not JSON.
    """
    if isinstance(cases, (str, bytes, Mapping)) or not isinstance(cases, Iterable):
        raise InvalidRequestError(f"cases must be tuples of arguments, got {type(cases).__name__}")
    encoded = []
    for index, case in enumerate(cases):
        if not isinstance(case, (tuple, list)):
            raise InvalidRequestError(f"case {index} must be a tuple of arguments, got {type(case).__name__}")
        encoded.append(encode_case(case, {}, language, f"case {index}"))
    return encoded


def _problem(value: Any, largest_int: int | None, above: tuple[int, ...]) -> str:
    """What keeps a value from travelling as JSON, or ""."""
    if value is None or isinstance(value, (bool, str)):
        return ""
    if isinstance(value, int):
        too_large = largest_int is not None and abs(value) > largest_int
        return "is or holds an integer above 2**53, which JavaScript would round" if too_large else ""
    if isinstance(value, float):
        return "" if -float("inf") < value < float("inf") else f"is or holds {shown(value)}"
    if not isinstance(value, (list, tuple, dict)):
        return f"is or holds a {type(value).__name__}"
    if id(value) in above or len(above) > 200:
        return "contains itself" if id(value) in above else "is nested more than 200 levels deep"
    inside = (*above, id(value))
    if isinstance(value, dict):
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            return f"holds a dict with the key {shown(wrong[0])}, which is no str"
        value = value.values()
    return next((problem for member in value if (problem := _problem(member, largest_int, inside))), "")


@attrs.define
class Plan:
    """The state of a `run_cases`.

    Attributes:
        cases: The arguments as JSON.
        limit: UTF-8 bytes to keep of each stream.
        isolate: Whether each case gets the definitions anew.
        rerun: Whether cases may run again when it cannot be told which of them ended the execution.
        results: What is known, by index.
        definition_ms: How long the definitions took in the last execution, in milliseconds.
    """

    cases: Sequence[str]
    limit: int
    isolate: bool
    rerun: bool
    results: list[ExecutionResult | None] = attrs.field(init=False)
    definition_ms: float | None = attrs.field(default=None, init=False)
    _left: list[range] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.results = [None] * len(self.cases)
        self._left = [range(len(self.cases))] if self.cases else []

    def next_batch(self) -> range | None:
        """Give the indices that go into the next execution; None when all is known."""
        if not self._left:
            return None
        whole = self._left.pop(0)
        size, stop = len(self.cases[whole.start]), whole.start + 1
        while stop < whole.stop and size + len(self.cases[stop]) <= MAX_REQUEST_BYTES:
            size += len(self.cases[stop])
            stop += 1
        self._put_back(range(stop, whole.stop))
        return range(whole.start, stop)

    def all_results(self) -> list[ExecutionResult]:
        """Give the result of every case, in order."""
        return [result for result in self.results if result is not None]

    def take(self, batch: range, reading: Reading, stamp: Stamp) -> ExecutionResult:
        """Note what an execution says of its batch; what has not begun goes into the next one.

        Returns:
            The result that stands for the execution as a whole: that of the case that ended it, or of the last one.
        """
        records, final, attributable = reading.report.records, reading.report.final, reading.report.attributable
        definition = records.get(-1)
        if not self.isolate and attributable and (definition is None or definition.outcome is not Outcome.OK):
            # The definitions end alike for every case.
            ended = reading.killed() if definition is None else reading.result_of(definition, limit=self.limit)
            self.results = [stamp(ended) if known is None else known for known in self.results]
            self._left = []
            return stamp(ended)
        if definition is not None:
            self.definition_ms = definition.duration_ms
        index, last = batch.start, None
        while index < batch.stop and (record := records.get(index)) is not None:
            result = reading.result_of(record, definition, limit=self.limit)
            last = self.results[index] = stamp(attrs.evolve(result, duration_ms=record.duration_ms))
            index += 1
        if index == batch.stop or (final and index > batch.start):
            self._put_back(range(index, batch.stop))
            return last or stamp(reading.killed())
        killed = stamp(reading.killed())
        if attributable or len(batch) == 1:
            self.results[index] = killed
            self._put_back(range(index + 1, batch.stop))
        elif self.rerun:
            middle = (batch.start + batch.stop) // 2
            self._put_back(range(middle, batch.stop))
            self._put_back(range(batch.start, middle))
        else:
            self._blame_all(batch, killed)
        return killed

    def _put_back(self, rest: range) -> None:
        if rest:
            self._left.insert(0, rest)

    def _blame_all(self, batch: range, killed: ExecutionResult) -> None:
        """The program may have run every case; which of them ended it, or whether its definitions did, is unknown."""
        words = (
            f"the execution of cases {batch.start} to {batch.stop - 1} ended without telling in which of them; "
            "idempotent=True lets them run again, apart"
        )
        for index in batch:
            self.results[index] = attrs.evolve(killed, error=UserError("UnknownCase", words))
