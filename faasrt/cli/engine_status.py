"""Says on stderr what the embedded FaaS of a command does: which engine runs Python, and what is compiled first."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from faasrt.cli.output import is_terminal, write_message

if TYPE_CHECKING:
    from faasrt.local.engines.engine import Engine
    from faasrt.local.server import LocalFaaS

_POLL_S = 0.25


def report_engine(faas: LocalFaaS, *, chosen: bool = False, report: Callable[[str], None] = write_message) -> None:
    python = faas.engine("python")
    if python is not None and python.name == "wasm" and not chosen:
        options = python.options
        reason = "another level was chosen"
        if options.level_reason:
            reason = f"{options.level_reason}. To get one: {options.level_remedy}"
        problem = options.python_problem or f"its native engine needs the level namespaces or users: {reason}"
        report(f"Python runs as WebAssembly, because {problem}")


@contextlib.asynccontextmanager
async def show_work(faas: LocalFaaS | None, report: Callable[[str], None] | None = None) -> AsyncIterator[None]:
    """Show how the engine wasm compiles its sandbox, or makes snapshots: on a spinner, or in lines for `report`."""
    python = None if faas is None else faas.engine("python")
    if python is None or python.name != "wasm":
        yield
        return
    failure: Exception | None = None
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(_watch(python, report))
        try:
            yield
        except Exception as error:  # the group would put it into an ExceptionGroup
            failure = error
        finally:
            watching.cancel()
    if failure is not None:
        raise failure


async def _watch(python: Engine, report: Callable[[str], None] | None) -> None:
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:  # stderr is closed
        shown = ""
        while not python.problem:
            if (step := python.slow_step) and step != shown:
                shown = step
                report = report or (_start_spinner(stack) if is_terminal(sys.stderr) else write_message)
                report(step)
            await asyncio.sleep(_POLL_S)


def _start_spinner(stack: contextlib.ExitStack) -> Callable[[str], None]:
    from rich.console import Console  # which takes long to load

    status = stack.enter_context(Console(stderr=True).status(""))
    return lambda text: status.update(f"faasrt: {text}")
