"""EvalSession: a session that runs programs in the process of the tests, which can wait for events of the tests."""

from __future__ import annotations

import ast
import asyncio
import inspect
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from typing import Any

from faasrt import ErrorInfo, Outcome
from faasrt.local.engines.engine import EngineJob, EngineResult
from faasrt.local.engines.session import (
    EngineSession,
    EngineSessionOptions,
    ForkError,
    SessionEndedError,
    SessionFileError,
)
from faasrt.local.errors import EngineError
from faasrt.results import Display


class EvalSession(EngineSession):
    """Programs may use `await`, and the names `print`, `display`, `gate` and `session`, which is this object.

    Attributes:
        gate: Programs can wait for it.
        closed: Whether it was closed.
        jobs: The programs that it was given.
        forks: The sessions that were forked from it.
        faults: The messages of errors that the next calls of methods raise, by their names.
    """

    def __init__(self, options: EngineSessionOptions, names: Mapping[str, Any] | None = None) -> None:
        super().__init__(options)
        self.files = dict(options.files)
        self.closed = False
        self.faults: dict[str, str] = {}
        self.gate = asyncio.Event()
        self.jobs: list[EngineJob] = []
        self.forks: list[EvalSession] = []
        self._names: dict[str, Any] = {"asyncio": asyncio, **(names or {}), "session": self, "gate": self.gate}
        self._running: asyncio.Task[None] | None = None

    async def run(self, job: EngineJob) -> EngineResult:
        if self.ended.is_set():
            raise SessionEndedError(self.reason)
        self.jobs.append(job)
        if "run" in self.faults:
            self.mark_ended(self.faults["run"])
            raise EngineError(self.faults["run"])
        printed: list[str] = []
        shown: list[Display] = []

        def show(**data: str | bytes) -> None:
            shown.append(Display({name.replace("_", "/"): content for name, content in data.items()}))

        self._names |= {"print": lambda text: printed.append(f"{text}\n"), "display": show}
        self._running = asyncio.create_task(self._evaluate(job.code))
        error = None
        try:
            async with asyncio.timeout(job.limits.timeout_ms / 1000):
                await self._running
            outcome = Outcome.OK
        except TimeoutError:
            outcome = Outcome.TIMEOUT
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            outcome, error = Outcome.USER_ERROR, ErrorInfo("KeyboardInterrupt")
        except Exception as failure:
            outcome, error = Outcome.USER_ERROR, ErrorInfo(type(failure).__name__, str(failure))
        finally:
            self._running.cancel()
            self._running = None
        return EngineResult(outcome=outcome, stdout="".join(printed), displays=tuple(shown), error=error)

    async def _evaluate(self, code: str) -> None:
        compiled = compile(code, "<cell>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        waiting = eval(compiled, self._names)
        if inspect.isawaitable(waiting):
            await waiting

    def interrupt(self) -> None:
        if self._running is not None:
            self._running.cancel()

    async def fork(self) -> EngineSession:
        self._fail("fork", ForkError)
        self.forks.append(EvalSession(self.options, self._names))
        return self.forks[-1]

    async def write_files(self, files: Mapping[str, bytes]) -> None:
        self._fail("write_files", SessionFileError)
        self.files |= files

    async def read_files(self, patterns: Sequence[str], max_bytes: int) -> tuple[dict[str, bytes], bool]:
        found = {path: data for path, data in self.files.items() if any(fnmatch(path, each) for each in patterns)}
        fitting = {path: data for path, data in found.items() if len(data) <= max_bytes}
        return fitting, fitting == found

    async def list_files(self, max_bytes: int) -> tuple[dict[str, int], bool]:
        return {path: len(content) for path, content in self.files.items()}, sum(map(len, self.files)) <= max_bytes

    async def aclose(self) -> None:
        self.interrupt()
        self.closed = True
        self.mark_ended("it was closed")

    def _fail(self, name: str, kind: type[Exception]) -> None:
        if name in self.faults:
            raise kind(self.faults.pop(name))
