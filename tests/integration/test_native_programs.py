"""Programs on the engine `native` have the same output and exit code as with `python -I main.py`."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
import tempfile
from pathlib import Path

import attrs
import pytest

from faasrt import Outcome, RuntimeManager, SandboxConfig
from faasrt.protocol.streams import cut
from support.helpers import skip_without
from support.native_programs import BY_DESIGN, PROGRAMS

pytestmark = pytest.mark.asyncio(loop_scope="session")
SANDBOX = SandboxConfig(timeout_limit_s=60, memory_limit_mb=1024)


@attrs.frozen
class Ending:
    stdout: str
    stderr: str
    exit_code: int | None


def comparable(text: str, folder: str) -> str:
    """Replace text that differs between runs: folders and addresses of objects."""
    for path, name in ((sys.prefix, "<prefix>"), (f"{folder}/main.py", "main.py"), (folder, "<folder>")):
        text = re.sub(rf"{re.escape(path)}(?!\w)", name, text)
    return re.sub(r"0x[0-9a-f]{6,16}", "0x", text)


async def run_bare(code: str) -> Ending:
    """Run a program with `python -I` in a new folder, with the environment variables that programs have in the jail."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "main.py").write_bytes(code.encode("utf-8", "surrogatepass"))
        env = {
            "PATH": f"{sys.prefix}/bin:/usr/bin:/bin",
            "HOME": folder,
            "TMPDIR": folder,
            "LANG": "C.UTF-8",
            "PYTHONHASHSEED": "0",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "JE_ARROW_MALLOC_CONF": "background_thread:false",
        }
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "main.py"),
            cwd=folder,
            env=env,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            # A shell that starts the tests in the background lets them ignore SIGINT.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        streams = await process.communicate(b"")
        stdout, stderr = (comparable(cut(data, SANDBOX.max_output_bytes)[0], folder) for data in streams)
        return Ending(stdout, stderr, process.returncode)


async def run_native(native: RuntimeManager, code: str) -> Ending:
    result = await native.run_code(code, "python")
    assert result.outcome is not Outcome.TIMEOUT
    exit_code = result.exit_code
    if result.outcome is Outcome.CRASHED and result.error is not None:
        exit_code = -signal.Signals[result.error.name]
    return Ending(comparable(result.stdout, "/tmp"), comparable(result.stderr, "/tmp"), exit_code)


@pytest.mark.parametrize("name", PROGRAMS)
async def test_native_programs_behave_as_with_python_i(native: RuntimeManager, name: str) -> None:
    """Stdout, stderr and exit code are the same, except for the programs in `BY_DESIGN`, which must differ."""
    code = PROGRAMS[name]
    for package in ("numpy", "pandas"):
        if package in code:
            skip_without(package)
    expected, got = await asyncio.gather(run_bare(code), run_native(native, code))
    if name in BY_DESIGN:
        assert got != expected, f"remove from the table: {BY_DESIGN[name]}"
    else:
        assert got == expected
