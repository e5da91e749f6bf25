"""The embedded FaaS in a container without namespaces: which engines run there, and at which level."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from faasrt import Outcome
from support.threats import (
    CONTAINER,
    LANDLOCKLESS,
    OTHER_UID,
    POD,
    USERS,
    host_of,
    python_as,
    python_for_all_users,
    target_at,
)

pytestmark = [pytest.mark.servers, pytest.mark.usefixtures("wasm_sandbox")]


async def run_in_container(uid: int | None, code: str) -> tuple[int | None, bytes, bytes]:
    """Run a program as a user in an emulated container. Return its exit code, stdout and stderr."""
    python = python_as(uid)
    process = await asyncio.create_subprocess_exec(
        *(*python, str(CONTAINER), python[-1], "-c", code),
        env={**os.environ, "PYTHONUSERBASE": sys.prefix},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    stdout, stderr = await process.communicate()
    return process.returncode, stdout, stderr


@pytest.mark.parametrize("uid", [None, OTHER_UID])
async def test_deno_runs_without_namespaces(uid: int | None) -> None:
    """JavaScript and TypeScript run without namespaces, if the server runs as root or as another user."""
    async with target_at(("container", uid), "js", "ts") as target:
        for language in ("js", "ts"):
            result = await target.run("return_val(Deno.pid > 0); console.log(process.platform)", language)
            assert (result.outcome, result.stdout, result.ret_val) == (Outcome.OK, "linux\n", "true"), result
            assert (result.metadata["engine"], result.metadata["level"]) == ("deno", "filters" if uid else "users")
        results = [
            await target.run(
                f"try {{ Deno.statSync('{path}') }} catch (e) {{ console.log(e.name, e.message.length) }}", "js"
            )
            for path in ("/etc/passwd", "/etc/passwx")
        ]
        assert results[0].stdout == results[1].stdout != ""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can run each program as a user of its own")
@pytest.mark.parametrize("is_readable", [True, False])
async def test_root_in_a_container_has_native_python(tmp_path: Path, is_readable: bool) -> None:
    """Each program has a uid there, so Python is native, unless other users cannot read the interpreter."""
    code = """
import asyncio, logging, sys
from faasrt import RuntimeManager
from faasrt.cli.engine_status import report_engine
logging.basicConfig(format="%(name)s: %(message)s")
async def main():
    async with RuntimeManager.local(["python"], python=sys.argv[1]) as manager:
        result = await manager.run_code("import sys, os; print(sys.platform, sys.maxsize > 2**32)", "python")
        print(result.stdout.strip(), result.metadata["engine"], result.metadata["level"])
        report_engine(manager._local.server, report=print)
        print(manager._local.server.health()["languages"]["python"]["level_reason"])
asyncio.run(main())
"""
    python = python_for_all_users()
    if not is_readable:
        tmp_path.chmod(0o700)
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "python").symlink_to(python)
        python = str(tmp_path / "bin" / "python")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(CONTAINER), sys.executable, "-c", code, python),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    printed, errors = await process.communicate()
    output = printed.decode()
    assert b"faasrt.local: the level of the jail is users: programs are separated by a uid and a folder for" in errors
    assert b"To get a higher one: for namespaces, in a container, use the options of" in errors
    if is_readable:
        assert output.startswith("linux True native users\nlevel namespaces: ")
    else:
        assert output.startswith("wasi False wasm confined\nPython runs as WebAssembly, because native programs run as")
        assert output.count("chmod o+x /") == 2  # in the report, and in /health


@pytest.mark.skipif(os.getuid() != 0, reason="only root can lack the capabilities of root")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="this test needs setpriv")
async def test_root_without_capabilities_is_told_what_to_do(tmp_path: Path) -> None:
    """`podman run --cap-drop all` allows root to make a user namespace, but not to map ids in it. No level works, which
    is known at once, and each one has a remedy. Python runs as WebAssembly.
    """
    code = f"""
import asyncio, json, pathlib
from faasrt.local.jail.level import find_level
found = asyncio.run(find_level("auto", pathlib.Path({str(tmp_path)!r})))
print(json.dumps([found.name, found.reason, found.remedy]))
"""
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", code), stdout=subprocess.PIPE
    )
    name, reason, remedy = json.loads((await process.communicate())[0])
    assert name == ""
    assert reason.count("CAP_KILL") == 2
    assert "level namespaces: the jail cannot be built: OSError: root needs the capabilities CAP_SETUID" in reason
    assert "for filters, run the server as another user than root" in remedy


async def test_python_falls_back_to_webassembly() -> None:
    """An ordinary user gets no level at which Python is native by itself. `/health` says why it is not higher."""
    code = """
import asyncio, json
from faasrt.local import LocalFaaS
async def main():
    async with LocalFaaS(["python", "js"], workers=1) as faas:
        await faas.wait_ready("js")
        print(json.dumps(faas.health()["languages"]))
asyncio.run(main())
"""
    _, output, _ = await run_in_container(OTHER_UID, code)
    languages = json.loads(output)
    assert (languages["python"]["engine"], languages["javascript"]["engine"]) == ("wasm", "deno")
    assert languages["javascript"]["level"] == "filters"
    for shown in languages.values():
        assert "level namespaces" in shown["level_reason"]
        assert "unshare: Operation not permitted" in shown["level_reason"]
        assert "for users, run the server as root with Docker's default capabilities" in shown["level_remedy"]


async def test_native_python_without_namespaces_must_be_chosen() -> None:
    """With `level="filters"` and the engine `native`, Python runs natively without namespaces."""
    code = """
import asyncio
from faasrt import RuntimeManager
async def main():
    async with RuntimeManager.local(["python"], level="filters", engines={"python": "native"}) as manager:
        result = await manager.run_code("import sys; print(sys.platform)", "python")
        print(result.stdout.strip(), result.metadata["engine"], result.metadata["level"])
asyncio.run(main())
"""
    _, output, _ = await run_in_container(OTHER_UID, code)
    assert output == b"linux native filters\n"


@pytest.mark.parametrize(
    ("level", "uid", "reason", "remedy"),
    [
        ("namespaces", None, "unshare: Operation not permitted", "use the options of `faasrt deploy containerfile`"),
        ("users", OTHER_UID, "only root can run each program as a user of its own", "run the server as root"),
    ],
)
async def test_a_level_that_was_chosen_is_not_replaced_by_another_one(
    level: str, uid: int | None, reason: str, remedy: str
) -> None:
    """A server whose level does not work does not start. The error has the reason and a remedy."""
    code = f"""
import asyncio
from faasrt.local import LocalFaaS
async def main():
    async with LocalFaaS(["python", "js"], workers=1, level={level!r}) as faas:
        await faas.wait_ready("python")
asyncio.run(main())
"""
    returncode, _, errors = await run_in_container(uid, code)
    assert returncode == 1
    last = errors.decode().splitlines()[-1]
    assert last.startswith(f"faasrt.errors.ConfigurationError: level {level}: "), last
    assert reason in last
    assert remedy in last


@pytest.mark.skipif(os.getuid() != 0, reason="only root has CAP_KILL")
async def test_root_without_the_right_to_kill_is_refused() -> None:
    """Without namespaces, programs run as another user, so root needs CAP_KILL to end them."""
    code = """
import asyncio
from faasrt.local import LocalFaaS
async def main():
    async with LocalFaaS(["js"], workers=1, level="filters") as faas:
        await faas.wait_ready("js")
asyncio.run(main())
"""
    argv = ["setpriv", "--bounding-set=-kill", "--inh-caps=-kill", sys.executable, "-c", code]
    process = await asyncio.create_subprocess_exec(*argv, stderr=subprocess.PIPE)
    _, errors = await process.communicate()
    assert process.returncode == 1
    assert b"root needs the capability CAP_KILL" in errors.splitlines()[-1]


async def test_the_level_filters_is_refused_without_landlock() -> None:
    """Without Landlock, nothing else at this level denies all access to files."""
    code = """
import asyncio
from faasrt.local import LocalFaaS
async def main():
    async with LocalFaaS(["js"], workers=1, level="filters") as faas:
        await faas.wait_ready("js")
asyncio.run(main())
"""
    argv = [sys.executable, str(LANDLOCKLESS), sys.executable, "-c", code]
    process = await asyncio.create_subprocess_exec(*argv, stderr=subprocess.PIPE)
    _, errors = await process.communicate()
    assert process.returncode == 1
    assert b"the kernel has no Landlock" in errors.splitlines()[-1]


@pytest.mark.parametrize("user", USERS)
async def test_a_pod_that_hides_parts_of_proc_has_namespaces(user: str) -> None:
    """The kernel refuses a new /proc there. Programs, sessions and JavaScript run all the same, and can open nothing in
    the /proc of the pod. A branch of a session has copies of the files that are open.
    """
    code = """
        import os, subprocess
        for path in ("/proc/self/status", "/proc/1/cmdline", "/proc/meminfo", "/proc"):
            try: print(os.listdir(path) if path == "/proc" else open(path).read())
            except PermissionError: pass
        print(os.getuid(), subprocess.check_output(["echo", "child"]), open("/dev/stdin").read())
    """
    async with host_of(user, "pod") as host:
        result = await host.manager.run_code(dedent(code), "python", stdin="given")
        assert (result.stdout, result.metadata["level"]) == ("1000 b'child\\n' given\n", "namespaces"), result
        async with host.manager.session("python") as session:
            await session.run_code("x = 1; file = open('f', 'w'); file.write('file'); file.flush()")
            branch = await session.fork()
            await branch.run_code("file.write('!'); file.flush()")
            contents = [(await one.run_code("print(x, open('f').read())")).stdout for one in (session, branch)]
            assert contents == ["1 file\n", "1 file!\n"]
    if user != USERS[0]:
        return  # that user may have no Deno
    async with host_of(user, "pod", "js") as host:
        result = await host.manager.run_code("console.log(1 + 1)", "js")
        assert (result.stdout, result.metadata["level"]) == ("2\n", "namespaces"), result


async def test_a_pod_needs_landlock_to_hide_its_proc() -> None:
    """Without Landlock, programs could read the /proc of the pod, so the level is not `namespaces`."""
    code = """
import asyncio, pathlib, tempfile
from faasrt.local.jail import level
with tempfile.TemporaryDirectory() as folder:
    asyncio.run(level.find_level("namespaces", pathlib.Path(folder)))
"""
    if os.getuid():
        pytest.skip("only root can hide parts of /proc as in a pod")
    machine = [sys.executable, str(LANDLOCKLESS), sys.executable, str(POD)]
    argv = [*machine, sys.executable, "-c", code]
    process = await asyncio.create_subprocess_exec(*argv, stderr=subprocess.PIPE)
    _, errors = await process.communicate()
    assert process.returncode == 1
    assert b"has no Landlock to hide the existing one" in errors.splitlines()[-1]
