"""The fixture `faasrt_fake`: `pytest_plugins = ["faasrt.testing.pytest_plugin"]`. Needs pytest-asyncio, in any mode."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from faasrt.testing.fake_faas import FakeFaas


@pytest_asyncio.fixture
async def faasrt_fake() -> AsyncIterator[FakeFaas]:
    """A `FakeFaas` of the test's own, open while it runs."""
    async with FakeFaas() as fake:
        yield fake
