"""Python as WebAssembly cannot reach files, the system or other programs, exceed limits or fake results of others."""

from __future__ import annotations

import asyncio
import threading
import tracemalloc
from collections.abc import AsyncIterator

import psutil
import pytest
import pytest_asyncio

import faasrt
from faasrt import Outcome, RuntimeManager, SandboxConfig
from faasrt.local.engines.wasm.bridge import HostBridge
from faasrt.local.engines.wasm.program_clock import ProgramClock
from support.helpers import WASM, until_active
from support.tables import block
from support.threats import MB, Target, environments, run_with_neighbour, sample, start_target

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.usefixtures("wasm_sandbox")]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def target(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Target]:
    async with start_target(tmp_path_factory.mktemp("traps"), "python=wasm") as target:
        yield target


def attempt(body: str) -> str:
    """Return a program that prints "reached" if its body succeeds, and "denied" if it fails."""
    lines = body.replace("\n", "\n    ")
    return f"try:\n    {lines}\nexcept BaseException as e:\n    print('denied', repr(e))\nelse:\n    print('reached')"


ABSENT, REFUSED, LACKING = "FileNotFoundError", "Error(", "has no attribute"
FILES = [
    ("print(open('PATH').read())", ABSENT),
    ("import os; os.read(os.open('PATH', os.O_RDONLY), 100)", ABSENT),
    ("import os; print(os.listdir('PATH/..'))", ABSENT),
    ("import os; print(os.listdir('/'))", ABSENT),
    ("import os; os.chdir('/tmp')", ABSENT),
    ("import os; print(os.stat('PATH'))", ABSENT),
    ("import os; print(os.readlink('PATH'))", ABSENT),
    ("import os; os.symlink('PATH', '/usr/local/lib/x')", REFUSED),
    ("import os; os.open('../' * 20 + 'PATH', os.O_RDONLY, dir_fd=3)", REFUSED),
    ("import os; os.open('lib/../../../..PATH', os.O_RDONLY, dir_fd=3)", REFUSED),
    ("import pathlib; print(pathlib.Path('/proc/self/environ').read_bytes())", ABSENT),
    ("import io; io.FileIO('PATH')", ABSENT),
    ("import sqlite3; sqlite3.connect('PATH').execute('select 1 from sqlite_master')", REFUSED),
    (
        block("""
            import linecache
            assert linecache.getlines('PATH')
        """),
        "AssertionError",
    ),
    ("import runpy; runpy.run_path('PATH')", ABSENT),
    ("import urllib.request; print(urllib.request.urlopen('file://PATH').read())", "URLError"),
    ("import numpy; print(numpy.fromfile('PATH', 'u1'))", ABSENT),
    ("import zipfile; zipfile.ZipFile('PATH')", ABSENT),
    ("import tempfile; tempfile.mkdtemp()", ABSENT),
    ("open('PATH', 'w')", ABSENT),
    ("open('/usr/local/lib/x', 'w')", "PermissionError"),
]


@pytest.mark.parametrize(("body", "words"), sample(FILES))
async def test_no_file_can_be_read_or_written(target: Target, body: str, words: str) -> None:
    """Neither a file, nor a symbolic link to it, nor a file in the server's folder can be accessed."""
    programs = [attempt(body.replace("PATH", str(path))) for path in target.canaries]
    for result in await asyncio.gather(*(target.run(code, "python") for code in programs)):
        assert (result.outcome, result.stdout.split()[0]) == (Outcome.OK, "denied"), result
        assert words in result.stdout


SYSTEM = [
    ("import socket; socket.create_connection(('127.0.0.1', TCP_PORT))", REFUSED),
    ("import socket; socket.socket().connect(('127.0.0.1', TCP_PORT))", "OSError"),
    ("import socket; socket.socket(type=2).sendto(b'x', ('127.0.0.1', UDP_PORT))", "OSError"),
    ("import socket; socket.socket(fileno=1).send(b'x')", REFUSED),
    ("import _socket; _socket.socket(2, 1).bind(('127.0.0.1', 0))", "OSError"),
    ("import socket; socket.getaddrinfo('canary.test', 80)", LACKING),
    ("import socket; socket.gethostbyname('canary.test')", LACKING),
    ("import urllib.request; urllib.request.urlopen('http://127.0.0.1:TCP_PORT')", REFUSED),
    ("import http.client; http.client.HTTPConnection('127.0.0.1', TCP_PORT).request('GET', '/')", REFUSED),
    ("import asyncio; asyncio.run(asyncio.open_connection('127.0.0.1', TCP_PORT))", REFUSED),
    ("import os; os.system('id')", LACKING),
    ("import os; os.fork()", LACKING),
    ("import os; os.execv('/bin/true', ['true'])", LACKING),
    ("import os; os.kill(1, 9)", LACKING),
    ("import os; os.popen('id').read()", REFUSED),
    ("import posix; posix.posix_spawn('/bin/true', ['true'], {})", LACKING),
    ("import subprocess; subprocess.run(['/bin/true'])", "OSError"),
    ("import multiprocessing; multiprocessing.Process(target=print).start()", LACKING),
    ("import threading; threading.Thread(target=print).start()", "can't start new thread"),
    ("import ctypes; ctypes.CDLL(None)", "unavailable"),
    ("import _ctypes", "ModuleNotFoundError"),
    (
        block("""
            import importlib.machinery as m, importlib.util as u
            u.module_from_spec(u.spec_from_loader('x', m.ExtensionFileLoader('x', '/x.so')))
        """),
        REFUSED,
    ),
    ("import signal; signal.alarm(1)", LACKING),
    ("import resource", "ModuleNotFoundError"),
    ("import pwd; pwd.getpwuid(0)", "ModuleNotFoundError"),
]


@pytest.mark.parametrize(("body", "words"), sample(SYSTEM))
async def test_the_system_cannot_be_reached(target: Target, body: str, words: str) -> None:
    """Connections, datagrams, name lookups, processes, threads and libraries are denied."""
    result = await target.run(attempt(body), "python")
    assert (result.outcome, result.stdout.split()[0]) == (Outcome.OK, "denied"), result
    assert words in result.stdout
    assert await target.sink.all_received() == []


async def test_a_program_sees_none_of_the_servers_environment(target: Target) -> None:
    """Neither the program nor its process has the server's environment variables. `network_enabled` gives a 400."""
    code = "import os, sys; print(sorted(os.environ), sys.flags.optimize, 'sitecustomize' in sys.modules)"
    result = await target.run(code, "python")
    assert result.stdout == "['HOME', 'PYTHONTZPATH', 'TMPDIR'] 0 False\n"
    assert environments(target.server, "python") <= {"TMPDIR", "LANG", "LD_LIBRARY_PATH", "LC_CTYPE"}
    with pytest.raises(faasrt.RejectedError) as caught:
        await target.run("1", "python", network_enabled=True)
    assert caught.value.status == 400


STATES = [
    ("import builtins; builtins.spy = builtins.print = 1", "'spy' in dir(__builtins__)"),
    ("import sys, types; sys.modules['spy'] = types.ModuleType('spy'); sys.path.append('spy')", "'spy' in sys.modules"),
    ("import json; json.spy = 1; json.dumps = None", "hasattr(json, 'spy') or json.dumps is None"),
    ("import numpy; numpy.spy = 1", "hasattr(__import__('numpy'), 'spy')"),
    ("import linecache; linecache.cache['spy'] = 1", "'spy' in __import__('linecache').cache"),
    ("import os; os.environ['SPY'] = '1'", "'SPY' in __import__('os').environ"),
    ("import sys; sys.setrecursionlimit(77); sys.settrace(print)", "sys.getrecursionlimit() == 77 or sys.gettrace()"),
    ("import _host; _host.spy = 1", "hasattr(__import__('_host'), 'spy')"),
    (
        "import sqlite3; sqlite3.connect('file:spy?mode=memory&cache=shared', uri=True).execute('create table spy(a)')",
        "'spy' in str(__import__('sqlite3').connect('file:spy?mode=memory&cache=shared', uri=True)"
        ".execute('select name from sqlite_master').fetchall())",
    ),
    ("import decimal; decimal.getcontext().prec = 3", "__import__('decimal').getcontext().prec == 3"),
    ("import random; random.seed(5)", "__import__('random').random() == 0.6229016948897019"),
]


@pytest.mark.parametrize(("leave", "look"), sample(STATES))
async def test_a_program_leaves_nothing_for_other_programs(local_wasm: RuntimeManager, leave: str, look: str) -> None:
    """Neither a program at the same time nor later ones, in both workers, see its changes."""
    look = f"import json, sys; print(bool({look}))"
    left, beside = await asyncio.gather(local_wasm.run_code(leave, "python"), local_wasm.run_code(look, "python"))
    after = await asyncio.gather(*(local_wasm.run_code(look, "python") for _ in range(2)))
    assert left.outcome is Outcome.OK, left
    assert {result.stdout for result in (beside, *after)} == {"False\n"}


MEMORY = [
    "x = bytearray(10**9)",
    block("""
        x = []
        while True: x.append(bytes(10**6))
    """),
    block("""
        x = [0]
        while True: x += x
    """),
    block("""
        x = 'a'
        while True: x += x
    """),
    "x = 1 << 10**10",
    block("""
        x = {}
        while True: x[len(x)] = [len(x)]
    """),
    block("""
        x = ()
        while True: x = (x, [0] * 1000)
    """),
    block("""
        def f(x): return f([x] * 1000)
        import sys; sys.setrecursionlimit(10**6); f(0)
    """),
    "import numpy; x = [numpy.ones(10**6) for _ in range(10**6)]",
    "import numpy; numpy.arange(10**7).reshape(-1, 1) @ numpy.ones((1, 10**7))",
    "import re; re.compile('(a{1,1000}b){1,1000}' * 10**5)",
    "import zlib; d = zlib.decompressobj(); x = d.decompress(zlib.compress(bytes(3 * 10**7)) * 9) * 9",
    "import itertools; x = list(itertools.count())",
    "print('{:>1000000000}'.format(1))",
    block("""
        import sqlite3; d = sqlite3.connect(':memory:'); d.execute('create table t(a)')
        while True: d.execute('insert into t values (randomblob(10000000))')
    """),
    block("""
        import gc; gc.disable()
        while True:
            x = [0] * 1000; x.append(x)
    """),
    block("""
        x = 'return_val'
        while True: return_val(x); x += x
    """),
]


ERRORS = ("MemoryError", "_ArrayMemoryError", "OverflowError", "RecursionError", "DatabaseError")


@pytest.mark.parametrize("code", sample(MEMORY))
async def test_memory_of_webassembly_is_limited(local_wasm: RuntimeManager, code: str) -> None:
    """A program ends at the limit or with an error that it could catch. Another program runs meanwhile."""
    result, most = await run_with_neighbour(local_wasm, code, "python")
    assert result.outcome in (Outcome.MEMORY_LIMIT, Outcome.USER_ERROR, Outcome.OUTPUT_LIMIT), result
    if result.outcome is Outcome.USER_ERROR:
        assert result.error is not None
        assert result.error.name in ERRORS, result
    assert most < (64 + 256) * MB


TIME = [
    "while True: pass",
    "import time; time.sleep(10**9)",
    block("""
        import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True: pass
    """),
    "import re; re.match('(a|a)*$', 'a' * 100 + 'b')",
    "7 ** 10**8",
    "int('9' * 10**7) if __import__('sys').set_int_max_str_digits(0) is None else 0",
    "sum(range(10**15))",
    block("""
        import numpy
        x = numpy.ones((500, 500))
        while True: numpy.linalg.svd(x)
    """),
    "import asyncio; asyncio.run(asyncio.sleep(10**6))",
    "import select; select.select([0], [], [], 10**6) and select.select([], [], [], 10**6)",
    block("""
        try:
            while True: pass
        except BaseException:
            while True: pass
    """),
    block("""
        import atexit
        @atexit.register
        def f():
            while True: pass
    """),
    block("""
        class A:
            def __del__(self):
                while True: pass
        a = A()
    """),
    block("""
        class E(Exception):
            def __str__(self):
                while True: pass
        raise E
    """),
    block("""
        import sys
        class W:
            def flush(self):
                while True: pass
        sys.stdout = W()
    """),
    block("""
        import _host
        _host.call(b'done')
        while True: _host.call(b'exit0')
    """),
]


@pytest.mark.parametrize("code", sample(TIME))
async def test_webassembly_is_stopped_at_its_time_limit(local_wasm: RuntimeManager, code: str) -> None:
    """Exception handlers and exit handlers cannot delay it, and its worker runs the next program."""
    result = await local_wasm.run_code(code, "python", 200)
    assert result.outcome is Outcome.TIMEOUT, result
    await until_active(local_wasm, "python", 0)
    results = await asyncio.gather(*(local_wasm.run_code("print(1)", "python") for _ in range(2)))
    assert [result.stdout for result in results] == ["1\n"] * 2


OUTPUT = [
    ("while True: print('x' * 1000)", "stdout"),
    (
        block("""
            import sys
            while True: sys.stderr.write('x' * 1000)
        """),
        "stderr",
    ),
    (
        block("""
            import os
            while True: os.write(1, b'x' * 1000)
        """),
        "stdout",
    ),
    (
        block("""
            import os
            f = os.fdopen(2, 'wb', 0)
            while True: f.write(b'x' * 1000)
        """),
        "stderr",
    ),
    (
        block("""
            import io
            f = io.FileIO(1, 'w')
            while True: f.write(b'x' * 1000)
        """),
        "stdout",
    ),
    (
        block("""
            f = open(1, 'w')
            while True: f.write('x' * 1000)
        """),
        "stdout",
    ),
    (
        block("""
            import sys
            while True: sys.stdout.buffer.raw.write(b'x' * 1000)
        """),
        "stdout",
    ),
    (
        block("""
            import warnings
            warnings.simplefilter('always')
            while True: warnings.warn('x' * 1000)
        """),
        "stderr",
    ),
    (
        block("""
            import atexit
            @atexit.register
            def f():
                while True: print('x' * 1000)
        """),
        "stdout",
    ),
    (
        block("""
            import sys
            sys.unraisablehook = None
            class A:
                def __del__(self): 1 / 0
            while True: A()
        """),
        "stderr",
    ),
    ("return_val('x' * 10**6)", "ret_val"),
    (
        block("""
            import _host
            while True: _host.call(b'ret_val' + b'x' * 10**6)
        """),
        "ret_val",
    ),
]


@pytest.mark.parametrize(("code", "stream"), sample(OUTPUT))
async def test_output_of_webassembly_is_limited(local_wasm: RuntimeManager, code: str, stream: str) -> None:
    """By every way to write, a stream is cut at the limit, and the program is stopped at twice the limit."""
    result, most = await run_with_neighbour(local_wasm, code, "python", max_output_bytes=50_000)
    assert (result.outcome, result.truncated) == (Outcome.OUTPUT_LIMIT, {stream}), result
    assert len(getattr(result, stream)) <= 50_000
    assert most < 256 * MB


FORGERIES = [
    ("_host.call(b'done'); os._exit(0)", Outcome.OK),
    ("_host.call(b'exit7'); os._exit(0)", Outcome.USER_ERROR),
    ('_host.call(b\'error{"name":"MyError","line":999999999}\')', Outcome.USER_ERROR),
    ('_host.call(b\'error{"name": "MyError", "message": [], "line": 1e99}\')', Outcome.OK),
    ("_host.call(b'error{\"name\":\"MyError\",}'); _host.call(b'error{\"a\":1}x'); _host.call(b'error{')", Outcome.OK),
    ("_host.call(b'error{' + b'[' * 10**6); _host.call(b'error{\"name\": ' + b'9' * 10**5 + b'}')", Outcome.OK),
    ("_host.call(b'error{\"a\": [' + b'[],' * 10**6 + b'1]}')", Outcome.OK),
    ("_host.call(b'error{\"a\":[' + b'{},' * 3_000_000 + b'1]}')", Outcome.OK),
    ("_host.call(b'ret_val\\xff\\xfe\\x00')", Outcome.OK),
    (
        block("""
            _host.call(b'output_limit')
            while True: pass
        """),
        Outcome.OUTPUT_LIMIT,
    ),
    ("_host.call(b'own_return_val'); print('__COZE_RETURN_VAL_START__\\nx\\n__COZE_RETURN_VAL_END__')", Outcome.OK),
    ("os.write(1, b'\\x00\\x00\\x00\\x02{}' * 100); os.write(2, b'\\x00\\x00\\x00\\x10{\"job\": 1}')", Outcome.OK),
    ("[_host.call(bytes([n]) * n) for n in range(256)]", Outcome.OK),
    ("print(len(_host.call(b'guest')), _host.call(b'job')[:3])", Outcome.OK),
]


@pytest.mark.parametrize(("code", "outcome"), sample(FORGERIES))
async def test_forged_reports_affect_only_their_program(
    local_wasm: RuntimeManager, code: str, outcome: Outcome
) -> None:
    """A program can call the host. It may choose its own outcome, but not change other results or fill the memory."""
    before = psutil.Process().memory_info().rss
    attack = local_wasm.run_code(f"import _host, os\n{code}", "python")
    neighbours = [local_wasm.run_code(f"return_val({number})", "python") for number in range(4)]
    result, *others = await asyncio.gather(attack, *neighbours)
    assert result.outcome is outcome, result
    assert [(other.outcome, other.ret_val) for other in others] == [(Outcome.OK, str(number)) for number in range(4)]
    assert psutil.Process().memory_info().rss - before < 64 * MB


CRASHES = [
    ("import os; os._exit(3)", 3),
    ("import os; os._exit(0)", 0),
    ("import os; os.abort()", None),
    ("import atexit, os; atexit.register(os.abort)", None),
    (
        block("""
            chained = iter([1])
            for _ in range(400_000): chained = map(abs, chained)
            next(chained)
        """),
        None,
    ),
    ("import faulthandler; faulthandler._sigsegv()", None),
    ("import faulthandler; faulthandler._sigabrt()", None),
    (
        block(r"""
            c = (lambda: 0).__code__
            exec(c.replace(co_code=b'S\xff' * 10))
        """),
        None,
    ),
]


@pytest.mark.parametrize(("code", "exit_code"), sample(CRASHES))
async def test_a_crash_of_webassembly_is_an_outcome(
    local_wasm: RuntimeManager, code: str, exit_code: int | None
) -> None:
    """However the interpreter ends or traps, the outcome is CRASHED, and the call does not raise ServerError."""
    result = await local_wasm.run_code(f"print('before')\n{code}", "python")
    assert (result.outcome, result.exit_code, result.stdout) == (Outcome.CRASHED, exit_code, "before\n"), result


async def test_crashes_of_webassembly_leak_nothing() -> None:
    """The same worker continues after each crash, and the number of descriptors does not grow.

    The server has one worker, because one of several could be stopped for lack of demand.
    """
    async with RuntimeManager.local(["python"], workers=1, engines=WASM) as manager:
        workers = {(await manager.run_code("1", "python")).metadata["instance_id"]}
        fds = psutil.Process().num_fds()
        for code, _ in CRASHES[:3] * 7:
            result = await manager.run_code(code, "python")
            assert result.outcome is Outcome.CRASHED
            workers.add(result.metadata["instance_id"])
        result = await manager.run_code("print(1)", "python")
        workers.add(result.metadata["instance_id"])
        assert (result.stdout, len(workers)) == ("1\n", 1)
        assert psutil.Process().num_fds() <= fds + 10


async def test_open_files_are_flushed_at_the_end(local_wasm: RuntimeManager) -> None:
    """The sandbox's own shutdown flushes open files, and calls no function that the program has replaced."""
    held = block("""
        f = open(1, 'w', closefd=False); f.write('held')
        def g(): f
    """)
    assert (await local_wasm.run_code(held, "python")).stdout == "held"
    replaced = "import atexit, gc; gc.collect = atexit._run_exitfuncs = lambda *a: print('mine')"
    result = await local_wasm.run_code(replaced, "python", sandbox=SandboxConfig())
    assert (result.outcome, result.stdout) == (Outcome.OK, "")


async def test_a_forged_report_is_refused_before_parsing() -> None:
    """A report in another form than the guest program's costs no memory."""
    limit = 1_048_576
    report = b'error{"a":[' + b"{}," * 3_000_000 + b"1]}"
    own = (
        b'error{"phase":"run","name":"E","message":"\\"' + b"x" * limit + b'","traceback":"","line":null,"column":null}'
    )
    bridge = HostBridge({"max_output_bytes": limit}, threading.Event(), ProgramClock(60), on_begin=lambda: None)
    tracemalloc.start()
    try:
        bridge(report)
        assert bridge.error is None
        assert tracemalloc.get_traced_memory()[1] < MB
        bridge(own)
    finally:
        tracemalloc.stop()
    fields = bridge.error
    assert fields is not None
    assert (fields["error"].name, fields["line"], fields["error"].message[:3]) == ("E", None, '"xx')


OUT_OF_BOUNDS = "a = np.lib.stride_tricks.as_strided(np.zeros(1), shape=(2,), strides=(2**30,)); a[1] = 1"


@pytest.mark.parametrize(
    "code",
    [
        f"import numpy as np\n{OUT_OF_BOUNDS}",
        f"import numpy as np\ntry:\n    bytearray(10**9)\nexcept MemoryError: pass\n{OUT_OF_BOUNDS}",
    ],
    ids=["at once", "after a MemoryError"],
)
async def test_an_access_out_of_bounds_is_a_crash(local_wasm: RuntimeManager, code: str) -> None:
    """If memory is left, an access beyond the end of the memory gives CRASHED, not MEMORY_LIMIT."""
    result = await local_wasm.run_code(f"print('before')\n{code}", "python")
    assert (result.outcome, result.stdout) == (Outcome.CRASHED, "before\n"), result
    assert result.error is not None
    assert result.error.message == "memory out of bounds"


@pytest.mark.parametrize(
    "code",
    [
        block("""
            x = []
            try:
                while True: x.append(iter([1]))
            except MemoryError: pass
        """),
        block("""
            import threading
            x = []
            try:
                while True: x.append(threading.Lock())
            except MemoryError: pass
        """),
        block("""
            import gc; gc.disable()
            while True:
                x = [0] * 1000; x.append(x)
        """),
    ],
)
async def test_a_failure_without_memory_is_memory_limit(local_wasm: RuntimeManager, code: str) -> None:
    """CPython may crash when memory is refused. The outcome is MEMORY_LIMIT all the same."""
    result = await local_wasm.run_code(code, "python", 20_000, sandbox=SandboxConfig(memory_limit_mb=48))
    assert result.outcome is Outcome.MEMORY_LIMIT, result
