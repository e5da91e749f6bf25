"""The fingerprints of endpoints: how often they are requested, and those of endpoints that come and go."""

from __future__ import annotations

import asyncio

from faasrt.languages import Language
from faasrt.protocol.health import EndpointProfile, HealthReport
from faasrt.transport.profile_cache import MAX_AGE_S, ProfileCache

STAYS, LEAVES = "http://faas:8000#10.0.0.1", "http://faas:8000#10.0.0.2"


class Reports:
    """Health reports that arrive when the gate is open, and a clock that the test sets."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.requested: list[str] = []
        self.now = 100.0
        self.profiles = ProfileCache(self.ask, lambda: self.now)

    async def ask(self, url: str) -> HealthReport:
        self.requested.append(url)
        await self.gate.wait()
        name = f"engine {len(self.requested)}"
        return HealthReport(EndpointProfile(answered=True), {Language.PYTHON: name})

    async def get(self, *urls: str) -> dict[str, str | None]:
        return await self.profiles.fingerprints("python", urls, 30.0)


async def test_an_endpoint_that_leaves_during_its_health_report() -> None:
    """All callers get an answer, with one request, and nothing is kept about the endpoint."""
    reports = Reports()
    callers = [asyncio.create_task(reports.get(STAYS, LEAVES)) for _ in range(3)]
    while len(reports.requested) < 2:
        await asyncio.sleep(0)
    reports.profiles.discard(LEAVES)
    reports.gate.set()
    answers = await asyncio.gather(*callers)
    assert [set(answer) for answer in answers] == [{STAYS, LEAVES}] * 3
    assert len({answer[STAYS] for answer in answers}) == 1
    assert answers[0][STAYS] is not None
    assert sorted(reports.requested) == [STAYS, LEAVES]
    assert STAYS in reports.profiles
    assert LEAVES not in reports.profiles


async def test_a_request_for_a_profile_returns_the_fingerprint_and_the_reverse() -> None:
    """The fingerprint of a report is used for MAX_AGE_S, and its profile until the endpoint fails."""
    reports = Reports()
    reports.gate.set()
    await reports.profiles.fetch(STAYS, 30.0)
    assert await reports.get(STAYS) == {STAYS: "engine 1"}
    reports.now += MAX_AGE_S
    assert await reports.get(STAYS) == {STAYS: "engine 2"}
    assert (await reports.get(LEAVES), reports.profiles.cached(LEAVES)) == (
        {LEAVES: "engine 3"},
        EndpointProfile(answered=True),
    )
    reports.profiles.mark_stale(LEAVES)
    assert reports.profiles.is_stale(LEAVES)
    assert reports.profiles.cached(LEAVES) is None
    reports.now += MAX_AGE_S
    await reports.get(LEAVES)
    assert not reports.profiles.is_stale(LEAVES)
    assert len(reports.requested) == 4


async def test_a_report_that_ended_before_its_waiting_callers_ran_is_not_requested_again() -> None:
    """Callers that saw an old fingerprint at the same time share one request, even if it ends at once."""
    reports = Reports()
    reports.gate.set()
    answers = await asyncio.gather(*(reports.get(STAYS) for _ in range(3)))
    assert answers == [{STAYS: "engine 1"}] * 3
    assert reports.requested == [STAYS]


async def test_an_old_fingerprint_is_not_used_while_its_request_hangs() -> None:
    """A caller whose time ends while another one's request hangs gets no fingerprint: the server may be another one."""
    reports = Reports()
    reports.gate.set()
    await reports.get(STAYS)
    reports.gate.clear()
    reports.now += MAX_AGE_S
    first = asyncio.create_task(reports.get(STAYS))
    await asyncio.sleep(0)
    assert await reports.profiles.fingerprints("python", [STAYS], 0.01) == {STAYS: None}
    reports.gate.set()
    assert await first == {STAYS: "engine 2"}
