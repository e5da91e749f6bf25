"""Discovery over real sockets: several servers at loopback addresses, all with one port, behind one name."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import psutil
import pytest
import trustme
from prometheus_client import CollectorRegistry, generate_latest

from faasrt import (
    BreakerSettings,
    CodeTask,
    ConnectError,
    DiscoverySettings,
    ExecutionResult,
    LimiterSettings,
    OverloadedError,
    RuntimeClosedError,
    RuntimeManager,
    Settings,
    TimeoutSettings,
    UnsupportedLanguageError,
)
from faasrt.telemetry.events import Event, ReplicasChanged, Sink
from faasrt.telemetry.prometheus import PrometheusSink
from faasrt.testing import FakeFaaS, Reply
from faasrt.transport.replicas import resolve_by_system
from support.cli import faasrt_process
from support.doubles.piston import Piston
from support.doubles.sandboxfusion import SandboxFusion
from support.helpers import PATIENT, QUICK
from support.served import PATIENCE_S, until
from support.servers import HOST, GatedServer, Names, discovered, dns_url, fakes_at, replica

HANG = Reply(hang=True)


async def run_many(manager: RuntimeManager, count: int) -> Counter[str]:
    """Return the number of calls by endpoint."""
    results = await asyncio.gather(*(manager.run_code("1", "python") for _ in range(count)))
    assert all(result.ok for result in results)
    return Counter(result.endpoint for result in results)


async def test_each_address_is_a_replica() -> None:
    """Results, metrics, states and health name the URL and the address."""
    async with discovered(3, period_s=3600) as (manager, names, fakes):
        used = await run_many(manager, 60)
        replicas = [replica(fake) for fake in fakes]
        assert sorted(used) == replicas
        assert replicas[1] == dns_url(fakes[0], "http") + "#127.0.0.2"
        assert sum(fake.executions for fake in fakes) == 60
        metrics = manager.get_metrics()
        assert {endpoint: each.calls for endpoint, each in metrics.endpoints.items()} == used
        assert sorted(state.endpoint for state in metrics.states) == replicas
        python = await manager.get_runtime("python")
        assert sorted(state.endpoint for state in python.get_metrics().states) == replicas
        fakes[2].down()
        health = await manager.get_health_status()
        assert [(each.endpoint, each.healthy) for each in health.endpoints] == [
            (url, url != replicas[2]) for url in replicas
        ]
        assert repr(python) == f"<Runtime python at {dns_url(fakes[0])}>"
        assert names.lookups == [(HOST, int(fakes[0].url.rpartition(":")[2]))]


async def test_waiting_calls_use_a_new_replica() -> None:
    """A call that waits because all replicas are full gets a permit for one that has just appeared."""
    async with discovered(2) as (manager, names, (one, two)):
        names.answers[HOST] = ["127.0.0.1"]
        one.health = two.health = {"languages": {"python": {"capacity": 1}}}
        one.default = HANG
        first = asyncio.create_task(manager.run_code("1", "python"))
        await one.wait_until(lambda: one.in_flight == 1)
        waiting = asyncio.create_task(manager.run_code("1", "python"))
        await until(lambda: manager.get_metrics().queued == 1)
        names.answers[HOST] = ["127.0.0.1", "127.0.0.2"]
        assert (await waiting).endpoint == replica(two)
        first.cancel()


async def test_waiting_calls_fill_a_new_replica_without_health() -> None:
    """With `envelope="never"`, no health is requested, and a new replica gets as many waiting calls as the first."""
    async with discovered(2, envelope="never") as (manager, names, (one, two)):
        names.answers[HOST] = ["127.0.0.1"]
        one.default = two.default = HANG
        calls = [asyncio.create_task(manager.run_code("1", "python")) for _ in range(40)]
        await one.wait_until(lambda: one.in_flight == 16)
        names.answers[HOST] = ["127.0.0.1", "127.0.0.2"]
        await two.wait_until(lambda: two.in_flight == 16)
        assert manager.get_metrics().queued == 8
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)


async def test_all_replicas_are_replaced_while_calls_wait() -> None:
    """If the name changes, the waiting calls wait for the look-up of the new one."""
    async with discovered(2, period_s=3600) as (manager, names, (one, two)):
        names.answers[HOST] = ["127.0.0.1"]
        one.health = {"languages": {"python": {"capacity": 1}}}
        one.default = HANG
        calls = [asyncio.create_task(manager.run_code("1", "python")) for _ in range(5)]
        await one.wait_until(lambda: one.in_flight == 1)
        await until(lambda: manager.get_metrics().queued == 4)
        settings = manager.settings
        names.answers = {"new.test": ["127.0.0.2"]}
        url = dns_url(two).replace(HOST, "new.test")
        await manager.reconfigure(attrs.evolve(settings, endpoints={"python": url}))
        results = await asyncio.gather(*calls[1:])
        assert {result.endpoint for result in results} == {replica(two).replace(HOST, "new.test")}
        calls[0].cancel()


async def test_a_replica_that_leaves_finishes_its_calls() -> None:
    """It gets no new calls. After its last call its connection is closed, and its metrics are those of the URL."""
    registry, events, old = CollectorRegistry(), list[Event](), GatedServer()
    async with (
        discovered(1, telemetry=[events.append, PrometheusSink(registry)]) as (manager, names, (new,)),
        old.at("127.0.0.9", int(new.url.rpartition(":")[2])),
    ):
        leaving = dns_url(new, "http") + "#127.0.0.9"
        names.answers[HOST] = ["127.0.0.9"]
        assert await run_many(manager, 3) == {leaving: 3}
        old.gate.clear()
        call = asyncio.create_task(manager.run_code("1", "python"))
        await until(lambda: old.running)
        names.answers[HOST] = ["127.0.0.1"]
        await until(lambda: any(isinstance(event, ReplicasChanged) and event.removed for event in events))
        assert await run_many(manager, 10) == {replica(new): 10}
        assert sorted(state.endpoint for state in manager.get_metrics().states) == [replica(new), leaving]
        assert leaving in generate_latest(registry).decode()
        old.gate.set()
        result = await call
        assert (result.stdout, result.endpoint) == ("late", leaving)
        await until(lambda: all(connection.is_closing() for connection in old.connections))
        await until(lambda: leaving not in manager.get_metrics().endpoints)
        metrics = manager.get_metrics()
        assert [state.endpoint for state in metrics.states] == [replica(new)]
        assert (metrics.endpoints[dns_url(new)].calls, metrics.total.calls) == (4, 14)
        shown = generate_latest(registry).decode()
        assert leaving not in shown
        assert f'faasrt_replicas{{endpoint="{dns_url(new)}"}} 1.0' in shown
        assert f'faasrt_lookup_failing{{endpoint="{dns_url(new)}"}} 0.0' in shown


async def test_a_call_that_ends_after_its_replica_has_left() -> None:
    """It counts for the URL, so that no metric of the replica exists any more. Closing removes those of the others."""
    registry = CollectorRegistry()
    async with discovered(2, telemetry=[PrometheusSink(registry)]) as (manager, names, (one, two)):
        names.answers[HOST] = ["127.0.0.1"]
        one.default = Reply(status=503, retry_after="20", not_started=True)
        call = asyncio.create_task(manager.run_code("1", "python"))
        await until(lambda: len(one.requests) == 1 and one.in_flight == 0)
        names.answers[HOST] = ["127.0.0.2"]
        while await known(manager) != [replica(two)]:
            with contextlib.suppress(OverloadedError):
                await manager.run_code("1", "python", timeout_ms=1000)
        await until(lambda: replica(one) not in manager.get_metrics().endpoints)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert (await manager.run_code("1", "python")).endpoint == replica(two)
        endpoints = manager.get_metrics().endpoints
        assert set(endpoints) == {dns_url(one), replica(two)}
        assert endpoints[dns_url(one)].errors["CancelledError"] == 1
        shown = generate_latest(registry).decode()
        assert replica(one) not in shown
        assert replica(two) in shown
    assert "#127" not in generate_latest(registry).decode()
    assert replica(two) in manager.get_metrics().endpoints


@contextlib.asynccontextmanager
async def left_during_a_call(
    *sinks: Sink,
) -> AsyncIterator[tuple[RuntimeManager, Names, FakeFaaS, GatedServer, asyncio.Task[ExecutionResult]]]:
    """Yield a manager, its resolver, the replica that it knows, one that has left, and the call that runs there."""
    old = GatedServer()
    async with (
        discovered(1, telemetry=sinks) as (manager, names, (new,)),
        old.at("127.0.0.9", int(new.url.rpartition(":")[2])),
    ):
        names.answers[HOST] = ["127.0.0.9"]
        old.gate.clear()
        call = asyncio.create_task(manager.run_code("1", "python"))
        await until(lambda: old.running)
        names.answers[HOST] = ["127.0.0.1"]
        await until_known(manager, replica(new))
        yield manager, names, new, old, call


async def test_a_replica_whose_last_call_ends_when_the_manager_closes() -> None:
    """Its metrics are removed, too."""
    registry = CollectorRegistry()
    async with left_during_a_call(PrometheusSink(registry)) as (manager, _, new, old, call):
        old.gate.set()
        assert (await call).stdout == "late"
        await manager.aclose()
        assert "#127" not in generate_latest(registry).decode()
        assert list(manager.get_metrics().endpoints) == [dns_url(new)]


async def test_a_replica_that_comes_back_keeps_its_state() -> None:
    """If it comes back while a call is in flight there, the call still counts for its limit."""
    async with left_during_a_call() as (manager, names, new, old, call):
        names.answers[HOST] = ["127.0.0.9", "127.0.0.1"]
        await until_known(manager, replica(new), dns_url(new, "http") + "#127.0.0.9")
        in_flight = {state.endpoint: state.in_flight for state in manager.get_metrics().states}
        assert in_flight[dns_url(new, "http") + "#127.0.0.9"] == 1
        old.gate.set()
        assert (await call).ok


async def known(manager: RuntimeManager) -> list[str]:
    """Return the replicas that calls can use now."""
    return [health.endpoint for health in (await manager.get_health_status()).endpoints]


async def until_known(manager: RuntimeManager, *replicas: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while set(await known(manager)) != set(replicas):
            await asyncio.sleep(0.01)


async def test_a_failed_look_up_changes_nothing() -> None:
    """Calls go on, and one event reports the failure and one the recovery."""
    events = list[Event]()
    async with discovered(2, telemetry=[events.append]) as (manager, names, fakes):
        await run_many(manager, 1)
        names.answers[HOST] = OSError("the name server is down")
        while sum(isinstance(event, ReplicasChanged) for event in events) < 2:
            await run_many(manager, 1)
        count = len(names.lookups)
        while len(names.lookups) < count + 3 or not all(fake.executions for fake in fakes):
            await run_many(manager, 5)
        names.answers[HOST] = ["127.0.0.1", "127.0.0.2"]
        while sum(isinstance(event, ReplicasChanged) for event in events) == 2:
            await run_many(manager, 1)
        errors = [event.error for event in events if isinstance(event, ReplicasChanged)]
        assert errors == [None, "OSError", None]


async def test_a_first_look_up_that_fails_is_retried() -> None:
    """The program was not sent, so the call is retried, like after any other ConnectError."""
    async with discovered(1, retry=QUICK) as (manager, names, (fake,)):
        names.answers[HOST] = OSError(-2, "Name or service not known")
        with pytest.raises(ConnectError) as caught:
            await manager.run_code("1", "python")
        error = caught.value
        assert (error.sent, error.attempts, error.endpoint, len(names.lookups)) == ("no", 3, dns_url(fake), 3)
        assert str(error).startswith("no address of the name is known: [Errno -2] Name or service not known")
        assert manager.get_metrics().total.errors == {"ConnectError": 1}
        (health,) = (await manager.get_health_status()).endpoints
        assert (health.endpoint, health.status, health.healthy) == (dns_url(fake), "unreachable", False)

        class Recovering(Names):
            async def resolve(self, host: str, port: int) -> Any:
                self.lookups.append((host, port))
                if len(self.lookups) < 3:
                    raise OSError("not yet")
                return ["127.0.0.1"]

        recovering = Recovering()
        await manager.reconfigure(attrs.evolve(manager.settings, discovery=recovering.settings()))
        result = await manager.run_code("1", "python")
        assert (result.attempts, result.endpoint) == (3, replica(fake))


async def test_a_replica_that_is_down() -> None:
    """Its circuit breaker opens, and no call fails, because refused calls go to the other replicas."""
    breaker = BreakerSettings(consecutive_failures=1, base_open_s=60)
    async with discovered(3, retry=QUICK, breaker=breaker) as (manager, _, fakes):
        fakes[1].down()
        used = Counter[str]()
        for _ in range(10):
            used += await run_many(manager, 8)
        assert set(used) == {replica(fakes[0]), replica(fakes[2])}
        states = {state.endpoint: state.breaker for state in manager.get_metrics().states}
        assert states == {replica(fake): "open" if fake is fakes[1] else "closed" for fake in fakes}


async def test_no_call_is_lost_while_addresses_change() -> None:
    """Each program runs once, whatever the look-ups find while the programs run."""
    async with discovered(3, period_s=0.002) as (manager, names, fakes):
        addresses = [f"127.0.0.{number}" for number in (1, 2, 3)]
        answers: list[Any] = [addresses[:1], addresses, OSError("down"), addresses[1:], [], addresses[2:]]
        for fake in fakes:
            fake.default = Reply(delay_s=0.005)
        count = 0
        async for item in manager.map((CodeTask("1", "python") for _ in range(200)), concurrency=30):
            assert item.result is not None
            count += 1
            names.answers[HOST] = answers[count % len(answers)]
        assert count == sum(fake.executions for fake in fakes) == 200
        assert manager.get_metrics().total.retries == 0
        assert len(names.lookups) > 5


async def test_names_beside_other_urls() -> None:
    """Several names and fixed URLs are one group. A name without an address does not disturb the others."""
    async with fakes_at(3) as (one, two, three), FakeFaaS() as fixed:
        port = int(one.url.rpartition(":")[2])
        names = Names("127.0.0.1")
        names.answers |= {"b.test": ["127.0.0.2", "127.0.0.3"], "gone.test": OSError("gone")}
        urls = [dns_url(one), f"dns+http://b.test:{port}", fixed.url, f"dns+http://gone.test:{port}"]
        settings = Settings(endpoints={"python": urls}, discovery=names.settings(), retry=QUICK)
        async with RuntimeManager(settings=settings) as manager:
            while not all(fake.executions for fake in (one, two, three, fixed)):
                await run_many(manager, 20)
            health = await manager.get_health_status()
            assert [each.endpoint for each in health.endpoints] == [
                f"http://{HOST}:{port}#127.0.0.1",
                f"http://b.test:{port}#127.0.0.2",
                f"http://b.test:{port}#127.0.0.3",
                fixed.url,
                f"dns+http://gone.test:{port}",
            ]
            assert [each.healthy for each in health.endpoints] == [True, True, True, True, False]


async def test_tls_and_host_have_the_name() -> None:
    """Certificates are checked for the name in the URL, and the Host header is the name, at each address."""
    authority, server_side = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(HOST).configure_cert(server_side)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    server = GatedServer()
    async with server.at("127.0.0.1", tls=server_side) as port, server.at("127.0.0.2", port, server_side):
        names = Names("127.0.0.1", "127.0.0.2")
        names.answers["other.test"] = names.answers[HOST]
        settings = Settings.from_url(f"dns+https://{HOST}:{port}", ssl=trusting, discovery=names.settings(3600))
        async with RuntimeManager(settings=settings) as manager:
            assert len(await run_many(manager, 20)) == 2
            assert (await manager.get_health_status()).healthy
        assert set(server.hosts) == {f"{HOST}:{port}"}
        wrong = attrs.evolve(settings, endpoints={"python": f"dns+https://other.test:{port}"}, retry=QUICK)
        async with RuntimeManager(settings=wrong) as manager:
            with pytest.raises(ConnectError, match=r"other\.test"):
                await manager.run_code("1", "python")


@pytest.mark.parametrize("double", [SandboxFusion(), Piston(run_timeout=60_000)], ids=lambda double: double.scheme)
async def test_services_behind_a_name(double: Any) -> None:
    """`dns+` comes before the protocol."""
    async with double as service:
        url = "dns+" + service.url.replace("127.0.0.1", HOST)
        names = Names("127.0.0.1")
        manager = RuntimeManager.from_url(url, discovery=names.settings(3600))
        async with manager:
            result = await manager.run_code("print(6 * 7)", "python")
            endpoint = service.url.replace("127.0.0.1", HOST) + "#127.0.0.1"
            assert (result.stdout, result.endpoint) == ("42\n", endpoint)
            assert (await manager.call_function("def f(n): return n + 1", "f", [1], language="python")).value == 2
            assert [each.endpoint for each in (await manager.get_health_status()).endpoints] == [endpoint]


async def test_addresses_of_both_kinds() -> None:
    """IPv6 addresses are replicas, too. One that cannot be reached does not disturb the others."""
    server = GatedServer()
    async with server.at("127.0.0.1") as port:
        with contextlib.suppress(OSError):  # the machine may have no IPv6
            async with server.at("::1", port):
                names = Names("127.0.0.1", "::1")
                settings = Settings.from_url(f"dns+http://{HOST}:{port}", discovery=names.settings(3600))
                async with RuntimeManager(settings=settings) as manager:
                    used = await run_many(manager, 20)
                assert sorted(used) == [f"http://{HOST}:{port}#127.0.0.1", f"http://{HOST}:{port}#::1"]
        names = Names("::1", "127.0.0.1")
        settings = Settings.from_url(f"dns+http://{HOST}:{port}", discovery=names.settings(3600), retry=QUICK)
        async with RuntimeManager(settings=settings) as manager:
            assert await run_many(manager, 20) == {f"http://{HOST}:{port}#127.0.0.1": 20}


async def test_cancelled_while_the_name_is_looked_up() -> None:
    """The call ends at once, and others that wait for the same look-up go on."""
    async with discovered(1, period_s=3600) as (manager, names, (fake,)):
        gate = asyncio.Event()

        async def resolve(host: str, port: int) -> list[str]:
            names.lookups.append((host, port))
            await gate.wait()
            return ["127.0.0.1"]

        discovery = DiscoverySettings(period_s=3600, resolve=resolve)
        await manager.reconfigure(attrs.evolve(manager.settings, discovery=discovery))
        first, second = (asyncio.create_task(manager.run_code("1", "python")) for _ in range(2))
        await until(lambda: names.lookups)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        gate.set()
        assert (await second).endpoint == replica(fake)
        assert (len(names.lookups), manager.get_metrics().in_flight) == (1, 0)


async def test_closed_while_the_name_is_looked_up() -> None:
    """Closing ends the look-up and the call, and leaves no task."""
    before = asyncio.all_tasks()
    names = Names()
    del names.answers[HOST]
    settings = Settings.from_url(
        f"dns+http://{HOST}:1", discovery=names.settings(), timeouts=TimeoutSettings(close_s=0.01)
    )
    async with RuntimeManager(settings=settings) as manager:
        call = asyncio.create_task(manager.run_code("1", "python"))
        await until(lambda: names.lookups)
    with pytest.raises(RuntimeClosedError):
        await call
    assert asyncio.all_tasks() == before


async def test_no_task_outlives_the_manager() -> None:
    """Nor do sessions: `ResourceWarning` would fail the test."""
    before = asyncio.all_tasks()
    async with discovered(2) as (manager, names, _):
        await run_many(manager, 10)
        names.answers[HOST] = ["127.0.0.2"]
        assert asyncio.all_tasks() > before
    await until(lambda: asyncio.all_tasks() == before)  # the servers end their own tasks


async def test_many_addresses() -> None:
    """With 100 replicas, most get calls, and a program that none can run is refused after a few health reports."""
    addresses = [f"127.0.1.{number}" for number in range(1, 101)]
    limiter, patient = LimiterSettings(max_concurrency=150), attrs.evolve(PATIENT, grace_s=80)
    server = GatedServer()
    # One listener for all addresses, because a user usually may have only 1,024 descriptors.
    async with server.at("0.0.0.0") as port:
        settings = Settings.from_url(
            f"dns+http://{HOST}:{port}", discovery=Names(*addresses).settings(3600), limiter=limiter, timeouts=patient
        )
        async with RuntimeManager(settings=settings) as manager:
            used = await run_many(manager, 150)
            assert len(used) > 75
            assert used == Counter(f"http://{HOST}:{port}#{address}" for address in server.addresses)
            assert len(manager.get_metrics().states) == 100
            health = await manager.get_health_status()
            assert health.healthy
            assert len(health.endpoints) == 100
            with pytest.raises(UnsupportedLanguageError):
                await manager.run_code("1", "bash")
            assert manager.get_metrics().total.attempts == 153


async def test_stored_results_are_those_of_the_name(tmp_path: Path) -> None:
    """A result is reused after all addresses of the name have changed, even if the servers state no version."""
    async with discovered(2) as (manager, names, (one, two)):
        one.health = two.health = {"version": ""}
        names.answers[HOST] = ["127.0.0.1"]
        async with RuntimeManager(settings=manager.settings, cache=tmp_path) as caching:
            assert not (await caching.run_code("1", "python")).cached
            names.answers[HOST] = ["127.0.0.2"]
            while await known(caching) != [replica(two)]:
                await caching.run_code("2", "python")
            assert (await caching.run_code("1", "python")).cached


async def test_link_local_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The address of the system has the number of its interface, with which the replica can be reached."""
    interface, address = link_local_address()
    server = GatedServer()

    def getaddrinfo(host: str, port: Any, *args: Any, **options: Any) -> Any:
        if host == HOST:
            return [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, interface))]
        return original(host, port, *args, **options)

    original = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    async with server.at(f"{address}%{interface}") as port:
        async with RuntimeManager.from_url(f"dns+http://{HOST}:{port}") as manager:
            assert (await manager.run_code("1", "python")).endpoint == f"http://{HOST}:{port}#{address}%{interface}"
        assert server.hosts == [f"{HOST}:{port}"]


def link_local_address() -> tuple[int, str]:
    """Return the number of an interface of this machine, and its link-local address. Skip the test if there is none."""
    for name, addresses in psutil.net_if_addrs().items():
        for each in addresses:
            if each.family == socket.AF_INET6 and each.address.startswith("fe80:"):
                return socket.if_nametoindex(name), each.address.partition("%")[0]
    pytest.skip("this machine has no link-local address")


async def test_the_resolver_of_the_system() -> None:
    """It returns the addresses of both families. A name that does not exist is an OSError."""
    assert "127.0.0.1" in await resolve_by_system("localhost", 80)
    assert await resolve_by_system("127.0.0.1", 80) == ["127.0.0.1"]
    async with FakeFaaS() as fake:
        url = fake.url.replace("127.0.0.1", "localhost")
        async with RuntimeManager.from_env({"COZE_LOOP_FAAS_URL": f"dns+{url}"}, retry=QUICK) as manager:
            assert (await manager.run_code("1", "python")).endpoint == f"{url}#127.0.0.1"
        _, shown, _ = await asyncio.to_thread(faasrt_process, "health", "--url", f"dns+{url}")
        assert f"{url}#127.0.0.1" in shown
