"""`CaseScheduler` and frames: properties that hold for all answers of servers and all output of programs."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from faasrt import ExecutionResult, Language, Outcome, SandboxConfig
from faasrt.protocol.answer import ParsedAnswer
from faasrt.protocol.cases import MAX_REQUEST_BYTES, CaseScheduler
from faasrt.protocol.execution import WireRequest
from faasrt.protocol.frames import GuestReport, Record, cut_ret_val, frame_bytes, take_frames
from faasrt.protocol.health import EndpointProfile
from faasrt.protocol.program import Program
from faasrt.protocol.response import Response


def request(limit: int = 1_000) -> WireRequest:
    sandbox = SandboxConfig(max_output_bytes=limit)
    run = Program.checked(Language.PYTHON, "pass", sandbox)
    return WireRequest(body=b"", program=run, timeout_ms=run.timeout_ms, profile=EndpointProfile(), nonce="n")


def response(report: GuestReport, limit: int = 1_000) -> Response:
    """Return the answer of a server whose process was killed, with the frames of the guest program."""
    return Response(ParsedAnswer(outcome=Outcome.CRASHED, report=report), request(limit))


def to_result(result: ExecutionResult) -> ExecutionResult:
    return result


def record(outcome: Outcome = Outcome.OK, value: str = "") -> Record:
    return Record(outcome=outcome, texts={"stdout": "", "stderr": "", "ret_val": value})


@given(
    kinds=st.lists(st.sampled_from(["returns", "raises", "exits", "crashes"]), max_size=12),
    room=st.integers(1, 12),
    isolate=st.booleans(),
)
def test_each_case_runs_once(kinds: list[str], room: int, isolate: bool) -> None:
    """No case starts twice. If k cases stop their execution and the others fit, k + 1 executions are enough."""
    plan = CaseScheduler(["[[], {}]"] * len(kinds), isolate=isolate, may_rerun=False)
    begun: list[int] = []
    executions = 0
    while (batch := plan.next_batch()) is not None:
        executions += 1
        records = {} if isolate else {-1: record()}
        final = True
        for index in list(batch)[:room]:
            begun.append(index)
            if kinds[index] == "crashes":
                final = False
                break
            records[index] = record(Outcome.OK if kinds[index] == "returns" else Outcome.USER_ERROR, str(index))
            if kinds[index] == "exits":
                break
        plan.record_results(
            batch,
            response(GuestReport(records=records, started=True, final=final, progress=True)),
            to_result,
        )
    assert begun == list(range(len(kinds)))
    expected = {
        "returns": Outcome.OK,
        "raises": Outcome.USER_ERROR,
        "exits": Outcome.USER_ERROR,
        "crashes": Outcome.CRASHED,
    }
    results = [plan.results[index] for index in range(len(kinds))]
    assert [result.outcome for result in results] == [expected[kind] for kind in kinds]
    assert all(result.ret_val == str(index) for index, result in enumerate(results) if kinds[index] != "crashes")
    if room == 12:
        stops = [kind in ("exits", "crashes") for kind in kinds]
        # If the last case stops its execution, no cases remain for another execution.
        assert executions == sum(stops) + bool(kinds and not stops[-1])


def test_cases_are_not_sent_again_and_again() -> None:
    """If 1,000 of many cases fit into an execution, each is sent twice at most, apart from the first request."""
    count, sent = 20_000, 0
    plan = CaseScheduler(["[[], {}]"] * count, isolate=True, may_rerun=False)
    while (batch := plan.next_batch()) is not None:
        sent += len(batch)
        records = {index: record() for index in batch[:1_000]}
        plan.record_results(batch, response(GuestReport(records=records, started=True, final=True)), to_result)
    assert len(plan.results) == count
    assert sent < 2.6 * count


@given(silent=st.sets(st.integers(0, 15)), count=st.integers(1, 16))
def test_crashes_without_a_report_are_found_by_halving(silent: set[int], count: int) -> None:
    """If crashed executions report nothing and cases may rerun, each crashing case is found, and the others are OK."""
    plan = CaseScheduler(["[[], {}]"] * count, isolate=False, may_rerun=True)
    executions = 0
    while (batch := plan.next_batch()) is not None:
        executions += 1
        assert executions <= 40 * count
        if silent & set(batch):
            report = GuestReport()
        else:
            report = GuestReport(
                records={-1: record()} | {index: record() for index in batch}, started=True, final=True
            )
        plan.record_results(batch, response(report), to_result)
    assert [plan.results[index].outcome for index in range(count)] == [
        Outcome.CRASHED if index in silent else Outcome.OK for index in range(count)
    ]


@given(sizes=st.lists(st.integers(1, 2 * MAX_REQUEST_BYTES), min_size=1, max_size=8))
def test_batches_are_limited_in_size(sizes: list[int]) -> None:
    """A batch has at most 1 MiB of arguments, or only one case."""
    plan = CaseScheduler(["x" * size for size in sizes], isolate=False, may_rerun=False)
    seen: list[int] = []
    while (batch := plan.next_batch()) is not None:
        seen += batch
        assert len(batch) == 1 or sum(sizes[index] for index in batch) <= MAX_REQUEST_BYTES
        records = {-1: record()} | {index: record() for index in batch}
        plan.record_results(batch, response(GuestReport(records=records, started=True, final=True)), to_result)
    assert seen == list(range(len(sizes)))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
STREAM = (
    st.text(max_size=30)
    | JSON
    | st.fixed_dictionaries({"head": JSON | st.text(), "tail": st.text(), "lost": st.integers(-5, 10**9) | JSON})
    | st.fixed_dictionaries({"base64": st.text(max_size=20) | JSON})
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "index": st.integers(-3, 5) | JSON,
        "outcome": st.sampled_from(["OK", "TIMEOUT", "x"]) | JSON,
        "ms": st.floats() | JSON,
        "exit_code": st.integers() | JSON,
        "error": st.dictionaries(st.sampled_from(["name", "message", "traceback"]), STREAM) | JSON,
        "stdout": STREAM,
        "stderr": STREAM,
        "ret_val": STREAM,
    },
)
FRAMES = st.fixed_dictionaries(
    {},
    optional={
        "nonce": st.just("n") | JSON,
        "final": JSON,
        "progress": JSON,
        "records": st.lists(FIELDS, max_size=3) | JSON,
    },
)


def frame(content: Any) -> str:
    if isinstance(content, dict) and "nonce" in content:
        content = {"nonce": content["nonce"], **content}  # a frame begins with its nonce
    return "faasrt1:" + base64.b64encode(json.dumps(content, separators=(",", ":")).encode()).decode()


def take(texts: list[str], nonce: str, limit: int) -> tuple[GuestReport, list[str]]:
    report, rest = take_frames({str(number): text for number, text in enumerate(texts)}, nonce, limit)
    return report, list(rest.values())


@given(contents=st.lists(FRAMES | JSON, max_size=3), between=st.text(max_size=20), limit=st.integers(1, 200))
def test_forged_frames_give_valid_records_or_none(contents: list[Any], between: str, limit: int) -> None:
    """A program that knows the nonce can forge frames. The records that are read from them stay within the limits."""
    report, _ = take([between.join(map(frame, contents)), between], "n", limit)
    for index, kept in report.records.items():
        assert isinstance(index, int)
        assert isinstance(kept.outcome, Outcome)
        assert all(len(text.encode("utf-8", "surrogatepass")) <= limit for text in kept.texts.values())
        result = response(report, limit).result_of(index)
        json.dumps(to_result(result).to_dict())


def test_forged_frames_with_deep_structure_are_not_decoded() -> None:
    """A frame full of brackets takes many times longer to decode than one with long strings, so it is ignored."""
    record = {"index": 0, "outcome": "OK", "ms": 1, "exit_code": 0}
    strings = frame({"nonce": "n", "final": True, "records": [record | {"stdout": '"\\[]' * 200_000}]})
    brackets = frame({"nonce": "n", "final": True, "records": [record | {"x": [[]] * 200_000}]})
    assert take([strings], "n", 2**20)[0].records[0].texts["stdout"] == '"\\[]' * 200_000
    assert take([brackets], "n", 2**20) == (GuestReport(), [brackets])


@pytest.mark.parametrize(("count", "is_read"), [(999, True), (1_000, False)])
def test_forged_frames_are_skipped_up_to_a_number(count: int, is_read: bool) -> None:
    """A frame after 1,000 frames that cannot be decoded is not searched. It stays in the text, as they do."""
    forged = frame({"nonce": "n"})[:24] + "\n"  # cut inside of its JSON
    real = frame({"nonce": "n", "final": True, "records": []})
    report, (rest,) = take([forged * count + real], "n", 100)
    assert (report.started, report.final) == (is_read, is_read)
    assert rest == ((forged * count).removesuffix("\n") if is_read else forged * count + real)


def test_frames_of_other_calls_are_output() -> None:
    """Any number of them may precede a frame of the call."""
    other, real = (frame({"nonce": nonce, "final": True}) + "\n" for nonce in ("m", "n"))
    report, (rest,) = take([other * 2_000 + real], "n", 100)
    assert report.final
    assert rest == (other * 2_000).removesuffix("\n")


@given(data=st.binary(max_size=60), prefix=st.sampled_from(["faasrt1:", "x faasrt1:", ""]))
def test_invalid_frames_and_frames_of_other_calls_stay_in_the_text(data: bytes, prefix: str) -> None:
    text = prefix + base64.b64encode(data).decode()
    texts = [text, frame({"nonce": "other", "final": True, "records": []})]
    assert take(texts, "n", 100) == (GuestReport(), texts)


def test_frames_are_removed_from_a_text() -> None:
    """The newlines that were added around a frame are removed with it; other newlines stay."""
    own, other = frame({"nonce": "n", "records": []}), frame({"nonce": "m"})
    report, rest = take([f"a\n\n{own}\n{other}\n\n{own}\nb", own + own, f"{own}\n\n{own}"], "n", 100)
    assert report.started
    assert rest == [f"a\n{other}\nb", "", ""]


def test_frames_may_exceed_the_limit_of_return_values() -> None:
    """The embedded FaaS cuts return values at the limit. A frame has a higher limit, because it holds three streams."""
    whole = b"faasrt1:" + b"A" * 5_000
    assert cut_ret_val(whole, 1_000) == (whole.decode(), False)
    assert cut_ret_val(b"x" + whole, 1_000)[1]
    assert cut_ret_val(b"faasrt1:" + b"A" * frame_bytes(1_000), 1_000)[1]
    assert cut_ret_val(b"faasrt1:\xff" + b"A" * 2_000, 1_000)[1]
    assert cut_ret_val(b"faasrt1:" + b"\x01" * 2_000, 1_000)[1]


def test_messages_have_the_numbers_of_cases() -> None:
    """If only some cases of a call run, their numbers in messages are those in the call."""
    plan = CaseScheduler(["[[], {}]"] * 3, isolate=True, may_rerun=False, numbers=[2, 5, 9])
    batch = plan.next_batch()
    assert batch == range(3)
    unknown = GuestReport(records={}, started=True, final=False, progress=False)
    plan.record_results(batch, response(unknown), to_result)
    (message,) = {result.error.message for result in plan.results.values() if result.error}
    assert message.startswith("the execution of cases 2 to 9 ended,")
