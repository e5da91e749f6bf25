"""The double of python-faas on the interpreter that it has itself: Pyodide, in Deno."""

from __future__ import annotations

import os
from pathlib import Path

import deno

from .python_faas import PythonFaas

DRIVER = Path(__file__).parent / "pyodide_driver.mjs"


class PyodideFaas(PythonFaas):
    """As `PythonFaas`, but that sys.monitoring, signals, exits and threads are those of WebAssembly.

    Args:
        deno_dir: where Deno keeps what it fetches from npm; the first program waits for that.
    """

    def __init__(self, deno_dir: Path, *, slots: int = 8) -> None:
        super().__init__(slots=slots)
        self.interpreter = deno.find_deno_bin()
        self._deno_dir = deno_dir

    def arguments(self) -> list[str]:
        return ["run", "-A", "--no-prompt", "--quiet", "--no-lock", str(DRIVER)]

    def environment(self, folder: Path) -> dict[str, str]:
        # With the user's own settings for npm, wherever those say that packages come from.
        return {**os.environ, "DENO_DIR": str(self._deno_dir), "NO_COLOR": "1"}
