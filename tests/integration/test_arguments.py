"""Every setting and every method refuses arguments of a wrong type or size before a request is sent."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import attrs
import pytest
import pytest_asyncio
import structlog

import faasrt
from faasrt import (
    BreakerSettings,
    CodeTask,
    ConfigurationError,
    ConnectError,
    ExecutionResult,
    InvalidRequestError,
    LimiterSettings,
    Outcome,
    RetrySettings,
    RuntimeFactory,
    RuntimeManager,
    SandboxConfig,
    Settings,
    TestCase,
    TimeoutSettings,
    UnsupportedLanguageError,
)
from faasrt.local import LocalFaaS
from faasrt.testing import FakeFaaS

pytestmark = pytest.mark.asyncio(loop_scope="session")
REFUSALS = (ConfigurationError, InvalidRequestError, UnsupportedLanguageError)
HUGE = 10**5_000  # Python refuses to write it in decimal
WRONG: dict[str, Any] = {
    "None": None,
    "str": "abc",
    "empty": "",
    "bytes": b"abc",
    "list": ["abc"],
    "dict": {"abc": "abc"},
    "set": {1},
    "true": True,
    "false": False,
    "zero": 0,
    "negative": -1,
    "float": 1.5,
    "nan": math.nan,
    "inf": math.inf,
    "huge": HUGE,
    "long": "x" * 1_000_000,
    "complex": 1j,
    "object": object(),
    "class": int,
    "function": len,
}
SETTINGS = (SandboxConfig, TimeoutSettings, LimiterSettings, RetrySettings, BreakerSettings, Settings)
# The values that an argument accepts, by its name. It must refuse all other values in WRONG.
RIGHT: dict[str, set[str]] = {
    "connect_retry_s": {"zero", "float"},
    "network_enabled": {"true", "false"},
    "idempotent": {"true", "false"},
    "min_success_rate": set(),
    "token": {"None", "str", "long"},
    "max_queue": {"None"},
    "queue_timeout_s": {"None", "float"},
    "headers": {"dict"},
    "ssl": {"None", "true", "false"},
    "proxy": {"None"},
    "http_session": {"None"},
}


def wrong(right: set[str]) -> dict[str, Any]:
    """Return the values that an argument must refuse, given the names of those that it accepts."""
    return {name: value for name, value in WRONG.items() if name not in right}


def accepted_by(field: attrs.Attribute[Any]) -> set[str]:
    if field.name in RIGHT:
        return RIGHT[field.name]
    return {"float"} if "float" in str(field.type) else set()


def is_short(error: BaseException) -> bool:
    return len(str(error)) < 2_000


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        pytest.param(kind, field, id=f"{kind.__name__}-{field.name}")
        for kind in SETTINGS
        for field in attrs.fields(kind)
    ],
)
async def test_settings_refuse_wrong_values(kind: Any, field: attrs.Attribute[Any]) -> None:
    """The error names the setting, or the expected form of a URL."""
    right = accepted_by(field)
    for name in right:
        assert getattr(kind(**{field.name: WRONG[name]}), field.name) == WRONG[name]
    for value in wrong(right).values():
        with pytest.raises(REFUSALS) as caught:
            kind(**{field.name: value})
        assert is_short(caught.value)
        assert field.name in str(caught.value) or "a FaaS URL must look like" in str(caught.value)


@pytest.mark.parametrize("kind", SETTINGS)
async def test_misspelt_and_positional_settings_are_type_errors(kind: Any) -> None:
    with pytest.raises(TypeError):
        kind(timout_s=1)
    with pytest.raises(TypeError):
        kind(1)


@pytest.mark.parametrize(
    "urls",
    [
        None,
        5,
        True,
        b"http://a",
        {"a": "b"},
        ["http://a", None],
        [b"http://a"],
        [["http://a"]],
        math.nan,
        HUGE,
        object(),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_urls_must_be_strings(urls: Any) -> None:
    """The value of an endpoint is one URL or a list of URLs. Each URL is a string."""
    with pytest.raises(ConfigurationError, match=r"endpoints\['python'\]|URL"):
        Settings(endpoints={"python": urls})


@pytest.mark.parametrize(
    "name", [None, 5, b"py", "cobol", HUGE, "x" * 1_000_000, True, ("py",)], ids=lambda value: type(value).__name__
)
async def test_unknown_languages_are_refused(name: Any) -> None:
    """Every function with a language refuses invalid ones, with a short message."""
    manager = RuntimeManager(settings=Settings(endpoints={"py": "http://127.0.0.1:1"}))
    factory = RuntimeFactory(Settings(endpoints={"py": "http://127.0.0.1:1"}))
    for make in (
        lambda: faasrt.Language.parse(name),
        lambda: Settings(endpoints={name: "http://a"}),
        # A service may have a language that is called so.
        lambda: CodeTask("1", name if name != "cobol" else ""),
        lambda: factory.create_runtime(name),
        lambda: RuntimeManager.local([name]),
    ):
        with pytest.raises(UnsupportedLanguageError) as caught:
            make()
        assert is_short(caught.value)
    for call in (manager.get_runtime(name), manager.run_code("1", name), manager.validate_code("1", name)):
        with pytest.raises(UnsupportedLanguageError):
            await call


async def test_a_manager_needs_a_language() -> None:
    """Type checkers refuse None, and the error says what to pass. See `test_run_options` for calls without it."""
    manager = RuntimeManager.from_url("http://127.0.0.1:1")
    calls: list[Callable[[], Awaitable[Any]]] = [
        lambda: manager.run_code("1", None),
        lambda: manager.stream_code("1", None),  # type: ignore[return-value]
        lambda: manager.call_function("1", "f", language=None),
        lambda: manager.run_cases("1", "f", [(1,)], language=None),
        lambda: manager.judge("1", [TestCase("", "")], language=None),
        lambda: manager.validate_code("1", None),
    ]
    for call in calls:
        with pytest.raises(UnsupportedLanguageError, match="no default language: pass one, such as language='python'"):
            await call()


@pytest.mark.parametrize(
    "environ",
    [
        5,
        "a=b",
        ["COZE_LOOP_FAAS_URL"],
        {"COZE_LOOP_FAAS_URL": None},
        {"COZE_LOOP_FAAS_URL": b"http://a"},
        {"COZE_LOOP_FAAS_URL": "http://a", "FAASRT_TOKEN": 5},
        {"COZE_LOOP_JS_FAAS_DOMAIN": 5},
    ],
)
async def test_environment_variables_must_be_strings(environ: Any) -> None:
    for make in (Settings.from_env, RuntimeManager.from_env):
        with pytest.raises(ConfigurationError):
            make(environ)
    with pytest.raises(TypeError):
        Settings.from_env({"COZE_LOOP_FAAS_URL": "http://a"}, tokn="a")


CONSTRUCTORS: list[tuple[Any, str, set[str]]] = [
    (RuntimeManager, "factory", {"None"}),
    (RuntimeManager, "settings", {"None"}),
    (RuntimeManager, "logger", {"None"}),
    (RuntimeManager, "telemetry", set()),
    (RuntimeFactory, "settings", {"None"}),
    (RuntimeFactory, "logger", {"None"}),
    (RuntimeFactory, "telemetry", set()),
    (RuntimeManager.local, "languages", {"None"}),
    (RuntimeManager.local, "workers", {"None"}),
    (RuntimeManager.local, "sandbox", set()),
    (RuntimeManager.local, "settings", {"None"}),
    (RuntimeManager.local, "logger", {"None"}),
    (RuntimeManager.local, "telemetry", set()),
    (LocalFaaS, "host", set()),
    (LocalFaaS, "port", {"zero"}),
    (LocalFaaS, "token", {"None", "str", "long"}),
    (LocalFaaS, "drain_s", {"float"}),
    (LocalFaaS, "queue_timeout_s", {"None", "float"}),
]


@pytest.mark.parametrize(
    ("make", "argument", "right"),
    [pytest.param(*one, id=f"{one[0].__qualname__}-{one[1]}") for one in CONSTRUCTORS],
)
async def test_constructors_refuse_wrong_values(make: Any, argument: str, right: set[str]) -> None:
    for name in right:
        make(**{argument: WRONG[name]})
    for value in wrong(right).values():
        with pytest.raises(REFUSALS) as caught:
            make(**{argument: value})
        assert is_short(caught.value)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def fake() -> AsyncIterator[tuple[FakeFaaS, RuntimeManager]]:
    async with FakeFaaS() as faas:
        settings = Settings(endpoints={"py": faas.url, "js": faas.url, "ts": faas.url})
        async with RuntimeManager(settings=settings) as manager:
            yield faas, manager


FUNCTION = "def f(x): return x"
ANY_TEXT = {"str", "long"}
OPTIONS = {
    "language": {"None"},
    "timeout_ms": {"None", "float"},
    "ext": {"None", "dict"},
    "sandbox": {"None"},
    "priority": ANY_TEXT,
    "idempotent": {"None", "true", "false"},
}
# For each method: valid arguments, and the other values that each argument accepts.
METHODS: dict[str, tuple[dict[str, Any], dict[str, set[str]]]] = {
    "run_code": ({"code": "1"}, {"code": ANY_TEXT} | OPTIONS),
    "call_function": (
        {"code": FUNCTION, "function": "f"},
        {"code": ANY_TEXT, "function": ANY_TEXT, "args": {"list"}, "kwargs": {"None", "dict"}} | OPTIONS,
    ),
    "run_cases": (
        {"code": FUNCTION, "function": "f", "cases": [(1,)]},
        {"code": ANY_TEXT, "function": ANY_TEXT, "cases": set(), "isolate": {"true", "false"}} | OPTIONS,
    ),
    "validate_code": (
        {"code": "1"},
        {"code": ANY_TEXT | {"empty"}, "language": {"None"}, "where": set()},
    ),
}


@pytest.mark.parametrize(
    ("method", "argument", "right"),
    [(method, *one) for method, (_, arguments) in METHODS.items() for one in arguments.items()],
)
async def test_calls_refuse_wrong_arguments(
    fake: tuple[FakeFaaS, RuntimeManager], method: str, argument: str, right: set[str]
) -> None:
    """No request is sent."""
    faas, manager = fake
    given, _ = METHODS[method]
    runtime = await manager.get_runtime("py")
    requests = len(faas.requests)
    for value in wrong(right).values():
        with pytest.raises(REFUSALS) as caught:
            await getattr(runtime, method)(**(given | {argument: value}))
        assert is_short(caught.value)
        assert len(faas.requests) == requests
    with pytest.raises(TypeError):
        await getattr(runtime, method)(**given, misspelt=1)


@pytest.mark.parametrize(
    ("argument", "right"),
    [
        ("tasks", {"empty"}),
        ("concurrency", {"None"}),
        ("coalesce", {"None"}),
        ("ordered", {"true", "false"}),
        ("stop_on", {"None", "function"}),
    ],
)
async def test_map_refuses_wrong_arguments(
    fake: tuple[FakeFaaS, RuntimeManager], argument: str, right: set[str]
) -> None:
    """`map` itself raises the error. For wrong `tasks`, the first `anext` may raise it."""
    faas, manager = fake
    requests = len(faas.requests)

    async def first(value: Any) -> None:
        results = manager.map(**({"tasks": []} | {argument: value}))
        assert argument == "tasks"
        await anext(results)

    for value in wrong(right).values():
        with pytest.raises(REFUSALS) as caught:
            await first(value)
        assert is_short(caught.value)
    assert len(faas.requests) == requests


async def test_stop_on_must_not_be_async(fake: tuple[FakeFaaS, RuntimeManager]) -> None:
    """A coroutine is always true, so `map` would stop at the first result."""

    async def stop(item: Any) -> bool:
        return False

    with pytest.raises(InvalidRequestError, match="async"):
        fake[1].map([], stop_on=stop)  # type: ignore[arg-type]


@pytest.mark.parametrize(("field", "right"), [("code", ANY_TEXT), ("function", {"None"} | ANY_TEXT)])
async def test_wrong_fields_of_a_task_are_errors_of_its_item(
    fake: tuple[FakeFaaS, RuntimeManager], field: str, right: set[str]
) -> None:
    """`map` reports the error in the item of the task, and runs the other tasks."""
    faas, manager = fake
    requests = len(faas.requests)
    tasks = [
        CodeTask(**({"code": FUNCTION, "language": "py", "function": "f"} | {field: value}))
        for value in wrong(right).values()
    ]
    *failed, ran = [item async for item in manager.map([*tasks, CodeTask("1", "py")], ordered=True)]
    assert len(failed) == len(tasks)
    for item in failed:
        assert isinstance(item.error, REFUSALS)
        assert is_short(item.error)
    assert isinstance(ran.result, ExecutionResult)
    assert len(faas.requests) == requests + 1


@pytest.mark.parametrize(
    ("field", "right"),
    [
        ("language", {"str"}),
        ("args", {"list"}),
        ("kwargs", {"dict"}),
        ("timeout_ms", {"None", "float", "huge"}),  # only a call knows the limit of the sandbox
        ("ext", {"None", "dict"}),
        ("sandbox", {"None"}),
        ("priority", ANY_TEXT),
        ("idempotent", {"None", "true", "false"}),
    ],
)
async def test_code_task_refuses_wrong_fields(field: str, right: set[str]) -> None:
    """These fields are checked when the task is created."""
    for value in wrong(right).values():
        with pytest.raises(REFUSALS) as caught:
            CodeTask(**({"code": FUNCTION, "language": "py", "function": "f"} | {field: value}))
        assert is_short(caught.value)


async def test_code_task_accepts_any_sequence_of_arguments() -> None:
    """Strings, bytes, sets and mappings are refused, because their items are hardly meant as arguments."""
    assert CodeTask("1", "py", args=range(3)).args == (0, 1, 2)
    assert CodeTask("1", "py", args=(n for n in (1, 2))).args == (1, 2)
    for args in ("abc", b"abc", bytearray(b"abc"), {"a": 1}, {1, 2}, frozenset({1}), 5, None):
        with pytest.raises(InvalidRequestError, match="args"):
            CodeTask("1", "py", args=args)
    for kwargs in ("abc", [("a", 1)], {1: 2}, None, 5):
        with pytest.raises(InvalidRequestError, match="kwargs"):
            CodeTask("1", "py", kwargs=kwargs)


@pytest.mark.parametrize("kind", ["logger", "adapter"])
@pytest.mark.parametrize(
    ("level", "events"),
    [
        (logging.DEBUG, ["call_started", "attempt_started", "limit_changed", "attempt_finished", "call_finished"]),
        (logging.INFO, ["call_finished"]),
        (logging.WARNING, []),
    ],
)
async def test_standard_library_loggers_get_the_events_of_their_level(level: int, events: list[str], kind: str) -> None:
    """Each event of the level of the logger is one line with its fields. A failed call is one warning."""
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    logger = logging.Logger("mine", level)
    logger.addHandler(Keep())
    given = logger if kind == "logger" else logging.LoggerAdapter(logger, {"request": "r1"})
    async with FakeFaaS() as faas:
        settings = Settings(endpoints={"py": faas.url}, retry=RetrySettings(connect_retry_s=0))
        async with RuntimeManager(settings=settings, logger=given) as manager:
            assert (await manager.run_code("print(1)", "py")).outcome is Outcome.OK
        lines = [record.getMessage() for record in records]
        assert [line.split()[0] for line in lines] == events
        if lines:
            assert records[-1].levelno == logging.INFO
            assert "outcome='OK'" in lines[-1]
            assert kind == "logger" or records[-1].request == "r1"  # type: ignore[attr-defined]
        records.clear()
        faas.down()
        async with RuntimeManager(settings=settings, logger=given) as manager:
            with pytest.raises(ConnectError):
                await manager.run_code("print(1)", "py")
        assert [record.levelno for record in records if record.levelno > logging.INFO] == [logging.WARNING]
        assert "error='ConnectError'" in records[-1].getMessage()


@pytest.mark.parametrize("logger", [logging, logging.Logger, structlog, structlog.get_logger])
async def test_invalid_loggers_are_refused(logger: Any) -> None:
    """Modules, classes and functions that create loggers are not loggers."""
    with pytest.raises(ConfigurationError, match="logger"):
        RuntimeManager(logger=logger)
