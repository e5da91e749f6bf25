"""Results that are reused: hits, misses, engines, damaged stores, limits and concurrency."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

import faasrt
from faasrt import (
    CodeTask,
    ConfigurationError,
    DiskCache,
    Outcome,
    RuntimeFactory,
    RuntimeManager,
    ServerError,
    Settings,
)
from faasrt.client import cache as caching, disk_cache
from faasrt.client.disk_cache import FILE_NAME, MIN_BYTES
from faasrt.testing import FakeFaaS, Reply
from faasrt.transport.profile_cache import MAX_AGE_S
from support.helpers import Clock, url_of
from support.served import until

pytestmark = pytest.mark.asyncio(loop_scope="session")


class MemoryCache:
    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    async def get(self, key: str) -> bytes | None:
        return self.values.get(key)

    async def put(self, key: str, value: bytes) -> None:
        self.values[key] = value


def manager_at(*urls: str, cache: Any, clock: Callable[[], float] = time.monotonic, **settings: Any) -> RuntimeManager:
    endpoints = {"python": urls, "javascript": urls}
    return RuntimeManager(RuntimeFactory(Settings(endpoints=endpoints, **settings), clock=clock), cache=cache)


def failures_of_cache(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the messages about the cache, without those of servers that other tests share with this one."""
    return [message for message in caplog.messages if "the cache of results failed" in message]


async def test_a_second_call_sends_nothing(tmp_path: Path) -> None:
    """A hit has the same result, and is marked. It is also a hit for another manager that uses the same folder."""
    async with FakeFaaS() as faas:
        faas.default = Reply.ok("hi\n", [1])
        for run in range(2):
            async with manager_at(faas.url, cache=tmp_path / "cache") as manager:
                first, second = [await manager.run_code("print('hi')", "py", timeout_ms=500) for _ in range(2)]
                assert (first.cached, second.cached, second.attempts) == (bool(run), True, 0)
                assert (second.stdout, second.value, second.outcome) == ("hi\n", [1], Outcome.OK)
                assert second.to_dict()["cached"] is True
                assert json.loads(first.to_json())["cached"] is bool(run)
                assert "cached=True" in repr(second)
                assert manager.get_metrics().total.attempts == 1 - run
        assert faas.executions == 1


async def test_hits_take_no_permit() -> None:
    """A hit is returned while a program occupies the only permit."""
    async with FakeFaaS() as faas:
        limiter = faasrt.LimiterSettings(max_concurrency=1)
        async with manager_at(faas.url, cache=MemoryCache(), limiter=limiter) as manager:
            await manager.run_code("stored", "py")
            faas.default = Reply(hang=True)
            call = asyncio.create_task(manager.run_code("hangs", "py"))
            await faas.wait_until(lambda: faas.in_flight == 1)
            assert (await manager.run_code("stored", "py")).cached
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)


@pytest.mark.parametrize("outcome", ["TIMEOUT", "MEMORY_LIMIT", "OUTPUT_LIMIT", "CRASHED"])
async def test_outcomes_that_depend_on_the_load_are_not_stored(outcome: str) -> None:
    cache = MemoryCache()
    async with FakeFaaS() as faas, manager_at(faas.url, cache=cache) as manager:
        faas.default = Reply(outcome=outcome)
        results = [await manager.run_code("program", "py") for _ in range(2)]
        assert [result.cached for result in results] == [False, False]
        assert (faas.executions, cache.values) == (2, {})


async def test_failures_of_the_infrastructure_and_network_access_are_not_stored() -> None:
    cache = MemoryCache()
    async with FakeFaaS() as faas, manager_at(faas.url, cache=cache) as manager:
        faas.script(Reply.crash())
        with pytest.raises(ServerError):
            await manager.run_code("program", "py")
        sandbox = faasrt.SandboxConfig(network_enabled=True)
        await manager.run_code("program", "py", sandbox=sandbox)
        assert cache.values == {}
        await manager.run_code("program", "py")
        assert not (await manager.run_code("program", "py", sandbox=sandbox)).cached


async def test_invalid_calls_raise_although_a_result_is_stored() -> None:
    async with FakeFaaS() as faas, manager_at(faas.url, cache=MemoryCache()) as manager:
        await manager.run_code("program", "py")
        with pytest.raises(faasrt.InvalidRequestError):
            await manager.run_code("program", "py", idempotent="yes")  # type: ignore[arg-type]
        runtime = await manager.get_runtime("py")
        await runtime.aclose()
        with pytest.raises(faasrt.RuntimeClosedError):
            await runtime.run_code("program")


async def test_another_version_of_the_server_is_a_miss() -> None:
    """The server is asked for its version again after some seconds."""
    clock = Clock()
    async with FakeFaaS() as faas, manager_at(faas.url, cache=MemoryCache(), clock=clock) as manager:
        faas.health = {"version": "1"}
        await manager.run_code("program", "py")
        probes = faas.probes
        faas.health = {"version": "2"}
        assert (await manager.run_code("program", "py")).cached
        assert faas.probes == probes
        clock.advance(MAX_AGE_S)
        assert not (await manager.run_code("program", "py")).cached
        faas.health = {"version": "1"}
        clock.advance(MAX_AGE_S)
        assert (await manager.run_code("program", "py")).cached
        assert faas.executions == 2


async def test_a_profile_and_a_fingerprint_need_one_request() -> None:
    """A server that gets programs in an envelope is asked for its health once, by the first call."""
    async with FakeFaaS() as faas, manager_at(faas.url, cache=MemoryCache(), envelope="auto") as manager:
        await manager.run_code("program", "py")
        assert (await manager.run_code("program", "py")).cached
        assert faas.probes == 1


async def test_replicas_with_different_versions() -> None:
    """A result is stored for the engine that ran it, and reused while a replica has this engine."""
    async with FakeFaaS() as old, FakeFaaS() as new:
        cache = MemoryCache()
        old.health, new.health = {"version": "1"}, {"version": "2"}
        async with manager_at(old.url, cache=cache) as manager:
            await manager.run_code("program", "py")
        async with manager_at(old.url, new.url, cache=cache) as manager:
            assert (await manager.run_code("program", "py")).cached
        async with manager_at(new.url, cache=cache) as manager:
            assert not (await manager.run_code("program", "py")).cached
        assert len(cache.values) == 2


async def test_an_answer_names_its_engine() -> None:
    """The fingerprint in the answer of a server counts, and not that in an older health report."""
    clock, cache = Clock(), MemoryCache()
    async with FakeFaaS() as faas, manager_at(faas.url, cache=cache, clock=clock) as manager:
        faas.health = {"languages": {"python": {"fingerprint": "old"}}}
        answer = {"output": {"stdout": "", "stderr": "", "ret_val": ""}, "metadata": {"fingerprint": "new"}}
        faas.default = Reply(body=json.dumps({**answer, "outcome": "OK"}).encode())
        await manager.run_code("program", "py")
        assert not (await manager.run_code("program", "py")).cached
        faas.health = {"languages": {"python": {"fingerprint": "new"}}}
        clock.advance(MAX_AGE_S)
        assert (await manager.run_code("program", "py")).cached


@pytest.mark.parametrize(("status", "cached"), [(404, True), (500, False), (401, False), (200, True)])
async def test_servers_without_a_version(status: int, cached: bool) -> None:
    """Without `/health`, the base URL counts as the engine. If `/health` fails, nothing is stored."""
    async with FakeFaaS() as faas, manager_at(faas.url, cache=MemoryCache()) as manager:
        faas.health_status, faas.health = status, {"version": None}
        results = [await manager.run_code("program", "py") for _ in range(2)]
        assert [result.cached for result in results] == [False, cached]


async def test_calls_have_a_key_for_their_arguments(local: RuntimeManager, tmp_path: Path) -> None:
    """Values that JSON sends alike have one key; the function, keyword arguments and their order count."""
    code = "def f(*a, **k): return [list(a), list(k)]\ng = f"
    url = url_of(local)

    async with manager_at(url, cache=tmp_path) as manager:

        async def call(function: str, *args: Any, **kwargs: Any) -> tuple[bool, Any]:
            result = await manager.call_function(code, function, args, kwargs, language="py")
            return result.cached, result.value

        assert await call("f", 1) == (False, [[1], []])
        assert await call("f", 1) == (True, [[1], []])
        assert await call("f", 1.0) == (False, [[1.0], []])
        assert await call("g", 1) == (False, [[1], []])
        assert await call("f", (1,)) == (False, [[[1]], []])
        assert await call("f", [1]) == (True, [[[1]], []])
        assert await call("f", a=1, b=2) == (False, [[], ["a", "b"]])
        assert await call("f", b=2, a=1) == (False, [[], ["b", "a"]])


async def test_input_counts_and_files_are_returned_again(local: RuntimeManager, tmp_path: Path) -> None:
    """A hit has the collected files of the first run."""
    code = "import sys; text = input() + sys.argv[1] + open('f').read(); print(text); open('out', 'w').write(text)"
    url = url_of(local)
    async with manager_at(url, cache=tmp_path) as manager:

        async def run(stdin: str, argument: str, content: str) -> tuple[bool, str, dict[str, bytes]]:
            result = await manager.run_code(
                code, "py", stdin=stdin, argv=[argument], files={"f": content}, collect=["out"]
            )
            return result.cached, result.stdout, dict(result.files)

        for arguments in (("a", "b", "c"), ("x", "b", "c"), ("a", "x", "c"), ("a", "b", "x")):
            text = "".join(arguments)
            assert await run(*arguments) == (False, f"{text}\n", {"out": text.encode()})
            assert await run(*arguments) == (True, f"{text}\n", {"out": text.encode()})


async def test_tests_are_judged_by_stored_results(local: RuntimeManager, tmp_path: Path) -> None:
    """Another expected output needs no execution."""
    url = url_of(local)
    async with manager_at(url, cache=tmp_path) as manager:
        for expected, passed in (("4", True), ("5", False)):
            tests = [faasrt.TestCase("2", expected)]
            judgement = await manager.judge("print(int(input()) * 2)", tests, language="py")
            assert judgement.passed is passed
        assert manager.get_metrics().total.attempts == 1


async def test_each_case_has_its_own_key(local: RuntimeManager, tmp_path: Path) -> None:
    """Only cases without a stored result run, with results in order, and a case that loops is not stored."""
    code = "def f(n):\n    while n == 3: pass\n    return 10 * n\n"
    url = url_of(local)
    async with manager_at(url, cache=tmp_path) as manager:

        async def run(*numbers: int, isolate: bool = False) -> list[tuple[bool, str, str]]:
            results = await manager.run_cases(
                code, "f", [(number,) for number in numbers], language="py", timeout_ms=500, isolate=isolate
            )
            return [(result.cached, result.outcome.value, result.ret_val) for result in results]

        assert await run(1, 2) == [(False, "OK", "10"), (False, "OK", "20")]
        assert await run(4, 2, 3, 1, 5) == [
            (False, "OK", "40"),
            (True, "OK", "20"),
            (False, "TIMEOUT", ""),
            (True, "OK", "10"),
            (False, "OK", "50"),
        ]
        sent = manager.get_metrics().total.attempts
        assert [cached for cached, _, _ in await run(5, 4, 1)] == [True, True, True]
        assert manager.get_metrics().total.attempts == sent
        assert [cached for cached, _, _ in await run(5, isolate=True)] == [False]


async def test_large_results_are_stored(tmp_path: Path) -> None:
    async with FakeFaaS() as faas, manager_at(faas.url, cache=tmp_path) as manager:
        faas.default = Reply.ok("é" * 500_000)
        code = "#" * 500_000 + "1"
        results = [await manager.run_code(code, "py", stdin="") for _ in range(2)]
        assert [(result.cached, len(result.stdout)) for result in results] == [(False, 500_000), (True, 500_000)]


async def test_map_uses_its_own_cache_or_that_of_the_manager(tmp_path: Path) -> None:
    async with FakeFaaS() as faas, manager_at(faas.url, cache=tmp_path / "a") as manager:
        tasks = [CodeTask(f"print({number})", "py") for number in range(20)]

        async def run(**options: Any) -> set[bool]:
            return {item.result.cached async for item in manager.map(tasks, **options) if item.result is not None}

        assert await run() == {False}
        assert await run() == {True}
        assert await run(cache=tmp_path / "b") == {False}
        assert await run(cache=str(tmp_path / "b")) == {True}
        assert faas.executions == 40


@pytest.mark.parametrize("cache", [5, b"x", "", object(), MemoryCache])
async def test_a_wrong_cache_is_an_error(cache: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"cache"):
        RuntimeManager.from_url("http://127.0.0.1:1", cache=cache)


@pytest.mark.parametrize("max_bytes", [0, True, 1.5, MIN_BYTES - 1, 2**60])
async def test_a_wrong_size_is_an_error(max_bytes: Any) -> None:
    with pytest.raises(ConfigurationError, match="max_bytes"):
        DiskCache("x", max_bytes=max_bytes)


async def test_files_that_are_no_cache_are_refused_at_the_start(tmp_path: Path) -> None:
    """The error names the file. The file stays as it is."""
    for folder in ("text", "database", "other"):
        (tmp_path / folder).mkdir()
    (tmp_path / "text" / FILE_NAME).write_bytes(b"not a database" * 1_000)
    other = sqlite3.connect(tmp_path / "database" / FILE_NAME)
    other.execute("CREATE TABLE t (x)")
    other.commit()
    other.close()
    (tmp_path / "file").write_text("")
    for folder in ("text", "database", "file"):
        async with FakeFaaS() as faas:
            manager = manager_at(faas.url, cache=tmp_path / folder)
            with pytest.raises(ConfigurationError, match=str(tmp_path / folder)):
                await manager.__aenter__()
            with pytest.raises(ConfigurationError):
                await manager.run_code("program", "py")
            await manager.aclose()
            assert faas.executions == 0
    assert (tmp_path / "text" / FILE_NAME).read_bytes() == b"not a database" * 1_000


async def test_a_file_that_is_damaged_later_makes_programs_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The failure is logged once. Nothing raises, and no result is wrong."""
    async with FakeFaaS() as faas:
        faas.handler = lambda body: Reply.ok(body["code"] * 100)
        programs = [f"program {number}" for number in range(200)]
        async with manager_at(faas.url, cache=tmp_path) as manager:
            await asyncio.gather(*(manager.run_code(code, "py") for code in programs))
        path = tmp_path / FILE_NAME
        data = bytearray(path.read_bytes())
        for position in range(8_192, len(data), 512):
            data[position] ^= 0xFF
        path.write_bytes(data)
        with caplog.at_level(logging.WARNING, "faasrt"):
            async with manager_at(faas.url, cache=tmp_path) as manager:
                results = await asyncio.gather(*(manager.run_code(code, "py") for code in programs))
        assert [result.stdout for result in results] == [code * 100 for code in programs]
        assert not all(result.cached for result in results)
        messages = failures_of_cache(caplog)
        # On a busy machine, the store may also take too long before.
        assert sum("takes too long" not in message for message in messages) == 1


async def test_a_failing_store_never_fails_a_call(caplog: pytest.LogCaptureFixture) -> None:
    class Failing:
        async def get(self, key: str) -> bytes | None:
            raise OSError("no get")

        async def put(self, key: str, value: bytes) -> None:
            raise ValueError("no put")

    class Wrong(MemoryCache):
        async def get(self, key: str) -> Any:
            return "text" if self.values else None

    with caplog.at_level(logging.WARNING, "faasrt"):
        for cache in (Failing(), Wrong()):
            async with FakeFaaS() as faas, manager_at(faas.url, cache=cache) as manager:
                assert [(await manager.run_code("program", "py")).cached for _ in range(3)] == [False] * 3
    messages = failures_of_cache(caplog)
    assert len(messages) == 2
    assert "no get" in messages[0]


class Slow(MemoryCache):
    """A store whose methods with the names in `hanging` never return."""

    def __init__(self, *hanging: str) -> None:
        super().__init__()
        self.hanging = set(hanging)
        self.calls: list[str] = []

    async def get(self, key: str) -> bytes | None:
        await self.wait("get")
        return await super().get(key)

    async def put(self, key: str, value: bytes) -> None:
        await self.wait("put")
        await super().put(key, value)

    async def wait(self, name: str) -> None:
        self.calls.append(name)
        if name in self.hanging:
            await asyncio.Event().wait()


@pytest.mark.parametrize("name", ["get", "put"])
async def test_a_store_that_hangs_is_given_up(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The failure is logged once. Later calls use the store again."""
    monkeypatch.setattr(caching, "STORE_S", 0.05)
    cache = Slow(name)
    async with FakeFaaS() as faas, manager_at(faas.url, cache=cache) as manager:
        with caplog.at_level(logging.WARNING, "faasrt"):
            for _ in range(2):
                result = await manager.run_code("program", "py", timeout_ms=500)
                assert (result.outcome, result.cached) == (Outcome.OK, False)
        (message,) = failures_of_cache(caplog)
        assert "it takes too long" in message
        assert cache.values == {}
        monkeypatch.setattr(caching, "STORE_S", 60.0)
        cache.hanging.clear()
        assert [(await manager.run_code("program", "py")).cached for _ in range(2)] == [False, True]


@pytest.mark.parametrize("name", ["get", "put"])
async def test_many_cases_wait_once_for_a_store_that_hangs(
    local: RuntimeManager, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(caching, "STORE_S", 0.05)
    cache = Slow(name)
    url = url_of(local)
    async with manager_at(url, cache=cache) as manager:
        cases = [(number,) for number in range(10)]
        results = await manager.run_cases("def f(n): return n", "f", cases, language="py")
    assert [result.value for result in results] == list(range(10))
    assert cache.calls.count(name) == 1
    assert cache.calls[-1] == name


class UnprintableError(BaseException):
    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize("name", ["get", "put"])
@pytest.mark.parametrize("error", [asyncio.CancelledError, ConfigurationError, TimeoutError, UnprintableError])
async def test_no_error_of_a_store_is_raised(name: str, error: type[BaseException]) -> None:
    class Raising(Slow):
        async def wait(self, called: str) -> None:
            if called == name:
                raise error

    async with FakeFaaS() as faas, manager_at(faas.url, cache=Raising()) as manager:
        result = await manager.run_code("program", "py")
        assert (result.outcome, result.cached) == (Outcome.OK, False)


async def test_a_path_that_becomes_wrong_while_a_program_runs_discards_no_result(tmp_path: Path) -> None:
    class Removed(DiskCache):
        async def put(self, key: str, value: bytes) -> None:
            await self.aclose()
            (tmp_path / FILE_NAME).unlink()
            (tmp_path / FILE_NAME).mkdir()
            await super().put(key, value)

    async with FakeFaaS() as faas, manager_at(faas.url, cache=Removed(tmp_path)) as manager:
        result = await manager.run_code("program", "py")
        assert (result.outcome, result.cached) == (Outcome.OK, False)
        with pytest.raises(ConfigurationError, match=str(tmp_path)):
            await manager.run_code("program", "py")
        assert faas.executions == 1


@pytest.mark.parametrize("name", ["get", "put"])
async def test_a_call_can_be_cancelled_while_it_waits_for_the_store(name: str) -> None:
    cache = Slow(name)
    async with FakeFaaS() as faas, manager_at(faas.url, cache=cache) as manager:
        call = asyncio.create_task(manager.run_code("program", "py"))
        await until(lambda: name in cache.calls)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert faas.executions == (name == "put")


CREATOR = """
import asyncio, sys
from faasrt import DiskCache
sys.stdin.read()
asyncio.run(DiskCache(sys.argv[1]).open())
"""
LOCKER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute(sys.argv[2])
print("locked", flush=True)
sys.stdin.readline()
connection.execute("ROLLBACK")
print("unlocked", flush=True)
"""


@contextlib.asynccontextmanager
async def locked(folder: Path, statement: str) -> AsyncIterator[None]:
    """Lock the file of a cache in another process."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", LOCKER, str(folder / FILE_NAME), statement, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"locked\n"
        yield
        process.stdin.write(b"\n")
        assert await process.stdout.readline() == b"unlocked\n"
    finally:
        process.stdin.close()
        await process.wait()


async def test_a_file_that_another_process_has_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Stored results are found, and new results are not stored until the file is unlocked."""
    monkeypatch.setattr(disk_cache, "BUSY_S", 0.05)
    async with FakeFaaS() as faas:
        async with manager_at(faas.url, cache=tmp_path) as manager:
            await manager.run_code("old", "py")
        with caplog.at_level(logging.WARNING, "faasrt"):
            async with locked(tmp_path, "BEGIN IMMEDIATE"), manager_at(faas.url, cache=tmp_path) as manager:
                assert (await manager.run_code("old", "py")).cached
                assert [(await manager.run_code("new", "py")).cached for _ in range(2)] == [False, False]
        (message,) = failures_of_cache(caplog)
        assert "locked" in message
        async with manager_at(faas.url, cache=tmp_path) as manager:
            assert [(await manager.run_code("new", "py")).cached for _ in range(2)] == [False, True]


async def test_a_manager_starts_although_the_new_file_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock is not reported as a wrong path. The file is opened when it is unlocked."""
    monkeypatch.setattr(disk_cache, "BUSY_S", 0.05)
    async with FakeFaaS() as faas, contextlib.AsyncExitStack() as stack:
        async with locked(tmp_path, "BEGIN EXCLUSIVE"):
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                await DiskCache(tmp_path).open()
            manager = await stack.enter_async_context(manager_at(faas.url, cache=tmp_path))
            assert not (await manager.run_code("program", "py")).cached
        assert [(await manager.run_code("program", "py")).cached for _ in range(2)] == [False, True]


async def test_statements_that_were_given_up_leave_the_file_usable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls give up while the file is locked. Later values are stored, and no value has another key."""
    monkeypatch.setattr(disk_cache, "BUSY_S", 60.0)
    async with FakeFaaS() as faas:
        faas.handler = lambda body: Reply.ok(body["code"])
        async with manager_at(faas.url, cache=tmp_path) as manager:
            programs = [f"program {number}" for number in range(10)]

            async def run() -> list[bool]:
                results = await asyncio.gather(*(manager.run_code(code, "py") for code in programs))
                assert [result.stdout for result in results] == programs
                return [result.cached for result in results]

            await manager.run_code("first", "py")
            async with locked(tmp_path, "BEGIN IMMEDIATE"):
                monkeypatch.setattr(caching, "STORE_S", 0.2)
                assert await run() == [False] * 10
                assert await run() == [False] * 10
            monkeypatch.setattr(caching, "STORE_S", 60.0)
            await run()
            assert await run() == [True] * 10
    assert integrity(tmp_path) == [("ok",)]


def integrity(folder: Path) -> list[tuple[str]]:
    """Return what SQLite finds when it checks the file of a cache."""
    with contextlib.closing(sqlite3.connect(folder / FILE_NAME)) as connection:
        return connection.execute("PRAGMA integrity_check").fetchall()


@pytest.mark.parametrize("read", ["application_id", "sqlite_master"])
async def test_two_processes_may_create_the_file_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: str
) -> None:
    """A cache that another process finishes between two statements of this one is a cache of faasrt."""
    creator = subprocess.Popen([sys.executable, "-c", CREATOR, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    class Slow(sqlite3.Connection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            if read in sql and creator.poll() is None:
                creator.communicate()
            return super().execute(sql, *parameters)

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: connect(*args, **options, factory=Slow))
    async with DiskCache(tmp_path) as cache:
        await cache.put("key", b"value")
        assert await cache.get("key") == b"value"
    assert creator.returncode == 0


async def test_the_file_is_private(tmp_path: Path) -> None:
    """The folder and the file, with the files that SQLite puts beside it, are for their owner only."""
    async with DiskCache(tmp_path / "a" / "b") as cache:
        await cache.put("key", b"value")
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a" / "b").iterdir()}
    assert set(modes.values()) == {0o600}
    assert FILE_NAME in modes
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700


async def test_the_least_recently_used_results_are_deleted(tmp_path: Path) -> None:
    """The file stays within the limit. Values that are read stay, and a value that is too large is not kept."""
    now = 0.0
    async with DiskCache(tmp_path, max_bytes=MIN_BYTES, now=lambda: now) as cache:
        for number in range(400):
            now += 4_000
            await cache.put(f"key {number}", bytes(10_000))
            assert await cache.get("key 0") == bytes(10_000)
        found = {number for number in range(400) if await cache.get(f"key {number}") is not None}
        assert 0 in found
        assert found == {0, *range(401 - len(found), 400)}
        assert 60 < len(found) < 110
        await cache.put("large", bytes(MIN_BYTES // 4 + 1))
        assert await cache.get("large") is None
    assert (tmp_path / FILE_NAME).stat().st_size < 1.3 * MIN_BYTES


@pytest.mark.parametrize(("read_at_s", "kept"), [(3_599, "b"), (3_600, "a")])
async def test_the_last_use_is_stored_once_an_hour(read_at_s: float, kept: str, tmp_path: Path) -> None:
    """So most hits need no write. Of two results, the one used less recently, to the hour, is deleted first."""
    now = 0.0
    async with DiskCache(tmp_path, max_bytes=MIN_BYTES, now=lambda: now) as cache:
        await cache.put("a", bytes(MIN_BYTES // 4))
        now = 10
        await cache.put("b", bytes(MIN_BYTES // 4))
        now = read_at_s
        await cache.get("a")
        for key in ("c", "d"):
            await cache.put(key, bytes(MIN_BYTES // 4))
        assert [key for key in ("a", "b") if await cache.get(key)] == [kept]


WRITER = """
import asyncio, sys
from faasrt import DiskCache

async def main():
    async with DiskCache(sys.argv[1], max_bytes=2**20) as cache:
        print("open", flush=True)
        for number in range(int(sys.argv[2])):
            await cache.put(f"key {number % 50}", b"value" * 500)
            assert await cache.get(f"key {number % 7}") in (None, b"value" * 500)

asyncio.run(main())
"""


def writer(folder: Path, count: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), str(count)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


async def test_processes_share_a_file(tmp_path: Path) -> None:
    """Processes that create, read and write the file at the same time all succeed."""
    processes = [writer(tmp_path, 60) for _ in range(3)]
    for process in processes:
        _, errors = await asyncio.to_thread(process.communicate)
        assert (process.returncode, errors) == (0, b"")


async def test_a_killed_process_leaves_the_file_intact(tmp_path: Path) -> None:
    for _ in range(2):
        process = writer(tmp_path, 10**9)
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            await asyncio.to_thread(process.stdout.readline)
            # SQLite writes from the start of this file again and again, so its size says little.
            wal = tmp_path / f"{FILE_NAME}-wal"
            before = wal.stat().st_mtime_ns
            await until(lambda wal=wal, before=before: wal.stat().st_mtime_ns > before)  # type: ignore[misc]
        finally:
            process.kill()  # it would write forever
            await asyncio.to_thread(process.wait)
        process.stdout.close()
        process.stderr.close()
    async with DiskCache(tmp_path) as cache:
        assert await cache.get("key 0") == b"value" * 500
    assert integrity(tmp_path) == [("ok",)]


async def test_the_embedded_faas_names_its_engines(local: RuntimeManager) -> None:
    """The fingerprint in an answer is that in the health report, and depends on the engine and the limits."""
    health = (await local.get_health_status()).endpoints[0].details["languages"]
    result = await local.run_code("print(1)", "py")
    assert result.metadata["fingerprint"] == health["python"]["fingerprint"] != ""
    assert health["javascript"]["fingerprint"] not in ("", health["python"]["fingerprint"])
    async with RuntimeManager.local(["python"], workers=1, sandbox=faasrt.SandboxConfig(timeout_limit_s=9)) as other:
        assert (await other.run_code("print(1)", "py")).metadata["fingerprint"] != result.metadata["fingerprint"]
