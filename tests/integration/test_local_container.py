"""A container without namespaces: which engines run in it, at which level, and what the server says about it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest

from faasrt import Outcome
from support.threats import CONTAINER, OTHER_UID, place_at, python_as

pytestmark = pytest.mark.usefixtures("wasm_sandbox")

SERVE = "import sys; from faasrt.cli.main import main; sys.argv = ['faasrt', *sys.argv[1:]]; sys.exit(main())"


@pytest.mark.parametrize("uid", [None, OTHER_UID])
async def test_deno_runs_at_the_lower_level(uid: int | None) -> None:
    """JavaScript and TypeScript run without namespaces, for root and for other users."""
    async with place_at(("container", uid), "js", "ts") as place:
        for language in ("js", "ts"):
            result = await place.run("return_val(Deno.pid > 0); console.log(process.platform)", language)
            assert (result.outcome, result.stdout, result.ret_val) == (Outcome.OK, "linux\n", "true"), result
            assert (result.metadata["engine"], result.metadata["level"]) == ("deno", "filters")
        looks = [
            await place.run(
                f"try {{ Deno.statSync('{path}') }} catch (e) {{ console.log(e.name, e.message.length) }}", "js"
            )
            for path in ("/etc/passwd", "/etc/passwx")
        ]
        assert looks[0].stdout == looks[1].stdout != ""


async def test_python_falls_back_to_webassembly() -> None:
    """The native engine needs namespaces. /health names the engine and the level, and why it is not higher."""
    async with place_at(("container", None), "js", "python") as place:
        result = await place.manager.run_code("import sys; print(sys.platform)", "python", 30_000)
        assert (result.stdout, result.metadata["engine"]) == ("wasi\n", "wasm")
        status = await place.manager.get_health_status()
        languages = status.endpoints[0].details["languages"]
        assert (languages["python"]["engine"], languages["javascript"]["engine"]) == ("wasm", "deno")
        assert languages["javascript"]["level"] == "filters"
        for shown in languages.values():
            assert "level namespaces" in shown["level_reason"]
            assert "unshare: Operation not permitted" in shown["level_reason"]


async def test_the_operator_can_choose_native_python() -> None:
    """With `level="filters"`, the native engine runs without namespaces when it is chosen too."""
    code = """
import asyncio
from faasrt import RuntimeManager
async def main():
    async with RuntimeManager.local(["python"], level="filters", engines={"python": "native"}) as manager:
        result = await manager.run_code("import sys; print(sys.platform)", "python")
        print(result.stdout.strip(), result.metadata["engine"], result.metadata["level"])
asyncio.run(main())
"""
    user = python_as(OTHER_UID)
    argv = [*user, str(CONTAINER), user[-1], "-c", code]
    env = {**os.environ, "PYTHONUSERBASE": sys.prefix}
    process = await asyncio.create_subprocess_exec(*argv, env=env, stdout=subprocess.PIPE)
    output, _ = await process.communicate()
    assert output == b"linux native filters\n"


@pytest.mark.parametrize("options", [{"level": "namespaces"}, {"engines": {"python": "native"}}])
async def test_a_wall_that_is_wanted_is_not_replaced(options: dict[str, object]) -> None:
    """A server with `level="namespaces"` does not start without them."""
    code = f"""
import asyncio
from faasrt.local import LocalFaaS
async def main():
    async with LocalFaaS(["python", "js"], workers=1, **{options!r}) as faas:
        await faas.wait_ready("python")
asyncio.run(main())
"""
    argv = [sys.executable, str(CONTAINER), sys.executable, "-c", code]
    process = await asyncio.create_subprocess_exec(*argv, stderr=subprocess.PIPE)
    _, errors = await process.communicate()
    assert process.returncode == 1
    assert b"unshare: Operation not permitted" in errors.splitlines()[-1]
