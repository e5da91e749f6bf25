"""A sample that uses the public API with types. mypy and pyright check it, and `test_imports.py` runs it."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any, assert_type

import faasrt
from faasrt import local, sync
from faasrt.telemetry import events


async def use(manager: faasrt.RuntimeManager) -> None:
    runtime = await manager.get_runtime(faasrt.Language.PYTHON)
    assert_type(runtime, faasrt.Runtime)
    result = await runtime.run_code(
        "print(1)",
        "python",
        1_000,
        {"trace": "t"},
        sandbox=faasrt.SandboxConfig(memory_limit_mb=64, timeout_limit_s=1.5),
        priority="high",
        idempotent=True,
    )
    assert_type(result, faasrt.ExecutionResult)
    assert_type(result.outcome, faasrt.Outcome)
    assert_type(result.output, faasrt.ExecutionOutput)
    assert_type(result.stdout, str)
    assert_type(result.error, faasrt.ErrorInfo | None)
    assert_type(result.exit_code, int | None)
    assert_type(result.truncated, frozenset[str])
    assert_type(result.timings.attempts_s, tuple[float, ...])
    assert_type(result.raise_for_outcome(), faasrt.ExecutionResult)
    called = await runtime.call_function(
        "def f(*a, **k): pass", "f", [1, [None]], {"x": 2}, language="py", timeout_ms=1_000
    )
    assert_type(called, faasrt.ExecutionResult)
    cases = await runtime.run_cases("def f(n): pass", "f", [(1,), [2]], isolate=True, idempotent=False)
    assert_type(cases, list[faasrt.ExecutionResult])
    checked = await runtime.validate_code("x = 1", where="local")
    assert_type(checked, faasrt.ValidationResult)
    assert_type(checked.diagnostics, tuple[faasrt.Diagnostic, ...])
    assert_type(await runtime.get_health_status(), faasrt.HealthStatus)
    assert_type(runtime.get_metrics(), faasrt.Metrics)
    assert_type(runtime.get_return_val_function(), str)
    assert_type(manager.get_supported_languages(), tuple[faasrt.Language | faasrt.OtherLanguage, ...])
    for language in manager.get_supported_languages():
        await manager.validate_code("1", language, where="auto")
    with contextlib.suppress(faasrt.UnsupportedLanguageError):
        await manager.run_code("1", "pyhton")  # type: ignore[arg-type]
    with contextlib.suppress(faasrt.UnsupportedLanguageError):
        await manager.run_code("puts 1", faasrt.OtherLanguage("ruby"))
    with contextlib.suppress(TypeError):
        await manager.run_code("1", "py", timeout=3)  # type: ignore[call-arg]
    with contextlib.suppress(TypeError):
        await manager.run_code("1")  # type: ignore[call-arg]
    with contextlib.suppress(TypeError):
        manager.stream_code("1")  # type: ignore[call-arg]
    with contextlib.suppress(TypeError):
        await manager.validate_code("1")  # type: ignore[call-arg]
    with contextlib.suppress(TypeError):
        await manager.call_function("1", "f")  # type: ignore[call-arg]
    with contextlib.suppress(TypeError):
        await manager.run_cases("1", "f", [[1]])  # type: ignore[call-arg]
    with contextlib.suppress(TypeError):
        await manager.judge("1", [faasrt.TestCase()])  # type: ignore[call-arg]
    with contextlib.suppress(TypeError):
        await manager.judge("1", [faasrt.TestCase()], "py")  # type: ignore[call-arg]
    with contextlib.suppress(TypeError):
        manager.session()  # type: ignore[call-arg]
    with contextlib.suppress(faasrt.InvalidRequestError):
        await manager.judge("1", [faasrt.TestCase()], language="py", compare="line")  # type: ignore[arg-type]
    with contextlib.suppress(faasrt.InvalidRequestError):
        mixed = [faasrt.FunctionTest([], 1), faasrt.TestCase()]
        await manager.judge("1", mixed, language="py", function="f")  # type: ignore[arg-type]
    tests = [
        faasrt.FunctionTest([1], 2, compare=faasrt.floats(rel=0.1)),
        faasrt.FunctionTest((), None, kwargs={"n": 1}),
    ]
    assert_type(await manager.judge("1", tests, language="py", function="f", compare="alike"), faasrt.Judgement)
    try:
        await manager.run_code("1", "js")
    except faasrt.OverloadedError as error:
        assert_type(error.retry_after_s, float | None)
    except faasrt.ServiceError as error:
        assert_type(error.endpoint, str)
        assert_type(error.status, int | None)
    task = faasrt.CodeTask("print(1)", "py", id="a", args=[1, 2], kwargs={"b": 3})
    assert_type(task.language, faasrt.Language | faasrt.OtherLanguage)
    async for item in manager.map([task]):
        if item.error is None:
            assert_type(item.result, faasrt.ExecutionResult)
        else:
            assert_type(item.error, faasrt.FaasrtError)
        if item.result is not None:
            assert_type(item, faasrt.CompletedTask)
    called = await manager.call_function("def f(n): pass", "f", [1], language="py", timeout_ms=5)
    assert_type(called, faasrt.ExecutionResult)
    assert_type(await manager.run_cases("def f(n): pass", "f", [[1]], language="py"), list[faasrt.ExecutionResult])
    assert_type(result.value_or(0), Any)
    with contextlib.suppress(AttributeError):
        faasrt.RuntimeManagr  # type: ignore[attr-defined]  # noqa: B018
    with contextlib.suppress(TypeError):
        faasrt.RuntimeManager.from_env(limitr=3)  # type: ignore[call-arg]
    with contextlib.suppress(faasrt.ConfigurationError):
        faasrt.RuntimeManager.from_url("http://faas:8000", token=5)  # type: ignore[arg-type]
    async with manager.session("py", sandbox=faasrt.SandboxConfig(), files={"a": b"b"}, idle_timeout_s=60) as session:
        assert_type(session, faasrt.Session)
        shown = await session.run_code("1", timeout_ms=500, stdin="a", sandbox=None)
        assert_type(shown.displays, tuple[faasrt.Display, ...])
        assert_type(shown.displays[0].png, bytes | None)
        async with session.stream_code("print(1)", timeout_ms=500) as run:
            async for chunk in run:
                assert_type(chunk.text, str)
        await session.write_files({"b": "c"})
        assert_type(await session.read_files(["*"]), dict[str, bytes])
        assert_type(await session.interrupt(), bool)
        assert_type(session.lost_reason, str)
        assert_type(await manager.resume_session(session.id, session.endpoint), faasrt.Session)
        with contextlib.suppress(TypeError):
            await session.run_code("1", timeout=3)  # type: ignore[call-arg]
        with contextlib.suppress(TypeError):
            await session.run_code("1", "python")  # type: ignore[call-arg, arg-type]
        with contextlib.suppress(TypeError):
            manager.session("py", idle_timeout=3)  # type: ignore[call-arg]
        with contextlib.suppress(faasrt.RejectedError):
            assert_type(await session.fork(), faasrt.Session)
    await manager.close_runtimes()


def use_sync() -> None:
    with sync.RuntimeManager.local(["python"], workers=1, cache=None) as manager:
        assert_type(manager, sync.RuntimeManager)
        assert_type(manager.run_code("print(1)", "py", timeout_ms=500), faasrt.ExecutionResult)
        assert_type(manager.call_function("def f(n): pass", "f", [1], language="py"), faasrt.ExecutionResult)
        assert_type(manager.run_cases("def f(n): pass", "f", [[1]], language="py"), list[faasrt.ExecutionResult])
        assert_type(manager.get_runtime("py"), sync.Runtime)
        assert_type(manager.get_runtime("py").run_code("1"), faasrt.ExecutionResult)
        assert_type(manager.get_metrics(), faasrt.Metrics)
        with manager.session("py", idle_timeout_s=60) as session:
            assert_type(session, sync.Session)
            assert_type(session.run_code("1", timeout_ms=500), faasrt.ExecutionResult)
            assert_type(session.read_files(["*"]), dict[str, bytes])
            assert_type(session.list_files(), dict[str, int])
        for item in manager.map([faasrt.CodeTask("print(1)", "py")], concurrency=2):
            if item.error is None:
                assert_type(item.result, faasrt.ExecutionResult)
        with contextlib.suppress(TypeError):
            manager.run_code("1", "py", timeout=3)  # type: ignore[call-arg]
        with contextlib.suppress(faasrt.UnsupportedLanguageError):
            manager.run_code("1", "pyhton")  # type: ignore[arg-type]
    with contextlib.suppress(TypeError):
        sync.RuntimeManager.from_url("http://faas:8000").run_code("1")  # type: ignore[call-arg]
    with contextlib.suppress(TypeError):
        sync.RuntimeManager.from_env(limitr=3)  # type: ignore[call-arg]
    assert_type(sync.RuntimeManager.from_url("http://faas:8000", token="a"), sync.RuntimeManager)


class MemoryCache:
    async def get(self, key: str) -> bytes | None:
        return None

    async def put(self, key: str, value: bytes) -> None:
        pass


async def main() -> None:
    for cache in ("folder", Path("folder"), faasrt.DiskCache("folder", max_bytes=2**20), MemoryCache()):
        faasrt.RuntimeManager.from_url("http://faas:8000", cache=cache)
    with contextlib.suppress(faasrt.ConfigurationError):
        faasrt.RuntimeManager.from_url("http://faas:8000", cache=5)  # type: ignore[arg-type]
    async with faasrt.RuntimeManager.local(["python", faasrt.Language.JAVASCRIPT], workers=1) as manager:
        await use(manager)
    seen: list[events.Event] = []
    settings = faasrt.Settings(
        endpoints={"python": "http://127.0.0.1:8000", faasrt.Language.JAVASCRIPT: ("http://127.0.0.1:8001",)},
        limiter=faasrt.LimiterSettings(max_concurrency=8),
        timeouts=faasrt.TimeoutSettings(grace_s=1),
    )
    factory = faasrt.RuntimeFactory(settings, telemetry=[print, seen.append])
    assert_type(factory.create_runtime("py"), faasrt.Runtime)
    faas = local.LocalFaaS(workers=1, sandbox=faasrt.SandboxConfig())
    assert_type(faas.languages, tuple[faasrt.Language, ...])


if __name__ == "__main__":
    asyncio.run(main())
    use_sync()
