"""The fingerprints of endpoints that come and go."""

from __future__ import annotations

import asyncio

from faasrt.protocol.response import Answer
from faasrt.transport.fingerprints import FingerprintDirectory


class Reports:
    """Health reports that arrive when the gate is open."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.requested: list[str] = []
        self.directory = FingerprintDirectory(self.ask, lambda: 30.0, lambda: 100.0)

    async def ask(self, url: str) -> Answer:
        self.requested.append(url)
        await self.gate.wait()
        return Answer(status=200, body=b'{"version": "7"}')


async def test_an_endpoint_that_leaves_during_its_health_report() -> None:
    """All callers get an answer, with one request, and nothing is kept about the endpoint."""
    reports = Reports()
    directory, stays, leaves = reports.directory, "http://faas:8000#10.0.0.1", "http://faas:8000#10.0.0.2"
    callers = [asyncio.create_task(directory.get("python", [stays, leaves])) for _ in range(3)]
    while len(reports.requested) < 2:
        await asyncio.sleep(0)
    directory.forget(leaves)
    reports.gate.set()
    answers = await asyncio.gather(*callers)
    assert [set(answer) for answer in answers] == [{stays, leaves}] * 3
    assert len({answer[stays] for answer in answers}) == 1
    assert answers[0][stays] is not None
    assert sorted(reports.requested) == [stays, leaves]
    assert stays in directory
    assert leaves not in directory
