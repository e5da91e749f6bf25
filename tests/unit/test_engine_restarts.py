"""An engine that has worked restarts at once, and one that cannot start waits longer each time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

import pytest

from faasrt import Language
from faasrt.local.engines.base import Engine, EngineError, EngineJob, EngineOptions, EngineResult

pytestmark = pytest.mark.asyncio


class FailingEngine(Engine):
    """Is ready for the given seconds, or never ready if they are None, and then fails."""

    name, package, min_memory_mb = "failing", "faasrt", 1
    languages = (Language.PYTHON,)

    def __init__(self, folder: Path, ready_s: Iterable[float | None], monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(EngineOptions(folder=folder, workers=1, memory_limit_mb=128))
        self._ready_s = iter(ready_s)
        self._now = 100.0
        self.pauses: list[float] = []
        monkeypatch.setattr("faasrt.local.engines.base.time.monotonic", lambda: self._now)
        monkeypatch.setattr("faasrt.local.engines.base.asyncio.sleep", self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self._now += seconds

    async def serve(self) -> None:
        ready_s = next(self._ready_s, "no more")
        if ready_s == "no more":
            raise asyncio.CancelledError
        self._now += 2.0  # the start
        if isinstance(ready_s, float):
            self.mark_ready()
            self._now += ready_s
        raise EngineError("failed")

    async def _execute_once(self, job: EngineJob) -> EngineResult:
        raise NotImplementedError

    @property
    def idle(self) -> int:
        return 0


@pytest.mark.parametrize(
    ("ready_s", "pauses"),
    [
        ([60.0, 1.5, 1.5, 1.5], [0.0, 0.0, 0.0, 0.0]),
        ([None] * 8, [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0]),
        ([0.1, 0.1, None], [5.0, 10.0, 20.0]),
        ([None, None, 1.5, None], [5.0, 10.0, 0.0, 5.0]),
    ],
)
async def test_pauses_before_restarts(
    ready_s: list[float | None], pauses: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FailingEngine(tmp_path, ready_s, monkeypatch)
    with pytest.raises(asyncio.CancelledError):
        await engine.run()
    assert engine.pauses == pauses
