"""`RuntimeManager.map`: its order, limits, errors, and what it cleans up when it ends early."""

from __future__ import annotations

import asyncio
import gc
import inspect
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import Any

import pytest
from aiohttp import web

from faasrt import (
    CodeTask,
    InvalidRequestError,
    LimiterSettings,
    Outcome,
    RetrySettings,
    RuntimeClosedError,
    RuntimeManager,
    ServerError,
    ServiceError,
    Settings,
    TaskResult,
)
from faasrt.testing import FakeFaaS, Reply
from support.helpers import manager_for
from support.served import until

pytestmark = pytest.mark.asyncio(loop_scope="session")


def tasks(count: int) -> Iterator[CodeTask]:
    for number in range(count):
        yield CodeTask(f"print({number})", "python", id=str(number))


def running(name: str) -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if name in repr(task.get_coro())]


async def test_map_runs_programs_in_three_languages(local: RuntimeManager) -> None:
    """Each item has the task, its index, and its result or its error."""
    programs = [
        CodeTask("print(1)", "py", id="a"),
        CodeTask("console.log(2)", "js", id="b"),
        CodeTask("const n: number = 3; console.log(n)", "ts", id="c"),
        CodeTask("1 / 0", "py", id="d"),
        CodeTask("while True: pass", "py", id="e", timeout_ms=200),
        CodeTask(
            "def grade(a, language): return [a, language]", "py", function="grade", args=(1,), kwargs={"language": 2}
        ),
        CodeTask("", "py", id="empty"),
    ]
    found = [item async for item in local.map(programs, ordered=True)]
    assert [item.index for item in found] == list(range(7))
    assert [item.task for item in found] == programs
    assert [None if item.result is None else item.result.outcome for item in found] == [
        Outcome.OK,
        Outcome.OK,
        Outcome.OK,
        Outcome.USER_ERROR,
        Outcome.TIMEOUT,
        Outcome.OK,
        None,
    ]
    assert found[5].result is not None
    assert found[5].result.value == [1, 2]
    assert isinstance(found[6].error, InvalidRequestError)


@pytest.mark.parametrize("ordered", [False, True])
async def test_map_is_lazy_and_bounded(ordered: bool) -> None:
    """At most `concurrency` tasks run, and the source is read at most two times `concurrency` ahead of the consumer."""
    read = 0

    def source() -> Iterator[CodeTask]:
        nonlocal read
        for task in tasks(200):
            read += 1
            yield task

    async with FakeFaaS() as faas, manager_for(faas.url) as manager:
        taken = 0
        async for _ in manager.map(source(), concurrency=5, ordered=ordered):
            taken += 1
            assert read - taken <= 10
            if taken % 50 == 0:  # a slow consumer
                await until(lambda: not manager.get_metrics().in_flight)
                assert read - taken <= 10
        assert (taken, read, faas.executions) == (200, 200, 200)
        assert faas.peak <= 5


async def test_ordered_results_have_the_order_of_the_tasks() -> None:
    """With `ordered`, results have the order of the tasks, even if the first task is slow."""
    async with FakeFaaS() as faas, manager_for(faas.url) as manager:
        faas.health = {"capabilities": {}, "limits": {}}
        faas.handler = lambda body: Reply(stdout=body["code"], delay_s=0.3 if body["code"] == "print(0)" else 0)
        found = [item async for item in manager.map(tasks(50), concurrency=8, ordered=True)]
        assert [item.index for item in found] == list(range(50))
        assert [item.result.stdout for item in found if item.result is not None] == [item.task.code for item in found]
        unordered = [item.index async for item in manager.map(tasks(50), concurrency=8)]
        assert unordered != list(range(50))
        assert sorted(unordered) == list(range(50))


async def test_infrastructure_failures_are_in_their_items() -> None:
    """A ServerError of one task does not affect the others."""
    async with FakeFaaS() as faas, manager_for(faas.url) as manager:
        faas.handler = lambda body: Reply.crash() if body["code"] == "print(3)" else Reply.ok("x")
        found = {item.task.id: item async for item in manager.map(tasks(10), concurrency=2)}
        assert len(found) == 10
        assert isinstance(found["3"].error, ServerError)
        assert all(item.result for name, item in found.items() if name != "3")


@pytest.mark.parametrize(
    "stop_on",
    [ServiceError, (Outcome.TIMEOUT, ServerError), lambda item: item.task.id == "3", {ServerError}],
)
async def test_stop_on(stop_on: Any) -> None:
    """The first matching result is the last one. Then the source is closed."""
    source = tasks(10_000)
    async with FakeFaaS() as faas, manager_for(faas.url) as manager:
        faas.handler = lambda body: Reply.crash() if body["code"] == "print(3)" else Reply.ok("x")
        found = [item async for item in manager.map(source, concurrency=2, stop_on=stop_on)]
        assert found[-1].task.id == "3"
        assert len(found) <= 8
        assert next(source, None) is None  # it was closed
        assert not running("Map._work")


async def test_max_failures() -> None:
    """After this number of failures in a row, the map raises the last one. A result in between starts a new count."""
    async with FakeFaaS() as fake, manager_for(fake.url, retry=RetrySettings(max_attempts=1)) as manager:
        fake.script(Reply.crash(), Reply.crash(), Reply(), Reply.crash(), Reply.crash(), Reply.crash(), Reply())
        items: list[TaskResult] = []

        async def collect() -> None:
            async for item in manager.map(tasks(99), concurrency=1, max_failures=3):
                items.append(item)  # noqa: PERF401 -- those before the error are needed

        with pytest.raises(ServerError) as caught:
            await collect()
    assert [item.error is None for item in items] == [False, False, True, False, False, False]
    assert caught.value.__notes__ == ["the map ends after 3 infrastructure failures in a row (max_failures)"]


async def test_stop_on_an_outcome() -> None:
    """With `ordered`, all results before the matching one are returned."""
    async with FakeFaaS() as faas, manager_for(faas.url) as manager:
        faas.handler = lambda body: Reply(outcome="TIMEOUT" if body["code"] == "print(5)" else "OK")
        found = [
            item.index async for item in manager.map(tasks(99), concurrency=4, ordered=True, stop_on=Outcome.TIMEOUT)
        ]
        assert found == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("way", ["break", "cancel", "raise", "aclose"])
async def test_leaving_a_map_early_cleans_up(way: str) -> None:
    """No task and no call remains, and the source is closed."""
    cleaned = asyncio.Event()

    async def source() -> AsyncIterator[CodeTask]:
        try:
            for number in itertools.count():
                yield CodeTask(f"print({number})", "python")
        finally:
            cleaned.set()

    async with FakeFaaS() as faas, manager_for(faas.url) as manager:
        faas.handler = lambda body: Reply(hang=body["code"] not in ("print(0)", "print(1)"))

        async def consume() -> None:
            async for _ in manager.map(source(), concurrency=3):
                if way == "break":
                    break
                if way == "raise":
                    raise ValueError("the consumer failed")

        if way == "aclose":
            async with aclosing(manager.map(source(), concurrency=3)) as results:
                await anext(results)
        elif way == "cancel":
            consumer = asyncio.create_task(consume())
            await faas.wait_until(lambda: faas.in_flight == 3)
            consumer.cancel()
            with pytest.raises(asyncio.CancelledError):
                await consumer
        elif way == "raise":
            with pytest.raises(ValueError, match="consumer"):
                await consume()
        else:
            await consume()
        gc.collect()
        await until(cleaned.is_set)
        await until(lambda: not (faas.in_flight or running("Map._work") or manager.get_metrics().in_flight))


async def test_an_error_of_the_source_is_raised_after_the_results() -> None:
    """The results of all tasks that were read before are returned first."""

    def source() -> Iterator[CodeTask]:
        yield from tasks(7)
        raise OSError("the disk is gone")

    async with FakeFaaS() as faas, manager_for(faas.url) as manager:
        results = manager.map(source(), concurrency=3)
        assert sorted([(await anext(results)).index for _ in range(7)]) == list(range(7))
        with pytest.raises(OSError, match="disk"):
            await anext(results)


async def test_an_error_of_a_synchronous_anext_is_raised() -> None:
    """`__anext__` of the source may be an ordinary function that raises."""

    class Broken:
        def __aiter__(self) -> Broken:
            return self

        def __anext__(self) -> Any:
            raise OSError("disk")

    async with FakeFaaS() as faas, manager_for(faas.url) as manager:
        with pytest.raises(OSError, match="disk"):
            assert [item async for item in manager.map(Broken())]


async def test_an_unused_map_reads_nothing() -> None:
    """The source is read when the first result is requested. Closing the map closes its source."""
    source = tasks(3)
    async with FakeFaaS() as faas, manager_for(faas.url) as manager:
        results = manager.map(source)
        assert inspect.getgeneratorstate(source) == inspect.GEN_CREATED
        await results.aclose()
        await results.aclose()
        assert inspect.getgeneratorstate(source) == inspect.GEN_CLOSED
        assert [item async for item in results] == []
        assert faas.executions == 0
        assert [item async for item in manager.map([])] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"concurrency": 0}, "concurrency must be a whole number from 1"),
        ({"concurrency": True}, "concurrency"),
        ({"concurrency": 2.5}, "concurrency"),
        ({"coalesce": 0}, "coalesce"),
        ({"stop_on": 3}, "stop_on"),
        ({"max_failures": 0}, "max_failures"),
        ({"stop_on": "OK"}, "stop_on"),
        ({"stop_on": [int]}, "stop_on"),
        ({"stop_on": ["TIMEOUT"]}, "stop_on"),
    ],
)
async def test_wrong_arguments_are_refused(arguments: dict[str, Any], words: str) -> None:
    """`map` raises the error at once, before it reads the source."""
    manager = manager_for("http://127.0.0.1:1")
    with pytest.raises(InvalidRequestError, match=words):
        manager.map([], **arguments)


@pytest.mark.parametrize("given", [5, None, [CodeTask("1", "py"), "print(1)"], "print(1)"])
async def test_sources_without_tasks_are_refused(given: Any) -> None:
    """The source must be iterable, and its items must be CodeTasks."""
    async with FakeFaaS() as faas, manager_for(faas.url) as manager:
        with pytest.raises(InvalidRequestError, match=r"iterable of CodeTasks|must yield CodeTasks"):
            assert [item async for item in manager.map(given)]


async def test_closing_the_manager_ends_a_map() -> None:
    """The map raises RuntimeClosedError once, not for each remaining task."""
    async with FakeFaaS() as faas, manager_for(faas.url) as manager:
        results = manager.map(tasks(1_000_000), concurrency=2)
        await anext(results)
        await manager.aclose()
        with pytest.raises(RuntimeClosedError):
            async for _ in results:
                pass
        assert faas.executions < 20


class Endless:
    """An endless source that counts how many tasks were read, and records that it was closed."""

    def __init__(self, *, hangs_at: int | None = None) -> None:
        self.read = 0
        self.hangs_at = hangs_at
        self.hanging, self.closing, self.closed = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.may_close = asyncio.Event()
        self.may_close.set()

    async def tasks(self) -> AsyncIterator[CodeTask]:
        try:
            while self.read != self.hangs_at:
                self.read += 1
                yield CodeTask(f"print({self.read})", "python")
            self.hanging.set()
            await asyncio.Event().wait()
        finally:
            self.closing.set()
            await self.may_close.wait()
            self.closed.set()


@pytest.mark.parametrize("way", ["aclose", "manager", "with"])
async def test_a_break_without_closing_the_results(way: str) -> None:
    """Only a limited number of tasks runs after a `break`. Closing the results or the manager closes the source."""
    source = Endless()
    async with FakeFaaS() as faas, manager_for(faas.url) as manager:
        results = manager.map(source.tasks(), concurrency=3)
        async for _ in results:
            break
        # One result was returned, three tasks may be in flight, and three more may be read.
        await faas.wait_until(lambda: faas.executions == 7)
        async with asyncio.timeout(10):
            while faas.in_flight or manager.get_metrics().in_flight:
                await asyncio.sleep(0)
        assert source.read == 7
        if way == "aclose":
            await results.aclose()
        elif way == "manager":
            await manager.aclose()
        else:
            async with results:
                assert (await anext(results)).result
        assert source.closed.is_set()
        assert not running("Map.")
        assert faas.executions <= 8
        await results.aclose()


async def test_closing_the_manager_wakes_a_waiting_consumer() -> None:
    """A consumer that waits for a result gets RuntimeClosedError, even if the source hangs."""
    source = Endless(hangs_at=2)
    async with FakeFaaS() as faas, manager_for(faas.url) as manager:
        results = manager.map(source.tasks(), concurrency=2)
        assert [(await anext(results)).index, (await anext(results)).index] == [0, 1]
        waiting = asyncio.ensure_future(anext(results))
        await source.hanging.wait()
        async with asyncio.timeout(10):
            await manager.aclose()
            with pytest.raises(RuntimeClosedError):
                await waiting
        assert source.closed.is_set()
        assert not running("Map.")
        with pytest.raises(StopAsyncIteration):
            await anext(results)


@pytest.mark.parametrize("steps", range(6))
async def test_two_cancellations_close_the_source(steps: int) -> None:
    """Whenever the second cancellation arrives, the source is closed before the caller is cancelled."""
    source = Endless(hangs_at=3)
    async with FakeFaaS() as faas, manager_for(faas.url) as manager:
        faas.default = Reply(hang=True)

        async def consume() -> None:
            async with manager.map(source.tasks(), concurrency=5) as results:
                async for _ in results:
                    pass

        consumer = asyncio.create_task(consume())
        await source.hanging.wait()
        source.may_close.clear()
        consumer.cancel()
        for _ in range(steps):
            await asyncio.sleep(0)
        consumer.cancel()
        await source.closing.wait()
        consumer.cancel()
        source.may_close.set()
        with pytest.raises(asyncio.CancelledError):
            await consumer
        assert source.closed.is_set()
        assert not running("Map.")
        assert manager.get_metrics().in_flight == 0


async def test_workers_are_started_as_tasks_arrive() -> None:
    """Three tasks need at most four workers, even with a high concurrency."""
    most = 0

    def source(count: int) -> Iterator[CodeTask]:
        nonlocal most
        for task in tasks(count):
            most = max(most, len(running("Map._work")))
            yield task

    async with FakeFaaS() as faas, manager_for(faas.url) as manager:
        assert len([item async for item in manager.map(source(3), concurrency=100_000)]) == 3
        assert 1 <= most <= 4
        most = 0
        assert len([item async for item in manager.map(source(100), concurrency=5)]) == 100
        assert most == 5


async def test_the_end_of_the_event_loop_ends_a_map() -> None:
    """If `asyncio.run` ends while a consumer waits for a result, the source is closed, and no task remains."""
    kept: list[Any] = []

    async def main() -> None:
        source = Endless(hangs_at=0)
        results = manager_for("http://127.0.0.1:1").map(source.tasks(), concurrency=3)
        kept.extend([source, results, asyncio.ensure_future(anext(results))])
        await source.hanging.wait()

    await asyncio.to_thread(asyncio.run, main())
    source, _, waiting = kept
    assert source.closed.is_set()
    assert waiting.cancelled()


async def test_tasks_wait_for_permits() -> None:
    """Tasks beyond `max_concurrency` wait as long as necessary, and do not fail."""
    limiter = LimiterSettings(max_concurrency=2)
    async with FakeFaaS() as faas, manager_for(faas.url, limiter=limiter) as manager:
        faas.default = Reply(delay_s=0.05)
        found = [item async for item in manager.map(tasks(40), concurrency=20)]
        assert all(item.result for item in found), [item.error for item in found if item.error]
        assert faas.peak <= 2


async def test_a_map_waits_in_the_same_queue_as_other_calls() -> None:
    """Another call gets its permit before the tasks that queue later, and retries get theirs."""
    limiter = LimiterSettings(max_concurrency=2)
    async with FakeFaaS() as faas, manager_for(faas.url, limiter=limiter) as manager:
        faas.default = Reply(delay_s=0.02)
        faas.script(*[Reply.unavailable(not_started=True)] * 3)

        async def consume() -> list[TaskResult]:
            return [item async for item in manager.map(tasks(60), concurrency=40)]

        mapping = asyncio.create_task(consume())
        await until(lambda: manager.get_metrics().queued >= 10)
        assert (await manager.run_code("1", "python")).ok
        assert all(item.result for item in await mapping)


async def test_a_source_that_raises_cancelled_error_does_not_hang() -> None:

    async def source() -> AsyncIterator[CodeTask]:
        yield CodeTask("1", "python")
        sleeping = asyncio.create_task(asyncio.sleep(100))
        sleeping.cancel()
        await sleeping

    async with FakeFaaS() as faas, manager_for(faas.url) as manager, asyncio.timeout(10):
        with pytest.raises(asyncio.CancelledError):
            assert [item async for item in manager.map(source(), concurrency=2)]


async def test_tasks_that_differ_in_arguments_share_executions(local: RuntimeManager) -> None:
    """With `coalesce`, such tasks share executions. Each has its own result, and an invalid task affects no other."""
    code = "import time\nSTARTED = time.perf_counter_ns()\ndef f(n):\n    return [1 // n, STARTED]"
    together = [CodeTask(code, "py", function="f", args=(number,), id=str(number)) for number in range(20)]
    alone = CodeTask(code, "py", function="f", kwargs={"n": 1})
    wrong = CodeTask(code, "py", function="f", args=(float("nan"),))
    given = [*together, alone, wrong, *together[:3]]
    found = [item async for item in local.map(given, ordered=True, concurrency=1, coalesce=10)]
    assert [item.task for item in found] == given
    assert found[0].result is not None
    assert found[0].result.outcome is Outcome.USER_ERROR
    assert isinstance(found[21].error, InvalidRequestError)
    starts = [item.result.value[1] for item in found[1:10] if item.result is not None]
    assert len(starts) == 9
    assert len(set(starts)) == 1
    assert all(item.result is not None and item.result.value[0] == 1 // int(item.task.id or 1) for item in found[10:21])


async def test_coalesce_does_not_wait_for_a_slow_source() -> None:
    """Available tasks run at once. Later tasks get another execution."""
    gate = asyncio.Event()

    async def source() -> AsyncIterator[CodeTask]:
        yield CodeTask("def f(n): return n", "py", function="f", args=(1,))
        await gate.wait()
        yield CodeTask("def f(n): return n", "py", function="f", args=(2,))

    async with RuntimeManager.local(["py"], workers=1) as manager:
        results: list[TaskResult] = []
        async for item in manager.map(source(), coalesce=100, concurrency=2):
            results.append(item)
            gate.set()
        assert [item.result.value for item in results if item.result is not None] == [1, 2]


async def test_tasks_that_share_an_execution_run_once_if_the_servers_change(
    serve: Callable[..., Awaitable[str]],
) -> None:
    """A batch that needs two executions fails if another server cannot run the second. Nothing runs again."""
    received: list[str] = []
    probes = 0

    async def old(request: web.Request) -> web.Response:
        if request.path == "/health":
            return web.json_response(health(["files"]))
        received.append("old")
        await manager.reconfigure(Settings.from_url(new_url))
        return Reply.ok().make_response()

    async def new(request: web.Request) -> web.Response:
        nonlocal probes
        if request.path == "/health":
            probes += 1
            return web.json_response(health([] if probes == 1 else ["files"]))
        received.append("new")
        return Reply.ok().make_response()

    def health(fields: list[str]) -> dict[str, Any]:
        return {"capabilities": {"lossless": True}, "languages": {"python": {"input": fields}}}

    new_url = await serve(new, "/{path:.*}")
    arguments = ["x" * 400_000] * 4  # more than a request contains
    given = [CodeTask("def f(x): pass", "py", function="f", args=(text,), files={"a.txt": "a"}) for text in arguments]
    async with manager_for(await serve(old, "/{path:.*}")) as manager:
        items = [item async for item in manager.map(given, coalesce=10, concurrency=1)]
    assert received == ["old"]
    assert {type(item.error) for item in items} == {InvalidRequestError}
