"""The doubles of SandboxFusion and Piston answer the recorded requests like the real servers."""

from __future__ import annotations

import asyncio
import shutil
from typing import Any

import aiohttp
import pytest

from faasrt.protocol import piston, sandboxfusion
from faasrt.protocol.interface import ServiceProtocol
from support.doubles.piston import Piston
from support.doubles.sandboxfusion import SandboxFusion
from support.doubles.services import Service
from unit.test_recorded_services import PISTON, SANDBOXFUSION, read, rows

pytestmark = [
    pytest.mark.tables,
    pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed"),
]
# The doubles have few languages, and no limits but those of time and output. They check no types.
NOT_IN_DOUBLES = (
    *("memory", "fork bomb", "threads", "c++", "cpp", "typescript", "pytest", "sql", "sandbox error", "network"),
    *("as text", "negative", "no version", "no files", "empty files", "path escapes", "bad json", "unknown version"),
    *("lone surrogate", "not base64", "timeout 0", "over 100 kB", "20 MB", "40 at once", "closed stdout"),
)


def replayable(name: str, row: dict[str, Any]) -> bool:
    return isinstance(row["request"], dict) and not any(part in name for part in NOT_IN_DOUBLES)


@pytest.mark.parametrize(
    ("double", "protocol", "expected"),
    [(SandboxFusion(), sandboxfusion.PROTOCOL, SANDBOXFUSION), (Piston(), piston.PROTOCOL, PISTON)],
    ids=["sandboxfusion", "piston"],
)
async def test_recorded_requests(double: Service, protocol: ServiceProtocol, expected: dict[str, str]) -> None:
    """Each program has the same outcome on the double as on the real server."""
    recorded = {name: row for name, row in rows(double.scheme).items() if name in expected and replayable(name, row)}
    found: dict[str, str] = {}
    async with double, aiohttp.ClientSession() as http, asyncio.TaskGroup() as group:
        slots = asyncio.Semaphore(3)

        async def replay(name: str, row: dict[str, Any]) -> None:
            url = double.url.partition("+")[2] + protocol.run_path
            async with slots, http.post(url, json=row["request"]) as response:
                answer = await response.text() and await response.json()
                found[name] = read(protocol, row | {"status": response.status, "response": answer})

        for name, row in recorded.items():
            group.create_task(replay(name, row))
    assert len(recorded) > 30
    assert found == {name: expected[name] for name in recorded}
