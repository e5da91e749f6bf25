"""The source of each runner: the code that runs a program inside a sandbox.

A runner is one text, joined from files, because a sandbox may have no folder from which it could import modules. Its
parts use each other's names. The files of `local/runners/` belong to this server; those below `guest/` also run on
other servers, in the envelope.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Literal

from faasrt.protocol.envelope import PYTHON_BEGINNING

RunnerName = Literal["native", "wasm", "command", "deno", "deno_displays", "deno_session", "node"]

_GUEST = "python_guest.py"  # compiles the beginning of a program that calls functions, the constant GUEST
_PYTHON = ("guest/python_errors.py", "guest/python_modules.py")
_JAVASCRIPT = ("guest/js_errors.js", "deno_common.js")
RUNNERS: dict[RunnerName, tuple[str, ...]] = {
    "native": (
        *_PYTHON,
        "python_native.py",
        _GUEST,
        "python_displays.py",
        "job_input.py",
        "python_random.py",
        "python_session.py",
        "python_setup.py",
    ),
    "wasm": (*_PYTHON, "python_main.py", _GUEST, "python_displays.py", "python_random.py", "python_preload.py"),
    "command": ("job_input.py", "command.py"),
    "deno": (*_JAVASCRIPT, "deno_main.js"),
    "deno_displays": (*_JAVASCRIPT, "deno_cells.js", "deno_main.js"),
    "deno_session": (*_JAVASCRIPT, "deno_cells.js", "deno_session.js"),
    "node": ("node_main.js",),
}


def read_runner(name: RunnerName) -> str:
    """Return the source of a runner. This reads files."""
    texts = [f"GUEST = {PYTHON_BEGINNING!r}"] if _GUEST in RUNNERS[name] else []
    for part in RUNNERS[name]:
        folder = "faasrt.protocol" if part.startswith("guest/") else "faasrt.local.runners"
        texts.append(files(folder).joinpath(part).read_text("utf-8"))
    return "\n".join(texts)
