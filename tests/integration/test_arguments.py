"""Arguments of a wrong type or size are refused by every setting and method, before anything is sent."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator
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
    ExecutionResult,
    InvalidRequestError,
    LimiterSettings,
    Outcome,
    RetrySettings,
    RuntimeFactory,
    RuntimeManager,
    SandboxConfig,
    Settings,
    TimeoutSettings,
    UnsupportedLanguageError,
)
from faasrt.local import LocalFaaS
from faasrt.testing import FakeFaas

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
# The values that an argument takes, by its name; all others in WRONG are wrong for it.
RIGHT: dict[str, set[str]] = {
    "network_enabled": {"true", "false"},
    "idempotent": {"true", "false"},
    "min_success_rate": set(),
    "token": {"None", "str", "long"},
    "budget": set(),  # 1.5 is less than what a retry costs
    "max_queue": {"None"},
    "queue_timeout_s": {"None", "float"},
    "headers": {"dict"},
    "ssl": {"None", "true", "false"},
    "proxy": {"None"},
    "session": {"None"},
}


def wrong(arguments: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Each argument with the name of each value that is wrong for it, given those that are right."""
    return [(argument, name) for argument, right in arguments.items() for name in WRONG if name not in right]


def right_for(field: attrs.Attribute[Any]) -> set[str]:
    if field.name in RIGHT:
        return RIGHT[field.name]
    return {"float"} if "float" in str(field.type) else set()


def short(error: BaseException) -> bool:
    return len(str(error)) < 2_000


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize(
    ("kind", "field"),
    [
        pytest.param(kind, field, id=f"{kind.__name__}-{field.name}")
        for kind in SETTINGS
        for field in attrs.fields(kind)
    ],
)
async def test_every_setting(kind: Any, field: attrs.Attribute[Any], name: str) -> None:
    """A wrong value is a ConfigurationError that names the setting, or what is wrong with its language."""
    if name in right_for(field):
        assert getattr(kind(**{field.name: WRONG[name]}), field.name) == WRONG[name]
        return
    with pytest.raises(REFUSALS) as caught:
        kind(**{field.name: WRONG[name]})
    assert short(caught.value)
    assert field.name in str(caught.value) or "a FaaS URL must look like" in str(caught.value)


@pytest.mark.parametrize("kind", SETTINGS)
async def test_misspelt_settings(kind: Any) -> None:
    """They are a TypeError, as for any function, and so is what is given by place."""
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
async def test_the_urls_of_a_language(urls: Any) -> None:
    """A URL or several, and each of them a string."""
    with pytest.raises(ConfigurationError, match=r"endpoints\['python'\]|URL"):
        Settings(endpoints={"python": urls})


@pytest.mark.parametrize(
    "name", [None, 5, b"py", "cobol", HUGE, "x" * 1_000_000, True, ("py",)], ids=lambda value: type(value).__name__
)
async def test_names_of_languages(name: Any) -> None:
    """Every place that takes one refuses what is none, in a message that can be read."""
    manager = RuntimeManager(settings=Settings(endpoints={"py": "http://127.0.0.1:1"}))
    factory = RuntimeFactory(Settings(endpoints={"py": "http://127.0.0.1:1"}))
    for make in (
        lambda: faasrt.Language.parse(name),
        lambda: Settings(endpoints={name: "http://a"}),
        lambda: CodeTask("1", name),
        lambda: factory.create_runtime(name),
        lambda: RuntimeManager.local([name]),
    ):
        with pytest.raises(UnsupportedLanguageError) as caught:
            make()
        assert short(caught.value)
    for call in (manager.get_runtime(name), manager.run_code("1", name), manager.validate_code("1", name)):
        with pytest.raises(UnsupportedLanguageError):
            await call


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
async def test_the_environment(environ: Any) -> None:
    """Names and values are strings."""
    for make in (Settings.from_env, RuntimeManager.from_env):
        with pytest.raises(ConfigurationError):
            make(environ)
    with pytest.raises(TypeError):
        Settings.from_env({"COZE_LOOP_FAAS_URL": "http://a"}, tokn="a")


async def test_a_retry_that_costs_more_than_there_can_be() -> None:
    """It would never be made, so it is refused, in either order."""
    for arguments in ({"retry_cost": 51}, {"budget": 4}, {"budget": 1, "retry_cost": 1.5}):
        with pytest.raises(ConfigurationError, match="retry_cost"):
            RetrySettings(**arguments)
    assert RetrySettings(budget=2, retry_cost=2).budget == 2


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
    (RuntimeManager.local, "sandbox", {"None"}),
    (RuntimeManager.local, "settings", {"None"}),
    (RuntimeManager.local, "logger", {"None"}),
    (RuntimeManager.local, "telemetry", set()),
    (LocalFaaS, "host", set()),
    (LocalFaaS, "port", {"zero"}),
    (LocalFaaS, "token", {"None", "str", "long"}),
    (LocalFaaS, "drain_s", {"float"}),
    (LocalFaaS, "queue_timeout_s", {"float"}),
]


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize(
    ("make", "argument", "right"),
    [pytest.param(*one, id=f"{one[0].__qualname__}-{one[1]}") for one in CONSTRUCTORS],
)
async def test_every_constructor(make: Any, argument: str, right: set[str], name: str) -> None:
    """Managers, factories and the embedded FaaS, too."""
    if name in right:
        make(**{argument: WRONG[name]})
        return
    with pytest.raises(REFUSALS) as caught:
        make(**{argument: WRONG[name]})
    assert short(caught.value)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def fake() -> AsyncIterator[tuple[FakeFaas, RuntimeManager]]:
    async with FakeFaas() as faas:
        settings = Settings(endpoints={"py": faas.url, "js": faas.url, "ts": faas.url})
        async with RuntimeManager(settings=settings) as manager:
            yield faas, manager


FUNCTION = "def f(x): return x"
ANY_TEXT = {"str", "long"}
# For each method its right arguments, and for each argument what else is right.
METHODS: dict[str, tuple[dict[str, Any], dict[str, set[str]]]] = {
    "run_code": (
        {"code": "1"},
        {
            "code": ANY_TEXT,
            "language": {"None"},
            "timeout_ms": {"None", "float"},
            "ext": {"None", "dict"},
            "sandbox": {"None"},
            "priority": ANY_TEXT,
            "idempotent": {"None", "true", "false"},
        },
    ),
    "call_function": (
        {"code": FUNCTION, "function": "f"},
        {
            "code": ANY_TEXT,
            "function": ANY_TEXT,
            "args": {"list"},
            "kwargs": {"None", "dict"},
            "language": {"None"},
            "timeout_ms": {"None", "float"},
            "ext": {"None", "dict"},
            "sandbox": {"None"},
            "priority": ANY_TEXT,
            "idempotent": {"None", "true", "false"},
        },
    ),
    "run_cases": (
        {"code": FUNCTION, "function": "f", "cases": [(1,)]},
        {
            "code": ANY_TEXT,
            "function": ANY_TEXT,
            "cases": set(),
            "language": {"None"},
            "timeout_ms": {"None", "float"},
            "isolate": {"true", "false"},
            "sandbox": {"None"},
            "idempotent": {"None", "true", "false"},
        },
    ),
    "validate_code": (
        {"code": "1"},
        {"code": ANY_TEXT | {"empty"}, "language": {"None"}, "where": set()},
    ),
}


@pytest.mark.parametrize(
    ("method", "argument", "name"),
    [(method, *one) for method, (_, arguments) in METHODS.items() for one in wrong(arguments)],
)
async def test_every_argument_of_a_call(
    fake: tuple[FakeFaas, RuntimeManager], method: str, argument: str, name: str
) -> None:
    """Nothing reaches the server."""
    faas, manager = fake
    given, _ = METHODS[method]
    runtime = await manager.get_runtime("py")
    requests = len(faas.requests)
    with pytest.raises(REFUSALS) as caught:
        await getattr(runtime, method)(**(given | {argument: WRONG[name]}))
    assert short(caught.value)
    assert len(faas.requests) == requests
    with pytest.raises(TypeError):
        await getattr(runtime, method)(**given, misspelt=1)


OPTIONAL_MS = {"None", "float"}


@pytest.mark.parametrize(
    ("argument", "name"),
    wrong(
        {
            "tasks": {"empty"},
            "concurrency": {"None"},
            "coalesce": {"None"},
            "ordered": {"true", "false"},
            "stop_on": {"None", "function"},
        }
    ),
)
async def test_every_argument_of_map(fake: tuple[FakeFaas, RuntimeManager], argument: str, name: str) -> None:
    """At once, or, for the items of `tasks`, when they are read."""
    faas, manager = fake
    requests = len(faas.requests)

    async def first() -> None:
        results = manager.map(**({"tasks": []} | {argument: WRONG[name]}))
        assert argument == "tasks"
        await anext(results)

    with pytest.raises(REFUSALS) as caught:
        await first()
    assert short(caught.value)
    assert len(faas.requests) == requests


async def test_stop_on_is_not_async(fake: tuple[FakeFaas, RuntimeManager]) -> None:
    """A coroutine is true, so it would stop at the first result."""

    async def stop(item: Any) -> bool:
        return False

    with pytest.raises(ConfigurationError, match="async"):
        fake[1].map([], stop_on=stop)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "name"),
    wrong({"code": ANY_TEXT, "timeout_ms": OPTIONAL_MS, "ext": {"None", "dict"}, "function": {"None"} | ANY_TEXT}),
)
async def test_every_field_of_a_task(fake: tuple[FakeFaas, RuntimeManager], field: str, name: str) -> None:
    """The error is in its own item of a map; a task beside it runs."""
    faas, manager = fake
    requests = len(faas.requests)
    task = CodeTask(**({"code": FUNCTION, "language": "py", "function": "f"} | {field: WRONG[name]}))
    found = [item async for item in manager.map([task, CodeTask("1", "py")], ordered=True)]
    assert isinstance(found[0].error, REFUSALS)
    assert short(found[0].error)
    assert isinstance(found[1].result, ExecutionResult)
    assert len(faas.requests) == requests + 1


@pytest.mark.parametrize(("field", "name"), wrong({"language": set(), "args": {"list"}, "kwargs": {"dict"}}))
async def test_fields_that_make_no_task(field: str, name: str) -> None:
    """Refused when the task is made."""
    with pytest.raises(REFUSALS) as caught:
        CodeTask(**({"code": FUNCTION, "language": "py", "function": "f"} | {field: WRONG[name]}))
    assert short(caught.value)


async def test_arguments_of_a_task() -> None:
    """Any sequence will do; one value whose items are no arguments will not."""
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
async def test_a_logger_of_the_standard_library(level: int, events: list[str], kind: str) -> None:
    """It gets a line for each event of its level, with the fields; a failed call is one warning."""
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    logger = logging.Logger("mine", level)
    logger.addHandler(Keep())
    given = logger if kind == "logger" else logging.LoggerAdapter(logger, {"request": "r1"})
    async with FakeFaas() as faas:
        settings = Settings(endpoints={"py": faas.url})
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
            await asyncio.gather(manager.run_code("print(1)", "py"), return_exceptions=True)
        assert [record.levelno for record in records if record.levelno > logging.INFO] == [logging.WARNING]
        assert "error='ConnectError'" in records[-1].getMessage()


@pytest.mark.parametrize("logger", [logging, logging.Logger, structlog, structlog.get_logger])
async def test_what_looks_like_a_logger(logger: Any) -> None:
    """Modules, classes and functions that make loggers are none themselves."""
    with pytest.raises(ConfigurationError, match="logger"):
        RuntimeManager(logger=logger)
