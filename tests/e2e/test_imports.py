"""Imports of the package in a new interpreter."""

from __future__ import annotations

import subprocess
import sys

from support.package import ROOT


def test_import_faasrt_loads_no_dependency() -> None:
    """`import faasrt` loads neither its dependencies nor the engines."""
    code = (
        "import sys, faasrt; print(sorted({'aiohttp', 'attrs', 'structlog', 'click', 'wasmtime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_modules_are_loaded_on_first_use() -> None:
    """`import faasrt` is enough for `faasrt.errors`, before another name was used, and for `faasrt.sync`."""
    code = "import faasrt; print(faasrt.errors.FaasrtError is faasrt.FaasrtError, faasrt.sync.RuntimeManager.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True RuntimeManager\n"


def test_a_worker_of_wasm_loads_no_event_loop() -> None:
    """asyncio alone would double the time of its imports. It loads wasmtime later, and the web server never."""
    code = "import sys, faasrt.local.engines.wasm.worker; print({'asyncio', 'aiohttp', 'wasmtime'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_typed_sample_runs() -> None:
    """`typed_sample.py`, which mypy checks, also runs without an error."""
    sample = ROOT / "tests/e2e/typed_sample.py"
    done = subprocess.run([sys.executable, "-W", "error", str(sample)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_another_aiohttp_is_refused_at_the_import() -> None:
    """Without the method that the client overrides, a call could get the late answer to another one."""
    code = "import aiohttp; del aiohttp.BaseConnector._get; import faasrt.transport.http"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].endswith("does not work with faasrt: install an older version")
