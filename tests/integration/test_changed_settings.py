"""Settings and endpoints that change while calls are made."""

from __future__ import annotations

import asyncio
from importlib.metadata import EntryPoint
from typing import Any

import attrs
import pytest

from faasrt import (
    BreakerSettings,
    CodeTask,
    ConfigurationError,
    ConnectError,
    Language,
    LimiterSettings,
    OverloadedError,
    RetrySettings,
    RuntimeClosedError,
    RuntimeFactory,
    RuntimeManager,
    SandboxConfig,
    ServerError,
    Settings,
    TimeoutSettings,
    UnsupportedLanguageError,
    _endpoint_urls,
    _setting_checks,
    sync,
)
from faasrt._endpoint_urls import PROTOCOL_GROUP
from faasrt.testing import FakeFaaS, Reply
from support.doubles.piston import Piston
from support.helpers import NO_WAIT, Clock
from support.served import until
from support.servers import HOST, GatedServer, Names, dns_url, fakes_at, replica

ONCE = RetrySettings(max_attempts=1)


async def test_calls_in_flight_finish_at_their_endpoint() -> None:
    """New calls go to the new endpoints. Connections to an endpoint that stays are kept, and others are closed."""
    old = GatedServer()
    async with old.at("127.0.0.1") as port, FakeFaaS() as stays, FakeFaaS() as new:
        old_url = f"http://127.0.0.1:{port}"
        async with RuntimeManager(settings=Settings(endpoints={"python": old_url})) as manager:
            python = await manager.get_runtime("python")
            old.gate.clear()
            call = asyncio.create_task(python.run_code("1", timeout_ms=20_000))
            await until(lambda: old.running)
            sandbox = SandboxConfig(timeout_limit_s=5)
            await manager.reconfigure(Settings(endpoints={"python": [stays.url, new.url]}, sandbox=sandbox))
            assert await manager.get_runtime("python") is python
            while not (new.executions and stays.executions):
                results = await asyncio.gather(*(python.run_code("1") for _ in range(10)))
                assert {result.endpoint for result in results} <= {stays.url, new.url}
            accepted = stays.accepted
            await manager.reconfigure(Settings(endpoints={"python": stays.url}, token="secret"))
            for _ in range(3):
                assert (await python.run_code("1")).endpoint == stays.url
            assert stays.accepted == accepted
            await new.wait_until(lambda: new.connections == 0)
            assert sorted(state.endpoint for state in manager.get_metrics().states) == sorted([old_url, stays.url])
            old.gate.set()
            assert (await call).endpoint == old_url
            await until(lambda: all(connection.is_closing() for connection in old.connections))
            assert [state.endpoint for state in manager.get_metrics().states] == [stays.url]
            await until(lambda: old_url not in manager.get_metrics().endpoints)
            metrics = manager.get_metrics()
            assert metrics.total.calls == metrics.endpoints[stays.url].calls + new.executions + 1


async def test_waiting_calls_go_to_the_new_endpoints() -> None:
    """Calls that wait for a full endpoint get permits for one that has room, in order, even if it has a name."""
    async with FakeFaaS() as full, fakes_at(1) as (new,):
        full.health = {"languages": {"python": {"capacity": 1}}}
        full.default = Reply(hang=True)
        for url in (new.url, dns_url(new)):
            names = Names("127.0.0.1")
            async with RuntimeManager(settings=Settings(endpoints={"python": full.url})) as manager:
                first = asyncio.create_task(manager.run_code("1", "python"))
                await full.wait_until(lambda: full.in_flight == 1)
                waiting = [asyncio.create_task(manager.run_code("1", "python")) for _ in range(20)]
                await until(lambda: manager.get_metrics().queued == 20)
                await manager.reconfigure(Settings(endpoints={"python": url}, discovery=names.settings(3600)))
                ends = {result.endpoint for result in await asyncio.gather(*waiting)}
                assert ends == {new.url if url == new.url else replica(new)}
                first.cancel()


async def test_waiting_calls_without_any_endpoint_fail() -> None:
    """Nothing was sent. Further calls in the language are refused, too, until it has an endpoint again."""
    async with FakeFaaS() as full:
        full.health = {"languages": {"python": {"capacity": 1}}}
        full.default = Reply(hang=True)
        before = Settings(endpoints={"python": full.url, "js": full.url})
        async with RuntimeManager(settings=before) as manager:
            python = await manager.get_runtime("python")
            first = asyncio.create_task(manager.run_code("1", "python"))
            await full.wait_until(lambda: full.in_flight == 1)
            waiting = asyncio.create_task(manager.run_code("1", "python"))
            await until(lambda: manager.get_metrics().queued == 1)
            await manager.reconfigure(Settings(endpoints={"js": full.url}))
            with pytest.raises(UnsupportedLanguageError, match="not supported any more"):
                await waiting
            assert manager.get_metrics().queued == 0
            assert python.get_metrics().total.in_flight == 1
            with pytest.raises(UnsupportedLanguageError, match="not supported any more"):
                await manager.run_code("1", "python")
            assert [str(language) for language in manager.get_supported_languages()] == ["javascript"]
            await manager.reconfigure(before)
            full.default = Reply()
            first.cancel()
            assert (await manager.run_code("1", "python")).ok


async def test_a_retry_goes_to_the_new_endpoints() -> None:
    """A call that waits before its next attempt does not use an endpoint that has left the settings."""
    async with FakeFaaS() as old, FakeFaaS() as new:
        old.default = Reply.overloaded("0")
        slow = RetrySettings(base_delay_s=0.2)
        async with RuntimeManager(settings=Settings(endpoints={"python": old.url}, retry=slow)) as manager:
            call = asyncio.create_task(manager.run_code("1", "python"))
            await old.wait_until(lambda: len(old.requests) == 1)
            await manager.reconfigure(Settings(endpoints={"python": new.url}, retry=ONCE))
            result = await call
            assert (result.endpoint, result.attempts, len(old.requests)) == (new.url, 2, 1)
            new.default = Reply.overloaded("0")
            with pytest.raises(OverloadedError) as caught:
                await manager.run_code("1", "python")
            assert caught.value.attempts == 1


async def test_a_retry_without_any_endpoint_raises_the_first_error() -> None:
    """If the language has left the settings before the next attempt, the error of the last attempt is raised."""
    async with FakeFaaS() as old:
        old.default = Reply.overloaded("0")
        slow = RetrySettings(base_delay_s=0.2)
        async with RuntimeManager(settings=Settings(endpoints={"python": old.url}, retry=slow)) as manager:
            call = asyncio.create_task(manager.run_code("1", "python"))
            await old.wait_until(lambda: len(old.requests) == 1)
            await manager.reconfigure(Settings(endpoints={"js": old.url}, retry=slow))
            with pytest.raises(OverloadedError):
                await call


async def test_endpoints_that_stay_keep_breaker_and_limit() -> None:
    """An open breaker stays open, with its time. The settings of the breaker change."""
    async with FakeFaaS() as fake:
        fake.health = {"languages": {"python": {"capacity": 7}}}
        settings = Settings(
            endpoints={"python": fake.url},
            retry=ONCE,
            breaker=BreakerSettings(consecutive_failures=2, base_open_s=600, max_open_s=600),
        )
        async with RuntimeManager(settings=settings) as manager:
            assert (await manager.run_code("1", "python")).ok
            (before,) = manager.get_metrics().states
            await manager.reconfigure(attrs.evolve(settings, breaker=BreakerSettings(consecutive_failures=1)))
            fake.script(Reply.crash())
            with pytest.raises(ServerError):
                await manager.run_code("1", "python")
            (opened,) = manager.get_metrics().states
            assert (before.breaker, before.limit, opened.breaker, opened.limit) == ("closed", 7, "open", 7)
            assert opened.open_s < 10
            await manager.reconfigure(settings)
            (still,) = manager.get_metrics().states
            assert (still.breaker, still.open_s > 0) == ("open", True)


async def test_limits_change() -> None:
    """A higher `max_concurrency` lets waiting calls go on at once; with a lower one, no further call is sent."""
    async with FakeFaaS() as fake:
        fake.default = Reply(hang=True)
        settings = Settings(endpoints={"python": fake.url}, limiter=LimiterSettings(max_concurrency=1))
        async with RuntimeManager(settings=settings) as manager:
            calls = [asyncio.create_task(manager.run_code("1", "python")) for _ in range(6)]
            await fake.wait_until(lambda: fake.in_flight == 1)
            await manager.reconfigure(attrs.evolve(settings, limiter=LimiterSettings(max_concurrency=3)))
            await until(lambda: manager.get_metrics().in_flight == 3)
            await manager.reconfigure(attrs.evolve(settings, limiter=LimiterSettings(max_concurrency=2)))
            calls[0].cancel()
            await until(lambda: manager.get_metrics().in_flight == 2)
            assert manager.get_metrics().queued == 3
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
        metrics = manager.get_metrics()
        assert (metrics.in_flight, metrics.queued) == (0, 0)


async def test_each_setting_applies_to_further_calls() -> None:
    """The limits of the sandbox, the timeouts, and `idempotent`."""
    async with FakeFaaS() as fake, RuntimeManager(settings=Settings(endpoints={"python": fake.url})) as manager:
        await manager.run_code("1", "python")
        sandbox = SandboxConfig(memory_limit_mb=64, timeout_limit_s=3)
        retry = RetrySettings(idempotent=True, base_delay_s=0.001)
        await manager.reconfigure(
            Settings(endpoints={"python": fake.url}, sandbox=sandbox, retry=retry, timeouts=TimeoutSettings())
        )
        fake.script(Reply.crash())
        assert (await manager.run_code("1", "python")).attempts == 2
        assert fake.requests[-1]["timeout"] == 3000


async def test_a_map_goes_on() -> None:
    """Each task has a result, whatever changes while the tasks run."""
    async with FakeFaaS() as one, FakeFaaS() as two:
        urls = [one.url, two.url]
        async with RuntimeManager(settings=Settings(endpoints={"python": urls})) as manager:
            tasks = (CodeTask("1", "python") for _ in range(300))
            count = 0
            async for item in manager.map(tasks, concurrency=20):
                assert item.result is not None
                count += 1
                if count % 10 == 0:
                    await manager.reconfigure(Settings(endpoints={"python": urls[count // 10 % 3 :][:1] or urls}))
            assert count == 300
            assert one.executions + two.executions == 300


WRONG: list[tuple[Any, str]] = [
    (None, "settings must be a Settings, got NoneType"),
    ({"endpoints": {"python": "http://a"}}, "settings must be a Settings, got dict"),
    (Settings(), "settings.endpoints must not be empty"),
    (Settings(endpoints={"python": []}), "settings.endpoints must not be empty"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG)
async def test_a_wrong_configuration_changes_nothing(settings: Any, message: str) -> None:
    async with FakeFaaS() as fake, RuntimeManager(settings=Settings(endpoints={"python": fake.url})) as manager:
        with pytest.raises(ConfigurationError, match=message):
            await manager.reconfigure(settings)
        assert (await manager.run_code("1", "python")).endpoint == fake.url


async def test_a_protocol_that_cannot_be_loaded_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is loaded before anything changes."""
    broken = EntryPoint("broken", "no_such_module:PROTOCOL", PROTOCOL_GROUP)
    monkeypatch.setattr(_endpoint_urls, "registered_protocols", lambda: {"broken": broken})
    monkeypatch.setattr(_setting_checks, "registered_protocols", lambda: {"broken": broken})
    async with FakeFaaS() as fake, RuntimeManager(settings=Settings(endpoints={"python": fake.url})) as manager:
        with pytest.raises(ConfigurationError, match="cannot be loaded"):
            await manager.reconfigure(Settings(endpoints={"python": [fake.url, "broken+http://a:1"]}))
        assert (await manager.run_code("1", "python")).endpoint == fake.url


async def test_waiting_calls_retry_the_look_up_of_a_new_name() -> None:
    """If it fails at first, it is an attempt that failed. Retries of other calls find the address."""

    class Recovering(Names):
        async def resolve(self, host: str, port: int) -> Any:
            self.lookups.append((host, port))
            if len(self.lookups) == 1:
                raise OSError("not yet")
            return ["127.0.0.1"]

    names = Recovering()
    async with FakeFaaS() as full, fakes_at(1) as (new,):
        full.health = {"languages": {"python": {"capacity": 1}}}
        full.default = Reply(hang=True)
        async with RuntimeManager(settings=Settings(endpoints={"python": full.url})) as manager:
            calls = [asyncio.create_task(manager.run_code("1", "python")) for _ in range(6)]
            await until(lambda: manager.get_metrics().queued == 5 and full.in_flight == 1)
            retry = RetrySettings(base_delay_s=0.001)
            await manager.reconfigure(
                Settings(endpoints={"python": dns_url(new)}, discovery=names.settings(), retry=retry)
            )
            results = await asyncio.gather(*calls[1:])
            assert {(result.endpoint, result.attempts) for result in results} == {(replica(new), 2)}
            calls[0].cancel()


async def test_changes_do_not_wait_for_look_ups() -> None:
    """The last of several changes counts, and the manager can be closed while a name is looked up."""
    names = Names()
    del names.answers[HOST]
    async with FakeFaaS() as full:
        full.health = {"languages": {"python": {"capacity": 1}}}
        full.default = Reply(hang=True)
        timeouts = TimeoutSettings(close_s=0.01)
        before = Settings(endpoints={"python": full.url}, discovery=names.settings(), timeouts=timeouts)
        async with RuntimeManager(settings=before) as manager:
            calls = [asyncio.create_task(manager.run_code("1", "python")) for _ in range(3)]
            await until(lambda: manager.get_metrics().queued == 2 and full.in_flight == 1)
            for number in range(3):
                url = f"dns+http://{HOST}:{number + 1}"
                await manager.reconfigure(attrs.evolve(before, endpoints={"python": url}))
            assert manager.settings.endpoints[Language.PYTHON] == (url,)
            await until(lambda: (HOST, 3) in names.lookups)
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(end) for end in ends] == [RuntimeClosedError] * 3


async def until_not_looked_up(clock: Clock, names: Names) -> None:
    """Let time pass until the name is not looked up any more, because no call uses it."""
    count = 0
    while count < len(names.lookups):
        count = len(names.lookups)
        clock.advance(100)
        for _ in range(20):
            await asyncio.sleep(0)


@pytest.mark.parametrize("has_other", [False, True])
async def test_settings_change_while_a_call_waits_for_a_look_up(has_other: bool, clock: Clock) -> None:
    """The call goes to the new endpoint, and nothing is sent to one that has left."""
    gate = asyncio.Event()

    class Slow(Names):
        async def resolve(self, host: str, port: int) -> Any:
            self.lookups.append((host, port))
            await gate.wait()
            return ["127.0.0.1"]

    names = Slow()
    async with FakeFaaS() as other, fakes_at(1) as (old,), FakeFaaS() as new:
        urls = [dns_url(old), other.url] if has_other else [dns_url(old)]
        gate.set()
        settings = Settings(endpoints={"python": urls}, discovery=names.settings(60))
        async with RuntimeManager(RuntimeFactory(settings, clock=clock)) as manager:
            while not old.executions:
                await manager.run_code("1", "python")
            await until_not_looked_up(clock, names)
            sent, lookups = old.executions + other.executions, len(names.lookups)
            gate.clear()
            call = asyncio.create_task(manager.run_code("1", "python"))
            await until(lambda: len(names.lookups) > lookups)
            await manager.reconfigure(Settings(endpoints={"python": new.url}))
            assert (await call).endpoint == new.url
            assert old.executions + other.executions == sent
            assert [state.endpoint for state in manager.get_metrics().states] == [new.url]


async def test_waiting_validations_go_only_to_services_that_validate() -> None:
    """Calls and validations wait apart, even if all previous endpoints validate."""
    piston, full, new = Piston(run_timeout=60_000), FakeFaaS(), FakeFaaS()
    async with piston as service, full, new:
        full.health = {"languages": {"javascript": {"capacity": 1}}}
        full.default = Reply(hang=True)
        new.down()
        before = Settings(endpoints={"js": full.url}, limiter=LimiterSettings(max_concurrency=1), retry=NO_WAIT)
        async with RuntimeManager(settings=before) as manager:
            js = await manager.get_runtime("js")
            first = asyncio.create_task(js.run_code("1"))
            await full.wait_until(lambda: full.in_flight == 1)
            waiting = asyncio.create_task(js.validate_code("1"))
            await until(lambda: manager.get_metrics().queued == 1)
            await manager.reconfigure(attrs.evolve(before, endpoints={"js": [service.url, new.url]}))
            first.cancel()
            with pytest.raises(ConnectError) as caught:
                await waiting
            assert caught.value.endpoint == new.url


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(endpoints={"python": "http://a:1"}), "settings.endpoints must be empty, because this manager"),
        (Settings(token="other"), "token must be the one with which the embedded FaaS was made"),
        (Settings(sandbox=SandboxConfig(timeout_limit_s=11)), r"sandbox\.timeout_limit_s must be at most 10"),
        (
            Settings(sandbox=SandboxConfig(network_enabled=True, timeout_limit_s=1)),
            r"sandbox\.network_enabled must be False",
        ),
        (None, "settings must be a Settings"),
    ],
)
async def test_the_embedded_faas_stays_as_it_is(settings: Any, message: str) -> None:
    """Settings that it cannot have are refused."""
    async with RuntimeManager.local(["js"], workers=1, sandbox=SandboxConfig(timeout_limit_s=10)) as manager:
        with pytest.raises(ConfigurationError, match=message):
            await manager.reconfigure(settings)


async def test_other_settings_of_a_local_manager() -> None:
    """They change before and after the start of the embedded FaaS. Its limits can be lowered for further calls."""
    low = SandboxConfig(timeout_limit_s=0.5)
    manager = RuntimeManager.local(["js"], workers=1)
    await manager.reconfigure(Settings(limiter=LimiterSettings(max_concurrency=7)))
    async with manager:
        js = await manager.get_runtime("js")
        assert manager.settings.limiter.max_concurrency == 7
        assert (await js.run_code("console.log(1)")).stdout == "1\n"
        # The time that a program may wait in the queue is added to `grace_s`; otherwise the deadline would pass first.
        await manager.reconfigure(attrs.evolve(manager.settings, sandbox=low, timeouts=TimeoutSettings(grace_s=0.001)))
        assert (await js.run_code("while (true) {}")).outcome == "TIMEOUT"
        again = manager.settings
        await manager.reconfigure(again)
        assert (manager.settings, again.timeouts.grace_s, dict(again.endpoints)) == (again, 0.001, {})


async def test_a_closed_manager_is_not_reconfigured() -> None:
    manager = RuntimeManager(settings=Settings(endpoints={"python": "http://a:1"}))
    await manager.aclose()
    with pytest.raises(RuntimeClosedError):
        await manager.reconfigure(Settings(endpoints={"python": "http://b:1"}))


async def test_a_factory_and_its_runtimes() -> None:
    """Runtimes that exist, and those that are created later, use the new settings."""
    async with FakeFaaS() as one, FakeFaaS() as two:
        factory = RuntimeFactory(Settings(endpoints={"python": one.url}))
        async with factory.create_runtime("python") as python:
            await factory.reconfigure(Settings(endpoints={"python": two.url, "js": two.url}))
            async with factory.create_runtime("js") as js:
                assert [(await runtime.run_code("1")).endpoint for runtime in (python, js)] == [two.url] * 2
            assert repr(python) == f"<Runtime python at {two.url}>"


def test_without_asyncio() -> None:
    """`faasrt.sync.RuntimeManager` has the method, too."""
    with sync.RuntimeManager.from_url("http://a:1") as manager:
        manager.reconfigure(Settings(endpoints={"bash": "http://b:1"}))
        assert dict(manager.settings.endpoints) == {Language.BASH: ("http://b:1",)}
        assert [str(language) for language in manager.get_supported_languages()] == ["bash"]
        with pytest.raises(ConfigurationError):
            manager.reconfigure(Settings())
