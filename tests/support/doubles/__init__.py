"""Test doubles of the reference servers. They run real interpreters, and behave like recordings of these servers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from faasrt import RuntimeManager, Settings
from support.helpers import PATIENT

from .js_faas import JsFaas
from .pyodide_faas import PyodideFaas
from .python_faas import PythonFaas

__all__ = ["JsFaas", "PyodideFaas", "PythonFaas", "doubles"]


@contextlib.asynccontextmanager
async def doubles(**settings: Any) -> AsyncIterator[tuple[RuntimeManager, PythonFaas, JsFaas]]:
    """Yield a manager with doubles as its servers, and the doubles."""
    async with PythonFaas() as python, JsFaas() as js:
        endpoints = {"python": python.url, "javascript": js.url, "typescript": js.url}
        settings = {"endpoints": endpoints, "timeouts": PATIENT, **settings}
        async with RuntimeManager(settings=Settings(**settings)) as manager:
            yield manager, python, js
