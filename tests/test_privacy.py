"""No sink, span, metric or line of a log ever shows what a user wrote, gave in or got out."""

from __future__ import annotations

import asyncio
import json
from typing import Any, get_args

import aiohttp
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry, generate_latest

from faasrt import BreakerSettings, RetrySettings, RuntimeManager, Settings, UserError
from faasrt.events import Event
from faasrt.telemetry.otel import OpenTelemetrySink
from faasrt.telemetry.prometheus import PrometheusSink
from faasrt.testing import FakeFaas, Reply

# As it stands, and as JSON or base64 would hide it.
SECRET = "s3cretS3CRETs3cret"
HIDDEN = (SECRET, "czNjcmV0UzNDUkVUczNjcmV0")
ERROR = UserError(name=SECRET, message=SECRET, traceback=SECRET)
REPLIES = [
    Reply(stdout=SECRET, stderr=SECRET, ret_val=f'"{SECRET}"'),
    Reply(outcome="USER_ERROR", stderr=SECRET, error=ERROR, exit_code=3),
    Reply(status=400, details=SECRET),
    Reply(status=500, details=SECRET),
    Reply(status=429, details=SECRET, retry_after="0"),
    Reply(body=SECRET.encode()),
    Reply(body=json.dumps({"output": SECRET, "error": SECRET}).encode()),
    Reply(headers={"Content-Encoding": SECRET}),
    Reply(headers={"Retry-After": SECRET}, status=503, details=SECRET),
    Reply(reset_after=0),
]


class Watch:
    """Every sink there is, and what they show."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.registry = CollectorRegistry()
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.sinks = [self.events.append, PrometheusSink(self.registry), OpenTelemetrySink(provider), self.fail]

    def fail(self, event: Event) -> None:
        raise ZeroDivisionError(f"cannot take {event}")

    def shown(self) -> str:
        spans = [span.to_json() for span in self.exporter.get_finished_spans()]
        return "\n".join([*map(repr, self.events), generate_latest(self.registry).decode(), *spans])


async def use_everything(manager: RuntimeManager, language: str) -> None:
    """Call what there is to call, with the secret wherever something can be put; what goes wrong is wanted."""
    code = f"/* {SECRET} */" if language == "js" else f"# {SECRET}"
    function = f"function f{SECRET}(a) {{ return a }}" if language == "js" else f"def f{SECRET}(a): return a"
    runtime = await manager.get_runtime(language)
    calls: list[Any] = [
        manager.run_code(code, language, ext={SECRET: SECRET}, priority=SECRET, idempotent=True),
        manager.run_code(f"{code}\nthrow Error('{SECRET}')", language),
        runtime.call_function(function, f"f{SECRET}", SECRET),
        runtime.run_cases(function, f"f{SECRET}", [(SECRET,), ({SECRET: SECRET},)]),
        runtime.validate_code(f"{SECRET} +", where="remote"),
    ]
    for call in calls:
        await asyncio.gather(call, return_exceptions=True)


@pytest.mark.parametrize("envelope", ["auto", "always"])
async def test_nothing_of_a_user_is_shown(envelope: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever the server answers, in every event, every sink, the log at its most talkative, and `get_metrics()`."""
    caplog.set_level("DEBUG")
    watch = Watch()
    breaker = BreakerSettings(consecutive_failures=3, base_ejection_s=0.001, max_ejection_s=0.001)
    retry = RetrySettings(base_delay_s=0.001, max_delay_s=0.002, throttled_base_delay_s=0.001)
    async with FakeFaas() as fake:
        fake.health = {"version": SECRET}
        settings = Settings(endpoints={"py": fake.url}, retry=retry, breaker=breaker, envelope=envelope)
        async with RuntimeManager(settings=settings, telemetry=watch.sinks) as manager:
            for reply in REPLIES:
                fake.default = reply
                await use_everything(manager, "py")
            fake.default = Reply(hang=True)
            call = asyncio.create_task(manager.run_code(SECRET, "py"))
            while not fake.in_flight:
                await asyncio.sleep(0.001)
            call.cancel()
            await asyncio.wait([call])
            shown = watch.shown() + caplog.text + json.dumps(manager.get_metrics().to_dict())
        assert SECRET in str(fake.requests[0])
    async with RuntimeManager.local(["js"], workers=1, telemetry=watch.sinks) as manager:
        await use_everything(manager, "js")
        call = asyncio.create_task(manager.run_code(f"while (true) console.log('{SECRET}')", "js"))
        while not manager.get_metrics().total.in_flight:
            await asyncio.sleep(0.001)
        call.cancel()
        await asyncio.wait([call])
        url = manager.get_metrics().states[0].endpoint
        async with aiohttp.ClientSession() as session:
            for accepted in ("application/json", "text/plain"):
                async with session.get(f"{url}/metrics", headers={"Accept": accepted}) as response:
                    shown += await response.text()
        shown += watch.shown() + caplog.text + json.dumps(manager.get_metrics().to_dict())
    assert {type(event) for event in watch.events} == set(get_args(Event))
    assert not [hidden for hidden in HIDDEN if hidden in shown]
    # It was looked at in the right places.
    for word in ("faasrt_calls_total", "faasrt.code_hash", "call_finished", "a telemetry sink failed", "USER_ERROR"):
        assert word in shown
