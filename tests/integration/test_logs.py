"""Log lines: logger, level, fields and cost, with real configurations of structlog and the standard library."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, get_args

import attrs
import pytest
import structlog

from faasrt import BreakerSettings, ConnectError, OverloadedError, RetrySettings, RuntimeManager, ServerError
from faasrt.local import LocalFaaS
from faasrt.telemetry.events import (
    EVENT_NAMES,
    AttemptFinished,
    AttemptStarted,
    CallFinished,
    CallStarted,
    EndpointChanged,
    Event,
    ExecutionFinished,
    ExecutionStarted,
    LimitChanged,
    ReplicaRemoved,
    ReplicasChanged,
    RetryScheduled,
)
from faasrt.telemetry.logs import LogSink
from faasrt.testing import FakeFaaS, Reply
from support.helpers import QUICK, manager_for
from support.levels import without_level
from support.served import until

ONCE = RetrySettings(max_attempts=1)
EVENTS: list[Event] = [
    CallStarted(call_id="c1", language="python", code_bytes=1, code_hash="0" * 16, timeout_ms=1.0),
    AttemptStarted(call_id="c1", language="python", attempt=1, endpoint="http://x"),
    AttemptFinished(
        call_id="c1", language="python", attempt=1, endpoint="http://x", duration_s=1.0, status=500, error="ServerError"
    ),
    RetryScheduled(call_id="c1", language="python", attempt=1, endpoint="http://x", error="ServerError", wait_s=0.5),
    EndpointChanged(endpoint="http://x", family="python", state="open", open_s=5.0),
    LimitChanged(endpoint="http://x", family="python", limit=14.4),
    ReplicasChanged(endpoint="dns+http://x", replicas=1, added=("http://x#10.0.0.1",)),
    ReplicaRemoved(endpoint="http://x#10.0.0.2"),
    CallFinished(
        call_id="c1",
        language="python",
        endpoint="http://x",
        outcome="OK",
        error=None,
        attempts=2,
        queued_s=0.0,
        total_s=2.0,
        output_bytes=3,
    ),
    ExecutionStarted(
        execution_id="task-1",
        language="python",
        path="/run_code",
        code_bytes=1,
        code_hash="0" * 16,
        timeout_ms=1.0,
        traceparent=None,
        tracestate=None,
    ),
    ExecutionFinished(execution_id="task-1", language="python", outcome="OK", error=None, status=200, total_s=1.0),
]
KINDS = set(get_args(Event))
LEVELS = {
    "call_started": "debug",
    "attempt_started": "debug",
    "attempt_finished": "debug",
    "retry_scheduled": "debug",
    "endpoint_changed": "warning",
    "limit_changed": "debug",
    "replicas_changed": "info",
    "replica_removed": "debug",
    "call_finished": "info",
    "execution_started": "debug",
    "execution_finished": "debug",
}
JSON: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.processors.add_log_level,
    structlog.processors.JSONRenderer(),
]


@pytest.fixture(autouse=True)
def unconfigured() -> Iterator[None]:
    """Each test starts and ends with structlog unconfigured and without context variables."""
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def fields_of(event: Event) -> dict[str, Any]:
    fields = attrs.asdict(event)
    if isinstance(event, ReplicasChanged):
        fields |= {"added": len(event.added), "added_replicas": event.added}
    return {name: value for name, value in fields.items() if value not in (None, "", ())}


def write_json(level: int = logging.INFO, **options: Any) -> io.StringIO:
    """Configure structlog to write JSON lines, and return where it writes them."""
    output = io.StringIO()
    structlog.configure(
        processors=[*JSON],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(output),
        **options,
    )
    return output


def read_json(output: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.getvalue().splitlines()]


@pytest.mark.parametrize("structured", [False, True])
def test_each_event_is_one_line(structured: bool, caplog: pytest.LogCaptureFixture) -> None:
    """The line has the name of the event, its level, and its fields except empty ones."""
    caplog.set_level("DEBUG", "faasrt")
    output = write_json(logging.DEBUG) if structured else io.StringIO()
    sink = LogSink()
    assert {type(event) for event in EVENTS} == KINDS
    for event in EVENTS:
        caplog.clear()
        output.truncate(output.seek(0))
        sink(event)
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(event).__name__).lower()
        if structured:
            fields = json.loads(json.dumps(fields_of(event)))
            assert read_json(output) == [{"event": name, "level": LEVELS[name], **fields}]
            assert not caplog.records
        else:
            (record,) = caplog.records
            texts = [f"{field}={value!r}" for field, value in fields_of(event).items()]
            assert record.getMessage() == " ".join([name, *texts])
            assert (record.name, record.levelname) == ("faasrt", LEVELS[name].upper())


@pytest.mark.parametrize("structured", [False, True])
def test_durations_have_four_decimals(structured: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Numbers as a clock gives them have many digits, and small ones an exponent."""
    event = attrs.evolve(EVENTS[8], queued_s=3.746999936993234e-06, total_s=0.3411506410000129)
    if structured:
        lines = structlog.testing.LogCapture()
        LogSink(structlog.wrap_logger(None, processors=[lines]))(event)
        assert (lines.entries[0]["queued_s"], lines.entries[0]["total_s"]) == (0.0, 0.3412)
        return
    caplog.set_level(logging.INFO, "faasrt")
    LogSink()(event)
    assert " queued_s=0.0 total_s=0.3412 output_bytes=3" in caplog.messages[0]


@pytest.mark.parametrize("structured", [False, True])
def test_addresses_are_logged_at_level_debug(structured: bool, caplog: pytest.LogCaptureFixture) -> None:
    """At INFO, the line has their number, because there may be hundreds."""
    caplog.set_level("INFO", "faasrt")
    output = write_json(logging.INFO) if structured else io.StringIO()
    replicas = tuple(f"http://x#10.0.0.{number}" for number in range(1, 4))
    LogSink()(ReplicasChanged(endpoint="dns+http://x", replicas=1, added=replicas[:1], removed=replicas[1:]))
    if structured:
        (line,) = read_json(output)
        assert (line["added"], line["removed"], len(line)) == (1, 2, 6)
    else:
        (message,) = caplog.messages
        assert message == "replicas_changed endpoint='dns+http://x' replicas=1 added=1 removed=2"


@pytest.mark.parametrize(
    ("event", "changes", "level"),
    [
        (CallFinished, {"outcome": "USER_ERROR"}, "INFO"),
        (CallFinished, {"outcome": None, "error": "CancelledError"}, "INFO"),
        (CallFinished, {"outcome": None, "error": "ServerError"}, "WARNING"),
        (AttemptFinished, {"error": "ServerError"}, "DEBUG"),
        (AttemptFinished, {"error": "CancelledError"}, "DEBUG"),
        (ExecutionFinished, {"outcome": None, "error": "EngineError", "status": 500}, "DEBUG"),
        (EndpointChanged, {"state": "open"}, "WARNING"),
        (EndpointChanged, {"state": "closed"}, "INFO"),
        (ReplicasChanged, {"error": "gaierror"}, "WARNING"),
    ],
)
def test_levels_of_events(
    event: type[Event], changes: dict[str, Any], level: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A failed call, an open breaker and a failed look-up are warnings. A failed attempt is not, as its call is one."""
    caplog.set_level("DEBUG", "faasrt")
    LogSink()(attrs.evolve(next(each for each in EVENTS if type(each) is event), **changes))
    assert [record.levelname for record in caplog.records] == [level]


async def test_one_line_per_call_at_info(caplog: pytest.LogCaptureFixture) -> None:
    """Calls with retries, failures and cancellations also have one line. That of a failure contains the reason."""
    caplog.set_level("INFO", "faasrt")
    async with FakeFaaS() as fake, manager_for(fake.url, retry=QUICK) as manager:
        fake.script(Reply(), Reply.overloaded("0"), Reply(), Reply.crash(), Reply(outcome="USER_ERROR"))
        await manager.run_code("1", "py")
        assert (await manager.run_code("1", "py")).attempts == 2
        with pytest.raises(ServerError):
            await manager.run_code("1", "py")
        await manager.run_code("1", "py")
        fake.default = Reply(hang=True)
        call = asyncio.create_task(manager.run_code("1", "py"))
        while not fake.in_flight:
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait([call])
        fake.down()
        with pytest.raises(ConnectError):
            await manager.run_code("1", "py")
    lines = [(record.levelname, record.getMessage()) for record in caplog.records if record.name == "faasrt"]
    assert all(line.startswith("call_finished call_id=") for _, line in lines)
    found = [
        (level, re.findall(r"(?:outcome|error|reason|attempts)='?([^'=]*)'?(?= |$)", line)) for level, line in lines
    ]
    assert found == [
        ("INFO", ["OK", "1"]),
        ("INFO", ["OK", "2"]),
        ("WARNING", ["ServerError", "1", "the FaaS failed (HTTP 500)"]),
        ("INFO", ["USER_ERROR", "1"]),
        ("INFO", ["CancelledError", "1"]),
        ("WARNING", ["ConnectError", "3", "cannot connect"]),
    ]


async def test_a_failed_call_of_the_embedded_faas_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Client and server use the same logger. Only the event of the client is a warning. The server also counts it."""
    caplog.set_level("DEBUG", "faasrt")
    faas = LocalFaaS(["js"], max_programs=4, queue_timeout_s=0.01, telemetry=[LogSink()])
    async with faas, manager_for(faas.url, retry=ONCE) as manager:
        await faas.wait_ready("js")
        endless = [asyncio.create_task(manager.run_code("while (true);", "js", 30_000)) for _ in range(4)]
        await until(lambda: caplog.text.count("execution_started") == 4)
        async with manager_for(faas.url, retry=ONCE) as other:
            with pytest.raises(OverloadedError):
                await other.run_code("1", "js")
        for task in endless:
            task.cancel()
    warnings = without_level(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
    assert [line.split()[0] for line in warnings] == ["call_finished", "refused"]
    assert "execution_finished" in caplog.text


async def test_structlog_lines_contain_context_variables() -> None:
    """Each line has the context variables of its own call, even with many calls in flight."""
    output = write_json()

    async def call(number: int) -> None:
        structlog.contextvars.bind_contextvars(request_id=number)
        await manager.run_code("1", "py", 1_000 + number)

    async with FakeFaaS() as fake, manager_for(fake.url) as manager:
        await asyncio.gather(*map(call, range(20)))
        fake.script(Reply.crash())
        with pytest.raises(ServerError):
            await call(20)
    lines = read_json(output)
    assert sorted(line["request_id"] for line in lines) == list(range(21))
    assert {line["event"] for line in lines} == {"call_finished"}
    assert [line["level"] for line in lines] == ["info"] * 20 + ["warning"]
    assert lines[-1]["reason"] == "the FaaS failed (HTTP 500)"


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_structlog_may_be_configured_later(when: str, cached: bool, caplog: pytest.LogCaptureFixture) -> None:
    """structlog may be configured before the manager is created, or after its first calls, which use logging."""
    caplog.set_level("INFO", "faasrt")
    options = {"cache_logger_on_first_use": cached}
    output = write_json(**options) if when == "before" else io.StringIO()
    async with FakeFaaS() as fake, manager_for(fake.url) as manager:
        await manager.run_code("1", "py")
        if when == "after":
            output = write_json(**options)
        await manager.run_code("1", "py")
    assert [line["event"] for line in read_json(output)] == ["call_finished"] * (2 if when == "before" else 1)
    assert len(caplog.records) == (0 if when == "before" else 1)


def configure_nothing() -> None: ...


def configure_native() -> None:
    structlog.configure(processors=[*JSON], wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))


def configure_cached() -> None:
    structlog.configure(processors=[*JSON], cache_logger_on_first_use=True)


def configure_stdlib() -> None:
    """Configure structlog as its documentation suggests for applications that use the standard library."""
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("configure", [configure_nothing, configure_native, configure_cached, configure_stdlib])
@pytest.mark.parametrize("called_before", [False, True])
async def test_capture_logs(configure: Any, given: bool, called_before: bool) -> None:
    """`capture_logs` captures all lines for any configuration, even if it is entered after the first call."""
    configure()
    logger = structlog.get_logger("app") if given else None
    async with FakeFaaS() as fake, RuntimeManager.from_url(fake.url, logger=logger) as manager:
        if called_before:
            await manager.run_code("1", "py")
        with structlog.testing.capture_logs() as lines:
            result = await manager.run_code("1", "py")
            fake.script(Reply.crash())
            with pytest.raises(ServerError):
                await manager.run_code("1", "py")
    finished = [line for line in lines if line["event"] == "call_finished"]
    assert [line["log_level"] for line in finished] == ["info", "warning"]
    assert (finished[0]["endpoint"], finished[0]["outcome"], "error" in finished[0]) == (result.endpoint, "OK", False)
    assert (finished[1]["error"], finished[1]["reason"]) == ("ServerError", "the FaaS failed (HTTP 500)")


@pytest.mark.parametrize("given", [False, True])
async def test_structlog_through_the_standard_library(given: bool, caplog: pytest.LogCaptureFixture) -> None:
    """The records have the name and the level of the logger."""
    configure_stdlib()
    name = "app" if given else "faasrt"
    caplog.set_level("INFO", name)
    logger = structlog.get_logger("app") if given else None
    async with FakeFaaS() as fake, RuntimeManager.from_url(fake.url, logger=logger) as manager:
        await manager.run_code("1", "py")
    (record,) = caplog.records
    assert (record.name, record.levelname) == (name, "INFO")
    assert isinstance(record.msg, dict)
    assert (record.msg["event"], record.msg["logger"]) == ("call_finished", name)


def test_logger_of_the_application_is_used() -> None:
    """The lines contain the values that the application has bound to its logger."""
    lines = structlog.testing.LogCapture()
    logger = structlog.wrap_logger(None, processors=[lines], wrapper_class=structlog.stdlib.BoundLogger, app="a")
    sink = LogSink(logger)
    for event in EVENTS:
        sink(event)
    assert lines.entries == [
        {"app": "a", "event": name, "log_level": level, **fields_of(event)}
        for event, (name, level) in zip(EVENTS, LEVELS.items(), strict=True)
    ]


@pytest.mark.parametrize("level", ["DEBUG", "INFO", "WARNING", "ERROR"])
def test_is_enabled_for(level: str, caplog: pytest.LogCaptureFixture) -> None:
    """`is_enabled_for` is true if an event of this type, without a failure, is logged at the level."""
    caplog.set_level(level, "faasrt")
    sink = LogSink()
    for event in EVENTS:
        caplog.clear()
        sink(attrs.evolve(event, state="closed") if isinstance(event, EndpointChanged) else event)
        assert sink.is_enabled_for(type(event)) == bool(caplog.records)


@pytest.mark.parametrize("kind", ["filtering", "stdlib", "lazy"])
async def test_level_of_the_applications_logger_applies(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Events below the level are neither enabled nor logged. The logger may be configured after the manager."""
    output = io.StringIO()
    if kind == "stdlib":
        caplog.set_level("INFO", "app")
        logger = structlog.wrap_logger(
            logging.getLogger("app"),
            processors=[structlog.processors.KeyValueRenderer(key_order=["event"])],
            wrapper_class=structlog.stdlib.BoundLogger,
        )
    elif kind == "filtering":
        wrapper = structlog.make_filtering_bound_logger(logging.INFO)
        logger = structlog.wrap_logger(structlog.WriteLogger(output), wrapper_class=wrapper).bind(app="a")
    else:
        logger = structlog.get_logger()
    sink = LogSink(logger)
    if kind == "lazy":
        structlog.configure(
            wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
            logger_factory=structlog.WriteLoggerFactory(output),
        )
    assert {event for event in KINDS if sink.is_enabled_for(event)} == {EndpointChanged, ReplicasChanged, CallFinished}
    for event in EVENTS:
        sink(event)
    lines = caplog.text if kind == "stdlib" else output.getvalue()
    assert [name for name in LEVELS if name in lines] == ["endpoint_changed", "replicas_changed", "call_finished"]


@pytest.mark.parametrize("wrapper", [structlog.stdlib.BoundLogger, structlog.BoundLogger])
def test_a_logger_without_levels_gets_all_events(wrapper: Any) -> None:
    """An example is a structlog logger for the standard library that wraps another logger."""
    output = io.StringIO()
    sink = LogSink(structlog.wrap_logger(structlog.WriteLogger(output), wrapper_class=wrapper))
    for event in EVENTS:
        assert sink.is_enabled_for(type(event))
        sink(event)
    assert output.getvalue().count("\n") == len(EVENTS)


class Counting:
    """A field of an event that counts how often it is formatted."""

    formatted = 0

    def __repr__(self) -> str:
        Counting.formatted += 1
        return "endpoint"


@pytest.mark.parametrize("handled", [False, True])
def test_lines_without_a_handler_are_not_formatted(handled: bool) -> None:
    """A failed call is above the default level, but its line is not formatted if no handler writes it."""
    logger = logging.Logger("quiet", logging.WARNING)
    logger.addHandler(logging.StreamHandler(io.StringIO()) if handled else logging.NullHandler())
    Counting.formatted = 0
    event = next(event for event in EVENTS if isinstance(event, CallFinished))
    LogSink(logger)(attrs.evolve(event, error="ServerError", endpoint=Counting()))  # type: ignore[arg-type]
    assert Counting.formatted == handled


def test_an_unconfigured_process_does_not_import_structlog() -> None:
    """A failed call, which opens a breaker, neither imports structlog nor prints anything."""
    code = """if True:
        import asyncio, sys
        from faasrt import BreakerSettings, ConnectError, RetrySettings, RuntimeManager
        async def main():
            breaker = BreakerSettings(consecutive_failures=1)
            retry = RetrySettings(connect_retry_s=0)
            async with RuntimeManager.from_url("http://127.0.0.1:1", breaker=breaker, retry=retry) as manager:
                try:
                    await manager.run_code("1", "py")
                except ConnectError:
                    return
                raise AssertionError
        asyncio.run(main())
        assert "structlog" not in sys.modules
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


async def test_a_failing_sink_is_reported_through_structlog() -> None:
    """The failure is logged once, with the exception."""
    output = io.StringIO()
    processors = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(processors=processors, logger_factory=structlog.WriteLoggerFactory(output))

    def sink(event: Event) -> None:
        raise ZeroDivisionError

    async with FakeFaaS() as fake, manager_for(fake.url, telemetry=[sink]) as manager:
        assert (await manager.run_code("1", "py")).ok
    (line,) = (line for line in read_json(output) if "sink" in line["event"])
    assert line["event"].startswith("a telemetry sink failed")
    assert "ZeroDivisionError" in line["exception"]


async def test_a_failing_processor_does_not_fail_calls(caplog: pytest.LogCaptureFixture) -> None:
    """The failure is logged once by the standard library's logger."""

    def fail(logger: Any, method: str, fields: Any) -> Any:
        raise ZeroDivisionError

    structlog.configure(processors=[fail])
    breaker = BreakerSettings(consecutive_failures=1)
    async with FakeFaaS() as fake, manager_for(fake.url, breaker=breaker, retry=ONCE) as manager:
        assert (await manager.run_code("1", "py")).ok
        fake.script(Reply.crash())
        with pytest.raises(ServerError):
            await manager.run_code("1", "py")
    assert caplog.text.count("a telemetry sink failed") == 1


def test_each_event_has_a_name() -> None:
    """EVENT_NAMES, and LEVELS of this module, contain every type of event."""
    assert set(EVENT_NAMES) == KINDS
    assert list(LEVELS) == [EVENT_NAMES[type(event)] for event in EVENTS]
