"""`ExecutionResult` and the other results, and the cutting of streams."""

from __future__ import annotations

import asyncio
import bisect
import json

import pytest

from faasrt import (
    CodeTask,
    CompletedTask,
    EndpointHealth,
    ErrorInfo,
    ExecutionError,
    ExecutionOutput,
    ExecutionResult,
    FaasrtError,
    FailedTask,
    HealthStatus,
    Judgement,
    Outcome,
    ReturnValueError,
    TestCase,
    TestResult,
    Timings,
    Verdict,
    _strict_json,
)
from faasrt.protocol.streams import cut, cut_text


@pytest.mark.parametrize(
    ("ret_val", "value"), [('{"score": 1}', {"score": 1}), ("0.50", 0.5), ("null", None), ('"x"', "x"), ("[1]", [1])]
)
def test_value_decodes_json(ret_val: str, value: object) -> None:
    """`value` is decoded from the JSON in `ret_val`, which stays unchanged."""
    result = ExecutionResult(outcome=Outcome.OK, output=ExecutionOutput(ret_val=ret_val))
    assert result.value == value
    assert result.ret_val == ret_val
    assert result.to_dict()["value"] == value


@pytest.mark.parametrize("ret_val", ["plain text", "{'a': 1}", "NaN", "1e999", "[" * 100_000, "1" * 10_000])
def test_value_raises_for_invalid_json(ret_val: str) -> None:
    """`value` raises ReturnValueError, and `to_dict` gives None."""
    result = ExecutionResult(outcome=Outcome.OK, output=ExecutionOutput(ret_val=ret_val))
    with pytest.raises(ReturnValueError):
        result.value  # noqa: B018
    with pytest.raises(ReturnValueError):
        result.value_or(0)
    assert result.to_dict()["value"] is None


def test_durations_are_rounded_where_they_are_shown() -> None:
    """The fields have all digits; `repr` shows four decimals, and `to_dict` returns six."""
    timings = Timings(3.746999936993234e-06, 0.3411506410000129, (0.3410206680000556,), 0.0123456789)
    result = ExecutionResult(outcome=Outcome.OK, timings=timings, duration_ms=57.900000000000006)
    assert repr(timings) == "Timings(queued_s=0.0, total_s=0.3412, attempts_s=(0.341,), waited_s=0.0123)"
    assert "duration_ms=57.9, timings=" in repr(result)
    assert result.to_dict()["timings"] == {
        "queued_s": 4e-06,
        "total_s": 0.341151,
        "attempts_s": [0.341021],
        "waited_s": 0.012346,
    }
    health = EndpointHealth(endpoint="x", healthy=True, status="healthy", latency_s=0.0012345678)
    assert "latency_s=0.0012," in repr(health)
    judgement = Judgement(results=(TestResult(test=TestCase(), verdict=Verdict.PASSED),), duration_s=1.23456789)
    assert repr(judgement).endswith("duration_s=1.2346)")
    assert judgement.to_dict()["duration_s"] == 1.234568


def test_a_value_of_any_depth_can_be_encoded() -> None:
    """The decoder accepts deeper values than the encoder, which has less room in other threads. `to_dict` leaves out
    values of more than 200 levels.
    """

    def nested(depth: int) -> ExecutionResult:
        text = '{"a": [' * (depth // 2) + "[" * (depth % 2) + "]" * (depth % 2) + "]}" * (depth // 2)
        return ExecutionResult(outcome=Outcome.OK, output=ExecutionOutput(ret_val=text))

    def is_decoded(depth: int) -> bool:
        try:
            return nested(depth).value is not None
        except ReturnValueError:
            return False

    # Python 3.14 is limited only by the size of the stack.
    deepest = bisect.bisect_left(range(100_000), True, key=lambda depth: not is_decoded(depth)) - 1
    assert deepest > 201
    for depth in (200, 201, *range(deepest - 20, deepest + 3)):
        result = nested(depth)
        fields = json.loads(result.to_json())
        assert (fields["value"] is None) is (depth > 200), depth
        assert fields["ret_val"] == result.ret_val
        record = {"tests": {}, **result.to_dict()}
        assert json.loads(asyncio.run(asyncio.to_thread(_strict_json.dump_bytes, record)))["outcome"] == "OK"


@pytest.mark.parametrize("ret_val", ["1", ""])
def test_value_raises_for_a_truncated_text(ret_val: str) -> None:
    """A truncated text that is valid JSON, or empty, is not the value that the program returned."""
    output = ExecutionOutput(ret_val=ret_val)
    result = ExecutionResult(outcome=Outcome.OK, output=output, truncated=frozenset({"ret_val"}))
    with pytest.raises(ReturnValueError, match="max_output_bytes"):
        result.value  # noqa: B018


def test_a_program_that_returned_nothing_has_no_value() -> None:
    """`value` is None, and `value_or` returns the default. The JSON text `null` is a value."""
    nothing = ExecutionResult(outcome=Outcome.OK)
    assert (nothing.value, nothing.value_or(0), nothing.to_dict()["value"]) == (None, 0, None)
    null = ExecutionResult(outcome=Outcome.OK, output=ExecutionOutput(ret_val="null"))
    assert (null.value, null.value_or(0)) == (None, None)


def test_raise_for_outcome() -> None:
    """`raise_for_outcome` returns the result if it is OK, and raises an error with the result otherwise."""
    good = ExecutionResult(outcome=Outcome.OK)
    assert good.raise_for_outcome() is good
    bad = ExecutionResult(outcome=Outcome.USER_ERROR, error=ErrorInfo("ValueError", "bad"))
    with pytest.raises(ExecutionError, match="USER_ERROR: ValueError: bad") as info:
        bad.raise_for_outcome()
    assert info.value.result is bad


def test_to_dict_is_json() -> None:
    """`to_dict` contains every field, and can be encoded as JSON."""
    import attrs

    fields = ExecutionResult(outcome=Outcome.TIMEOUT, truncated=frozenset({"stdout"})).to_dict()
    assert json.loads(json.dumps(fields)) == fields
    names = {field.name for field in attrs.fields(ExecutionResult)} - {"output"}
    assert names | {"stdout", "stderr", "ret_val", "value"} == set(fields)


def test_attributes_of_results_cannot_be_assigned() -> None:
    result = ExecutionResult(outcome=Outcome.OK)
    with pytest.raises(AttributeError):
        result.outcome = Outcome.TIMEOUT  # type: ignore[misc]
    with pytest.raises(AttributeError):
        result.other = 1  # type: ignore[attr-defined]


TASK = CodeTask("1", "py")
PASSED, WRONG = (ExecutionResult(outcome=outcome) for outcome in (Outcome.OK, Outcome.USER_ERROR))
UP, DOWN = (EndpointHealth(endpoint="http://a", healthy=healthy, status="", latency_s=0) for healthy in (True, False))
JUDGED_PASSED, JUDGED_WRONG = (
    Judgement(results=(TestResult(test=TestCase(), verdict=verdict),))
    for verdict in (Verdict.PASSED, Verdict.WRONG_ANSWER)
)


def test_what_counts_as_a_success() -> None:
    """For a task with tests, the judgement decides. There must be an endpoint, and all must be healthy."""
    assert [JUDGED_PASSED.passed, JUDGED_WRONG.passed] == [True, False]
    assert [CompletedTask(0, TASK, result).ok for result in (PASSED, WRONG)] == [True, False]
    judged = [CompletedTask(0, TASK, PASSED, judgement=each).ok for each in (JUDGED_PASSED, JUDGED_WRONG)]
    assert judged == [True, False]
    assert not FailedTask(0, TASK, FaasrtError("down")).ok
    assert [HealthStatus(each).healthy for each in ((UP,), (UP, DOWN), ())] == [True, False, False]


@pytest.mark.parametrize("character", ["\ud800", "\u20ac", "\U0001f600", "\x7f"])
@pytest.mark.parametrize("shift", range(4))
def test_cut_text_keeps_all_whole_characters(character: str, shift: int) -> None:
    """Lone surrogates too. Only one at the edge of a part that was cut can be lost."""
    text = "x" * shift + character * 1000 + "y"
    kept, was_cut = cut_text(text, 601)
    head, marker, tail = kept.partition("\n... ")
    size = len(character.encode("utf-8", "surrogatepass"))
    assert was_cut
    assert marker
    for part in (head, tail.partition(" ...\n")[2]):
        assert set(part) <= {"x", "y", character}
        assert part.count(character) >= 280 // size - 1, part


@pytest.mark.parametrize("limit", [1, 5, 24, 25, 40, 100, 1000])
@pytest.mark.parametrize("text", ["x" * 1001, "é" * 600, "🎉" * 300, "ab\ud800" * 400])
def test_cut_text_stays_within_the_limit(text: str, limit: int) -> None:
    """The cut text has at most `limit` bytes in UTF-8, and is reported as cut."""
    kept, was_cut = cut_text(text, limit)
    assert was_cut
    assert len(kept.encode("utf-8", "surrogatepass")) <= limit


def test_cut_counts_replaced_bytes() -> None:
    """An invalid byte becomes U+FFFD, which has three bytes. The limit applies to the bytes after that."""
    kept, was_cut = cut(b"\xff" * 100, 100)
    assert was_cut
    assert len(kept.encode()) <= 100
    assert cut(b"\xff" * 10, 100) == ("\ufffd" * 10, False)
