"""What several test files need."""

from __future__ import annotations

import asyncio

from faasrt import RuntimeManager, Settings


def manager_for(url: str, **settings: object) -> RuntimeManager:
    """A manager whose languages all go to one URL."""
    endpoints = {"python": url, "javascript": url, "typescript": url}
    return RuntimeManager(settings=Settings(endpoints=endpoints, **settings))  # type: ignore[arg-type]


async def until_active(manager: RuntimeManager, language: str, count: int) -> None:
    """Wait until the embedded FaaS runs so many programs of a language."""
    while True:
        status = await manager.get_health_status()
        if status.endpoints[0].details["languages"][language]["active"] == count:
            return
        await asyncio.sleep(0.01)
