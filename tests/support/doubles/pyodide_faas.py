"""A double of python-faas that runs programs in Pyodide and Deno, like python-faas itself."""

from __future__ import annotations

import os
from pathlib import Path

import deno

from .python_faas import PythonFaas

DRIVER = Path(__file__).parent / "pyodide_driver.mjs"


class PyodideFaas(PythonFaas):
    """Like `PythonFaas`, but with the signals, exits, threads and sys.monitoring of WebAssembly.

    Args:
        deno_dir: The cache folder of Deno. The first program waits until npm packages are downloaded to it.
    """

    def __init__(self, deno_dir: Path, *, slots: int = 8) -> None:
        super().__init__(slots=slots)
        self.interpreter = deno.find_deno_bin()
        self._deno_dir = deno_dir

    def arguments(self) -> list[str]:
        return ["run", "-A", "--no-prompt", "--quiet", "--no-lock", str(DRIVER)]

    def environment(self, folder: Path) -> dict[str, str]:
        # Keep the environment, which may name an npm registry.
        return {**os.environ, "DENO_DIR": str(self._deno_dir), "NO_COLOR": "1"}
