"""How many functions of the package a call passes through."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import aiohttp
import pytest

import faasrt
from faasrt.testing import FakeFaaS
from support.helpers import manager_for

PACKAGE = str(Path(faasrt.__file__).parent)
MAX_FRAMES = 6


@pytest.mark.asyncio
async def test_a_call_reaches_aiohttp_in_six_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most six functions of the package are on the stack when a call of `run_code` reaches aiohttp.

    RuntimeManager.run_code  the manager: gets the runtime of the language
    Runtime.run_code         checks the arguments
    Executor.run             stored results, the context of the call, and its events
    Transport.run            the attempt loop: permits, deadline, retries
    Attempt.run              one attempt: makes the request for the endpoint, and reads the answer
    HttpClient.send          one exchange within a timeout
    """
    paths: list[list[str]] = []
    request = aiohttp.ClientSession.request

    def record(session: aiohttp.ClientSession, *args: Any, **kwargs: Any) -> Any:
        frame: FrameType | None = sys._getframe(1)
        path: list[str] = []
        while frame is not None and frame.f_code.co_filename != __file__:
            if frame.f_code.co_filename.startswith(PACKAGE):
                path.insert(0, frame.f_code.co_qualname)
            frame = frame.f_back
        assert frame is not None, f"the request was not sent from the task of the call: {path}"
        paths.append(path)
        return request(session, *args, **kwargs)

    async with FakeFaaS() as fake, manager_for(fake.url) as manager:
        monkeypatch.setattr(aiohttp.ClientSession, "request", record)
        assert (await manager.run_code("print(1)", "python")).ok
    assert len(paths) == 1
    assert (paths[0][0], paths[0][-1]) == ("RuntimeManager.run_code", "HttpClient.send")
    assert len(paths[0]) <= MAX_FRAMES, paths[0]
