"""Programs that test how a program ends: exit codes, exceptions, shutdown order. See test_native_programs.py."""

from __future__ import annotations

EXITS = {
    "exit 3": "import sys\nprint('before')\nsys.exit(3)",
    "exit None": "import sys\nsys.exit(None)",
    "exit True": "import sys\nsys.exit(True)",
    "exit with a text": "import sys\nsys.exit('a message')",
    "exit with an object": "raise SystemExit({'a': [1, 2]})",
    "exit with a tuple": "raise SystemExit(1, 2)",
    "exit with a float": "raise SystemExit(2.5)",
    "exit -1": "exit(-1)",
    "exit 263": "raise SystemExit(256 + 7)",
    "exit 2 ** 40": "raise SystemExit(2 ** 40)",
    "exit -2 ** 31": "raise SystemExit(-2 ** 31)",
    "exit with a lone surrogate": "raise SystemExit('\\ud800')",
    "exit by a subclass": "class Leave(SystemExit):\n    pass\nraise Leave(4)",
    "exit code replaced": "error = SystemExit(3)\nerror.code = 5\nraise error",
    "exit while finally prints": "import sys\ntry:\n    sys.exit(5)\nfinally:\n    print('finally')",
    "exit in a finally": "import sys\ntry:\n    1 / 0\nfinally:\n    sys.exit(6)",
    "quit": "quit(7)",
    "exit in a thread": "import sys, threading\nt = threading.Thread(target=sys.exit, args=(3,))\nt.start()\nt.join()\nprint('on')",
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
    "os._exit": "import os\nprint('lost')\nprint('kept', flush=True)\nos._exit(7)",
    "os._exit 0": "import os\nprint('kept', flush=True)\nos._exit(0)",
    "os._exit in a thread": "import os, threading\nthreading.Thread(target=os._exit, args=(8,)).start()\nthreading.Event().wait()",
    "abort": "import os\nprint('x', flush=True)\nos.abort()",
    "segmentation fault": "import ctypes\nprint('x', flush=True)\nctypes.string_at(0)",
    "SIGTERM to itself": "import os\nprint('x', flush=True)\nos.kill(os.getpid(), 15)",
    "SIGKILL to itself": "import os\nprint('x', flush=True)\nos.kill(os.getpid(), 9)",
    "SIGALRM unhandled": "import signal\nsignal.setitimer(signal.ITIMER_REAL, 0.01)\nsignal.pause()",
    "raise_signal": "import signal\nsignal.raise_signal(signal.SIGUSR1)",
    "exec of another program": "import os, sys\nos.execv('/bin/sh', ['sh', '-c', 'echo shell; exit 12'])",
    "os.closerange and exit": "import os, sys\nprint('x', flush=True)\nos.closerange(0, 50)\nsys.exit(3)",
}

ERRORS = {
    "raise": "def f(x):\n    return 1 / x\n\nf(0)",
    "chained": "try:\n    {}['a']\nexcept KeyError as e:\n    raise RuntimeError('outer') from e",
    "in a handler": "try:\n    1 / 0\nexcept ZeroDivisionError:\n    [][1]",
    "from None": "try:\n    1 / 0\nexcept ZeroDivisionError:\n    raise ValueError('only this') from None",
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
    "notes": "e = ValueError('x')\ne.add_note('a note\\nof two lines')\nraise e",
    "syntax error": "x = (1,\nprint 3",
    "syntax error with a caret": "if True:\n    x = 5 +\n",
    "indentation": "if True:\nprint(1)",
    "tabs": "if True:\n        x = 1\n\ty = 2\n",
    "null byte": "print(1)\0",
    "return outside": "print('never')\nreturn 5",
    "duplicate argument": "def f(a, a): pass",
    "unclosed text": "x = '''never ends",
    "syntax error in exec": "exec('x = = 1')",
    "syntax error in an import": "open('other.py', 'w').write('x = = 1')\nimport sys\nsys.path.insert(0, '.')\nimport other",
    "error in an import": "open('other.py', 'w').write('1 / 0')\nimport sys\nsys.path.insert(0, '.')\nimport other",
    "warning of the compiler": "x = 1\nif x is 1:\n    print('\\d')",
    "recursion": "def f(n):\n    return f(n + 1)\nf(0)",
    "recursion over two functions": "def f(n):\n    return g(n)\ndef g(n):\n    return f(n)\nf(0)",
    "recursion in repr": "x = []\nfor _ in range(100_000):\n    x = [x]\ntry:\n    repr(x)\nexcept RecursionError as e:\n    print(e)",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "KeyboardInterrupt with a text": "raise KeyboardInterrupt('stop')",
    "SIGINT to itself": "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nfor _ in range(10**9): pass",
    "GeneratorExit": "raise GeneratorExit",
    "str fails": "class Loud(Exception):\n    def __str__(self):\n        raise ValueError\nraise Loud",
    "module and qualname": "class A:\n    class E(Exception):\n        pass\nraise A.E('x')",
    "BaseException": "raise BaseException('x')",
    "long message": "raise ValueError('x' * 20_000)",
    "surrogate in a message": "raise ValueError('\\ud800 é \\x00')",
    "wide characters": "x = '日本語'; raise ValueError(x + 1 / 0)",
    "lines with a form feed": "x = 1\n\f\ny = 'a\x0bb'\nraise ValueError(x)",
    "CRLF lines": "x = 1\r\nif x:\r\n    print('''a\r\nb''' == 'a\\nb')\r\nraise ValueError(x)\r\n",
    "CR lines": "x = 1\rprint(x)\rraise ValueError(x)\r",
    "no newline at the end": "def f():\n    raise ValueError\nf()",
    "in a comprehension": "[1 / (x - 2) for x in range(4)]",
    "in a lambda": "f = lambda x: (\n    1\n    / x\n)\nf(0)",
    "in exec": "exec(compile('def f():\\n    1 / 0\\nf()', 'made.py', 'exec'))",
    "in eval": "eval('1 / 0')",
    "in a class body": "class A:\n    x = 1\n    y = x / 0",
    "in a decorator": "def d(f):\n    raise TypeError('no')\n@d\n@d\ndef f():\n    pass",
    "in a generator": "def g():\n    yield 1\n    raise StopIteration\nlist(g())",
    "in a library": "import json\njson.loads('{')",
    "in a callback of C": "sorted([2, 1], key=lambda x: x.nope)",
    "AttributeError suggests": "import math\nmath.squrt",
    "NameError suggests": "number = 1\nprint(numbr)",
    "NameError of a module": "print(sys.argv)",
    "UnboundLocalError": "def f():\n    print(x)\n    x = 1\nf()",
    "traceback printed": "import traceback\ndef f():\n    1 / 0\ntry:\n    f()\nexcept Exception:\n    traceback.print_exc()\n    traceback.print_stack()",
    "traceback extracted": "import traceback, sys\ntry:\n    1 / 0\nexcept Exception as e:\n    print(traceback.extract_tb(e.__traceback__))\n    print(sys.exc_info()[2].tb_frame.f_back)",
    "logging of an error": "import logging\ntry:\n    1 / 0\nexcept ZeroDivisionError:\n    logging.exception('failed')",
    "error of asyncio": "import asyncio\nasync def main():\n    await asyncio.sleep(0)\n    raise ValueError('in a task')\nasyncio.run(main())",
    "TaskGroup": """
import asyncio
async def fail():
    raise ValueError('in a task')
async def main():
    async with asyncio.TaskGroup() as group:
        group.create_task(fail())
asyncio.run(main())
""",
    "excepthook": "import sys\ndef hook(kind, error, tb):\n    print('hook', kind.__name__, error, tb.tb_lineno)\nsys.excepthook = hook\n1 / 0",
    "excepthook fails": "import sys\ndef hook(kind, error, tb):\n    raise TypeError('hook')\nsys.excepthook = hook\n1 / 0",
    "excepthook exits": "import sys\ndef hook(kind, error, tb):\n    sys.exit(9)\nsys.excepthook = hook\n1 / 0",
    "excepthook deleted": "import sys\ndel sys.excepthook\n1 / 0",
    "excepthook does not see an exit": "import sys\nsys.excepthook = print\nsys.exit(3)",
    "last_value": "import sys, atexit\natexit.register(lambda: print(repr(sys.last_value), sys.last_traceback.tb_lineno))\n1 / 0",
    "tracebacklimit": "import sys\nsys.tracebacklimit = 1\ndef f():\n    1 / 0\nf()",
    "stderr replaced": "import sys, io\nsys.stderr = io.StringIO()\n1 / 0",
    "stderr is None": "import sys\nsys.stderr = None\n1 / 0",
    "stderr goes to stdout": "import sys\nsys.stderr = sys.stdout\nprint('x', end=' ')\n1 / 0",
    "thread": "import threading\nt = threading.Thread(target=lambda: 1 / 0, name='t')\nt.start()\nt.join()\nprint('after')",
    "thread's excepthook": "import threading\nthreading.excepthook = lambda a: print('hook', a.exc_type, a.thread.name)\nt = threading.Thread(target=lambda: 1 / 0, name='t')\nt.start()\nt.join()",
    "in __del__": "class A:\n    def __del__(self):\n        raise ValueError('unraisable')\nA()\nprint('after')",
    "unraisablehook": "import sys\nsys.unraisablehook = lambda u: print('hook', u.exc_value, u.err_msg)\nclass A:\n    def __del__(self):\n        raise ValueError('x')\nA()",
    "warning": "import warnings\nwarnings.warn('careful')\nwarnings.warn('old', DeprecationWarning)\nwarnings.warn('more', stacklevel=2)",
    "warning as an error": "import warnings\nwarnings.simplefilter('error')\nwarnings.warn('careful')",
    "ResourceWarning": "import warnings\nwarnings.simplefilter('always')\nopen('main.py')\nprint('on')",
    "coroutine never awaited": "async def f():\n    pass\nf()\nprint('on')",
    "assert": "x = 5\nassert x == 6, f'{x} is not 6'",
    "OSError": "open('/nowhere/file')",
    "UnicodeDecodeError": "b'\\xff'.decode()",
    "error attributes": "import sys\ntry:\n    open('missing')\nexcept OSError as e:\n    print(e.errno, e.filename, e.strerror, e.args)",
}

SHUTDOWN = {
    "atexit": "import atexit\natexit.register(print, 'one')\natexit.register(print, 'two')\nprint('main')",
    "atexit after an error": "import atexit\natexit.register(print, 'bye')\n1 / 0",
    "atexit after an exit": "import atexit, sys\natexit.register(print, 'bye')\nsys.exit(3)",
    "atexit fails": "import atexit\natexit.register(lambda: 1 / 0)\natexit.register(print, 'x')",
    "atexit exits": "import atexit, sys\natexit.register(sys.exit, 5)\nprint('x')",
    "atexit exits with a text": "import atexit, sys\natexit.register(sys.exit, 'text')\nprint('x')",
    "atexit within atexit": "import atexit\natexit.register(lambda: atexit.register(print, 'inner'))",
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
    "threading._register_atexit": "import threading\nthreading._register_atexit(print, 'threads')\nprint('main')",
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
    "daemon thread": "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\nprint('x')",
    "daemon thread that loops": """
import threading
def work():
    while True:
        pass
threading.Thread(target=work, daemon=True).start()
print('x')
""",
    "executor left open": "from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(2)\npool.submit(print, 'job')",
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
    "__del__ at the end": "class A:\n    def __del__(self):\n        print('gone', A)\na = A()\nprint('main')",
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
    "__del__ in a cycle": "class A:\n    def __del__(self):\n        print('gone')\na = A()\na.a = a\ndel a\nprint('main')",
    "__del__ after an error": "class A:\n    def __del__(self):\n        print('gone')\na = A()\n1 / 0",
    "__del__ of a local after an error": """
class A:
    def __del__(self):
        print('gone')
def f():
    a = A()
    1 / 0
f()
""",
    "__del__ fails at the end": "class A:\n    def __del__(self):\n        raise ValueError('late')\na = A()",
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
    "__del__ on builtins": "import builtins\nclass A:\n    def __del__(self):\n        print('gone')\nbuiltins.a = A()",
    "__del__ on a known module": "import json\nclass A:\n    def __del__(self):\n        print('gone')\njson.a = A()",
    "__del__ on sys": "import sys\nclass A:\n    def __del__(self):\n        import os\n        os.write(1, b'gone')\nsys.a = A()",
    "finalizing": "import sys\nclass A:\n    def __del__(self):\n        print(sys.is_finalizing())\na = A()\nprint(sys.is_finalizing())",
    "weakref.finalize": "import weakref\nclass A:\n    pass\na = A()\nweakref.finalize(a, print, 'finalized')\nweakref.finalize(a, print, 'second')\nprint('main')",
    "weakref.finalize without atexit": "import weakref\nclass A:\n    pass\na = A()\nf = weakref.finalize(a, print, 'finalized')\nf.atexit = False",
    "weakref callback": "import weakref\nclass A:\n    pass\na = A()\nr = weakref.ref(a, lambda r: print('callback'))\ndel a\nprint('main')",
    "generator left open": "def g():\n    try:\n        yield 1\n    finally:\n        print('closed')\nx = g()\nprint(next(x))",
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
    "event loop left open": "import asyncio\nloop = asyncio.new_event_loop()\nloop.run_until_complete(asyncio.sleep(0))\nprint('end')",
    "file left open": "import atexit\nf = open('out', 'w')\nf.write('text')\natexit.register(lambda: print(repr(open('out').read())))",
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
    "stdout closed": "import sys\nprint('before')\nsys.stdout.close()",
    "descriptor 1 closed": "import os\nprint('lost')\nos.close(1)",
    "descriptor 1 closed after a flush": "import os\nprint('kept', flush=True)\nos.close(1)",
    "stdout is None": "import sys\nsys.stdout = None\nprint('nowhere')\nsys.stderr.write('still here')",
    "stdout replaced": "import sys, io\nprint('before')\nsys.stdout = io.StringIO()\nprint('nowhere')",
    "stdout wrapped": "import sys, io\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding='utf-16-le')\nprint('hi')",
    "stdout detached": "import sys, io\nb = sys.stdout.detach()\nb.write(b'raw\\n')",
    "stdout's flush fails": "import sys\nclass W:\n    def write(self, text):\n        pass\n    def flush(self):\n        raise RuntimeError('flush')\nsys.stdout = W()",
    "stdout is full": "import os, sys\nos.dup2(os.open('/dev/full', os.O_WRONLY), 1)\nprint('x')",
    "print without a flush in an exit handler": "import atexit\natexit.register(lambda: print('late', end=''))",
}
