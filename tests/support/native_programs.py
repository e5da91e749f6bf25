"""The programs that run on the engine `native` and with `python -I`, and those whose results differ by design.

See test_native_programs.py.
"""

from __future__ import annotations

from support.tables import block

# How a program ends: exit codes, exceptions, shutdown order.
EXITS = {
    "exit -2 ** 31": "raise SystemExit(-2 ** 31)",
    "exit by a subclass": """
        class Leave(SystemExit):
            pass
        raise Leave(4)
    """,
    "exit in a finally": """
        import sys
        try:
            1 / 0
        finally:
            sys.exit(6)
    """,
    "exit code after a thread": """
        import sys, threading
        started = threading.Event()
        def work():
            started.wait()
            print('thread ends')
        threading.Thread(target=work).start()
        print('main ends')
        started.set()
        sys.exit(9)
    """,
    "os._exit 0": """
        import os
        print('kept', flush=True)
        os._exit(0)
    """,
}
ERRORS = {
    "chained": """
        try:
            {}['a']
        except KeyError as e:
            raise RuntimeError('outer') from e
    """,
    "from None": """
        try:
            1 / 0
        except ZeroDivisionError:
            raise ValueError('only this') from None
    """,
    "null byte": "print(1)\x00",
    "return outside": """
        print('never')
        return 5
    """,
    "duplicate argument": "def f(a, a): pass",
    "recursion": """
        def f(n):
            return f(n + 1)
        f(0)
    """,
    "recursion over two functions": """
        def f(n):
            return g(n)
        def g(n):
            return f(n)
        f(0)
    """,
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "KeyboardInterrupt with a text": "raise KeyboardInterrupt('stop')",
    "SIGINT to itself": """
        import os, signal
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(10**9): pass
    """,
    "module and qualname": """
        class A:
            class E(Exception):
                pass
        raise A.E('x')
    """,
    "BaseException": "raise BaseException('x')",
    "surrogate in a message": "raise ValueError('\\ud800 é \\x00')",
    "no newline at the end": """
        def f():
            raise ValueError
        f()
    """,
    "in a lambda": """
        f = lambda x: (
            1
            / x
        )
        f(0)
    """,
    "in exec": "exec(compile('def f():\\n    1 / 0\\nf()', 'made.py', 'exec'))",
    "in a callback of C": "sorted([2, 1], key=lambda x: x.nope)",
    "AttributeError suggests": """
        import math
        math.squrt
    """,
    "UnboundLocalError": """
        def f():
            print(x)
            x = 1
        f()
    """,
    "traceback printed": """
        import traceback
        def f():
            1 / 0
        try:
            f()
        except Exception:
            traceback.print_exc()
            traceback.print_stack()
    """,
    "traceback extracted": """
        import traceback, sys
        try:
            1 / 0
        except Exception as e:
            print(traceback.extract_tb(e.__traceback__))
            print(sys.exc_info()[2].tb_frame.f_back)
    """,
    "logging of an error": """
        import logging
        try:
            1 / 0
        except ZeroDivisionError:
            logging.exception('failed')
    """,
    "excepthook does not see an exit": """
        import sys
        sys.excepthook = print
        sys.exit(3)
    """,
    "tracebacklimit": """
        import sys
        sys.tracebacklimit = 1
        def f():
            1 / 0
        f()
    """,
    "stderr replaced": """
        import sys, io
        sys.stderr = io.StringIO()
        1 / 0
    """,
    "warning": """
        import warnings
        warnings.warn('careful')
        warnings.warn('old', DeprecationWarning)
        warnings.warn('more', stacklevel=2)
    """,
}
SHUTDOWN = {
    "atexit after an exit": """
        import atexit, sys
        atexit.register(print, 'bye')
        sys.exit(3)
    """,
    "atexit fails": """
        import atexit
        atexit.register(lambda: 1 / 0)
        atexit.register(print, 'x')
    """,
    "atexit exits": """
        import atexit, sys
        atexit.register(sys.exit, 5)
        print('x')
    """,
    "atexit exits with a text": """
        import atexit, sys
        atexit.register(sys.exit, 'text')
        print('x')
    """,
    "atexit after threads": """
        import atexit, threading
        event = threading.Event()
        atexit.register(print, 'at exit')
        def work():
            event.wait()
            print('thread')
        threading.Thread(target=work).start()
        event.set()
    """,
    "thread that starts a thread": """
        import threading
        def first():
            threading.Thread(target=print, args=('second',)).start()
        threading.Thread(target=first).start()
    """,
    "queue of a daemon": """
        import queue, threading
        jobs = queue.Queue()
        def work():
            while True:
                print(jobs.get())
                jobs.task_done()
        threading.Thread(target=work, daemon=True).start()
        for n in range(3):
            jobs.put(n)
        jobs.join()
    """,
    "order of __del__": """
        class A:
            def __init__(self, name):
                self.name = name
            def __del__(self):
                print('gone', self.name)
        first, _second, third = A('first'), A('_second'), A('third')
        __dunder = A('__dunder')
        first2 = A('first2')
        _x = A('_x')
    """,
    "__del__ in a cycle": """
        class A:
            def __del__(self):
                print('gone')
        a = A()
        a.a = a
        del a
        print('main')
    """,
    "__del__ of a local after an error": """
        class A:
            def __del__(self):
                print('gone')
        def f():
            a = A()
            1 / 0
        f()
    """,
    "__del__ fails at the end": """
        class A:
            def __del__(self):
                raise ValueError('late')
        a = A()
    """,
    "__del__ on builtins": """
        import builtins
        class A:
            def __del__(self):
                print('gone')
        builtins.a = A()
    """,
    "__del__ on a known module": """
        import json
        class A:
            def __del__(self):
                print('gone')
        json.a = A()
    """,
    "weakref callback": """
        import weakref
        class A:
            pass
        a = A()
        r = weakref.ref(a, lambda r: print('callback'))
        del a
        print('main')
    """,
    "context left open": """
        import contextlib
        @contextlib.contextmanager
        def c():
            try:
                yield
            finally:
                print('left')
        m = c()
        m.__enter__()
        print('main')
    """,
    "task left pending": """
        import asyncio
        async def wait():
            await asyncio.get_running_loop().create_future()
        loop = asyncio.new_event_loop()
        async def main():
            return loop.create_task(wait())
        task = loop.run_until_complete(main())
        print('end')
    """,
    "file left open": """
        import atexit
        f = open('out', 'w')
        f.write('text')
        atexit.register(lambda: print(repr(open('out').read())))
    """,
    "file flushed at the end": """
        import os, sys
        pid = os.fork()
        if pid == 0:
            f = open('out', 'w')
            f.write('text')
            sys.exit()
        os.waitpid(pid, 0)
        print(repr(open('out').read()))
    """,
    "stdout closed": """
        import sys
        print('before')
        sys.stdout.close()
    """,
    "descriptor 1 closed": """
        import os
        print('lost')
        os.close(1)
    """,
    "stdout is full": """
        import os, sys
        os.dup2(os.open('/dev/full', os.O_WRONLY), 1)
        print('x')
    """,
}

# The system: threads, processes, files, signals, sockets.
THREADS = {
    "locals of threads": """
        import threading
        d = threading.local()
        d.x = 1
        def f():
            print(hasattr(d, 'x'))
        t = threading.Thread(target=f)
        t.start()
        t.join()
    """,
    "thread pool": """
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(8) as p:
            print(sum(p.map(lambda x: x * x, range(1000))))
    """,
}
PROCESSES = {
    "subprocess in a session of its own": """
        import os, signal, subprocess
        for options in ({'start_new_session': True}, {'preexec_fn': os.setsid}, {'preexec_fn': lambda: os.setsid()}):
            p = subprocess.Popen(['sleep', '60'], **options)
            print(os.getpgid(p.pid) == p.pid != os.getpgid(0))
            os.killpg(os.getpgid(p.pid), signal.SIGTERM)
            print(p.wait())
        p = subprocess.run(['no-such-program'], start_new_session=True)
    """,
    "name of its session": """
        import os
        if not (pid := os.fork()):
            os.setsid(); print(os.getsid(0) == os.getpid(), flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
    """,
    "job control": """
        import subprocess
        print(subprocess.run(['bash', '-c', 'set -m; sleep 60 & kill -- -$!; wait $!; echo $?'], stdout=-1, stderr=-3).stdout)
    """,
    "interpreter in a process": """
        import subprocess, sys
        code = 'import sys; print(sys.version_info[:2], sys.argv, sys.flags.isolated); sys.exit(4)'
        print(subprocess.run([sys.executable, '-I', '-c', code, 'x'], capture_output=True, text=True).stdout)
    """,
    "fork with a full buffer": """
        import os, sys
        print('twice')
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
    """,
    "fork whose child goes on": """
        import os, sys
        r, w = os.pipe()
        if os.fork() == 0:
            os.close(w)
            os.read(r, 1)
            sys.exit(5)
        print('parent')
        sys.stdout.flush()
        os.write(w, b'x')
        os.wait()
    """,
    "process left running": """
        import multiprocessing as mp
        def f(e):
            e.wait()
            print('child')
        context = mp.get_context('fork')
        e = context.Event()
        context.Process(target=f, args=(e,)).start()
        e.set()
    """,
    "shared memory": """
        from multiprocessing import shared_memory
        m = shared_memory.SharedMemory(create=True, size=100)
        m.buf[:3] = b'abc'
        other = shared_memory.SharedMemory(m.name)
        print(bytes(other.buf[:3]))
        other.close()
        m.close()
        m.unlink()
    """,
    "manager": """
        import multiprocessing as mp
        if __name__ == '__main__':
            with mp.Manager() as m:
                d = m.dict()
                d['a'] = 1
                print(dict(d))
    """,
}
FILES = {
    "file": r"""
        with open('f.txt', 'w') as f:
            print(f.write('é\n'), f.encoding, f.mode, f.name)
        print(open('f.txt', 'rb').read())
    """,
    "posix": r"""
        import os
        print(oct(os.umask(0o022)), os.access('main.py', os.R_OK), os.path.islink('main.py'), os.sep, os.linesep == '\n')
        fd = os.open('f', os.O_RDWR | os.O_CREAT, 0o600)
        print(os.write(fd, b'abcdef'), os.pread(fd, 2, 1), os.lseek(fd, 0, os.SEEK_CUR), os.pwrite(fd, b'Z', 0))
        os.ftruncate(fd, 3)
        os.fsync(fd)
        print(os.fstat(fd).st_size, oct(os.fstat(fd).st_mode), os.read(fd, 9), os.path.getsize('f'))
        os.chmod('f', 0o640)
        os.utime('f', (1, 2))
        os.rename('f', 'g')
        print(oct(os.stat('g').st_mode), os.stat('g').st_mtime, os.path.realpath('g') == os.path.join(os.getcwd(), 'g'))
        os.truncate('g', 1)
        os.mkfifo('fifo')
        print({e.name: e.is_file() for e in os.scandir() if e.name in ('fifo', 'g')}, os.get_terminal_size.__name__, os.getenv('LANG'), os.cpu_count() > 0)
        print(os.pathconf('.', 'PC_NAME_MAX'), os.sysconf('SC_PAGE_SIZE'), os.strerror(2), os.get_blocking(1))
    """,
    "own source": """
        print(open(__file__).read() == open('main.py').read(), __file__)
        print(open('main.py').readline())
    """,
    "shelve and dbm": """
        import shelve, dbm.dumb
        with shelve.Shelf(dbm.dumb.open('s', 'c')) as s:
            s['a'] = [1]
            print(dict(s))
    """,
    "read-only places": """
        import os
        for path in ('/usr/x', '/etc/passwd'):
            print(os.path.exists('/usr'), os.path.isfile('/etc/passwd'))
    """,
    "/dev/zero written": "open('/dev/zero', 'wb', 0).write(b'x')",
}
SIGNALS = {
    "alarm that raises": """
        import signal
        def handler(number, frame):
            raise TimeoutError('too long')
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        while True:
            pass
    """,
    "dispositions": """
        import signal
        for n in sorted(signal.valid_signals()):
            print(n, signal.getsignal(n))
        print(signal.pthread_sigmask(signal.SIG_BLOCK, []))
    """,
    "faulthandler": """
        import faulthandler, sys
        print(faulthandler.is_enabled())
        faulthandler.dump_traceback()
    """,
    "faulthandler at a crash": """
        import faulthandler, ctypes
        faulthandler.enable()
        ctypes.string_at(0)
    """,
    "SIGINT while asyncio runs": """
        import asyncio, os, signal
        async def main():
            asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGINT)
            await asyncio.get_running_loop().create_future()
        asyncio.run(main())
    """,
}
SOCKETS = {
    "asyncio over a unix socket": r"""
        import asyncio
        async def handle(reader, writer):
            writer.write((await reader.readline()).upper())
            await writer.drain()
            writer.close()
        async def main():
            async with await asyncio.start_unix_server(handle, 'a.sock'):
                reader, writer = await asyncio.open_unix_connection('a.sock')
                writer.write(b'line\n')
                print(await reader.read())
                writer.close()
                await writer.wait_closed()
        asyncio.run(main())
    """,
    "asyncio in debug mode": """
        import asyncio
        async def main():
            print(asyncio.get_running_loop().get_debug())
        asyncio.run(main(), debug=True)
    """,
    "runner": """
        import asyncio
        with asyncio.Runner() as r:
            print(r.run(asyncio.sleep(0, 5)), r.run(asyncio.sleep(0, 6)))
    """,
}

# The interpreter's state, text and results of libraries.
STATE = {
    "argv": """
        import sys
        print(sys.argv, len(sys.orig_argv), sys.orig_argv[-1])
    """,
    "flags": """
        import sys
        print(sys.flags)
    """,
    "interpreter": """
        import sys
        print(sys.version, sys.executable, sys.prefix, sys.base_prefix, sys.implementation, sys.api_version)
    """,
    "path": """
        import sys
        print([p for p in sys.path if 'site-packages' in p or 'lib/python' in p], '' in sys.path)
    """,
    "streams of sys": """
        import sys
        for s in (sys.stdin, sys.stdout, sys.stderr):
            print(s, s.encoding, s.errors, s.newlines, s.line_buffering, s.write_through, s.isatty(), s.fileno(), s.mode)
            print(s.readable(), s.writable(), s.seekable(), s.closed, s.name, type(s.buffer).__name__, s.buffer.name)
            print(type(s.buffer.raw).__name__, s.buffer.raw.mode, s.buffer.raw.name, s.buffer.raw.closefd, s.buffer.raw)
        print(sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__, sys.stdin is sys.__stdin__)
    """,
    "__main__": """
        import __main__, sys
        print(__main__.__name__, __main__ is sys.modules['__main__'], __spec__, __doc__, __package__, __main__)
    """,
    "docstring": """
        '''The docstring.'''
        print(__doc__)
    """,
    "annotations": """
        x: int = 5
        print(__annotations__)
    """,
    "builtins": """
        import builtins
        print(__builtins__ is builtins, sorted(vars(builtins)), exit, copyright.__class__)
    """,
    "__import__": "print(__import__('os.path').__name__, __import__.__module__)",
    "frames": """
        import sys
        f = sys._getframe()
        print(f.f_code.co_name, f.f_lineno, f.f_back, f.f_globals is globals(), f.f_code.co_flags)
    """,
    "stack": """
        import inspect
        def f():
            return [(i.function, i.lineno, i.code_context) for i in inspect.stack()]
        print(f())
    """,
    "gc": """
        import gc
        print(gc.isenabled(), gc.get_threshold(), gc.get_debug(), gc.garbage, gc.callbacks)
    """,
    "environment": """
        import os
        print(sorted(k for k in os.environ if k not in os.environ.get('KEEP', '')), os.environ['HOME'], os.getcwd())
        os.environ['X'] = 'é'
        os.system('echo $X')
        print(os.path.expanduser('~'), os.environb[b'X'])
    """,
    "logging of relative time": """
        import logging
        r = logging.makeLogRecord({})
        print(0 <= r.relativeCreated < 60_000)
    """,
    "modules": """
        import sys
        print('numpy' in globals(), 'faasrt' in sys.modules, 'pytest' in sys.modules, 'sys' in sys.modules, __name__ in sys.modules)
    """,
    "locale": """
        import locale, sys
        print(locale.setlocale(locale.LC_ALL), locale.getpreferredencoding(), locale.getlocale(), sys.getfilesystemencoding(), sys.getfilesystemencodeerrors(), sys.getdefaultencoding(), locale.localeconv()['decimal_point'])
    """,
    "decimal's context": """
        import decimal
        print(decimal.getcontext(), decimal.Decimal(1) / 3)
    """,
    "multiprocessing's state": """
        import multiprocessing as mp
        print(mp.current_process().name, mp.parent_process(), mp.get_start_method(), mp.active_children(), mp.current_process().pid > 1)
    """,
}
TEXT = {
    "surrogate printed": "print('\\ud800')",
    "surrogateescape printed": r"""
        import os
        print(os.fsdecode(b'\xff'))
    """,
    "order of buffers": r"""
        import os, sys
        print('a')
        os.write(1, b'raw\n')
        sys.stdout.buffer.write(b'buffer\n')
        print('b')
    """,
    "stderr goes to stdout": """
        import os, sys
        os.dup2(1, 2)
        print('out 1')
        print('err 1', file=sys.stderr)
        print('out 2')
        sys.stderr.write('err 2')
        sys.stderr.buffer.write(b'err 3')
        1 / 0
    """,
    "many lines": """
        for n in range(20_000):
            print(n)
    """,
    "input at the end": """
        try:
            input('prompt')
        except EOFError as e:
            print('EOF', e)
    """,
    "input fails": "input('prompt? ')",
    "stdin at the end": """
        import sys, os, fileinput
        print(repr(sys.stdin.read()), list(sys.stdin), repr(open(0, closefd=False).read()), os.read(0, 10), list(fileinput.input()))
    """,
    "byte order mark": """
        \ufeffprint('after a mark')
        print(open(__file__, 'rb').read(3))
    """,
    "coding line": """
        # -*- coding: utf-8 -*-
        print('é')
    """,
    "coding line latin-1": """
        # coding: latin-1
        print('é')
    """,
    "coding line unknown": """
        # coding: nonsense
        print('é')
    """,
    "only a comment": "# nothing",
    "pprint": """
        import pprint
        pprint.pprint({'b': list(range(40)), 'a': {'x': 'y' * 60}})
    """,
    "argparse's help": """
        import argparse
        p = argparse.ArgumentParser(description='d')
        p.add_argument('--x', type=int, default=1)
        print(p.format_help())
        p.parse_args(['--x', 'y'])
    """,
    "unittest exits": """
        import unittest
        class T(unittest.TestCase):
            def test(self):
                self.fail('x')
        import sys
        sys.stderr = open('/dev/null', 'w')
        unittest.main()
    """,
    "source of the module": """
        import inspect, sys
        print(inspect.getsource(sys.modules['__main__']))
    """,
    "dis": """
        import dis
        def f(x):
            return x + 1
        dis.dis(f)
    """,
}
LIBRARY = {
    "deep recursion": """
        import sys
        sys.setrecursionlimit(30_000)
        def f(n):
            return n and 1 + f(n - 1)
        print(f(29_000))
    """,
    "lru_cache to the limit": """
        import functools
        @functools.lru_cache(None)
        def f(n):
            return n if n < 2 else f(n - 1) + f(n - 2)
        for n in (300, 480, 2000):
            try:
                print(f(n) % 10**9)
            except RecursionError as e:
                print(n, str(e)[:31])
        print(f.cache_info().currsize > 480)
    """,
    "deep cmp, repr and json": """
        import json
        x = []
        for _ in range(900):
            x = [x]
        print(len(repr(x)), x == x)
        try:
            json.dumps(x)
            print('fits')
        except RecursionError as e:
            print(e)
    """,
    "time zone set": """
        import os, time
        os.environ['TZ'] = 'EST5EDT'
        time.tzset()
        print(time.tzname, time.localtime(0).tm_hour)
    """,
    "uuid": """
        import uuid
        print(uuid.uuid5(uuid.NAMESPACE_DNS, 'x'), uuid.UUID(int=5))
    """,
    "ctypes": r"""
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        print(libc.abs(-5), ctypes.string_at(b'abc'))
        libc.printf(b'from C %d\n', 5)
        libc.fflush(None)
    """,
    "importlib": """
        import importlib, importlib.util, importlib.resources, importlib.metadata
        print(importlib.import_module('json.decoder').__name__, importlib.util.find_spec('nope'), importlib.util.find_spec('json').name)
        importlib.reload(importlib.import_module('string'))
        import nope.more
    """,
    "settrace": """
        import sys
        lines = []
        def trace(frame, event, arg):
            lines.append((event, frame.f_lineno))
            return trace
        def f():
            x = 1
            return x
        sys.settrace(trace)
        f()
        sys.settrace(None)
        print(lines)
    """,
    "pandas": """
        import pandas as pd
        d = pd.DataFrame({'a': [1, 2, 3], 'b': list('xyx')})
        print(d.groupby('b').sum(), d.a.dtype, d.describe())
        d['nope']
    """,
    "missing name": "from os import nope",
}


_TABLES = {
    "exits": EXITS,
    "errors": ERRORS,
    "shutdown": SHUTDOWN,
    "threads": THREADS,
    "processes": PROCESSES,
    "files": FILES,
    "signals": SIGNALS,
    "sockets": SOCKETS,
    "state": STATE,
    "text": TEXT,
    "library": LIBRARY,
}
PROGRAMS = {
    f"{table}, {name}": block(text) if text.startswith("\n") else text
    for table, programs in _TABLES.items()
    for name, text in programs.items()
}

_FRAME = "the stack has one more frame, that of the runner, which catches the program's exception"
_INTERRUPT = "an uncaught KeyboardInterrupt is an error of the program with exit code 1, not the signal SIGINT"
_TEXT = "the program is text, which its coding line cannot change"
_SURROGATES = "lone surrogates reach the caller as they are"
_KEPT = "modules that were imported before the program are not cleared at its end, because that takes too long"
_LINES = "stdout is written line by line, so that the output before an endless loop or a hard exit reaches the caller"
# The programs whose results differ, with the reason. The test fails if a result does not differ.
BY_DESIGN = {
    "text, stderr goes to stdout": _LINES,
    "text, order of buffers": _LINES,
    "library, ctypes": _LINES,
    "state, environment": _LINES,
    "processes, fork with a full buffer": _LINES,
    "processes, name of its session": "a program has one session, because each one gets a share of the CPU time",
    "shutdown, descriptor 1 closed": _LINES,
    "shutdown, stdout is full": _LINES,
    "files, /dev/zero written": "it is the device /dev/full, which cannot be mapped: such memory would not be counted",
    "errors, null byte": "the program is compiled from a string, and the compiler has another message for strings",
    "errors, recursion": _FRAME,
    "errors, recursion over two functions": _FRAME,
    "errors, KeyboardInterrupt": _INTERRUPT,
    "errors, KeyboardInterrupt with a text": _INTERRUPT,
    "errors, SIGINT to itself": _INTERRUPT,
    "signals, SIGINT while asyncio runs": _INTERRUPT,
    "errors, traceback printed": _FRAME,
    "errors, traceback extracted": _FRAME,
    "signals, faulthandler": _FRAME,
    "signals, faulthandler at a crash": _FRAME,
    "state, frames": _FRAME,
    "state, stack": _FRAME,
    "shutdown, atexit exits": _FRAME,
    "shutdown, atexit exits with a text": _FRAME,
    "shutdown, __del__ fails at the end": "the source is still readable, so the traceback shows the line",
    "shutdown, __del__ on builtins": _KEPT,
    "shutdown, __del__ on a known module": _KEPT,
    "shutdown, task left pending": "the garbage collector visits the coroutine before the task",
    "state, argv": "sys.orig_argv has no -I",
    "state, flags": "the hash seed is fixed, and the environment and the folder of the program are not ignored",
    "state, streams of sys": _SURROGATES,
    "text, surrogate printed": _SURROGATES,
    "text, surrogateescape printed": _SURROGATES,
    "text, coding line latin-1": _TEXT,
    "text, coding line unknown": _TEXT,
}
