"""The programs that run on the engine `native` and with `python -I`, and those whose results differ by design.

See test_native_programs.py.
"""

from __future__ import annotations

from support.tables import block

# How a program ends: exit codes, exceptions, shutdown order.
EXITS = {
    "exit 3": """
        import sys
        print('before')
        sys.exit(3)
    """,
    "exit None": """
        import sys
        sys.exit(None)
    """,
    "exit True": """
        import sys
        sys.exit(True)
    """,
    "exit with a text": """
        import sys
        sys.exit('a message')
    """,
    "exit with an object": "raise SystemExit({'a': [1, 2]})",
    "exit with a tuple": "raise SystemExit(1, 2)",
    "exit with a float": "raise SystemExit(2.5)",
    "exit -1": "exit(-1)",
    "exit 263": "raise SystemExit(256 + 7)",
    "exit 2 ** 40": "raise SystemExit(2 ** 40)",
    "exit -2 ** 31": "raise SystemExit(-2 ** 31)",
    "exit with a lone surrogate": "raise SystemExit('\\ud800')",
    "exit by a subclass": """
        class Leave(SystemExit):
            pass
        raise Leave(4)
    """,
    "exit code replaced": """
        error = SystemExit(3)
        error.code = 5
        raise error
    """,
    "exit while finally prints": """
        import sys
        try:
            sys.exit(5)
        finally:
            print('finally')
    """,
    "exit in a finally": """
        import sys
        try:
            1 / 0
        finally:
            sys.exit(6)
    """,
    "quit": "quit(7)",
    "exit in a thread": """
        import sys, threading
        t = threading.Thread(target=sys.exit, args=(3,))
        t.start()
        t.join()
        print('on')
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
    "os._exit": """
        import os
        print('lost')
        print('kept', flush=True)
        os._exit(7)
    """,
    "os._exit 0": """
        import os
        print('kept', flush=True)
        os._exit(0)
    """,
    "os._exit in a thread": """
        import os, threading
        threading.Thread(target=os._exit, args=(8,)).start()
        threading.Event().wait()
    """,
    "abort": """
        import os
        print('x', flush=True)
        os.abort()
    """,
    "segmentation fault": """
        import ctypes
        print('x', flush=True)
        ctypes.string_at(0)
    """,
    "SIGTERM to itself": """
        import os
        print('x', flush=True)
        os.kill(os.getpid(), 15)
    """,
    "SIGKILL to itself": """
        import os
        print('x', flush=True)
        os.kill(os.getpid(), 9)
    """,
    "SIGALRM unhandled": """
        import signal
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        signal.pause()
    """,
    "raise_signal": """
        import signal
        signal.raise_signal(signal.SIGUSR1)
    """,
    "exec of another program": """
        import os, sys
        os.execv('/bin/sh', ['sh', '-c', 'echo shell; exit 12'])
    """,
    "os.closerange and exit": """
        import os, sys
        print('x', flush=True)
        os.closerange(0, 50)
        sys.exit(3)
    """,
}
ERRORS = {
    "raise": """
        def f(x):
            return 1 / x

        f(0)
    """,
    "chained": """
        try:
            {}['a']
        except KeyError as e:
            raise RuntimeError('outer') from e
    """,
    "in a handler": """
        try:
            1 / 0
        except ZeroDivisionError:
            [][1]
    """,
    "from None": """
        try:
            1 / 0
        except ZeroDivisionError:
            raise ValueError('only this') from None
    """,
    "exception group": """
        def fail(n):
            raise ValueError(n)
        errors = []
        for n in range(3):
            try:
                fail(n)
            except ValueError as e:
                errors.append(e)
        raise ExceptionGroup('several', [*errors, ExceptionGroup('nested', [TypeError('x')])])
    """,
    "notes": r"""
        e = ValueError('x')
        e.add_note('a note\nof two lines')
        raise e
    """,
    "syntax error": """
        x = (1,
        print 3
    """,
    "syntax error with a caret": "if True:\n    x = 5 +\n",
    "indentation": """
        if True:
        print(1)
    """,
    "tabs": "if True:\n        x = 1\n\ty = 2\n",
    "null byte": "print(1)\x00",
    "return outside": """
        print('never')
        return 5
    """,
    "duplicate argument": "def f(a, a): pass",
    "unclosed text": "x = '''never ends",
    "syntax error in exec": "exec('x = = 1')",
    "syntax error in an import": """
        open('other.py', 'w').write('x = = 1')
        import sys
        sys.path.insert(0, '.')
        import other
    """,
    "error in an import": """
        open('other.py', 'w').write('1 / 0')
        import sys
        sys.path.insert(0, '.')
        import other
    """,
    "warning of the compiler": r"""
        x = 1
        if x is 1:
            print('\d')
    """,
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
    "recursion in repr": """
        x = []
        for _ in range(100_000):
            x = [x]
        try:
            repr(x)
        except RecursionError as e:
            print(e)
    """,
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "KeyboardInterrupt with a text": "raise KeyboardInterrupt('stop')",
    "SIGINT to itself": """
        import os, signal
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(10**9): pass
    """,
    "GeneratorExit": "raise GeneratorExit",
    "str fails": """
        class Loud(Exception):
            def __str__(self):
                raise ValueError
        raise Loud
    """,
    "module and qualname": """
        class A:
            class E(Exception):
                pass
        raise A.E('x')
    """,
    "BaseException": "raise BaseException('x')",
    "long message": "raise ValueError('x' * 20_000)",
    "surrogate in a message": "raise ValueError('\\ud800 é \\x00')",
    "wide characters": "x = '日本語'; raise ValueError(x + 1 / 0)",
    "lines with a form feed": "x = 1\n\x0c\ny = 'a\x0bb'\nraise ValueError(x)",
    "CRLF lines": "x = 1\r\nif x:\r\n    print('''a\r\nb''' == 'a\\nb')\r\nraise ValueError(x)\r\n",
    "CR lines": "x = 1\rprint(x)\rraise ValueError(x)\r",
    "no newline at the end": """
        def f():
            raise ValueError
        f()
    """,
    "in a comprehension": "[1 / (x - 2) for x in range(4)]",
    "in a lambda": """
        f = lambda x: (
            1
            / x
        )
        f(0)
    """,
    "in exec": "exec(compile('def f():\\n    1 / 0\\nf()', 'made.py', 'exec'))",
    "in eval": "eval('1 / 0')",
    "in a class body": """
        class A:
            x = 1
            y = x / 0
    """,
    "in a decorator": """
        def d(f):
            raise TypeError('no')
        @d
        @d
        def f():
            pass
    """,
    "in a generator": """
        def g():
            yield 1
            raise StopIteration
        list(g())
    """,
    "in a library": """
        import json
        json.loads('{')
    """,
    "in a callback of C": "sorted([2, 1], key=lambda x: x.nope)",
    "AttributeError suggests": """
        import math
        math.squrt
    """,
    "NameError suggests": """
        number = 1
        print(numbr)
    """,
    "NameError of a module": "print(sys.argv)",
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
    "error of asyncio": """
        import asyncio
        async def main():
            await asyncio.sleep(0)
            raise ValueError('in a task')
        asyncio.run(main())
    """,
    "TaskGroup": """
        import asyncio
        async def fail():
            raise ValueError('in a task')
        async def main():
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())
        asyncio.run(main())
    """,
    "excepthook": """
        import sys
        def hook(kind, error, tb):
            print('hook', kind.__name__, error, tb.tb_lineno)
        sys.excepthook = hook
        1 / 0
    """,
    "excepthook fails": """
        import sys
        def hook(kind, error, tb):
            raise TypeError('hook')
        sys.excepthook = hook
        1 / 0
    """,
    "excepthook exits": """
        import sys
        def hook(kind, error, tb):
            sys.exit(9)
        sys.excepthook = hook
        1 / 0
    """,
    "excepthook deleted": """
        import sys
        del sys.excepthook
        1 / 0
    """,
    "excepthook does not see an exit": """
        import sys
        sys.excepthook = print
        sys.exit(3)
    """,
    "last_value": """
        import sys, atexit
        atexit.register(lambda: print(repr(sys.last_value), sys.last_traceback.tb_lineno))
        1 / 0
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
    "stderr is None": """
        import sys
        sys.stderr = None
        1 / 0
    """,
    "stderr goes to stdout": """
        import sys
        sys.stderr = sys.stdout
        print('x', end=' ')
        1 / 0
    """,
    "thread": """
        import threading
        t = threading.Thread(target=lambda: 1 / 0, name='t')
        t.start()
        t.join()
        print('after')
    """,
    "thread's excepthook": """
        import threading
        threading.excepthook = lambda a: print('hook', a.exc_type, a.thread.name)
        t = threading.Thread(target=lambda: 1 / 0, name='t')
        t.start()
        t.join()
    """,
    "in __del__": """
        class A:
            def __del__(self):
                raise ValueError('unraisable')
        A()
        print('after')
    """,
    "unraisablehook": """
        import sys
        sys.unraisablehook = lambda u: print('hook', u.exc_value, u.err_msg)
        class A:
            def __del__(self):
                raise ValueError('x')
        A()
    """,
    "warning": """
        import warnings
        warnings.warn('careful')
        warnings.warn('old', DeprecationWarning)
        warnings.warn('more', stacklevel=2)
    """,
    "warning as an error": """
        import warnings
        warnings.simplefilter('error')
        warnings.warn('careful')
    """,
    "ResourceWarning": """
        import warnings
        warnings.simplefilter('always')
        open('main.py')
        print('on')
    """,
    "coroutine never awaited": """
        async def f():
            pass
        f()
        print('on')
    """,
    "assert": """
        x = 5
        assert x == 6, f'{x} is not 6'
    """,
    "OSError": "open('/nowhere/file')",
    "UnicodeDecodeError": "b'\\xff'.decode()",
    "error attributes": """
        import sys
        try:
            open('missing')
        except OSError as e:
            print(e.errno, e.filename, e.strerror, e.args)
    """,
}
SHUTDOWN = {
    "atexit": """
        import atexit
        atexit.register(print, 'one')
        atexit.register(print, 'two')
        print('main')
    """,
    "atexit after an error": """
        import atexit
        atexit.register(print, 'bye')
        1 / 0
    """,
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
    "atexit within atexit": """
        import atexit
        atexit.register(lambda: atexit.register(print, 'inner'))
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
    "threading._register_atexit": """
        import threading
        threading._register_atexit(print, 'threads')
        print('main')
    """,
    "thread that starts a thread": """
        import threading
        def first():
            threading.Thread(target=print, args=('second',)).start()
        threading.Thread(target=first).start()
    """,
    "thread outlives an error": """
        import threading, time
        def work():
            threading.main_thread().join()
            print('thread')
        threading.Thread(target=work).start()
        1 / 0
    """,
    "daemon thread": """
        import threading
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        print('x')
    """,
    "daemon thread that loops": """
        import threading
        def work():
            while True:
                pass
        threading.Thread(target=work, daemon=True).start()
        print('x')
    """,
    "executor left open": """
        from concurrent.futures import ThreadPoolExecutor
        pool = ThreadPoolExecutor(2)
        pool.submit(print, 'job')
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
    "__del__ at the end": """
        class A:
            def __del__(self):
                print('gone', A)
        a = A()
        print('main')
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
    "__del__ sees globals": """
        import os
        before = 'before'
        class A:
            def __del__(self):
                print(before, after, os, sorted(k for k in globals() if k[0] != '_' and k != 'return_val'))
        _a = A()
        after = 'after'
    """,
    "__del__ finds names gone": """
        first = 1
        class A:
            def __del__(self):
                try:
                    print(first, last, A)
                except NameError as e:
                    print('NameError', e)
        a = A()
        last = 2
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
    "__del__ after an error": """
        class A:
            def __del__(self):
                print('gone')
        a = A()
        1 / 0
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
    "__del__ on a module": """
        import sys, types
        class A:
            def __del__(self):
                print('gone')
        module = types.ModuleType('made')
        module.a = A()
        sys.modules['made'] = module
        del module
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
    "__del__ on sys": """
        import sys
        class A:
            def __del__(self):
                import os
                os.write(1, b'gone')
        sys.a = A()
    """,
    "finalizing": """
        import sys
        class A:
            def __del__(self):
                print(sys.is_finalizing())
        a = A()
        print(sys.is_finalizing())
    """,
    "weakref.finalize": """
        import weakref
        class A:
            pass
        a = A()
        weakref.finalize(a, print, 'finalized')
        weakref.finalize(a, print, 'second')
        print('main')
    """,
    "weakref.finalize without atexit": """
        import weakref
        class A:
            pass
        a = A()
        f = weakref.finalize(a, print, 'finalized')
        f.atexit = False
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
    "generator left open": """
        def g():
            try:
                yield 1
            finally:
                print('closed')
        x = g()
        print(next(x))
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
    "async generator left open": """
        import asyncio
        async def g():
            try:
                yield 1
            finally:
                print('closed')
        async def main():
            async for x in g():
                print(x)
                break
        asyncio.run(main())
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
    "event loop left open": """
        import asyncio
        loop = asyncio.new_event_loop()
        loop.run_until_complete(asyncio.sleep(0))
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
    "descriptor 1 closed after a flush": """
        import os
        print('kept', flush=True)
        os.close(1)
    """,
    "stdout is None": """
        import sys
        sys.stdout = None
        print('nowhere')
        sys.stderr.write('still here')
    """,
    "stdout replaced": """
        import sys, io
        print('before')
        sys.stdout = io.StringIO()
        print('nowhere')
    """,
    "stdout wrapped": """
        import sys, io
        sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding='utf-16-le')
        print('hi')
    """,
    "stdout detached": r"""
        import sys, io
        b = sys.stdout.detach()
        b.write(b'raw\n')
    """,
    "stdout's flush fails": """
        import sys
        class W:
            def write(self, text):
                pass
            def flush(self):
                raise RuntimeError('flush')
        sys.stdout = W()
    """,
    "stdout is full": """
        import os, sys
        os.dup2(os.open('/dev/full', os.O_WRONLY), 1)
        print('x')
    """,
    "print without a flush in an exit handler": """
        import atexit
        atexit.register(lambda: print('late', end=''))
    """,
}

# The system: threads, processes, files, signals, sockets.
THREADS = {
    "threads": """
        import threading
        results, barrier = [], threading.Barrier(20)
        def work(n):
            barrier.wait()
            results.append(n)
        threads = [threading.Thread(target=work, args=(n,)) for n in range(20)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        print(sorted(results), threading.active_count(), threading.current_thread() is threading.main_thread())
        print(threading.main_thread().name, threads[0].name, threading.main_thread().daemon)
    """,
    "main thread's ids": """
        import os, threading
        m = threading.main_thread()
        print(m.ident == threading.get_ident(), m.native_id == os.getpid())
    """,
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
    "timer": """
        import threading
        done = threading.Event()
        t = threading.Timer(0.01, done.set)
        t.start()
        print(done.wait(10))
    """,
    "lock and condition": """
        import threading
        c, items = threading.Condition(), []
        def consume():
            with c:
                c.wait_for(lambda: items)
                print(items.pop())
        t = threading.Thread(target=consume)
        t.start()
        with c:
            items.append('item')
            c.notify()
        t.join()
    """,
    "stack of a thread": """
        import sys, threading
        sys.setrecursionlimit(10**6)
        threading.stack_size(128 << 20)
        def depth(n):
            return n and 1 + depth(n - 1)
        t = threading.Thread(target=lambda: print(depth(100_000)))
        t.start()
        t.join()
        print(threading.stack_size())
    """,
    "stack size": """
        import threading
        print(threading.stack_size())
    """,
    "switch interval": """
        import sys
        print(sys.getswitchinterval())
    """,
    "settrace of threads": """
        import threading
        threading.settrace(None)
        print(threading.gettrace(), threading.getprofile())
    """,
}
PROCESSES = {
    "subprocess": """
        import subprocess
        print(subprocess.run(['echo', 'x y'], capture_output=True, text=True))
    """,
    "subprocess inherits": """
        import subprocess
        print('one', flush=True)
        subprocess.run('echo two; echo three >&2', shell=True)
        print('four')
    """,
    "subprocess fails": """
        import subprocess
        print(subprocess.run(['sh', '-c', 'exit 3']).returncode)
        subprocess.run(['false'], check=True)
    """,
    "subprocess is missing": """
        import subprocess
        subprocess.run(['no-such-program'])
    """,
    "subprocess by a signal": """
        import subprocess
        print(subprocess.run(['sh', '-c', 'kill -9 $$']).returncode)
    """,
    "subprocess times out": """
        import subprocess
        try:
            subprocess.run(['sleep', '60'], timeout=0.05)
        except subprocess.TimeoutExpired as e:
            print(e.cmd, round(e.timeout, 2), e.output)
    """,
    "subprocess with input": """
        import subprocess
        print(subprocess.check_output(['tr', 'a-z', 'A-Z'], input='text', text=True))
    """,
    "pipe of processes": r"""
        import subprocess
        a = subprocess.Popen(['printf', 'b\na\n'], stdout=subprocess.PIPE)
        b = subprocess.Popen(['sort'], stdin=a.stdout, stdout=subprocess.PIPE)
        a.stdout.close()
        print(b.communicate(), a.wait())
    """,
    "subprocess in a session of its own": """
        import os, signal, subprocess
        for options in ({'start_new_session': True}, {'preexec_fn': os.setsid}, {'preexec_fn': lambda: os.setsid()}):
            p = subprocess.Popen(['sleep', '60'], **options)
            print(os.getpgid(p.pid) == p.pid != os.getpgid(0))
            os.killpg(os.getpgid(p.pid), signal.SIGTERM)
            print(p.wait())
        p = subprocess.run(['no-such-program'], start_new_session=True)
    """,
    "fork in a session of its own": """
        import os
        if not (pid := os.fork()):
            print(os.setsid(), os.getpgid(0) == os.getpid(), flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
    """,
    "name of its session": """
        import os
        if not (pid := os.fork()):
            os.setsid(); print(os.getsid(0) == os.getpid(), flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
    """,
    "setsid": """
        import subprocess
        print(subprocess.run(['setsid', 'echo', 'x'], capture_output=True))
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
    "runs itself": """
        import subprocess, sys
        if len(sys.argv) > 1:
            print('child', sys.argv[1:], __name__)
        else:
            print(subprocess.check_output([sys.executable, __file__, 'x'], text=True))
    """,
    "os.system": """
        import os
        print('one', flush=True)
        print(os.waitstatus_to_exitcode(os.system('echo two; exit 3')))
    """,
    "os.popen": """
        import os
        print(os.popen('echo x').read())
    """,
    "fork": """
        import os, sys
        pid = os.fork()
        if pid == 0:
            print('child')
            sys.exit(3)
        print('parent', os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """,
    "fork with a full buffer": """
        import os, sys
        print('twice')
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
    """,
    "fork whose child fails": """
        import os
        pid = os.fork()
        if pid == 0:
            1 / 0
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """,
    "fork whose child runs exit handlers": """
        import atexit, os
        atexit.register(lambda: print(os.getpid() == parent))
        parent = os.getpid()
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
    "posix_spawn": """
        import os
        print(os.waitstatus_to_exitcode(os.waitpid(os.posix_spawn('/bin/sh', ['sh', '-c', 'exit 6'], {}), 0)[1]))
    """,
    "process group": """
        import os, signal
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)
            signal.pause()
        try:
            os.setpgid(pid, pid)
        except OSError:
            pass
        os.killpg(pid, signal.SIGTERM)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """,
    "pool that forks": """
        import multiprocessing as mp
        def f(x):
            return x * x
        with mp.get_context('fork').Pool(2) as p:
            print(sum(p.map(f, range(100))))
    """,
    "pool that spawns": """
        import multiprocessing as mp
        def f(x):
            return x * x
        if __name__ == '__main__':
            with mp.get_context('spawn').Pool(2) as p:
                print(p.map(f, range(5)))
    """,
    "process of a fork server": """
        import multiprocessing as mp
        def f(q):
            q.put((mp.current_process().name, __name__))
        if __name__ == '__main__':
            context = mp.get_context('forkserver')
            q = context.Queue()
            p = context.Process(target=f, args=(q,))
            p.start()
            print(q.get())
            p.join()
            print(p.exitcode)
    """,
    "process that prints": """
        import multiprocessing as mp
        def f():
            print('child', mp.current_process().name, mp.parent_process().name)
            1 / 0
        p = mp.get_context('fork').Process(target=f)
        p.start()
        p.join()
        print(p.exitcode)
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
    "process pool": """
        from concurrent.futures import ProcessPoolExecutor
        def f(x):
            return x + 1
        if __name__ == '__main__':
            with ProcessPoolExecutor(2) as p:
                print(list(p.map(f, range(3))))
    """,
    "objects shared by processes": """
        import multiprocessing as mp
        def f(v, a, l):
            with l:
                v.value += 1
                a[0] = 7
        v, a, l = mp.Value('i', 1), mp.Array('d', 2), mp.Lock()
        ps = [mp.get_context('fork').Process(target=f, args=(v, a, l)) for _ in range(2)]
        for p in ps:
            p.start()
        for p in ps:
            p.join()
        print(v.value, a[:])
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
    "pipe of multiprocessing": """
        import multiprocessing as mp
        a, b = mp.Pipe()
        a.send({'x': [1]})
        print(b.recv(), b.poll())
    """,
    "no child": """
        import os
        try:
            os.wait()
        except ChildProcessError as e:
            print(e)
    """,
}
FILES = {
    "advice about a file": """
        import os
        fd = os.open(__file__, 0)
        for name in sorted(vars(os)):
            if name.startswith('POSIX_FADV_'):
                print(name, os.posix_fadvise(fd, 0, 0, getattr(os, name)))
    """,
    "file": r"""
        with open('f.txt', 'w') as f:
            print(f.write('é\n'), f.encoding, f.mode, f.name)
        print(open('f.txt', 'rb').read())
    """,
    "folder": """
        import os, pathlib, shutil
        print('main.py' in os.listdir('.'), os.getcwd() == os.path.dirname(__file__))
        os.makedirs('a/b')
        pathlib.Path('a/b/c').write_text('x')
        os.symlink('b', 'a/link')
        os.link('a/b/c', 'a/d')
        print([(r, sorted(d), sorted(f)) for r, d, f in os.walk('a')], os.stat('a/d').st_nlink, oct(os.stat('a').st_mode))
        shutil.rmtree('a')
        print(os.path.exists('a'))
    """,
    "tempfile": """
        import os, tempfile
        with tempfile.NamedTemporaryFile('w+') as f, tempfile.TemporaryDirectory() as d, tempfile.TemporaryFile() as t:
            f.write('x')
            f.seek(0)
            print(f.read(), os.path.isdir(d), t.write(b'x'), oct(os.stat(f.name).st_mode), oct(os.stat(d).st_mode))
        print(tempfile.gettempdir())
    """,
    "sqlite": """
        import sqlite3
        c = sqlite3.connect('a.db')
        c.execute('create table t(a, b)')
        with c:
            c.executemany('insert into t values(?, ?)', [(1, 'x'), (2, None)])
        print(c.execute('select * from t order by a').fetchall(), c.execute('pragma journal_mode=wal').fetchall())
        c.close()
        try:
            sqlite3.connect('a.db').execute('select nope from t')
        except sqlite3.OperationalError as e:
            print(e)
        print(sqlite3.connect(':memory:').execute('select 1').fetchall())
    """,
    "descriptors": """
        import os
        print(sorted(map(int, os.listdir('/proc/self/fd')))[:3])
        f = open('main.py')
        print(f.fileno(), os.pipe(), os.dup(1))
    """,
    "descriptors are inheritable": """
        import os
        print([os.get_inheritable(n) for n in range(3)], os.get_inheritable(os.open('main.py', 0)))
    """,
    "dup2": """
        import os
        fd = os.open('out', os.O_RDWR | os.O_CREAT)
        saved = os.dup(1)
        os.dup2(fd, 1)
        print('to the file', flush=True)
        os.dup2(saved, 1)
        print(open('out').read())
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
    "mmap": """
        import mmap
        open('f', 'wb').write(b'abc')
        with open('f', 'r+b') as f, mmap.mmap(f.fileno(), 0) as m:
            m[0:1] = b'X'
        print(open('f').read(), mmap.mmap(-1, 10)[:2])
    """,
    "locks of files": """
        import fcntl
        f = open('f', 'w')
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(f, fcntl.LOCK_EX)
        print(fcntl.fcntl(f, fcntl.F_GETFD))
    """,
    "archives": """
        import zipfile, tarfile, gzip
        with zipfile.ZipFile('a.zip', 'w') as z:
            z.write('main.py')
        print(zipfile.ZipFile('a.zip').namelist())
        with tarfile.open('a.tar.gz', 'w:gz') as t:
            t.add('main.py')
        print(tarfile.open('a.tar.gz').getnames(), gzip.decompress(gzip.compress(b'x')))
    """,
    "module in the folder": r"""
        open('helper.py', 'w').write('x = 5\nprint(__name__, __file__)')
        import sys
        sys.path.insert(0, '')
        import helper
        print(helper.x)
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
    "devices": """
        print(open('/dev/null').read() == '', len(open('/dev/urandom', 'rb').read(3)))
        try:
            open('/dev/full', 'wb', 0).write(b'x')
        except OSError as e:
            print(e)
    """,
    "/dev/zero": "print(open('/dev/zero', 'rb').read(2))",
    "/dev/zero written": "open('/dev/zero', 'wb', 0).write(b'x')",
    "anonymous mmap": """
        import mmap
        def show(function):
            try:
                print(function())
            except Exception as error:
                print(type(error), error)
        class Mine(mmap.mmap):
            pass
        for make in (mmap.mmap, Mine):
            show(lambda: make(-1, 50))
            show(lambda: make(fileno=-1, length=3, access=mmap.ACCESS_COPY)[:])
            show(lambda: make(-1, 3, offset=4096))
            show(lambda: make(-1, -1))
            show(lambda: make(-1, 3, 'x'))
            show(lambda: make(-1))
            show(lambda: make())
        show(lambda: vars(mmap.mmap(-1, 1)))
        print(mmap.mmap, mmap.mmap.__name__, mmap.mmap.__doc__)
    """,
}
SIGNALS = {
    "handler": """
        import os, signal
        signal.signal(signal.SIGUSR1, lambda n, f: print('got', signal.Signals(n).name, f.f_lineno))
        os.kill(os.getpid(), signal.SIGUSR1)
        print('on')
    """,
    "alarm": """
        import signal, threading
        done = threading.Event()
        def handler(number, frame):
            print('alarm')
            done.set()
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        print(done.wait(60))
    """,
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
    "mask": """
        import os, signal
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        os.kill(os.getpid(), signal.SIGUSR1)
        print(signal.sigpending(), signal.sigwait([signal.SIGUSR1]))
    """,
    "SIGCHLD": """
        import os, signal, time
        done = []
        def handler(number, frame):
            print('child')
            done.append(number)
        signal.signal(signal.SIGCHLD, handler)
        if os.fork() == 0:
            os._exit(0)
        while not done:
            time.sleep(0.001)
        print(done, os.wait()[1])
    """,
    "SIGPIPE": """
        import os
        r, w = os.pipe()
        os.close(r)
        os.write(w, b'x')
    """,
    "SIGTERM handled": """
        import os, signal, sys
        signal.signal(signal.SIGTERM, lambda *a: sys.exit(11))
        os.kill(os.getpid(), signal.SIGTERM)
    """,
    "wakeup": """
        import signal, socket
        a, b = socket.socketpair()
        a.setblocking(False)
        signal.set_wakeup_fd(a.fileno())
        signal.signal(signal.SIGUSR1, lambda *x: None)
        signal.raise_signal(signal.SIGUSR1)
        print(b.recv(5))
    """,
    "functions": """
        import signal
        print([repr(getattr(signal, name)).split(' at ')[0] for name in dir(signal)])
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
    "names of services": """
        import mimetypes, socket
        print(socket.getservbyname('http'), socket.getservbyport(22), socket.getprotobyname('tcp'), mimetypes.guess_type('x.flac'))
    """,
    "socketpair": """
        import socket
        a, b = socket.socketpair()
        a.sendall(b'hello')
        a.shutdown(socket.SHUT_WR)
        print(b.recv(10), b.recv(10), a.family)
    """,
    "unix server": """
        import socket, threading
        s = socket.socket(socket.AF_UNIX)
        s.bind('s.sock')
        s.listen()
        def serve():
            c, _ = s.accept()
            with c:
                c.sendall(c.recv(10).upper())
        t = threading.Thread(target=serve)
        t.start()
        c = socket.socket(socket.AF_UNIX)
        c.connect('s.sock')
        c.sendall(b'text')
        print(c.recv(10))
        t.join()
        c.close()
        s.close()
    """,
    "selectors": """
        import selectors, socket
        s = selectors.DefaultSelector()
        a, b = socket.socketpair()
        s.register(a, selectors.EVENT_READ)
        b.send(b'x')
        print(type(s).__name__, [e for _, e in s.select(5)])
    """,
    "passing of descriptors": """
        import os, socket
        a, b = socket.socketpair()
        socket.send_fds(a, [b'x'], [os.open('main.py', 0)])
        print(len(socket.recv_fds(b, 9, 1)[1]))
    """,
    "asyncio": """
        import asyncio
        async def work(n):
            await asyncio.sleep(0.001 * n)
            return n
        async def main():
            print(await asyncio.gather(*map(work, range(3))))
            print(await asyncio.to_thread(sum, [1, 2]))
            try:
                async with asyncio.timeout(0.01):
                    await asyncio.sleep(60)
            except TimeoutError as e:
                print(repr(e))
            p = await asyncio.create_subprocess_exec('echo', 'x', stdout=-1)
            print(await p.communicate(), p.returncode)
        print(asyncio.run(main()), asyncio.run(work(1)))
    """,
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
    "asyncio reads stdin": """
        import asyncio, sys
        async def main():
            reader = asyncio.StreamReader()
            try:
                await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
            except ValueError as e:
                print(e)
        asyncio.run(main())
    """,
    "asyncio in debug mode": """
        import asyncio
        async def main():
            print(asyncio.get_running_loop().get_debug())
        asyncio.run(main(), debug=True)
    """,
    "no running loop": """
        import asyncio
        try:
            asyncio.get_running_loop()
        except RuntimeError as e:
            print(e)
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
    "options": """
        import sys
        print(sys._xoptions, sys.warnoptions, sys.dont_write_bytecode, sys.pycache_prefix)
    """,
    "limits of sys": """
        import sys
        print(sys.getrecursionlimit(), sys.int_info, sys.get_int_max_str_digits(), sys.maxsize, sys.hash_info, sys.float_info)
    """,
    "platform": """
        import sys, platform, os, struct
        print(sys.platform, platform.machine(), platform.python_version(), os.name, struct.calcsize('P'), sys.byteorder, platform.system())
    """,
    "interpreter": """
        import sys
        print(sys.version, sys.executable, sys.prefix, sys.base_prefix, sys.implementation, sys.api_version)
    """,
    "hooks of sys": """
        import sys
        print(sys.gettrace(), sys.getprofile(), sys.excepthook, sys.displayhook, sys.unraisablehook, sys.breakpointhook, sys.get_asyncgen_hooks(), sys.get_coroutine_origin_tracking_depth())
    """,
    "last error": """
        import sys
        print(sys.exc_info(), hasattr(sys, 'last_value'), sys.exception())
    """,
    "importers": """
        import sys
        print(sys.meta_path, sys.path_hooks, len(sys.builtin_module_names))
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
    "globals": "print({k: v for k, v in globals().items() if k not in ('return_val', '__loader__')})",
    "locals are globals": "print(locals() is globals(), vars() is globals())",
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
    "threads at the start": """
        import threading, sys
        print(len(threading.enumerate()), len(sys._current_frames()))
    """,
    "gc": """
        import gc
        print(gc.isenabled(), gc.get_threshold(), gc.get_debug(), gc.garbage, gc.callbacks)
    """,
    "gc of a cycle": """
        import gc
        class A:
            pass
        for _ in range(3):
            a = A()
            a.a = a
        del a
        print(gc.collect() >= 3, gc.collect())
    """,
    "audit": """
        import sys
        sys.addaudithook(lambda e, a: e == 'mine' and print(e, a))
        sys.audit('mine', 1)
    """,
    "environment": """
        import os
        print(sorted(k for k in os.environ if k not in os.environ.get('KEEP', '')), os.environ['HOME'], os.getcwd())
        os.environ['X'] = 'é'
        os.system('echo $X')
        print(os.path.expanduser('~'), os.environb[b'X'])
    """,
    "warnings' filters": """
        import warnings
        for f in warnings.filters:
            print(f)
    """,
    "logging": """
        import logging
        logging.warning('logged')
        logging.getLogger('x').error('as well')
        logging.info('hidden')
        print(logging.root.handlers, logging.root.level)
    """,
    "logging of times": """
        import logging, sys
        logging.basicConfig(stream=sys.stdout, format='%(levelname)s %(name)s %(threadName)s %(processName)s %(module)s %(lineno)d %(filename)s %(message)s')
        logging.warning('x')
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
    "modules of the jail": """
        import sys
        print([m for m in sys.modules if 'faasrt' in m or m.startswith('jail')])
    """,
    "times": """
        import time, os
        print(time.process_time() < 60, time.perf_counter() > 0, time.thread_time() < 60, os.times().elapsed > 0, time.tzname, time.timezone)
        print(time.strftime('%Y', time.gmtime(0)), time.time() > 1e9)
    """,
    "usage": """
        import resource
        u = resource.getrusage(resource.RUSAGE_SELF)
        print(u.ru_utime < 60, u.ru_maxrss > 0, resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime < 60)
    """,
    "locale": """
        import locale, sys
        print(locale.setlocale(locale.LC_ALL), locale.getpreferredencoding(), locale.getlocale(), sys.getfilesystemencoding(), sys.getfilesystemencodeerrors(), sys.getdefaultencoding(), locale.localeconv()['decimal_point'])
    """,
    "locale set": """
        import locale
        print(locale.setlocale(locale.LC_ALL, ''), f'{1234567:n}')
        try:
            locale.setlocale(locale.LC_ALL, 'xx_XX')
        except locale.Error as e:
            print(e)
    """,
    "user": """
        import os
        print(os.getuid() == os.geteuid(), os.getgid() == os.getegid(), os.getpgrp() > 0, os.getpid() > 1)
    """,
    "contextvars": """
        import contextvars
        v = contextvars.ContextVar('v', default=1)
        print(v.get(), list(contextvars.copy_context()))
    """,
    "decimal's context": """
        import decimal
        print(decimal.getcontext(), decimal.Decimal(1) / 3)
    """,
    "registries": """
        import copyreg, abc, codecs, mimetypes, csv
        print(sorted(csv.list_dialects()), codecs.lookup('utf-8').name, mimetypes.guess_type('a.json'))
    """,
    "finder caches": """
        import sys
        print(type(sys.path_importer_cache), sys.path[:1] == sys.path[:1])
    """,
    "tracemalloc": """
        import tracemalloc
        print(tracemalloc.is_tracing())
        tracemalloc.start()
        x = [0] * 1000
        print(tracemalloc.get_traced_memory()[0] > 7000)
    """,
    "caches are empty": """
        import re, functools, linecache
        print(linecache.getline('main.py', 1), list(linecache.cache)[:1])
    """,
    "multiprocessing's state": """
        import multiprocessing as mp
        print(mp.current_process().name, mp.parent_process(), mp.get_start_method(), mp.active_children(), mp.current_process().pid > 1)
    """,
    "random's shape": """
        import random, secrets, uuid, os
        print(0 <= random.random() < 1, len(secrets.token_hex(4)), uuid.uuid4().version, len(os.urandom(5)), uuid.uuid1().version)
    """,
    "random with a seed": """
        import random
        random.seed(5)
        print(random.random(), random.sample(range(100), 5), random.gauss(0, 1))
        print(random.Random(1).randint(0, 10**9))
    """,
    "hashes of values": "print(hash(1.5), hash(2**61), hash((1, 2)), hash(None) == hash(None), id(None) == id(None))",
    "interned": """
        import sys
        print(sys.intern('x') is 'x'.strip(), sys.getsizeof([]), sys.getsizeof(''), sys.getrefcount(object()) )
    """,
}
TEXT = {
    "unicode": "print('héllo 日本 🌍 \\x00 \\r\\n \\u2028', ascii('é'))",
    "surrogate printed": "print('\\ud800')",
    "surrogate on stderr": r"""
        import sys
        print('\ud800 \udc80', file=sys.stderr)
    """,
    "surrogateescape printed": r"""
        import os
        print(os.fsdecode(b'\xff'))
    """,
    "bytes": r"""
        import sys
        sys.stdout.buffer.write(b'bytes\n')
        print('text')
        sys.stdout.write('no end')
    """,
    "invalid bytes": r"""
        import sys
        sys.stdout.buffer.write(b'\xff\xfe\x80a')
    """,
    "order of buffers": r"""
        import os, sys
        print('a')
        os.write(1, b'raw\n')
        sys.stdout.buffer.write(b'buffer\n')
        print('b')
    """,
    "order of streams": """
        import sys
        print('out 1')
        print('err 1', file=sys.stderr)
        sys.stderr.write('no end')
        print('out 2', flush=True)
        sys.stderr.flush()
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
    "reconfigure": r"""
        import sys
        sys.stdout.reconfigure(encoding='latin-1', errors='replace', newline='\r\n')
        print('é \u2028')
    """,
    "big output": """
        print('x' * 700_000)
        import sys
        sys.stderr.write('y' * 200_000)
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
    "stdin is no terminal": """
        import sys, os, getpass
        print(sys.stdin.isatty(), os.isatty(1))
        try:
            os.get_terminal_size()
        except OSError as e:
            print(e)
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
    "shebang": """
        #!/usr/bin/env python3
        print('x')
    """,
    "line continuation at the end": "x = 1 + \\\n",
    "only a comment": "# nothing",
    "identifiers": """
        ﬁ = 1
        print(fi, 'ﬁ')
    """,
    "form of numbers": "print(1e16, 1e-5, 0.1 + 0.2, 2 ** 100, 1_000, 0x_ff, float('nan'), -0.0, 5 // -2, complex(1, -0.0))",
    "pprint": """
        import pprint
        pprint.pprint({'b': list(range(40)), 'a': {'x': 'y' * 60}})
    """,
    "textwrap and string": """
        import textwrap, string
        print(textwrap.fill('word ' * 30, 40))
        print(string.Template('$a').substitute(a=1), string.printable.strip())
    """,
    "help": """
        def f(a: int, *, b='x') -> str:
            '''The doc.'''
        help(f)
    """,
    "displayhook": """
        import sys
        sys.displayhook(5)
        sys.displayhook(None)
        print(__builtins__._)
    """,
    "argparse": """
        import argparse
        p = argparse.ArgumentParser()
        p.add_argument('name')
        p.parse_args()
    """,
    "argparse's help": """
        import argparse
        p = argparse.ArgumentParser(description='d')
        p.add_argument('--x', type=int, default=1)
        print(p.format_help())
        p.parse_args(['--x', 'y'])
    """,
    "unittest": """
        import unittest
        class T(unittest.TestCase):
            def test_passes(self):
                self.assertEqual(1, 1)
            def test_that_fails(self):
                self.assertEqual([1, 2], [1, 3])
            @unittest.skip('why')
            def test_skipped(self):
                pass
        if __name__ == '__main__':
            import io, re
            out = io.StringIO()
            result = unittest.main(argv=['x', '-v'], exit=False, testRunner=unittest.TextTestRunner(out)).result
            print(re.sub(r'in [0-9.]+s', 'in 0s', out.getvalue()), result)
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
    "doctest": """
        def f(x):
            '''
            >>> f(1)
            3
            '''
            return x + 1
        import doctest
        print(doctest.testmod())
    """,
    "getsource": """
        import inspect
        def f():
            # a comment
            return 1
        class A:
            x = 1
            def m(self):
                return 'é'
        print(inspect.getsource(f), inspect.getsource(A), inspect.getsource(A.m))
        print(inspect.getsourcelines(f), inspect.getmodule(f), inspect.getsource(lambda: 1))
        print(inspect.getsourcefile(f), inspect.getfile(A))
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
    "code objects": """
        def f(): pass
        print(f.__code__.co_filename.endswith('main.py'), f.__code__.co_firstlineno, f.__module__, f.__qualname__)
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
    "deep lru_cache": """
        import sys, functools
        sys.setrecursionlimit(1_000_000)
        @functools.lru_cache(None)
        def f(n):
            return n and 1 + f(n - 1)
        print(f(10_000 if sys.version_info < (3, 12) else 300))
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
    "deep copy": """
        import copy
        x = []
        for _ in range(300):
            x = [x]
        print(copy.deepcopy(x) == x)
    """,
    "deep parser": """
        try:
            eval('(' * 150 + ')' * 150)
            eval('-' * 50_000 + '1')
        except (MemoryError, RecursionError, SyntaxError) as e:
            print(type(e).__name__, e)
    """,
    "dataclasses": """
        from __future__ import annotations
        import dataclasses, typing
        @dataclasses.dataclass(order=True, frozen=True, slots=True)
        class P:
            x: int
            y: list[int] = dataclasses.field(default_factory=list)
        print(P(3), P(1) < P(2), typing.get_type_hints(P), dataclasses.asdict(P(1)), P.__module__)
        P(1).x = 2
    """,
    "pickle": """
        import pickle, dataclasses
        @dataclasses.dataclass
        class P:
            x: int
        def f():
            return 5
        print(pickle.loads(pickle.dumps((P(3), f)))[1](), pickle.dumps(P), pickle.loads(pickle.dumps(P)) is P)
        pickle.dumps(lambda: 1)
    """,
    "copyreg and deepcopy": """
        import copy
        class A:
            def __reduce__(self):
                return (A, ())
        print(type(copy.deepcopy(A())) is A)
    """,
    "enum": """
        import enum
        class C(enum.Flag):
            A = enum.auto()
            B = enum.auto()
        print(C.A | C.B, list(C), repr(C(0)))
    """,
    "typing": """
        import typing
        class T(typing.NamedTuple):
            a: int
            b: str = 'x'
        class P(typing.Protocol):
            def f(self): ...
        print(T(1), typing.Optional[int], P, T.__annotations__)
    """,
    "nested functions": """
        def outer():
            n = 0
            def inner():
                nonlocal n
                n += 1
                return n
            return inner
        f = outer()
        print(f(), f(), f.__closure__[0].cell_contents, f.__qualname__)
    """,
    "global in functions": """
        n = 0
        def f():
            global n, made
            n, made = n + 1, 'made'
        f()
        print(n, made, 'made' in globals())
    """,
    "comprehension scope": """
        x = 5
        print([x for x in range(3)], x, [y := 7 for _ in range(1)], y)
        class A:
            z = 1
            try:
                l = [z for _ in range(1)]
            except NameError as e:
                print(e)
    """,
    "zone": """
        import datetime, zoneinfo
        print(datetime.datetime(2024, 7, 1, tzinfo=zoneinfo.ZoneInfo('Europe/Berlin')).isoformat())
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
    "runpy": r"""
        import runpy
        open('m.py', 'w').write('print(__name__, __file__)\nx = 5')
        print(runpy.run_path('m.py', run_name='named')['x'])
    """,
    "pdb without input": """
        x = 1
        breakpoint()
        print('on')
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
    "setprofile": """
        import sys
        events = []
        sys.setprofile(lambda f, e, a: events.append(e))
        len('')
        sys.setprofile(None)
        print(events)
    """,
    "numpy": """
        import numpy as np
        print(np.arange(100_000).sum(), np.int_(2**40) * 2**20, np.dtype(int), np.array([1.5, 2]).mean(), repr(np.float64(0.1)))
        print(np.array([2**62]) * 4, np.linalg.det(np.eye(3) * 2), np.random.default_rng(5).integers(0, 10**9, 3), np.get_printoptions()['precision'])
        np.ones(2) @ np.ones(3)
    """,
    "numpy warns": """
        import numpy as np
        print(np.array([1.0]) / 0, np.seterr()['divide'])
        np.random.seed(1)
        print(np.random.rand(2))
    """,
    "numpy by itself": """
        import numpy, sys
        print(0 <= numpy.random.rand() < 1, numpy.geterr(), 'faasrt' in sys.modules)
    """,
    "pandas": """
        import pandas as pd
        d = pd.DataFrame({'a': [1, 2, 3], 'b': list('xyx')})
        print(d.groupby('b').sum(), d.a.dtype, d.describe())
        d['nope']
    """,
    "curses": """
        try:
            import curses
            print('curses')
        except ImportError as e:
            print(e)
    """,
    "missing package": "import no_such_package",
    "missing name": "from os import nope",
    "missing submodule": "import json.nope",
    "memory error that is caught": """
        try:
            x = bytearray(2**46)
        except MemoryError as e:
            print('caught', e)
    """,
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
