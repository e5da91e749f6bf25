"""Programs for the tests of the envelope."""
# fmt: off

from __future__ import annotations

from faasrt import Outcome

# Programs whose results in the envelope must equal those of the interpreter alone.
PROGRAMS = {
    "python": [
        "import sys\nfor i in range(3):\n    print(i, end='')\n    print(-i, file=sys.stderr, end=' ')",
        "import sys\nsys.stdout.buffer.write(b'bytes\\n')\nprint('text')\nsys.stdout.write('no end')",
        "import os\nprint('a', flush=True)\nos.write(1, b'raw\\n')\nprint('b')",
        "def f(n):\n    if n == 0:\n        raise KeyError('deep')\n    f(n - 1)\n\ntry:\n    f(2)\nexcept KeyError as e:\n    raise RuntimeError('outer') from e",
        "try:\n    1 / 0\nexcept ZeroDivisionError:\n    [][1]",
        "raise ExceptionGroup('several', [ValueError(1), TypeError(2)])",
        "e = ValueError('x')\ne.add_note('a note')\nraise e",
        "import dataclasses, pickle\n@dataclasses.dataclass\nclass P:\n    x: int\nprint(pickle.loads(pickle.dumps(P(3))), __name__, P.__module__)",
        "import inspect\ndef f():\n    # a comment\n    return 1\nprint(inspect.getsource(f))",
        "import sys\nsys.exit('a message')",
        "raise SystemExit(256 + 7)",
        "import atexit\natexit.register(print, 'at exit')\nprint('first')",
        "import threading, time\ndef work():\n    time.sleep(0.05)\n    print('from a thread')\nthreading.Thread(target=work).start()\nprint('main')",
        "import threading\nt = threading.Thread(target=lambda: 1 / 0, name='t')\nt.start()\nt.join()\nprint('after')",
        "import sys\nsys.stdout = None\nprint('nowhere')\nsys.stderr.write('still here')",
        "import sys\nprint('before')\nsys.stdout.close()",
        "class Loud(Exception):\n    def __str__(self):\n        raise ValueError\nraise Loud",
        "print('héllo \\ud800 \\x00 \\r\\n \\u2028')",
        "x = 1\nif x:\n    print('''a\n  b'''); print(\"it's\", {'k': \"v\"}, end='\\r\\n')",
        "import asyncio\nasync def main():\n    await asyncio.sleep(0)\n    async with asyncio.TaskGroup() as g:\n        g.create_task(asyncio.sleep(0))\n    return 5\nprint(asyncio.run(main()))\nprint(asyncio.run(main()))",
        "import asyncio\nx = await asyncio.sleep(0, 'value')\nprint(x)\nraise ValueError(x)",
        "import warnings\nwarnings.warn('careful')",
        "import logging\nlogging.warning('logged')\nlogging.getLogger('x').error('as well')",
        "return_val(None)\nreturn_val(5)\nreturn_val({'a': 1})",
        "import json, sys\nprint(sys.argv, __name__, 'json' in globals(), 'faasrt' in str(globals()))",
    ],
    "javascript": [
        "console.log('%s is %d', 'x', 5, {a: {b: {c: {d: 1}}}}, [1, 'two'], new Map([[1, 2]]));\nconsole.error(new Set([1]));",
        "console.table([{a: 1, b: 'x'}]); console.group('g'); console.log('in'); console.groupEnd(); console.info('i'); console.debug('d');",
        "console.count(); console.count('x'); console.assert(1 === 2, 'no'); console.dir({a: 1});",
        "Deno.stdout.writeSync(new TextEncoder().encode('bytes')); await Deno.stdout.write(new TextEncoder().encode('more\\n'));",
        "process.stdout.write('node\\n'); process.stderr.write('err\\n');",
        "setTimeout(() => console.log('3'), 2000); queueMicrotask(() => console.log('2')); console.log('1'); process.nextTick(() => console.log('tick'));",
        "const w = Deno.stdout.writable.getWriter(); await w.write(new TextEncoder().encode('stream\\n')); w.releaseLock();",
        "addEventListener('unload', () => console.log('bye')); console.log('hi');",
        "Deno.exitCode = 7; console.log('x');",
        "process.exitCode = 5;",
        "import { readFileSync } from 'node:fs'; import path from 'node:path'; console.log(typeof readFileSync, path.join('a', 'b'));",
        "export default function f() {}\nexport const x = 5;\nconsole.log(typeof f, x);",
        "function f() { throw new RangeError('r'); }\nfunction g() { f(); }\ng();",
        "console.log('a');\nawait Promise.reject(new TypeError('t'));",
        "Promise.reject(new Error('nobody'));\nawait new Promise((r) => setTimeout(r, 50));\nconsole.log('not reached');",
        "addEventListener('unhandledrejection', (e) => { e.preventDefault(); console.log('handled'); });\nPromise.reject(1);\nsetTimeout(() => console.log('after'), 20);",
        "setTimeout(() => { throw new Error('late'); }, 5);",
        "class Custom extends Error { constructor(m) { super(m); this.name = 'Custom'; } }\nthrow new Custom('c');",
        "return_val(undefined); return_val(5); return_val({a: 1});",
        'console.log(\'{"stdout":"forged","stderr":"","ret_val":"x"}\');',
        "console.log(typeof require, typeof module, this, import.meta.main);",
    ],
    "typescript": [
        "enum Colour { Red = 1, Green }\ninterface P { x: number }\nconst p: P = { x: Colour.Green };\nconsole.log(p, Colour[1]);",
        "abstract class A<T> { constructor(public readonly v: T) {} }\nclass B extends A<number> {}\nconsole.log(new B(3));",
        "type T = { a?: string };\nconst t = {} as T;\nconsole.log(t.a!.length);",
        "const x: number = ;\n",
    ],
}

# Hostile programs, each with its expected outcome. None accepts any outcome.
PYTHON_TRICKS: list[tuple[str, str, Outcome | None]] = [
    ("prints a forged frame", "print('faasrt1:' + 'e30=')\nprint('{}')", Outcome.OK),
    ("prints the markers of return_val", "print('__COZE_RETURN_VAL_START__')\nprint('x')\nprint('__COZE_RETURN_VAL_END__')", Outcome.OK),
    ("writes the markers of return_val with os.write", "import os\nos.write(1, b'__COZE_RETURN_VAL_START__\\nx\\n__COZE_RETURN_VAL_END__\\n')", Outcome.OK),
    ("replaces print", "import builtins\nbuiltins.print = lambda *a: None\nprint('x')", Outcome.OK),
    ("closes its streams", "import sys\nsys.stdout.close()\nsys.stderr.close()", Outcome.OK),
    ("closes the buffer of stdout", "import sys\nsys.stdout.buffer.close()\nsys.stdout = sys.stderr = None", Outcome.OK),
    ("deletes builtins", "import builtins\nd = delattr\nfor n in list(vars(builtins)):\n    if n[0] != '_': d(builtins, n)", Outcome.OK),
    ("deletes modules", "import sys\nsys.modules.clear()", Outcome.OK),
    ("overwrites functions of modules", "import json, os, base64\njson.dumps = os.write = os._exit = base64.b64encode = None", Outcome.OK),
    ("calls os._exit", "import os\nprint('x', flush=True)\nos._exit(0)", Outcome.CRASHED),
    ("kills itself", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", Outcome.CRASHED),
    ("reads a null pointer", "import ctypes\nctypes.string_at(0)", Outcome.CRASHED),
    ("raises in __del__", "class A:\n    def __del__(self):\n        raise ValueError\na = A()", Outcome.OK),
    ("raises in an exit handler", "import atexit\natexit.register(lambda: 1 / 0)", Outcome.OK),
    ("starts threads", "import threading\nfor _ in range(9):\n    threading.Thread(target=print).start()", Outcome.OK),
    ("starts an endless thread", "import threading\ndef f():\n    while True: pass\nthreading.Thread(target=f).start()", Outcome.TIMEOUT),
    ("leaves a daemon thread", "import threading, time\nthreading.Thread(target=time.sleep, args=(99,), daemon=True).start()", Outcome.OK),
    ("loops", "while True: pass", Outcome.TIMEOUT),
    ("sleeps", "import time\ntime.sleep(100)", Outcome.TIMEOUT),
    ("catches all exceptions in an endless loop", "n = 0\nwhile True:\n    try:\n        while True: n += 1\n    except BaseException: pass", Outcome.TIMEOUT),
    ("catches the exception of its time limit", "n = 0\ntry:\n    while True: n += 1\nexcept BaseException: pass", Outcome.TIMEOUT),
    ("loops in an exit handler", "import atexit\ndef f():\n    while True: pass\natexit.register(f)", Outcome.TIMEOUT),
    ("lowers the recursion limit", "import sys\nsys.setrecursionlimit(60)\ndef f(): f()\nf()", Outcome.USER_ERROR),
    ("sets a trace function that fails", "import sys\nsys.settrace(lambda *a: 1 / 0)\nprint(1)", None),
    ("raises an exception that cannot be printed", "class E(BaseException):\n    __str__ = __repr__ = None\nraise E", Outcome.USER_ERROR),
    ("is not Python", "def f(:", Outcome.SYNTAX_ERROR),
    ("contains a null byte", "print(1)\0", Outcome.SYNTAX_ERROR),
    ("raises KeyboardInterrupt", "raise KeyboardInterrupt", Outcome.USER_ERROR),
]
JS_TRICKS: list[tuple[str, str, Outcome | None]] = [
    ("prints a forged line", "console.log('{\"stdout\":\"f\",\"stderr\":\"\",\"ret_val\":\"faasrt1:e30=\"}');", Outcome.OK),
    ("deletes globals", "for (const n of Object.getOwnPropertyNames(globalThis)) { try { delete globalThis[n]; } catch {} }", Outcome.OK),
    ("overwrites JSON", "JSON.stringify = JSON.parse = () => { throw 1; }; Array.prototype.join = String = null;", Outcome.OK),
    ("overwrites Promise.then", "Promise.prototype.then = () => { throw 1; }; Promise.race = null;", Outcome.OK),
    ("overwrites the iterator of arrays", "Array.prototype[Symbol.iterator] = () => { throw 1; };", Outcome.OK),
    ("defines toJSON on Object.prototype", "Object.prototype.toJSON = String.prototype.toJSON = () => 'x'; console.log('y');", Outcome.OK),
    ("defines a getter on Object.prototype", "Object.defineProperty(Object.prototype, 'error', { get() { return 5; } });", Outcome.OK),
    ("exits", "console.log('x'); Deno.exit(0);", Outcome.OK),
    ("calls process.exit", "process.exit(9);", Outcome.USER_ERROR),
    ("kills itself", "Deno.kill(Deno.pid, 'SIGKILL'); await new Promise((r) => setTimeout(r, 1000));", Outcome.CRASHED),
    ("aborts", "process.abort();", Outcome.CRASHED),
    ("throws a proxy", "throw new Proxy({}, { get() { throw 1; }, getPrototypeOf() { throw 2; } });", Outcome.USER_ERROR),
    ("throws null", "throw null;", Outcome.USER_ERROR),
    ("loops", "while (true) {}", Outcome.TIMEOUT),
    ("starts an endless interval", "setInterval(() => {}, 10);", Outcome.TIMEOUT),
    ("overflows the stack", "function f() { f(); } f();", Outcome.USER_ERROR),
    ("is not JavaScript", "let a = ;", Outcome.SYNTAX_ERROR),
]

# Programs whose results a server easily changes. code: (outcome, stdout, part of stderr)
EXACT_PYTHON: dict[str, tuple[Outcome, str, str]] = {
    "import logging\nprint('hi')": (Outcome.OK, "hi\n", ""),
    "import asyncio\nasync def f(): print('in', end='')\nasyncio.run(f())": (Outcome.OK, "in", ""),
    "print('hi')\nraise SyntaxError(5)": (Outcome.USER_ERROR, "hi\n", "SyntaxError"),
    "print('hi')\nclass E(Exception):\n    def __getattr__(self, n): raise KeyError(n)\nraise E('x')": (
        Outcome.USER_ERROR,
        "hi\n",
        "raise E('x')",  # CPython cannot print this exception completely
    ),
    "class E(Exception):\n    @property\n    def lineno(self): raise OSError\nraise E": (Outcome.USER_ERROR, "", "E"),
    "class M(type):\n    __name__ = 5\nclass E(Exception, metaclass=M): pass\nraise E": (Outcome.USER_ERROR, "", ""),
    "import sys, io\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding='utf-8')\nprint('hi')": (
        Outcome.OK,
        "hi\n",
        "",
    ),
    "import sys, io\nsys.stdout = io.TextIOWrapper(sys.stdout.detach())\nprint('hi')": (Outcome.OK, "hi\n", ""),
    "greeting = 'bye'\nclass A:\n    def __del__(self): print(greeting)\na = A()": (Outcome.OK, "bye\n", ""),
    "\ufeffprint('after a mark')": (Outcome.OK, "after a mark\n", ""),
    "import inspect\nclass A:\n    x = 1\nprint(inspect.getsource(A), __file__.split('/')[-1])": (
        Outcome.OK,
        "class A:\n    x = 1\n main.py\n",
        "",
    ),
}
# Programs that need processes and threads, or results that only the envelope returns.
EXACT_PYTHON_ON_DOUBLES: dict[str, tuple[Outcome, str, str]] = {
    "from concurrent.futures import ThreadPoolExecutor\nex = ThreadPoolExecutor(2)\nprint(ex.submit(lambda: 5).result())": (
        Outcome.OK,
        "5\n",
        "",
    ),
    "import os\npid = os.fork()\nif pid == 0:\n    os._exit(0)\nos.waitpid(pid, 0)\nprint('ok')": (
        Outcome.OK,
        "ok\n",
        "",
    ),
    "import os\npid = os.fork()\nif pid:\n    os.waitpid(pid, 0)\n    print('parent')": (Outcome.OK, "parent\n", ""),
    "import os\nprint('x')\nos._exit(True)": (Outcome.CRASHED, "x\n", ""),
    "import sys\nclass W:\n    def flush(self): raise RuntimeError\nprint('x')\nsys.stdout = W()": (Outcome.OK, "x\n", ""),
    "import os\nprint('x', flush=True)\nos.close(1)": (Outcome.OK, "x\n", ""),
    "import warnings\nwarnings.warn('x')": (Outcome.OK, "", "  warnings.warn('x')"),
}
EXACT_JAVASCRIPT: dict[str, tuple[Outcome, str, str]] = {
    "console.log(new Error('shown').stack);": (Outcome.OK, "Error: shown\n    at main.js:1:13\n", ""),
    "console.error(new Error('shown'));": (Outcome.OK, "", "at main.js:1:15"),
    "process.on('unhandledRejection', (e) => console.log('caught', e.message)); Promise.reject(new Error('a'));": (
        Outcome.OK,
        "caught a\n",
        "",
    ),
    "process.on('uncaughtException', (e) => console.log('caught', e.message)); setTimeout(() => { throw new Error('a'); });": (
        Outcome.OK,
        "caught a\n",
        "",
    ),
    "process.on('exit', (code) => console.log('exit', code));": (Outcome.OK, "exit 0\n", ""),
    "addEventListener('unload', () => console.log('bye')); Deno.exit(0);": (Outcome.OK, "bye\n", ""),
    "Deno.stdout.writeSync(new Uint8Array([0xe2, 0x82]));": (Outcome.OK, "\ufffd", ""),
    "globalThis.addEventListener = () => {}; console.log('x');": (Outcome.OK, "x\n", ""),
    "Object.prototype.error = 5; Object.prototype.fields = { outcome: 'OK' }; console.log('x');": (
        Outcome.OK,
        "x\n",
        "",
    ),
    "Array.prototype[Symbol.iterator] = null; console.log('x');": (Outcome.OK, "x\n", ""),
    "throw new Error('outer', { cause: new TypeError('inner') });": (Outcome.USER_ERROR, "", "TypeError: inner"),
    "throw new AggregateError([new RangeError('one')], 'all');": (Outcome.USER_ERROR, "", "RangeError: one"),
    "console.log('x'); close();": (Outcome.OK, "x\n", ""),
}
