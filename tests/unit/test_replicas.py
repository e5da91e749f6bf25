"""The look-ups of names in `dns+` URLs, with a resolver that the test controls."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import threading
from collections.abc import AsyncIterator
from typing import Any

import attrs
import pytest

from faasrt import ConfigurationError, ConnectError, DiscoverySettings, Settings, TimeoutSettings
from faasrt.telemetry.events import Event, ReplicaRemoved, ReplicasChanged
from faasrt.transport.replicas import ReplicaDirectory
from support.served import until
from support.servers import HOST, Names

URL = f"dns+http://{HOST}:8000"
OTHER = "dns+piston+http://piston.test:2000/api/v2"


class Directory:
    """A directory, and everything that it reports."""

    def __init__(self, names: Names, *urls: str, period_s: float = 3600, connect_s: float = 5) -> None:
        self.names = names
        self.events: list[Event] = []
        self.changes = 0
        self.busy = False
        self.now = 100.0
        self.settings = Settings(
            endpoints={"python": urls or [URL]},
            discovery=names.settings(period_s),
            timeouts=TimeoutSettings(connect_s=connect_s),
        )
        self.directory = ReplicaDirectory(
            self.settings,
            clock=lambda: self.now,
            random=lambda: 0.5,
            emit=self.events.append,
            on_change=self.count,
            is_busy=lambda: self.busy,
        )

    def count(self) -> None:
        self.changes += 1

    def known(self, *urls: str) -> list[str]:
        return list(self.directory.expand(urls or [URL]))

    async def update(self, *urls: str) -> list[str]:
        await self.directory.update(urls or [URL])
        return self.known(*urls)

    async def look_up_again(self) -> None:
        """Start the next period, and wait for the end of its look-up."""
        asked, self.busy = len(self.names.lookups), True
        self.directory.configure(self.settings)
        await until(lambda: len(self.names.lookups) > asked)
        for _ in range(10):
            await asyncio.sleep(0)

    def changed(self) -> list[ReplicasChanged]:
        return [event for event in self.events if isinstance(event, ReplicasChanged)]


@contextlib.asynccontextmanager
async def directory(*addresses: str, urls: tuple[str, ...] = (), **options: Any) -> AsyncIterator[Directory]:
    one = Directory(Names(*addresses), *urls, **options)
    yield one
    await asyncio.gather(*one.directory.stop(), return_exceptions=True)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_concurrent_calls_share_a_look_up() -> None:
    """Nothing is looked up before the first call. Later calls use the answer of the first one."""
    async with directory("10.0.0.1", "10.0.0.2") as one:
        assert (one.names.lookups, one.known()) == ([], [])
        found = await asyncio.gather(*(one.update() for _ in range(10)))
        replicas = [f"http://{HOST}:8000#10.0.0.1", f"http://{HOST}:8000#10.0.0.2"]
        assert found == [replicas] * 10
        assert await one.update() == replicas
        assert one.names.lookups == [(HOST, 8000)]
        assert one.changed() == [ReplicasChanged(endpoint=URL, replicas=2, added=tuple(replicas))]


async def test_changes_of_a_name() -> None:
    """Replicas that stay keep their places. An answer in another order, or with duplicates, is not a change."""
    async with directory("10.0.0.1", "10.0.0.2") as one:
        first, second = await one.update()
        one.names.answers[HOST] = ["10.0.0.2", "10.0.0.1", "10.0.0.2"]
        await one.look_up_again()
        assert (one.known(), one.changes, len(one.events)) == ([first, second], 1, 1)
        one.names.answers[HOST] = ["10.0.0.3", "10.0.0.2"]
        await one.look_up_again()
        third = f"http://{HOST}:8000#10.0.0.3"
        assert (one.known(), one.changes) == ([second, third], 2)
        assert one.changed()[1] == ReplicasChanged(endpoint=URL, replicas=2, added=(third,), removed=(first,))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (OSError(-2, "Name or service not known"), "[Errno -2] Name or service not known"),
        (ZeroDivisionError(), "ZeroDivisionError"),
        ([], "the name has no address"),
        (["10.0.0.1", "faas"], "'faas' does not appear to be an IPv4 or IPv6 address"),
        ([1], "'1' does not appear to be an IPv4 or IPv6 address"),
        (None, "'NoneType' object is not iterable"),
    ],
)
async def test_a_failed_look_up_keeps_the_last_answer(answer: Any, reason: str) -> None:
    """Only the first of several failures is reported, and the success after them. An empty answer is a failure."""
    async with directory("10.0.0.1") as one:
        known = await one.update()
        one.names.answers[HOST] = answer
        for _ in range(3):
            await one.look_up_again()
        assert await one.update() == known
        one.names.answers[HOST] = ["10.0.0.1"]
        for _ in range(2):
            await one.look_up_again()
        _, failed, recovered = one.changed()
        assert (failed.reason, failed.replicas, failed.added, failed.removed) == (reason, 1, (), ())
        assert recovered == ReplicasChanged(endpoint=URL, replicas=1)
        assert one.changes == 1


async def test_a_first_look_up_that_fails() -> None:
    """It is a ConnectError, and the next call looks the name up again. The failure is reported once."""
    async with directory() as one:
        for asked in (1, 2, 3):
            with pytest.raises(ConnectError, match="no address of the name is known: the name has no") as caught:
                await one.update()
            assert (caught.value.endpoint, caught.value.sent, len(one.names.lookups)) == (URL, "no", asked)
        assert [event.error for event in one.changed()] == ["LookupError"]
        one.names.answers[HOST] = ["10.0.0.1"]
        assert await one.update() == [f"http://{HOST}:8000#10.0.0.1"]


async def test_a_look_up_that_hangs() -> None:
    """A call waits for `connect_s`. Then the function is cancelled, and the next call calls it again."""
    async with directory(connect_s=0.01) as one:
        del one.names.answers[HOST]
        for _ in range(3):
            with pytest.raises(ConnectError, match=r"no answer within 0\.01 s"):
                await one.update()
        assert len(one.names.lookups) == 3
        one.names.answers[HOST] = ["10.0.0.1"]
        assert await one.update() == [f"http://{HOST}:8000#10.0.0.1"]


async def test_a_look_up_by_the_system_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is only one at a time, because a thread cannot be stopped. Its answer is used when it arrives."""
    gate, asked = threading.Event(), list[str]()

    def getaddrinfo(host: str, port: int, *args: Any, **options: Any) -> Any:
        asked.append(host)
        gate.wait(30)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    async with directory(connect_s=0.01) as one:
        one.directory.configure(attrs.evolve(one.settings, discovery=DiscoverySettings()))
        try:
            for _ in range(3):
                with pytest.raises(ConnectError, match=r"no answer within 0\.01 s"):
                    await one.update()
        finally:
            gate.set()
        one.directory.configure(attrs.evolve(one.settings, discovery=DiscoverySettings(), timeouts=TimeoutSettings()))
        assert await one.update() == [f"http://{HOST}:8000#10.0.0.1"]
        assert asked == [HOST]


async def test_names_of_new_settings_are_looked_up_while_calls_wait() -> None:
    """Although no new call uses them. Otherwise calls that wait for other replicas would never see them."""
    async with directory("10.0.0.1") as one:
        changed = attrs.evolve(one.settings, endpoints={"python": [URL, OTHER]})
        one.directory.configure(changed)
        assert one.names.lookups == []
        one.busy, one.names.answers["piston.test"] = True, ["10.0.0.2"]
        one.directory.configure(changed)
        await until(lambda: one.changes == 2)
        assert len(one.known(URL, OTHER)) == 2


async def test_another_resolver_during_a_look_up() -> None:
    """The name is looked up with the new function at once, and in each period after that."""
    async with directory("10.0.0.1", period_s=0.001) as one:
        one.busy = True
        await one.update()
        del one.names.answers[HOST]
        asked = len(one.names.lookups)
        await until(lambda: len(one.names.lookups) > asked)
        working = Names("10.0.0.2")
        one.directory.configure(attrs.evolve(one.settings, discovery=working.settings()))
        await until(lambda: len(working.lookups) > 3)
        assert one.known() == [f"http://{HOST}:8000#10.0.0.2"]


async def test_a_call_with_other_replicas_does_not_wait_for_a_new_name() -> None:
    """A name without an answer is looked up in the background, and not again for each call."""
    async with directory("10.0.0.1", urls=("http://fixed:8000", OTHER, URL), connect_s=0.5) as one:
        assert await one.update("http://fixed:8000", OTHER) == ["http://fixed:8000"]
        assert one.changed() == []
        await until(lambda: one.names.lookups)
        assert one.names.lookups == [("piston.test", 2000)]
        one.names.answers["piston.test"] = OSError("no such name")
        assert await one.update(URL, OTHER) == [f"http://{HOST}:8000#10.0.0.1"]


async def test_names_without_an_answer_are_looked_up_once_in_a_period_beside_other_replicas() -> None:
    """So that a wrong name does not cause a look-up for each call."""
    async with directory(urls=("http://fixed:8000", URL)) as one:
        for _ in range(5):
            await one.update("http://fixed:8000", URL)
            await until(lambda: one.changed())
            await asyncio.sleep(0)
        assert len(one.names.lookups) == 1
        one.now += 3601
        await one.update("http://fixed:8000", URL)
        await until(lambda: len(one.names.lookups) == 2)


async def test_a_name_without_an_answer_is_looked_up_again_while_calls_are_made() -> None:
    """So calls that wait for other replicas see its addresses later, too. A call without any replica does not wait."""
    async with directory(urls=("http://fixed:8000", URL)) as one:
        one.busy = True
        await one.update("http://fixed:8000", URL)
        await until(lambda: one.changed())
        with pytest.raises(ConnectError):
            await one.update(URL)
        one.names.answers[HOST] = ["10.0.0.1"]
        await one.look_up_again()
        assert one.known() == [f"http://{HOST}:8000#10.0.0.1"]


async def test_a_name_that_is_not_used_is_not_looked_up() -> None:
    """The look-ups end after a period without calls. The next call waits for a new one, whatever it finds."""
    async with directory("10.0.0.1", period_s=0.001) as one:
        one.busy = True
        await one.update()
        await until(lambda: len(one.names.lookups) > 3)
        one.busy = False
        await until(lambda: len(asyncio.all_tasks()) == 1)
        one.names.answers[HOST] = ["10.0.0.2"]
        assert await one.update() == [f"http://{HOST}:8000#10.0.0.2"]
        await until(lambda: len(asyncio.all_tasks()) == 1)
        one.names.answers[HOST] = OSError("down")
        assert await one.update() == [f"http://{HOST}:8000#10.0.0.2"]


async def test_another_resolver_replaces_one_that_hangs() -> None:
    """A look-up by the old function is not waited for."""
    async with directory(connect_s=0.01) as one:
        del one.names.answers[HOST]
        with pytest.raises(ConnectError):
            await one.update()
        working = Names("10.0.0.1")
        one.directory.configure(attrs.evolve(one.settings, discovery=working.settings()))
        assert await one.update() == [f"http://{HOST}:8000#10.0.0.1"]


async def test_names_that_leave_the_settings() -> None:
    """They are not looked up any more, and a call that waits for the look-up gets an error."""
    async with directory() as one:
        del one.names.answers[HOST]
        waiting = asyncio.create_task(one.update())
        await until(lambda: one.names.lookups)
        one.directory.configure(attrs.evolve(one.settings, endpoints={"python": "http://fixed:8000"}))
        with pytest.raises(ConnectError, match="the look-up was ended"):
            await waiting
        assert one.events == [ReplicaRemoved(endpoint=URL)]


async def test_a_resolver_that_is_cancelled() -> None:
    """If the resolver raises CancelledError, the call gets an error, and the next call looks the name up again."""
    async with directory() as one:
        one.names.answers[HOST] = asyncio.CancelledError()
        with pytest.raises(ConnectError):
            await one.update()
        one.names.answers[HOST] = ["10.0.0.1"]
        assert len(await one.update()) == 1


async def test_hundreds_of_addresses() -> None:
    """A name may have any number of addresses, of both kinds. IPv6 addresses have one spelling."""
    addresses = [f"10.0.{number // 256}.{number % 256}" for number in range(1_000)]
    async with directory(*addresses, "FD00:0::1", "fd00::1") as one:
        found = await one.update()
        assert len(found) == 1_001
        assert found[-1] == f"http://{HOST}:8000#fd00::1"


async def test_use_in_two_event_loops() -> None:
    """After `stop`, the directory can be used in another event loop, and still knows the replicas."""
    one = Directory(Names("10.0.0.1"))

    async def use() -> list[str]:
        found = await one.update()
        await asyncio.gather(*one.directory.stop(), return_exceptions=True)
        return found

    found = [await asyncio.to_thread(asyncio.run, use()) for _ in range(2)]
    assert found == [one.known()] * 2
    assert len(one.names.lookups) == 2


def test_delays_vary_within_the_jitter() -> None:
    settings, chance = DiscoverySettings(period_s=10, jitter=0.2), random.Random(1)
    delays = [settings.delay_s(chance.random) for _ in range(1_000)]
    assert 8 <= min(delays) < 8.1
    assert 11.9 < max(delays) <= 12
    assert DiscoverySettings(period_s=3, jitter=0).delay_s(chance.random) == 3


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("period_s", value) for value in (0, -1, float("nan"), float("inf"), "10", None, True)),
        *(("jitter", value) for value in (-0.1, 0.91, float("nan"), "0", None, True)),
        *(("resolve", value) for value in ("dns", print, 1)),
    ],
)
def test_wrong_discovery_settings_are_refused(option: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=option):
        DiscoverySettings(**{option: value})
