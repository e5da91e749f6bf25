"""The command `faasrt batch`: in this process, and as a process where signals, terminals, pipes or limits matter."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import fcntl
import gzip
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import zstandard
from anyio.from_thread import start_blocking_portal

from faasrt import Language, RuntimeFactory, RuntimeManager, SandboxConfig
from faasrt.cli.batch import Batch
from faasrt.cli.batch_input import BatchOptions, survey
from faasrt.cli.batch_output import Results
from faasrt.cli.batch_progress import Progress
from faasrt.cli.connect import find_capacity, make_settings
from faasrt.cli.report.page import render
from faasrt.cli.report.summary import Summary
from faasrt.results import ErrorInfo, Outcome
from faasrt.testing import FakeFaaS, FaultProxy, Reply, Toxics
from support.cli import Running, faasrt, terminal
from support.helpers import Clock, manager_for
from support.served import CLEAN, until
from support.servers import holding_faas
from support.service_programs import human_eval

COMMAND = [sys.executable, "-c", "from faasrt.cli import main; main()", "batch"]

T = TypeVar("T")


@contextlib.contextmanager
def in_thread(server: AbstractAsyncContextManager[T]) -> Iterator[T]:
    """Open a server in the event loop of another thread, because `batch` occupies this one."""
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(server) as opened:
        yield opened


@contextlib.contextmanager
def holding(**capacities: int) -> Iterator[tuple[str, list[int], Callable[[], None]]]:
    """Yield the URL of a FaaS, the numbers of requests in flight at each request, and a function that answers all."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(holding_faas(capacities)) as (url, arrived, go_on),
    ):

        def answer() -> None:
            go_on.set()
            go_on.clear()

        yield url, arrived, lambda: portal.call(answer)


@pytest.fixture(scope="module")
def url(faasrt_local: str) -> str:
    return faasrt_local


def batch(*arguments: str, **options: Any) -> tuple[int, str, str]:
    """Run the command in this process. Return the exit code, stdout and stderr."""
    code, stdout, stderr = faasrt("batch", *arguments, **options)
    assert "Traceback" not in stderr
    return code, stdout, stderr


@contextlib.asynccontextmanager
async def batch_in_this_loop(
    tasks: str,
    out: Path,
    url: str,
    clock: Clock,
    *,
    concurrency: int,
    retry_infra: int = 0,
) -> AsyncIterator[tuple[Progress, asyncio.Task[None]]]:
    """Start what the command does, in the event loop of the test, whose clock can be advanced."""
    settings = make_settings(url, max_concurrency=concurrency, waits=True)
    options = BatchOptions(
        language=None,
        timeout_ms=None,
        function=None,
        stop_on_failure=False,
        sandbox=SandboxConfig(),
        any_language=False,
        limit=None,
        concurrency=concurrency,
        retry_infra=retry_infra,
        max_failures=10,
    )
    progress = Progress(survey(tasks, options)[0], quiet=True)
    with contextlib.closing(Results(str(out), resume=out.exists())) as results:
        running = Batch(tasks, options, results, progress, [Language.PYTHON])
        manager = RuntimeManager(RuntimeFactory(settings, clock=clock))
        async with manager, asyncio.TaskGroup() as group:
            yield progress, group.create_task(running.run(manager))


def write(path: Path, *tasks: Any) -> str:
    lines = [task if isinstance(task, bytes) else json.dumps(task).encode() for task in tasks]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return str(path)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def program(number: int) -> dict[str, Any]:
    return {"id": str(number), "language": "py", "code": f"print({number})"}


def test_each_task_gets_a_complete_result(url: str, tmp_path: Path) -> None:
    """Programs in three languages, a function, an error, a timeout and a default language each give one line."""
    tasks = write(
        tmp_path / "tasks.jsonl",
        {"id": "a", "code": "print('hi'); return_val('{\"score\": 1}')", "language": "python"},
        {"id": "b", "code": "const n: number = 2; console.log(n)", "language": "ts"},
        {"code": "1 / 0", "language": "py"},
        {"id": "f", "code": "def f(a, b): return [a, b]", "function": "f", "args": [1], "kwargs": {"b": 2}},
        {"id": "s", "code": "while True: pass", "language": "py", "timeout_ms": 200},
    )
    code, _, stderr = batch(tasks, "-o", str(tmp_path / "out"), "--url", url, "--language", "python")
    assert code == 0, stderr
    records = {record["id"].partition("-")[0]: record for record in read(tmp_path / "out")}
    assert set(records) == {"a", "b", "3", "f", "s"}
    assert set(records["a"]) == {
        *(
            "id",
            "line",
            "language",
            "outcome",
            "value",
            "ret_val",
            "stdout",
            "stderr",
            "error",
            "exit_code",
            "truncated",
            "files",
        ),
        *("duration_ms", "total_ms", "attempts", "endpoint", "files", "displays", "cached", "hash", "finished_at"),
    }
    assert (records["a"]["value"], records["a"]["stdout"], records["a"]["endpoint"]) == ({"score": 1}, "hi\n", url)
    assert records["b"]["stdout"] == "2\n"
    assert (records["3"]["outcome"], records["3"]["line"], records["3"]["error"]["name"]) == (
        "USER_ERROR",
        3,
        "ZeroDivisionError",
    )
    assert records["f"]["value"] == [1, 2]
    assert records["s"]["outcome"] == "TIMEOUT"
    assert "OK" in stderr
    assert "5 tasks in" in stderr


def test_a_finished_batch_runs_nothing_again_with_a_cache(tmp_path: Path) -> None:
    """The second run has the same verdicts, marked, without an execution. A timeout runs again."""
    tasks = write(tmp_path / "tasks.jsonl", *(program(number) for number in range(60)), {**program(60), "code": "t"})
    with in_thread(FakeFaaS()) as faas:
        faas.handler = lambda body: Reply(stdout=body["code"], outcome="TIMEOUT" if body["code"] == "t" else "OK")
        records, summaries = [], []
        for run in ("first", "second"):
            out, summary = tmp_path / run, tmp_path / f"{run}.json"
            arguments = ("--url", faas.url, "--cache", str(tmp_path / "cache"), "--summary-json", str(summary))
            code, _, stderr = batch(tasks, "-o", str(out), *arguments)
            assert code == 0, stderr
            records.append({record["id"]: record for record in read(out)})
            summaries.append(json.loads(summary.read_bytes())["cached"])
        assert summaries == [0, 60]
        assert "cached              60" in stderr
        assert faas.executions == 62
    assert {name: (record["outcome"], record["stdout"]) for name, record in records[0].items()} == {
        name: (record["outcome"], record["stdout"]) for name, record in records[1].items()
    }
    assert [name for name, record in records[1].items() if not record["cached"]] == ["60"]


def test_a_cache_that_cannot_be_used_is_wrong_usage(tmp_path: Path) -> None:
    tasks = write(tmp_path / "tasks.jsonl", program(0))
    with in_thread(FakeFaaS()) as faas:
        code, _, stderr = batch(tasks, "-o", str(tmp_path / "out"), "--url", faas.url, "--cache", tasks)
        assert code == 2
        assert tasks in stderr
        assert faas.requests == []


def test_tasks_with_input_and_tests(url: str, tmp_path: Path) -> None:
    """Input is as for `run_code`. The outcome is the verdict on the first test that did not pass. The report counts."""
    tests = [{"stdin": "1", "expected": "2"}, {"stdin": "5", "expected": "10"}]
    double = "def f(n): return n * 2, ''"
    calls: list[dict[str, Any]] = [
        {"args": [1], "expected": [2, ""], "compare": "alike"},
        {"kwargs": {"n": 0.1}, "expected": [0.2000000001, ""], "compare": "floats"},
        {"args": [[1]], "expected": [[1, 1], "x"]},
    ]
    tasks = write(
        tmp_path / "tasks.jsonl",
        {"id": "right", "code": "print(int(input()) * 2)", "tests": tests},
        {"id": "wrong", "code": "print(2)", "tests": tests, "compare": "tokens"},
        {"id": "broken", "code": "1 / 0", "tests": tests},
        {"id": "cut", "code": "print('x' * 1_200_000)", "tests": tests[:1]},
        {
            "id": "input",
            "code": "import sys; print(sys.stdin.read(), sys.argv[1], open('a').read()); open('b', 'w').write('B')",
            "stdin": {"base64": "aW4="},
            "argv": ["x"],
            "files": {"a": "A"},
            "collect": ["b"],
        },
        {"id": "bad", "code": "1", "tests": [{"input": "1"}]},
        {"id": "double", "code": double, "function": "f", "tests": calls[:2]},
        {"id": "not double", "code": double, "function": "f", "tests": calls, "compare": "alike"},
        {"id": "bad function", "code": double, "function": "f", "tests": [{"args": [1]}]},
        {"id": "mixed", "code": double, "function": "f", "tests": [calls[0], {"stdin": "1"}]},
    )
    code, _, stderr = batch(tasks, "-o", str(tmp_path / "out"), "--url", url, "--language", "python")
    assert code == 2, stderr
    records = {record["id"]: record for record in read(tmp_path / "out")}
    outcomes = {name: record.get("outcome") for name, record in records.items()}
    assert outcomes == {
        "right": "OK",
        "wrong": "WRONG_ANSWER",
        "broken": "USER_ERROR",
        "cut": "OUTPUT_LIMIT",
        "input": "OK",
        "bad": None,
        "double": "OK",
        "not double": "WRONG_ANSWER",
        "bad function": None,
        "mixed": None,
    }
    assert records["not double"]["error"]["message"] == "test 3: value[1]: expected 'x', got ''"
    assert records["not double"]["ret_val"] == '{"py/tuple": [[1, 1], ""]}'
    assert "must have the field expected" in records["bad function"]["invalid_task"]
    assert "a test of a function has no field 'stdin'" in records["mixed"]["invalid_task"]
    assert records["right"]["tests"] == {"passed": 2, "skipped": 0, "total": 2, "verdicts": ["PASSED", "PASSED"]}
    assert records["wrong"]["tests"]["passed"] == 1
    assert records["wrong"]["error"]["message"] == "test 2: word 1: expected '10', got '2'"
    assert records["cut"]["error"]["message"] == "test 1: the output was cut, so it cannot be compared"
    assert (records["input"]["stdout"], records["input"]["files"]) == ("in x A\n", {"b": "B"})
    assert "a test has no field 'input'" in records["bad"]["invalid_task"]
    again, _, stderr = batch(tasks, "-o", str(tmp_path / "out"), "--url", url, "--language", "python", "--resume")
    assert (again, len(read(tmp_path / "out"))) == (2, 10), stderr
    report = Summary(tmp_path / "out")
    assert (report.tests_passed, report.tests, report.counts["WRONG_ANSWER"]) == (7, 12, 2)
    assert "7 of 12" in render(report)
    shown = {task.id: task.texts for task in report.failing}
    assert shown["not double"] == {"return value": '{"py/tuple": [[1, 1], ""]}'}


def test_tests_after_a_failure_are_skipped(url: str, tmp_path: Path) -> None:
    """Only with `--stop-on-failure`, and where the task does not say otherwise. Skipped tests are counted as such."""
    tests = [{"stdin": text, "expected": text} for text in "abcd"]
    code = "text = input(); print(text if text != 'b' else 'x')"
    tasks = write(
        tmp_path / "tasks.jsonl",
        {"id": "stops", "code": code, "tests": tests},
        {"id": "runs on", "code": code, "tests": tests, "stop_on_failure": False},
        {"id": "passes", "code": "print(input())", "tests": tests},
        {"id": "none", "code": "print(1)"},
    )
    out, summary = tmp_path / "out", tmp_path / "summary"
    options = ("--url", url, "--language", "py", "--stop-on-failure", "--summary-json", str(summary))
    code_, _, stderr = batch(tasks, "-o", str(out), *options)
    assert code_ == 0, stderr
    records = {record["id"]: record for record in read(out)}
    assert records["stops"]["tests"] == {
        "passed": 1,
        "skipped": 2,
        "total": 4,
        "verdicts": ["PASSED", "WRONG_ANSWER", "SKIPPED", "SKIPPED"],
    }
    assert records["stops"]["outcome"] == records["runs on"]["outcome"] == "WRONG_ANSWER"
    assert records["stops"]["error"]["message"] == "test 2: line 1: expected 'b', got 'x'"
    assert (records["runs on"]["tests"]["passed"], records["runs on"]["tests"]["skipped"]) == (3, 0)
    assert json.loads(summary.read_text())["tests"] == {"passed": 8, "skipped": 2, "total": 12}
    assert re.search(r"^tests +12   8 passed, 2 skipped$", stderr, re.MULTILINE)
    page = render(Summary(out))
    assert "8 of 12, 2 skipped" in page
    assert "1 of 4, 2 skipped" in page


def test_tasks_have_all_options_of_a_run(tmp_path: Path) -> None:
    """The field `sandbox` of a task has the limits that differ from those of the batch."""
    fields = {"sandbox": {"timeout_limit_s": 2}, "priority": "high", "ext": {"a": "b"}, "idempotent": True}
    tasks = write(tmp_path / "tasks.jsonl", {"id": "a", "code": "f", "language": "py", **fields})
    with in_thread(FakeFaaS()) as faas:
        faas.script(Reply.crash())  # an idempotent task is sent again
        code, _, stderr = batch(tasks, "-o", str(tmp_path / "out"), "--url", faas.url, "--memory-mb", "64")
        assert (code, len(faas.requests)) == (0, 2), stderr
        request = faas.requests[-1]
    assert (request["priority"], request["ext"], request["timeout"]) == ("high", {"a": "b"}, 2_000)
    assert (request["sandbox"]["memory_limit_mb"], request["sandbox"]["timeout_ms"]) == (64, 2_000)


def test_invalid_lines_are_reported_in_the_results(url: str, tmp_path: Path) -> None:
    """Each invalid line becomes an `invalid_task` record with its line number. Valid lines run."""
    tasks = write(
        tmp_path / "tasks.jsonl",
        program(0),
        b"no json",
        b"\xff\xfe",
        b"[1]",
        b"",
        {"id": "u", "code": "1", "language": "cobol"},
        {"id": "n", "language": "py"},
        {"id": "e", "code": " ", "language": "py"},
        {"id": "t", "code": "1", "language": "py", "timeout_ms": 0},
        {"id": "x", "code": "1", "language": "py", "colour": "red"},
        {"id": True, "code": "1", "language": "py"},
        {"id": "l", "code": "1"},
        {"id": "a", "code": "f = 1", "language": "py", "function": "f", "args": 3},
        {"id": "g", "code": "f = 1", "language": "py", "function": "f.g"},
        {"id": "y", "code": "1", "language": "py", "ext": {"a": 1}},
        b'{"id": "q", "code": "' + b"x" * 17_000_000 + b'", "language": "py"}',
        b"[" * 100_000,
        {"id": "z", "code": "1", "language": "py", "timeout_ms": "5"},
        {"id": "s", "code": "1", "language": "py", "stdin": 5},
        {"id": "c", "code": "1", "language": "py", "collect": "*"},
        program(1),
    )
    code, _, stderr = batch(tasks, "-o", str(tmp_path / "out"), "--url", url)
    assert code == 2, stderr
    records = read(tmp_path / "out")
    assert {record["id"] for record in records if "outcome" in record} == {"0", "1"}
    problems = {record["line"]: record["invalid_task"] for record in records if "invalid_task" in record}
    assert sorted(problems) == [2, 3, 4, *range(6, 21)]
    for line, words in {
        2: "not JSON", 3: "not UTF-8", 4: "not a JSON object", 6: "cobol", 7: "'code' is missing", 8: "empty",
        9: "timeout_ms", 10: "'colour'", 11: "'id'", 12: "--language", 13: "'args'", 14: "f.g", 15: "ext",
        16: "longer", 17: "nested", 18: "'timeout_ms' must be a number",
        19: "'stdin' must be a string or an object with base64", 20: "'collect' must be a list of patterns",
    }.items():  # fmt: skip
        assert f"line {line}" in problems[line]
        assert words in problems[line], problems[line]
    assert "invalid_task" in stderr


def test_a_timeout_above_the_limit_is_an_invalid_task(url: str, tmp_path: Path) -> None:
    """The message states the limit. A larger `--timeout-ms` raises the limit."""
    slow = {**program(1), "timeout_ms": 30_001}
    tasks, out = write(tmp_path / "tasks.jsonl", program(0), slow), tmp_path / "out"
    assert (batch(tasks, "-o", str(out), "--url", url))[0] == 2
    by_id = {record["id"]: record for record in read(out)}
    assert by_id["0"]["outcome"] == "OK"
    assert "'timeout_ms' must be at most the limit of 30000 ms" in by_id["1"]["invalid_task"]
    assert (batch(tasks, "-o", str(out), "--url", url, "--resume", "--timeout-ms", "30001"))[0] == 0
    assert {record["id"]: record["stdout"] for record in read(out)} == {"0": "0\n", "1": "1\n"}


def test_duplicate_ids_are_an_error(url: str, tmp_path: Path) -> None:
    """Duplicates in a file are reported before any task runs; duplicates from stdin are reported when they are read."""
    tasks = write(
        tmp_path / "tasks.jsonl", program(0), {**program(1), "id": "0"}, {**program(2), "id": "2"}, program(2)
    )
    code, _, stderr = batch(tasks, "-o", str(tmp_path / "out"), "--url", url)
    assert code == 2
    assert "'0' (lines 1 and 2), '2' (lines 3 and 4)" in stderr
    assert not (tmp_path / "out").exists()
    code, _, stderr = batch("-", "-o", str(tmp_path / "out"), "--url", url, stdin=Path(tasks).read_bytes())
    assert code == 2
    assert "'0' of line 2" in stderr
    assert [record["id"] for record in read(tmp_path / "out")] == ["0"]


@pytest.mark.parametrize("kind", ["gz", "zst", "stdin"])
def test_tasks_can_be_compressed_or_come_from_stdin(kind: str, url: str, tmp_path: Path) -> None:
    """Files in gzip and zstd and tasks from stdin are read. `-o -` writes the results to stdout."""
    plain = Path(write(tmp_path / "plain", *(program(number) for number in range(20)))).read_bytes()
    source, stdin = str(tmp_path / f"tasks.jsonl.{kind}"), b""
    if kind == "gz":
        Path(source).write_bytes(gzip.compress(plain[:100]) + gzip.compress(plain[100:]))
    elif kind == "zst":
        compressor = zstandard.ZstdCompressor()
        Path(source).write_bytes(compressor.compress(plain[:100]) + compressor.compress(plain[100:]))
    else:
        source, stdin = "-", plain
    code, stdout, stderr = batch(source, "-o", "-", "--url", url, "--limit", "15", stdin=stdin)
    assert code == 0, stderr
    assert {json.loads(line)["id"] for line in stdout.splitlines()} == {str(number) for number in range(15)}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.jsonl", None, "No such file"),
        ("tasks.jsonl.gz", b"not gzip", "cannot read"),
        ("tasks.jsonl.gz", gzip.compress(b"x" * 10_000, mtime=0)[:30], "cannot read"),
        ("tasks.jsonl.zst", b"not zstd", "cannot read"),
    ],
)
def test_unreadable_files_are_a_clear_error(
    name: str, content: bytes | None, words: str, url: str, tmp_path: Path
) -> None:
    """The message names the file, and the exit code is 2."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    code, _, stderr = batch(str(tmp_path / name), "-o", str(tmp_path / "out"), "--url", url)
    assert code == 2
    assert words in stderr
    assert name in stderr


def test_resume_runs_tasks_without_an_outcome(url: str, tmp_path: Path) -> None:
    """Results with an outcome are kept byte for byte, the latest of each id.

    Infrastructure errors, invalid tasks and a truncated line run again. Each id occurs once in the end.
    """
    tasks = write(tmp_path / "tasks.jsonl", *(program(number) for number in range(6)), b"no json")
    kept = b'{"id": "0", "outcome": "OK", "stdout": "kept as it is"}\n{"id": "1", "outcome": "CRASHED"}\n'
    other = b'{"id": "2", "infra_error": {"type": "ConnectError"}}\n{"id": null, "line": 7, "invalid_task": "line 7"}\n'
    out = tmp_path / "out"
    out.write_bytes(b'{"id": "0", "outcome": "OK"}\n' + kept + other + b'{"id": "3", "outcome": "OK", "std')
    assert (batch(tasks, "-o", str(out), "--url", url))[0] == 2  # not without --resume
    summary_json = ["--summary-json", str(tmp_path / "sum")]
    code, _, stderr = batch(tasks, "-o", str(out), "--url", url, "--resume", *summary_json)
    assert code == 2, stderr
    assert out.read_bytes().startswith(kept)
    records = read(out)
    assert collections.Counter(record["id"] for record in records) == dict.fromkeys([*"012345", None], 1)
    assert {record["id"]: record["stdout"] for record in records[2:] if record["id"]} == {n: f"{n}\n" for n in "2345"}
    summary = json.loads((tmp_path / "sum").read_text())
    assert (summary["skipped"], summary["done"], summary["outcomes"], summary["invalid_tasks"]) == (2, 5, {"OK": 4}, 1)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


# A change of a task, and whether it changes the result.
CHANGES: list[tuple[dict[str, Any], dict[str, Any], bool]] = [
    ({}, {}, False),
    ({}, {"code": "print(-1)"}, True),
    ({}, {"language": "js"}, True),
    ({}, {"language": "Python"}, False),
    ({}, {"timeout_ms": 2_000}, True),
    ({}, {"timeout_ms": 30_000}, False),  # the default
    ({}, {"sandbox": {"memory_limit_mb": 64}}, True),
    ({}, {"sandbox": {"memory_limit_mb": 128}}, False),
    ({}, {"ext": {"a": "b"}}, True),
    ({}, {"stdin": "in"}, True),
    ({}, {"argv": ["a"]}, True),
    ({}, {"files": {"a": "b"}}, True),
    ({"files": {"a": "b"}}, {"files": {"a": {"base64": "Yw=="}}}, True),
    ({}, {"collect": ["a"]}, True),
    ({}, {"stdin": None, "tests": None}, False),
    ({}, {"priority": "high", "idempotent": True}, False),
    ({}, {"stop_on_failure": True, "compare": "exact"}, False),  # there are no tests
    ({}, {"task_id": "p/1"}, True),
    ({"function": "f", "args": [1]}, {"args": [2]}, True),
    ({"function": "f", "args": [1]}, {"function": "g"}, True),
    ({"function": "f", "kwargs": {"a": {"b": 1, "c": 2}}}, {"kwargs": {"a": {"c": 2, "b": 1}}}, True),
    ({"tests": [{"stdin": "1", "expected": "1"}]}, {"tests": [{"stdin": "1", "expected": "2"}]}, True),
    ({"tests": [{"stdin": "1", "expected": "1"}]}, {"tests": [{"stdin": "1", "expected": "1"}] * 2}, True),
    ({"tests": [{"expected": "1"}]}, {"compare": "tokens"}, True),
    ({"tests": [{"args": [1], "expected": 1}], "function": "f"}, {"tests": [{"args": [1], "expected": 2}]}, True),
    ({"tests": [{"expected": "1"}]}, {"stop_on_failure": True}, True),
]


def test_resume_runs_changed_tasks_again(tmp_path: Path) -> None:
    """A task runs again if anything that changes its result has changed, and only then. Each id then occurs once."""
    base = [{**program(number), **given} for number, (given, _, _) in enumerate(CHANGES)]
    new = [{**task, **change} for task, (_, change, _) in zip(base, CHANGES, strict=True)]
    changed = {str(number) for number, (_, _, differs) in enumerate(CHANGES) if differs}
    out, summary = tmp_path / "out", tmp_path / "summary"
    with in_thread(FakeFaaS()) as faas:
        arguments = ("-o", str(out), "--url", faas.url, "--summary-json", str(summary))
        assert batch(write(tmp_path / "tasks.jsonl", *base), *arguments)[0] == 0
        first = {record["id"]: record for record in read(out)}
        # The order of the tasks and of their fields does not matter.
        shuffled = [dict(reversed(task.items())) for task in reversed(new)]
        code, _, stderr = batch(write(tmp_path / "tasks.jsonl", *shuffled), *arguments, "--resume")
        assert code == 0, stderr
        assert f"faasrt: {len(changed)} tasks changed since the last run; running them again" in stderr
        assert re.search(rf"^changed +{len(changed)}$", stderr, re.MULTILINE)
        counts = json.loads(summary.read_text())
        assert (counts["changed"], counts["done"], counts["skipped"]) == (
            len(changed),
            len(changed),
            len(CHANGES) - len(changed),
        )
        second = {record["id"]: record for record in read(out)}
        assert len(read(out)) == len(second) == len(CHANGES)
        assert {key for key in first if first[key] != second[key]} == changed
        assert {key for key in first if first[key]["hash"] != second[key]["hash"]} == changed
        executed = faas.executions
        code, _, stderr = batch(str(tmp_path / "tasks.jsonl"), *arguments, "--resume")
        assert (code, faas.executions, "changed" in stderr) == (0, executed, False)


def test_options_that_change_results_change_tasks(tmp_path: Path) -> None:
    """They are the defaults of tasks. A task with a value of its own does not change."""
    test = {"tests": [{"expected": "1"}]}
    own = {"timeout_ms": 5, "function": "f", "sandbox": {"memory_limit_mb": 99}}
    tasks = write(tmp_path / "tasks.jsonl", program(0), {**program(1), **own}, {**program(2), **test})
    runs: list[tuple[list[str], set[str]]] = [
        ([], {"0", "1", "2"}),
        (["--timeout-ms", "40000"], {"0", "2"}),
        (["--timeout-ms", "40000", "--memory-mb", "99"], {"0", "2"}),
        (["--timeout-ms", "40000", "--memory-mb", "99", "--stop-on-failure"], {"2"}),
    ]
    finished: dict[str, float] = {}
    with in_thread(FakeFaaS()) as faas:
        for options, expected in runs:
            resume = ["--resume"] if finished else []
            code, _, stderr = batch(tasks, "-o", str(tmp_path / "out"), "--url", faas.url, *options, *resume)
            assert code == 0, stderr
            now = {record["id"]: record["finished_at"] for record in read(tmp_path / "out")}
            assert {key for key in now if now[key] != finished.get(key)} == expected
            finished = now


def test_earlier_results_stay_until_changed_tasks_have_others(url: str, tmp_path: Path) -> None:
    """Without a hash, a result counts as that of the task. A run that was killed leaves two results of a task."""
    tasks, out = write(tmp_path / "tasks.jsonl", *(program(number) for number in range(4))), tmp_path / "out"
    old = b'{"id": "0", "outcome": "OK", "stdout": "no hash"}\n{"id": "1", "outcome": "OK", "hash": "old"}\n'
    gone = b'{"id": "renamed", "outcome": "OK", "hash": "x"}\n{"id": "removed", "outcome": "OK"}\n'
    assert batch(tasks, "-o", str(out), "--url", url)[0] == 0
    (new,) = [line for line in out.read_bytes().splitlines(keepends=True) if json.loads(line)["id"] == "1"]
    out.write_bytes(old + gone + new + b'{"id": "2", "outcome": "OK", "hash": "old"}\n{"id": "3", "outc')
    code, _, stderr = batch(tasks, "-o", str(out), "--url", url, "--resume")
    assert code == 0, stderr
    assert "1 task changed since the last run; running it again" in stderr
    assert "keeping 2 results of earlier runs whose ids are not in the file of tasks" in stderr
    lines = out.read_bytes().splitlines(keepends=True)
    assert lines[:4] == [*(old + gone).splitlines(keepends=True)[:1], *gone.splitlines(keepends=True), new]
    assert sorted(record["stdout"] for record in map(json.loads, lines[4:])) == ["2\n", "3\n"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    _, _, stderr = batch(tasks, "-o", str(out), "--url", url, "--resume", "--limit", "1")
    assert "whose ids are not" not in stderr


def test_a_changed_task_that_fails_has_no_earlier_result(tmp_path: Path) -> None:
    """An infrastructure error, or a line that is not a task now, replaces it. An unchanged pipe changes nothing."""
    tasks, out = tmp_path / "tasks.jsonl", tmp_path / "out"
    write(tasks, *(program(number) for number in range(3)))
    with in_thread(FakeFaaS()) as faas:
        options = ("-o", str(out), "--url", faas.url)
        assert batch(str(tasks), *options)[0] == 0
        write(tasks, {**program(0), "code": "new"}, {**program(1), "code": 5}, program(2))
        faas.default = Reply.crash()
        assert batch("-", *options, "--resume", stdin=tasks.read_bytes())[0] == 3
        kinds = {record["id"]: record.keys() & {"outcome", "infra_error", "invalid_task"} for record in read(out)}
        assert (len(read(out)), kinds) == (3, {"0": {"infra_error"}, "1": {"invalid_task"}, "2": {"outcome"}})


def test_files_that_are_not_results_are_not_overwritten(url: str, tmp_path: Path) -> None:
    """The task file and files without results stay unchanged. A symbolic link stays a link."""
    tasks = write(tmp_path / "tasks.jsonl", program(0))
    for content in (b"precious\n", b'{"id": "0"}\n', b'{"id": "0", "outcome": ["OK"]}\n'):
        (tmp_path / "other").write_bytes(content)
        code, _, stderr = batch(tasks, "-o", str(tmp_path / "other"), "--url", url, "--resume")
        assert (code, (tmp_path / "other").read_bytes()) == (2, content)
        assert "line 1 is not a result of `faasrt batch`" in stderr
    code, _, stderr = batch(tasks, "-o", tasks, "--url", url, "--resume")
    assert code == 2
    assert "same file" in stderr
    assert Path(tasks).read_bytes()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real").write_bytes(b'{"id": "9", "infra_error": {}}\n')
    assert (batch(tasks, "-o", str(tmp_path / "link"), "--url", url, "--resume"))[0] == 0
    assert (tmp_path / "link").is_symlink()
    assert [record["id"] for record in read(tmp_path / "real")] == ["0"]


def test_tasks_from_a_pipe_and_results_to_a_device(url: str, tmp_path: Path) -> None:
    """A pipe, which can be read only once, works as input, and /dev/null as output. Stderr may be closed."""
    write(tmp_path / "tasks.jsonl", *(program(number) for number in range(5)))
    command = f"cat tasks.jsonl | {shlex.join(COMMAND)} /dev/stdin -o out --url {url} 2>&-"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=CLEAN, capture_output=True, timeout=60)
    assert done.returncode == 0
    assert len(read(tmp_path / "out")) == 5
    assert batch(str(tmp_path / "tasks.jsonl"), "-o", "/dev/null", "--url", url)[0] == 0


def test_a_second_run_on_the_same_results_file_is_refused(url: str, tmp_path: Path) -> None:
    tasks = write(tmp_path / "tasks.jsonl", program(0))
    with (tmp_path / "out").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        code, _, stderr = batch(tasks, "-o", str(tmp_path / "out"), "--url", url)
    assert code == 2
    assert "another run writes" in stderr


def test_a_full_disk_loses_no_results(url: str, tmp_path: Path) -> None:
    """The run ends with exit code 3 and a message. The written results stay, and `--resume` runs the other tasks."""
    tasks = write(tmp_path / "tasks.jsonl", *(program(number) for number in range(40)))

    def little_room() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))

    command = [*COMMAND, tasks, "-o", str(tmp_path / "out"), "--url", url]
    done = subprocess.run(command, env=CLEAN, capture_output=True, text=True, timeout=100, preexec_fn=little_room)
    assert done.returncode == 3, done.stderr
    assert "cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert len((tmp_path / "out").read_bytes()) == 5_000
    code, _, stderr = batch(tasks, "-o", str(tmp_path / "out"), "--url", url, "--resume")
    assert code == 0, stderr
    assert sorted(int(record["id"]) for record in read(tmp_path / "out")) == list(range(40))


@pytest.mark.parametrize("signals", [1, 2])
def test_ctrl_c_lets_tasks_in_flight_finish(signals: int, tmp_path: Path) -> None:
    """After the first Ctrl-C, tasks in flight finish, and a message shows how to resume. The second stops at once."""
    tasks, out = write(tmp_path / "tasks.jsonl", *(program(number) for number in range(50))), tmp_path / "out"
    with holding(python=16) as (url, arrived, answer):

        async def interrupt(run: Running) -> None:
            await until(lambda: len(arrived) == 5)
            run.send_signal(signal.SIGINT)
            await until(lambda: "tasks in flight finish first" in run.stderr)
            if signals == 1:
                answer()
            else:
                run.send_signal(signal.SIGINT)

        code, _, stderr = batch(tasks, "-o", str(out), "--url", url, "--concurrency", "5", meanwhile=interrupt)
    assert code == 130, stderr
    assert "--resume" in stderr
    assert len(read(out)) == (5 if signals == 1 else 0)


ESCAPE = rb"\x1b\[[?\d;]*[A-Za-z]"


async def show_progress(
    columns: int, clock: Clock, monkeypatch: pytest.MonkeyPatch, **variables: str
) -> tuple[list[str], bytes]:
    """Show the progress of 320 tasks after 100 s, and the summary. Return the lines of progress, and all output."""
    for name, value in {"TERM": "xterm", "COLUMNS": str(columns), **variables}.items():
        monkeypatch.setenv(name, value)
    with terminal(columns) as (stream, shown):
        monkeypatch.setattr("sys.stderr", stream)
        progress = Progress(320, quiet=False, clock=clock)
        showing = asyncio.create_task(progress.show())
        progress.in_flight = 16
        error = {"name": "ZeroDivisionError", "message": "division by zero"}
        kinds: list[dict[str, Any]] = [
            {"infra_error": {"type": "ServerError", "message": "crash"}},
            {"outcome": "USER_ERROR", "error": error},
            {"outcome": "OK"},
        ]
        for done in (100, 200):
            clock.advance(50)
            for number in range(100):
                progress.count(kinds[min(number % 10, 2)])
            await until(lambda: b"%d/320" % done in shown or variables.get("TERM") == "dumb")  # noqa: B023
        showing.cancel()
        await asyncio.wait({showing})
        progress.show_summary()
    plain = re.sub(ESCAPE, b"\r", shown).decode()
    return [line.strip() for line in re.split(r"[\r\n]+", plain) if "200/320" in line], bytes(shown)


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
async def test_progress_is_one_line_that_fits_the_terminal(
    columns: int, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line is updated in place and erased at the end. A narrow terminal cuts off its end, the common outcomes."""
    (line, *_), shown = await show_progress(columns, clock, monkeypatch, NO_COLOR="1")
    whole = "faasrt: 200/320 0:01:00 2.0/s, 20 infra errors, 16 in flight, 160 OK, 20 USER_ERROR"
    assert len(line) <= columns
    # The clock also advances while the test runs.
    line = re.sub(r" 0:01:\d\d [12]\.\d/s", " 0:01:00 2.0/s", line)
    assert line == (whole if columns > len(whole) else whole[: len(line) - 1] + "…")
    # The summary starts where the progress line was erased.
    assert re.search(rb"\x1b\[2KOK +160\r\n", shown)


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"NO_COLOR": "1", "FORCE_COLOR": "1"}, {"TERM": "dumb"}])
async def test_progress_without_colors(
    variables: dict[str, str], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `NO_COLOR` the progress line has no colors. A terminal that cannot erase a line gets no progress line."""
    lines, shown = await show_progress(80, clock, monkeypatch, **variables)
    assert b"OK                 160\r\n" in shown
    assert not [escape for escape in re.findall(ESCAPE, shown) if escape.endswith(b"m")]
    assert bool(lines) == ("NO_COLOR" in variables)


def test_progress_is_shown_while_tasks_run(tmp_path: Path) -> None:
    """It is shown on a terminal, and the summary follows it."""
    tasks = write(tmp_path / "tasks.jsonl", *(program(number) for number in range(4)))
    with holding(python=2) as (url, arrived, answer), terminal(100) as (stream, shown):

        async def watch(run: Running) -> None:
            await until(lambda: b"0.0/s, 2 in flight" in shown)
            for count in (2, 4):
                await until(lambda: len(arrived) == count)  # noqa: B023
                answer()

        code, stdout, _ = batch(
            tasks, "-o", "-", "--url", url, stderr=stream, meanwhile=watch, TERM="xterm", NO_COLOR="1", COLUMNS="100"
        )
    assert (code, stdout.count("\n")) == (0, 4)
    assert re.search(rb"2 in flight.*\x1b\[2KOK +4\r\nfaasrt: 4 tasks in ", shown, re.DOTALL)


def test_the_summary_counts_failures_by_reason(tmp_path: Path) -> None:
    """It counts errors by type, with a message for each type. The first error of each type is also shown at once."""
    tasks = write(
        tmp_path / "tasks.jsonl",
        *(program(number) for number in range(4)),
        {**program(5), "code": "zero"},
        {**program(6), "code": "slow"},
        b"no json",
    )
    replies = {
        "print(0)": Reply.crash(),
        "zero": Reply(outcome=Outcome.USER_ERROR, error=ErrorInfo("ZeroDivisionError", "division by zero")),
        "slow": Reply(outcome=Outcome.TIMEOUT, error=ErrorInfo("Timeout", "timeout after 2000 ms (timeout_ms)")),
    }
    with in_thread(FakeFaaS()) as faas:
        faas.handler = lambda body: replies.get(body["code"], Reply(status=418, details="a teapot"))
        command = ["--url", faas.url, "--concurrency", "1", "--summary-json", str(tmp_path / "sum")]
        code, _, stderr = batch(tasks, "-o", str(tmp_path / "out"), *command)
    assert code == 3
    assert re.search(r"^USER_ERROR +1   1 ZeroDivisionError$", stderr, re.MULTILINE)
    assert re.search(r"^TIMEOUT +1   1 timeout after 2000 ms \(timeout_ms\)$", stderr, re.MULTILINE)
    assert re.search(r"^faasrt: infra errors: 3 RejectedError, 1 ServerError: .*a teapot", stderr, re.MULTILINE)
    assert re.search(r"^faasrt: infra errors: ServerError: ", stderr, re.MULTILINE)
    assert re.search(r"^faasrt: invalid tasks: 1, the first: line 7: it is not JSON", stderr, re.MULTILINE)
    assert [len(re.findall(rf"^faasrt: first {name}: ", stderr, re.MULTILINE)) for name in ("RejectedError", "ServerError")] == [1, 1]  # fmt: skip  # noqa: E501
    assert json.loads((tmp_path / "sum").read_text())["infra_error_types"] == {"RejectedError": 3, "ServerError": 1}


def test_the_summary_names_each_kind_of_invalid_task(url: str, tmp_path: Path) -> None:
    """Each has its number and its first line. Values and positions make no difference."""
    tasks = write(
        tmp_path / "tasks.jsonl",
        program(0),
        b"no json",
        {"id": "a", "code": "1", "language": "py", "timeout_ms": 0},
        {"id": "b", "code": "1", "language": "py", "timeout_ms": -50},
        b"[1, 2, no json",
        *[{"code": " ", "language": "py"}] * 250,
        *[{"code": "1", "language": "py", f"field{chr(97 + number)}": 1} for number in range(9)],
    )
    code, _, stderr = batch(tasks, "-o", str(tmp_path / "out"), "--url", url)
    assert code == 2
    shown = [line.partition("invalid tasks: ")[2] for line in stderr.splitlines() if "invalid tasks: " in line]
    assert len(shown) == 11
    assert shown[0] == "250, the first: line 6: code must not be empty"
    assert sorted(line[:24] for line in shown[1:3]) == ["2, the first: line 2: it", "2, the first: line 3: ti"]
    assert shown[-1] == "2 for other reasons, which are in the results"


def test_a_language_that_the_server_does_not_run_is_no_mistake_of_the_task(tmp_path: Path) -> None:
    """The reason is the same with and without input. The task is not retried, and runs with `--resume` on a server that
    runs its language.
    """
    typescript = {"code": "console.log(1)", "language": "ts"}
    tasks = write(
        tmp_path / "tasks.jsonl", program(0), {"id": "1", **typescript}, {"id": "2", "stdin": "a", **typescript}
    )
    out = tmp_path / "out"
    with in_thread(FakeFaaS()) as faas:
        listed = {"input": ["stdin"], "sessions": []}
        faas.health = {"capabilities": {"lossless": True}, "languages": {"python": listed}}
        command = ["-o", str(out), "--url", faas.url, "--retry-infra", "5"]
        code, _, stderr = batch(tasks, *command)
        assert (code, faas.executions) == (3, 1), stderr
        assert "infra errors: 2 UnsupportedLanguageError" in stderr
        errors = [record["infra_error"] for record in read(out) if record["id"] != "0"]
        for error in errors:
            assert "does not run typescript programs: it does not list the language" in error["message"]
            assert (error["type"], error["sent"], error["attempts"]) == ("UnsupportedLanguageError", "no", 0)
        faas.health = {"capabilities": {"lossless": True}, "languages": {"typescript": listed}}
        assert batch(tasks, *command, "--resume")[0] == 0
        assert {record["outcome"] for record in read(out)} == {"OK"}


@pytest.mark.parametrize(
    ("languages", "capacities", "expected"),
    [
        (["python"], {"python": 3, "javascript": 50}, 3),
        (["javascript", "python"], {"python": 3, "javascript": 5}, 8),
        (["python"], {}, 16),
    ],
)
async def test_the_capacity_of_a_server_is_in_its_health(
    languages: list[str], capacities: dict[str, int], expected: int
) -> None:
    """A server that states no capacity gets 16 tasks at once."""
    async with holding_faas(capacities) as (url, _, _), manager_for(url) as manager:
        assert await find_capacity(manager, languages) == expected


@pytest.mark.parametrize(
    ("capacities", "options", "expected"), [({"python": 3, "javascript": 50}, [], 3), ({}, ["--concurrency", "7"], 7)]
)
def test_the_default_concurrency_is_the_capacity_of_the_server(
    capacities: dict[str, int], options: list[str], expected: int, tmp_path: Path
) -> None:
    """`--concurrency` overrides the default."""
    tasks = write(tmp_path / "tasks.jsonl", *(program(number) for number in range(5 * expected)))
    with holding(**capacities) as (url, arrived, answer), terminal(200) as (stream, shown):

        async def answer_all(run: Running) -> None:
            await until(lambda: b" %d in flight" % expected in shown)
            for turn in range(1, 6):
                await until(lambda: len(arrived) >= turn * expected)  # noqa: B023
                answer()

        command = (tasks, "-o", str(tmp_path / "out"), "--url", url, *options)
        assert batch(*command, stderr=stream, meanwhile=answer_all, TERM="xterm")[0] == 0
    assert max(arrived) == expected
    assert max(int(number) for number in re.findall(rb"(\d+) in flight", shown)) == expected


def test_concurrency_may_exceed_the_default_limit_of_a_manager(tmp_path: Path) -> None:
    """With `--concurrency 300`, a server gets 300 programs at once."""
    tasks = write(tmp_path / "tasks.jsonl", *(program(number) for number in range(300)))
    with holding(python=1_000) as (url, arrived, answer):

        async def answer_all(run: Running) -> None:
            await until(lambda: len(arrived) == 300)
            answer()

        options = ("--concurrency", "300", "--limit", "300")
        assert batch(tasks, "-o", str(tmp_path / "out"), "--url", url, *options, meanwhile=answer_all)[0] == 0
    assert max(arrived) == 300


def test_memory_mb_limits_every_task(url: str, tmp_path: Path) -> None:
    code = "const all = []; while (true) all.push([all.length])"
    tasks = write(tmp_path / "tasks.jsonl", {"code": code, "language": "js"})
    assert (batch(tasks, "-o", str(tmp_path / "out"), "--url", url, "--memory-mb", "40"))[0] == 0
    (record,) = read(tmp_path / "out")
    assert (record["outcome"], record["error"]["message"]) == (
        "MEMORY_LIMIT",
        "more than 40 MiB of memory (memory_limit_mb)",
    )


def test_resume_identifies_tasks_without_an_id_by_their_text(url: str, tmp_path: Path) -> None:
    """A task whose line has changed runs again. An id that is a number stays a number."""
    first, second = {"code": "print('a')", "language": "py"}, {"code": "print('b')", "language": "py"}
    out = tmp_path / "out"
    tasks = write(tmp_path / "tasks.jsonl", first, second, {**program(7), "id": 7})
    assert (batch(tasks, "-o", str(out), "--url", url))[0] == 0
    write(tmp_path / "tasks.jsonl", {"code": "print('new')", "language": "py"}, second, {**program(7), "id": 7})
    assert (batch(tasks, "-o", str(out), "--url", url, "--resume"))[0] == 0
    # The id of the first line has changed with its text, so the result of before belongs to no task.
    assert sorted(record["stdout"] for record in read(out)) == ["7\n", "a\n", "b\n", "new\n"]
    assert [record["id"] for record in read(out) if record["line"] == 3] == [7]


def test_a_retry_does_not_wait_for_the_next_line_of_stdin(tmp_path: Path) -> None:
    """Ctrl-C ends the wait for the next line."""
    out = tmp_path / "out"
    reader, writer = os.pipe()
    with in_thread(FakeFaaS()) as faas, os.fdopen(reader) as stdin, os.fdopen(writer, "wb") as lines:
        faas.script(Reply.crash())
        lines.write(json.dumps(program(1)).encode() + b"\n")
        lines.flush()

        async def interrupt(run: Running) -> None:
            await until(lambda: out.exists() and read(out))
            run.send_signal(signal.SIGINT)

        command = ("-", "-o", str(out), "--url", faas.url, "--retry-infra", "1")
        code, _, stderr = batch(*command, stdin=stdin, meanwhile=interrupt)
        assert (code, faas.executions) == (130, 2), stderr
    assert [record["outcome"] for record in read(out)] == ["OK"]


async def test_an_outage_does_not_use_up_the_task_file(clock: Clock, tmp_path: Path) -> None:
    """While tasks wait for a retry, the rest of the file is not read. Ctrl-C writes the failures of these tasks."""
    tasks, out = write(tmp_path / "tasks.jsonl", *(program(number) for number in range(2_000))), tmp_path / "out"
    async with FakeFaaS() as faas:
        faas.default = Reply.crash()
        async with batch_in_this_loop(tasks, out, faas.url, clock, concurrency=4, retry_infra=50):
            while faas.executions < 60:
                clock.advance(1)
                await asyncio.sleep(0.001)
            signal.raise_signal(signal.SIGINT)
        records = read(out)
        assert 8 <= len(records) <= 16
        assert all("infra_error" in record for record in records)
        # If a health check fails, too, the program is sent in an envelope.
        plain = {body["code"] for body in faas.requests if body["code"].startswith("print(")}
        assert plain <= {f"print({record['id']})" for record in records}


def test_infrastructure_errors_can_be_retried(tmp_path: Path) -> None:
    """The exit code is 3 while any are left. They run again with `--retry-infra` or `--resume`."""
    tasks = write(tmp_path / "tasks.jsonl", *(program(number) for number in range(10)))
    out = tmp_path / "out"
    with in_thread(FakeFaaS()) as faas:
        failing = {"print(3)": 2, "print(7)": 2}

        def handle(body: dict[str, Any]) -> Reply:
            if failing.get(body["code"], 0) > 0:
                failing[body["code"]] -= 1
                return Reply.crash()
            return Reply.ok("x")

        faas.handler = handle
        code, _, stderr = batch(tasks, "-o", str(out), "--url", faas.url)
        assert code == 3
        assert "--resume" in stderr
        failed = [record for record in read(out) if "infra_error" in record]
        assert sorted(record["id"] for record in failed) == ["3", "7"]
        assert failed[0]["infra_error"]["type"] == "ServerError"
        executed = faas.executions
        code, _, stderr = batch(tasks, "-o", str(out), "--url", faas.url, "--resume", "--retry-infra", "2")
        assert code == 0, stderr
        assert sorted(record["id"] for record in read(out)) == [str(number) for number in range(10)]
        assert len([body for body in faas.requests[-4:] if body["code"] in failing]) == 4
        assert faas.executions - executed == 4


@pytest.mark.parametrize(("flags", "tried"), [((), 10), (("--max-failures", "3"), 3), (("--max-failures", "0"), 40)])
def test_a_batch_without_a_server_stops(tmp_path: Path, flags: tuple[str, ...], tried: int) -> None:
    """After some failures in a row, the rest of the tasks is left for --resume, which the last line explains. A failure
    that is followed by an outcome does not count.
    """
    tasks = write(tmp_path / "tasks.jsonl", *(program(number) for number in range(40)))
    out = tmp_path / "out"
    with in_thread(FakeFaaS()) as faas:
        faas.script(Reply.crash(), Reply.crash(), Reply.ok("x"))
        faas.default = Reply.crash()
        command = (tasks, "-o", str(out), "--url", faas.url, "--concurrency", "1")
        code, _, stderr = batch(*command, *flags)
        failed = [record for record in read(out) if "infra_error" in record]
        assert (code, len(failed)) == (3, 2 + tried if tried < 40 else 39), stderr
        assert ("infrastructure errors in a row (--max-failures)" in stderr) is (tried < 40)
        assert re.search(r"^faasrt: to run the tasks without an outcome: faasrt .* --resume$", stderr, re.MULTILINE)
        faas.default = Reply.ok("x")
        code, _, stderr = batch(*command, "--resume")
        assert code == 0, stderr
    assert len([record for record in read(out) if record["outcome"] == "OK"]) == 40


async def test_each_task_gets_its_own_result_on_a_bad_network(url: str, clock: Clock, tmp_path: Path) -> None:
    """Connections are reset, delayed and cut. In the end, each task has exactly one result, which is its own."""
    tasks = write(tmp_path / "tasks.jsonl", *(program(number) for number in range(25)))
    out = tmp_path / "out"
    toxics = [Toxics(reset_after_bytes=900), Toxics(limit_bytes=1_500), Toxics(latency_s=0.2, slice_bytes=200)]
    async with FaultProxy(url) as proxy:
        for turn, toxic in enumerate([*toxics, Toxics()]):
            proxy.downstream = toxic
            async with batch_in_this_loop(tasks, out, proxy.url, clock, concurrency=6) as (progress, running):
                while not running.done():
                    await asyncio.wait({running}, timeout=0.02)
                    if toxic != Toxics():
                        clock.advance(1)
            failed = [record for record in read(out) if "infra_error" in record]
            assert progress.kinds["infra_error"] == len(failed)
            assert failed or turn >= 2
    records = read(out)
    assert sorted(int(record["id"]) for record in records) == list(range(25))
    assert all((record["outcome"], record["stdout"]) == ("OK", f"{record['id']}\n") for record in records)


@pytest.mark.parametrize(
    ("body", "outcome", "count"),
    [
        (None, "OK", 40),
        ("    return None\n", "USER_ERROR", 40),
        pytest.param(None, "OK", 164, marks=pytest.mark.tables),
        pytest.param("    return None\n", "USER_ERROR", 164, marks=pytest.mark.tables),
    ],
)
def test_human_eval(body: str | None, outcome: str, count: int, url: str, tmp_path: Path) -> None:
    """Each canonical solution of HumanEval passes its tests, and a wrong solution fails; only `-m tables` runs all."""
    tasks = write(tmp_path / "tasks.jsonl", *human_eval(body)[:count])
    code, _, stderr = batch(tasks, "-o", str(tmp_path / "out"), "--url", url)
    assert code == 0, stderr
    records = read(tmp_path / "out")
    assert len(records) == count
    assert {record["id"] for record in records if record["outcome"] != outcome} == set()
