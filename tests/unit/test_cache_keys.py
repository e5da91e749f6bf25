"""What determines the key of a stored result, which results are stored, and how they are encoded."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import attrs
import pytest

from faasrt import ErrorInfo, ExecutionOutput, ExecutionResult, Language, Outcome, SandboxConfig
from faasrt._version import RESULTS_VERSION, __version__
from faasrt.client import cache as caching
from faasrt.client.cache import (
    ResultCache,
    StoredResults,
    decode_result,
    determinants_of,
    digest,
    encode_result,
    hash_case,
    is_stored,
)
from faasrt.inputs import ProgramInput
from faasrt.protocol.envelope import GuestJob
from faasrt.protocol.execution import Execution
from faasrt.protocol.health import read_fingerprints
from faasrt.protocol.program import Program

RUN = Program(
    language=Language.PYTHON, code="print(1)", timeout_ms=1_000, sandbox=SandboxConfig(), priority="normal", ext={}
)
# A value of each field that differs from that of `RUN`.
OTHER: dict[str, Any] = {
    "language": Language.JAVASCRIPT,
    "code": "print(2)",
    "timeout_ms": 999,
    "sandbox": SandboxConfig(memory_limit_mb=64),
    "priority": "high",
    "ext": {"a": "b"},
    "input": ProgramInput(stdin=b"a"),
    "idempotent": True,
    "displays": True,
}


def key_of(execution: Execution) -> str:
    return digest(determinants_of(execution))


@pytest.mark.parametrize("name", [field.name for field in attrs.fields(Program)])
def test_every_field_of_a_request_that_can_change_the_result_changes_the_key(name: str) -> None:
    changed = attrs.evolve(RUN, **{name: OTHER[name]})
    assert (key_of(Execution(program=RUN)) == key_of(Execution(program=changed))) is (
        name in ("priority", "idempotent")
    )


def test_every_part_of_the_input_changes_the_key() -> None:
    inputs = [
        ProgramInput(),
        ProgramInput(stdin=b"a"),
        ProgramInput(argv=("a",)),
        ProgramInput(argv=("a", "")),
        ProgramInput(files={"a": b""}),
        ProgramInput(files={"a": b"a"}),
        ProgramInput(collect=("a",)),
    ]
    assert len(inputs) > len(attrs.fields(ProgramInput))
    assert len({key_of(Execution(program=attrs.evolve(RUN, input=each))) for each in inputs}) == len(inputs)
    order = [ProgramInput(files={"a": b"1", "b": b"2"}), ProgramInput(files={"b": b"2", "a": b"1"})]
    assert len({key_of(Execution(program=attrs.evolve(RUN, input=each))) for each in order}) == 1


def test_limits_mode_and_kind_of_call_change_the_key() -> None:
    """The upper limit of `timeout_ms` does not, because `timeout_ms` itself is in the key."""
    executions = [
        Execution(program=RUN),
        Execution(program=RUN, mode="never"),
        Execution(program=attrs.evolve(RUN, sandbox=SandboxConfig(max_output_bytes=9))),
        Execution(program=RUN, job=GuestJob(function="f")),
        Execution(program=RUN, job=GuestJob(function="g")),
        Execution(program=RUN, job=GuestJob(function="f", single=False)),
        Execution(program=RUN, job=GuestJob(function="f", single=False, isolate=True)),
        Execution(program=RUN, job=GuestJob(function="f", single=False, isolate=True, imported=True)),
    ]
    assert len({key_of(execution) for execution in executions}) == len(executions)
    longer = attrs.evolve(RUN, sandbox=SandboxConfig(timeout_limit_s=60))
    assert key_of(Execution(program=longer)) == key_of(Execution(program=RUN))


def test_the_version_of_the_results_changes_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """It contains more than the version of the package, which commits between two releases share."""
    assert RESULTS_VERSION.startswith(f"{__version__}-")
    before = key_of(Execution(program=RUN))
    monkeypatch.setattr(caching, "RESULTS_VERSION", f"{__version__}-other")
    assert key_of(Execution(program=RUN)) != before


def test_the_digest_distinguishes_types_and_ignores_the_order_of_names() -> None:
    values = ["a", b"a", 1, 1.0, True, None, "1", ["a"], [b"a"], {"a": b""}, {"a": ""}, "\ud800"]
    assert len({digest({"x": value}) for value in values}) == len(values)
    assert digest({"x": 1, "y": {"b": 1, "a": 2}}) == digest({"y": {"a": 2, "b": 1}, "x": 1})
    assert digest({"x": 1}) == digest({"x": 1})


def test_every_case_has_its_own_hash() -> None:
    cases = ["", "[[1], {}]", "[[2], {}]", "\ud83d\ude00", "\U0001f600", "\ud800"]
    assert len({hash_case(case) for case in cases}) == len(cases)


class Recorder:
    """A store without values, which records its keys."""

    def __init__(self) -> None:
        self.looked_up: list[str] = []
        self.stored: list[str] = []

    async def get(self, key: str) -> bytes | None:
        self.looked_up.append(key)
        return None

    async def put(self, key: str, value: bytes) -> None:
        self.stored.append(key)


async def both_engines() -> dict[str, str | None]:
    return {"http://a": "first", "http://b": "second"}


@pytest.mark.parametrize("large", [True, False])
def test_each_case_is_hashed_once_for_all_engines(monkeypatch: pytest.MonkeyPatch, large: bool) -> None:
    """Large cases are hashed in a thread. The results are stored with the keys that were looked up."""
    hashed: list[tuple[str, bool]] = []

    def recording(case: str) -> str:
        hashed.append((case, threading.current_thread() is threading.main_thread()))
        return hash_case(case)

    monkeypatch.setattr(caching, "hash_case", recording)
    cases = ["a" * 10**6 if large else "a", "b"]
    store = Recorder()

    async def main() -> None:
        job = GuestJob(function="f", cases=cases, single=False)
        stored = StoredResults(ResultCache.checked(store), Execution(program=RUN, job=job), both_engines)
        assert await stored.find(range(2)) == {}
        for number in range(2):
            await stored.keep(attrs.evolve(RESULT, metadata={}), number)

    asyncio.run(main())
    assert hashed == [(case, not large) for case in cases]
    assert len(set(store.looked_up)) == 4
    assert store.stored == store.looked_up[:2]


LARGE_INPUTS = [
    {"code": "#" * 10**6},
    {"ext": {"a": "b" * 10**6}},
    {"input": ProgramInput(stdin=bytes(10**6))},
    {"input": ProgramInput(argv=("a" * 60_000,) * 20)},
    {"input": ProgramInput(files={"a": bytes(10**6)})},
    {"input": ProgramInput(files={"a" * 1_000 + str(number): b"" for number in range(1_000)})},
]


@pytest.mark.parametrize("changes", LARGE_INPUTS)
def test_a_large_program_is_hashed_in_a_thread(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    threads = []

    def recording(execution: Execution) -> dict[str, Any]:
        threads.append(threading.current_thread())
        return determinants_of(execution)

    monkeypatch.setattr(caching, "determinants_of", recording)
    execution = Execution(program=attrs.evolve(RUN, **changes))
    asyncio.run(StoredResults(ResultCache.checked(Recorder()), execution, both_engines).find())
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


RESULT = ExecutionResult(
    outcome=Outcome.USER_ERROR,
    output=ExecutionOutput("out \ud800", "é", "[1]"),
    error=ErrorInfo("ValueError", "m", "t"),
    exit_code=1,
    truncated=frozenset({"stdout"}),
    duration_ms=1.5,
    attempts=2,
    endpoint="http://a",
    metadata={"a": [1, None]},
    files={"a.txt": b"text", "b.bin": b"\xff\x00"},
)


def test_a_stored_result_has_everything_but_the_facts_of_the_call() -> None:
    value = encode_result("key", RESULT)
    assert value is not None
    found = decode_result("key", value)
    assert found is not None
    assert (found.cached, found.attempts, found.timings.total_s) == (True, 0, 0)
    assert attrs.evolve(found, cached=False, attempts=2) == RESULT


def test_a_changed_value_and_a_value_of_another_key_count_as_missing() -> None:
    value = encode_result("key", RESULT)
    assert value is not None
    assert decode_result("other", value) is None
    for index in range(len(value)):
        assert decode_result("key", value[:index] + bytes([value[index] ^ 1]) + value[index + 1 :]) is None
        assert decode_result("key", value[:index]) is None


@pytest.mark.parametrize("changes", [{"metadata": {"a": object()}}, {"output": ExecutionOutput("\ud83d\ude00")}])
def test_a_result_that_json_would_change_is_not_encoded(changes: dict[str, Any]) -> None:
    """An example is a pair of surrogates, which JSON reads as one character."""
    assert encode_result("key", attrs.evolve(RESULT, **changes)) is None


def test_only_deterministic_outcomes_are_stored() -> None:
    stored = {outcome for outcome in Outcome if is_stored(ExecutionResult(outcome=outcome))}
    assert stored == {Outcome.OK, Outcome.USER_ERROR, Outcome.SYNTAX_ERROR}
    assert not is_stored(attrs.evolve(RESULT, truncated=frozenset({"files"})))
    assert not is_stored(attrs.evolve(RESULT, metadata={"may_vary": True}))
    for error in (
        ErrorInfo("MemoryError"),
        ErrorInfo("numpy._core._exceptions._ArrayMemoryError"),
        ErrorInfo("RangeError", "Array buffer allocation failed"),
        ErrorInfo("UnknownCase"),
    ):
        assert not is_stored(attrs.evolve(RESULT, error=error))


def test_engines_are_named_by_fingerprint_version_or_url() -> None:
    """A fingerprint counts for its language only. An empty one means that the engine is unknown."""
    embedded = {
        "version": "faasrt 1",
        "languages": {"python": {"fingerprint": "abc"}, "javascript": {"fingerprint": ""}},
    }
    names = read_fingerprints(embedded, "http://a")
    assert names[Language.PYTHON] == "abc"
    assert names[Language.JAVASCRIPT] is None
    old, new, other = (read_fingerprints({"version": version}, "http://a") for version in ("1", "2", "1"))
    assert old == other
    assert old[Language.PYTHON] != new[Language.PYTHON]
    assert read_fingerprints({"version": "1", "limits": {"max_output_bytes": 5}}, "http://a") != old
    for unnamed in ({}, {"version": 5}, {"version": ""}, {"languages": [1]}):
        assert read_fingerprints(unnamed, "http://a")[Language.PYTHON] == "http://a"


async def test_many_cases_are_looked_up_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up on the disk passes a hundred keys to the thread of the cache. Closing the cache ends the thread."""
    threads = set(threading.enumerate())
    job = GuestJob(function="f", cases=[str(number) for number in range(250)], single=False)
    cache = ResultCache.checked(tmp_path)
    assert cache is not None

    def stored_results() -> StoredResults:
        return StoredResults(cache, Execution(program=RUN, job=job), both_engines)

    stored = stored_results()
    assert await stored.find(range(250)) == {}
    kept = [number for number in range(250) if number % 7]
    for number in kept:
        await stored.keep(attrs.evolve(RESULT, metadata={"fingerprint": "second"}, duration_ms=float(number)), number)
    calls = []
    loop = asyncio.get_running_loop()
    run = loop.run_in_executor

    def counting(*arguments: Any) -> Any:
        calls.append(arguments)
        return run(*arguments)

    monkeypatch.setattr(loop, "run_in_executor", counting)
    found = await stored_results().find(range(250))
    assert {number: result.duration_ms for number, result in found.items()} == {number: number for number in kept}
    assert len(calls) <= 6
    await cache.aclose()
    for thread in set(threading.enumerate()) - threads:
        if thread.name.startswith("faasrt-cache"):
            await asyncio.to_thread(thread.join, 30)
            assert not thread.is_alive()
