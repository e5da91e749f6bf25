"""Large outputs are streamed with little memory, in the client, the server and the worker."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path

import pytest

from support.served import LANGUAGES, served

pytestmark = pytest.mark.servers

SIZE = 800 * 65_536
CLIENT = """
import asyncio, json, resource, sys
from faasrt import RuntimeManager, SandboxConfig

CODE = {
    "python": "import os\\nfor n in range(800): os.write(1, b'x' * 65535 + b'\\\\n')",
    "javascript": "const line = new TextEncoder().encode('x'.repeat(65535) + '\\\\n'); let at = 0;"
    "for (let n = 0; n < 800; n++) for (at = 0; at < line.length; ) at += Deno.stdout.writeSync(line.subarray(at));",
}

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

async def main(url, language):
    sandbox = SandboxConfig(max_output_bytes=100_000_000, timeout_limit_s=60)
    async with RuntimeManager.from_url(url, sandbox=sandbox) as manager:
        await manager.run_code("1;", language)
        before, size = peak(), 0
        async with manager.stream_code(CODE[language], language) as run:
            async for chunk in run:
                size += len(chunk.text)
        print(json.dumps([run.result.outcome, size, len(run.result.stdout), peak() - before]))

asyncio.run(main(*sys.argv[1:]))
"""


def peak_kib(pid: int) -> int:
    """Return the largest resident memory that a process has had, in KiB."""
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize("engine", ["native", "wasm", "deno"])
@pytest.mark.usefixtures("wasm_sandbox")
async def test_flat_memory(engine: str, tmp_path: Path) -> None:
    """No process grows by more than a few MB, and the result keeps 1 MiB of the output."""
    language = LANGUAGES[engine]
    options = ["--output-bytes", "100000000", "--timeout-s", "60", "--workers", "1"]
    options += [] if engine == "deno" else ["--engine", f"python={engine}"]
    async with served(tmp_path, *options, wait_for=[f"{language} is ready"]) as server:
        assert (await server.run(language, "1;"))[0] == 200
        workers = server.sandboxes("wasm") if engine == "wasm" else []
        pids = [server.process.pid, *[worker.pid for worker in workers]]
        before = [peak_kib(pid) for pid in pids]
        command = [sys.executable, "-c", CLIENT, server.url, language]
        client = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        output, _ = await client.communicate()
        grown = [peak_kib(pid) - size for pid, size in zip(pids, before, strict=True)]
    outcome, size, kept, client_grown = json.loads(output)
    assert (outcome, size, kept) == ("OK", SIZE, 2**20)
    assert max(client_grown, *grown) < 32 * 1024
