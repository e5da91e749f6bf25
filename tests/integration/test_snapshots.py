"""Programs on the engine `wasm` start from a snapshot of the interpreter, and share nothing through it."""

from __future__ import annotations

import asyncio
import hashlib
import resource
import stat
import threading
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import psutil
import pytest
import pytest_asyncio

from faasrt import ExecutionResult, Outcome, RuntimeManager, SandboxConfig, ServerError
from faasrt.inputs import NO_INPUT
from faasrt.local.engines.python_tiers import STANDARD_TIER
from faasrt.local.engines.wasm import engine as wasm_engine, snapshot_maker
from faasrt.local.engines.wasm.bridge import HostBridge
from faasrt.local.engines.wasm.instance import call_in_thread
from faasrt.local.engines.wasm.module_cache import module_dir
from faasrt.local.engines.wasm.program_clock import ProgramClock
from faasrt.local.engines.wasm.sandbox import Sandbox, load_files
from faasrt.local.engines.wasm.snapshot_build import snapshot_of
from faasrt.local.engines.wasm.worker import execute
from support.helpers import WASM
from support.served import until
from support.tables import block, first_of

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.usefixtures("wasm_sandbox")]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def one_worker(wasm_sandbox: None) -> AsyncIterator[RuntimeManager]:
    """Yield a manager that runs all programs in the same worker, one after another."""
    async with RuntimeManager.local(["python"], workers=1, engines=WASM) as manager:
        yield manager


def time_limit_ms(code: str) -> int:
    """Return a short time limit for an endless program, and a generous one for others."""
    return 300 if "while True" in code else 30_000


STATES = [
    ("import sys; sys.leaked = 1", "import sys; print(hasattr(sys, 'leaked'))"),
    ("import json; json.dumps = None", "import json; print(json.dumps is None)"),
    ("import builtins; builtins.leaked = 1", "print('leaked' in dir(__builtins__))"),
    ("import os; os.environ['LEAKED'] = '1'", "import os; print('LEAKED' in os.environ)"),
    ("import os; os.chdir('/usr/local/lib')", "import os; print(os.getcwd() != '/')"),
    ("import sys; sys.setrecursionlimit(50)", "import sys; print(sys.getrecursionlimit() != 1000)"),
    (
        block("""
            import ctypes
            ctypes.memset(id(1), 0, 8)
        """),
        "print(1 != 1)",
    ),
    ("import decimal; decimal.getcontext().prec = 3", "import decimal; print(decimal.getcontext().prec != 28)"),
    ("import random; random.seed(1)", "import random; print(random.random() == 0.13436424411240122)"),
]


ENDINGS = ["", "\nimport os; os._exit(0)", "\nwhile True: pass", "\n1 / 0"]
# Without `pytest -m tables`, each program has one of the endings.
CHANGES = [
    pytest.param(*state, ending, marks=() if number % len(ENDINGS) == at else pytest.mark.tables)
    for number, state in enumerate(STATES)
    for at, ending in enumerate(ENDINGS)
]


@pytest.mark.parametrize(("first", "second", "ending"), CHANGES)
async def test_a_program_changes_nothing_for_the_next(
    one_worker: RuntimeManager, first: str, second: str, ending: str
) -> None:
    """However the first program ends, the next one in the same worker finds a fresh interpreter."""
    await one_worker.run_code(first + ending, "python", timeout_ms=time_limit_ms(ending))
    result = await one_worker.run_code(second, "python")
    assert result.stdout == "False\n", result


HOSTILE = [
    "import os; os.abort()",
    "while True: pass",
    "print('x' * 10**8)",
    "x = bytearray(10**9)",
    block("""
        import sys; sys.setrecursionlimit(10**9)
        def f(): f()
        f()
    """),
    block("""
        import ctypes
        for page in range(0, 2**25, 4096): ctypes.memset(page, 1, 4096)
    """),
    block("""
        chained = None
        for _ in range(500_000): chained = [chained]
    """),
]


async def test_hostile_programs_do_not_change_the_snapshot(one_worker: RuntimeManager) -> None:
    """After crashes, endless loops, floods and much memory, the file is the same, and programs still run."""
    path = snapshot_of(module_dir(), STANDARD_TIER)
    status, digest = path.stat(), hashlib.sha256(path.read_bytes()).digest()
    assert stat.S_IMODE(status.st_mode) == 0o600
    for code in HOSTILE:
        await one_worker.run_code(code, "python", timeout_ms=time_limit_ms(code))
    assert (await one_worker.run_code("print(1)", "python")).stdout == "1\n"
    assert (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).digest()) == (status.st_mtime_ns, digest)


RECURSIONS = {
    "lru_cache": block("""
        import functools
        @functools.lru_cache(None)
        def f(n): return n and 1 + f(n - 1)
        f(DEPTH)
    """),
    "map": block("""
        def f(n): return list(map(f, [n + 1]))
        f(0)
    """),
    "sorted": block("""
        def f(n): return sorted([n], key=f)
        f(0)
    """),
    "str": block("""
        class A:
            def __str__(self): return str(self)
        str(A())
    """),
    "getattr": block("""
        class A:
            def __getattr__(self, name): return getattr(self, name)
        A().x
    """),
    "partial": block("""
        import functools
        def f(): return g()
        g = functools.partial(f)
        g()
    """),
    "isinstance": block("""
        class M(type):
            def __instancecheck__(c, o): return isinstance(o, c)
        class A(metaclass=M): pass
        isinstance(1, A)
    """),
    "pickle": block("""
        import pickle
        a = []
        for _ in range(200_000): a = [a]
        pickle.dumps(a)
    """),
    "eval": block("""
        code = compile('f()', 'f', 'eval')
        def f(): return eval(code)
        f()
    """),
}


async def test_a_cached_function_recurses_10_000_times(local_wasm: RuntimeManager) -> None:
    """CPython's own limit, of 128 KiB of stack, ends at 205."""
    code = (
        f"import sys; sys.setrecursionlimit(10**6)\n{RECURSIONS['lru_cache'].replace('DEPTH', '10_000')}\nprint(f(9))"
    )
    assert (await local_wasm.run_code(code, "python")).stdout == "9\n"


@pytest.mark.parametrize("name", RECURSIONS)
async def test_a_deeper_recursion_is_an_error_that_can_be_caught(local_wasm: RuntimeManager, name: str) -> None:
    """The result is a RecursionError, not a trap, and the program goes on."""
    lines = RECURSIONS[name].replace("DEPTH", "10**6").replace("\n", "\n    ")
    code = f"import sys; sys.setrecursionlimit(10**8)\ntry:\n    {lines}\nexcept RecursionError as e: print(e)"
    result = await local_wasm.run_code(code, "python", sandbox=SandboxConfig(memory_limit_mb=512))
    assert (result.outcome, result.stdout[:14]) == (Outcome.OK, "Stack overflow"), result


async def test_a_lack_of_memory_of_the_system_is_not_a_verdict(one_worker: RuntimeManager) -> None:
    """The memory of a program cannot grow although it is below its limit. The next program has a new process."""
    result = await one_worker.run_code("print(1)", "python")
    failure = None
    while failure is None:
        pid = int(result.metadata["instance_id"].rpartition("-")[2])
        # Enough for the snapshot, and not for the program.
        data_bytes = psutil.Process(pid).memory_full_info().data + 60 * 2**20
        resource.prlimit(pid, resource.RLIMIT_DATA, (data_bytes, data_bytes))
        try:
            result = await one_worker.run_code("x = bytearray(120 * 2**20)", "python")
        except ServerError as error:
            failure = str(error)
        else:
            # The process needed more than this to begin, so another one ran the program.
            assert not result.metadata["instance_id"].endswith(f"-{pid}"), result
    assert "short of memory" in failure
    assert (await one_worker.run_code("print(len(bytearray(120 * 2**20)))", "python")).stdout == "125829120\n"


async def test_modules_of_a_program_replace_imported_ones(local_wasm: RuntimeManager) -> None:
    """A file of a program wins over the module of the same name that the snapshot has imported."""
    code = "import random, os; print(random.own, os.getcwd(), os.path.expanduser('~'))"
    result = await local_wasm.run_code(code, "python", files={"random.py": "own = 1"})
    assert result.stdout == "1 /tmp /tmp\n", result


@pytest.mark.parametrize("files", first_of([{}, {"given.txt": ""}]), ids=["without files", "with files"])
async def test_matplotlib_plots(local_wasm: RuntimeManager, files: dict[str, str]) -> None:
    """It has a folder in memory for its configuration, which ends with the program."""
    code = """
import io, os, matplotlib.pyplot as plt
open('/tmp/mine', 'w')
plt.plot([1, 2])
image = io.BytesIO()
plt.savefig(image)
print(image.getvalue()[:4])
"""
    look = "import os; print(os.path.exists('/tmp'), os.path.exists('/tmp/mine'))  # matplotlib"
    sandbox = SandboxConfig(memory_limit_mb=512)
    for program, stdout in ((code, "b'\\x89PNG'\n"), *[(look, "True False\n")] * 2):  # in both workers
        result = await local_wasm.run_code(program, "python", files=files, sandbox=sandbox)
        assert (result.stdout, result.files) == (stdout, {}), result


SAME = [
    block("""
        print('hi', end='')
        import sys; sys.stderr.write('err')
    """),
    "1 / 0",
    "def f(:",
    "import sys; sys.exit(3)",
    "exit('bye')",
    "import atexit; atexit.register(print, 'end')",
    block("""
        class A:
            def __del__(self): print('gone')
        a = A()
    """),
    block("""
        import asyncio
        async def f(): await asyncio.sleep(0); print('x')
        asyncio.run(f())
    """),
    "import sys; print(sys.argv, sys.path, sys.flags, exit, quit, __name__, __file__)",
    "import os; print(sorted(os.environ), os.getcwd())",
    "return_val('x' * 10)",
    "import os; os._exit(4)",
    "print(*sorted(globals()))",
    "import warnings; warnings.warn('careful')",
    "x = bytearray(10**9)",
    "open('/tmp/x', 'w')",
]


@pytest.mark.parametrize("code", SAME)
async def test_without_a_snapshot_the_results_are_the_same(local_wasm: RuntimeManager, code: str) -> None:
    """Where snapshots do not work, each program starts the interpreter anew."""
    limits = {"timeout_ms": 60_000, "memory_limit_mb": 128, "max_output_bytes": 10_000, "kept_bytes": 10_000}
    job = {**limits, "code": code, "check": False, "input": NO_INPUT.to_wire()}
    bridge = HostBridge(job, threading.Event(), ProgramClock(60), on_begin=lambda: None)

    def run_anew() -> dict[str, object]:
        files = attrs.evolve(load_files(module_dir()), snapshot=None)
        return execute(bridge, Sandbox(files, lambda tier: None))

    anew = await asyncio.to_thread(call_in_thread, run_anew)
    result = await local_wasm.run_code(code, "python")
    assert _summary(result) == (
        anew["outcome"],
        anew["stdout"],
        anew["stderr"],
        anew["ret_val"],
        getattr(anew.get("error"), "message", None),
    )


def _summary(result: ExecutionResult) -> tuple[object, ...]:
    # The server adds the error of a limit.
    message = result.error.message if result.error and result.outcome is not Outcome.MEMORY_LIMIT else None
    return result.outcome, result.stdout, result.stderr, result.ret_val, message


def patch_workers(monkeypatch: pytest.MonkeyPatch, statements: str) -> None:
    """Let workers execute statements before they open the sandbox. `s` is the module of the sandbox."""
    before = f"\nfrom faasrt.local.engines.wasm import sandbox as s\n{statements}\n"
    monkeypatch.setattr(wasm_engine, "BOOT", wasm_engine.BOOT.replace("from ", f"{before}from ", 1))


async def test_without_a_snapshot_a_worker_is_confined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If no snapshot can be made, this is logged once. Confined by the kernel, a worker can still run programs, with
    stdin and files too.
    """
    patch_workers(
        monkeypatch,
        block("""
            if 'snapshot' in sys.argv[1]: sys.exit('no luck')
            s.open_snapshot = lambda path: None
        """),
    )
    for module in (wasm_engine, snapshot_maker):
        monkeypatch.setattr(module, "snapshot_of", lambda *arguments: tmp_path / "missing")
    code = "import colorsys; print(hasattr(__import__('_reactor'), 'faasrt'), input(), *open('given'))"
    async with RuntimeManager.local(["python"], workers=1, engines=WASM) as manager:
        for _ in range(2):
            result = await manager.run_code(code, "python", stdin="in", files={"given": "file"})
            assert (result.stdout, result.metadata["level"]) == ("False in file\n", "confined"), result
    lines = [record.getMessage() for record in caplog.records if "snapshot" in record.getMessage()]
    assert lines == [
        "the engine wasm: programs start slowly, because no snapshot of the sandbox could be made: no luck"
    ]


async def test_a_worker_that_has_compiled_the_sandbox_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compilation has started threads, which Landlock would not restrict. The second time, it is in the cache."""
    compiled = """
import os
def load(*args, original=s.load_module, **options):
    engine, module, _ = original(*args, **options)
    is_new = "COMPILED" not in os.environ
    os.environ["COMPILED"] = "yes"
    return engine, module, is_new
s.load_module = load
"""
    patch_workers(monkeypatch, compiled)
    async with RuntimeManager.local(["python"], workers=1, engines=WASM) as manager:
        result = await manager.run_code("print(1)", "python")
    assert (result.stdout, result.metadata["level"]) == ("1\n", "confined")


async def test_a_damaged_snapshot_of_a_package_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker may not change the folder, so it tells the engine. The program runs without the snapshot."""
    path = module_dir() / f"snapshot-damaged-{uuid.uuid4()}.image"
    find = "lambda folder, tier, find=s.snapshot_of: folder / name if tier == 'numpy' else find(folder, tier)"
    patch_workers(monkeypatch, f"name = {path.name!r}\ns.snapshot_of = {find}")
    monkeypatch.setattr(
        wasm_engine, "snapshot_of", lambda folder, tier: path if tier == "numpy" else snapshot_of(folder, tier)
    )
    async with RuntimeManager.local(["python"], workers=1, engines=WASM) as manager:
        await manager.get_runtime("python")
        path.touch(mode=0o600)
        try:
            result = await manager.run_code("print('numpy')", "python")
            await until(lambda: not path.exists())
        finally:
            path.unlink(missing_ok=True)
    assert (result.stdout, result.metadata["level"]) == ("numpy\n", "confined"), result
