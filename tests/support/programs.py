"""Programs that several test files run."""

from __future__ import annotations

from faasrt import Outcome
from support.tables import block

# Programs whose results in the envelope must equal those of the interpreter alone.
PROGRAMS = {
    "python": [
        block("""
            import sys
            for i in range(3):
                print(i, end='')
                print(-i, file=sys.stderr, end=' ')
        """),
        block(r"""
            import sys
            sys.stdout.buffer.write(b'bytes\n')
            print('text')
            sys.stdout.write('no end')
        """),
        block(r"""
            import os
            print('a', flush=True)
            os.write(1, b'raw\n')
            print('b')
        """),
        block("""
            def f(n):
                if n == 0:
                    raise KeyError('deep')
                f(n - 1)

            try:
                f(2)
            except KeyError as e:
                raise RuntimeError('outer') from e
        """),
        block("""
            try:
                1 / 0
            except ZeroDivisionError:
                [][1]
        """),
        "raise ExceptionGroup('several', [ValueError(1), TypeError(2)])",
        block("""
            e = ValueError('x')
            e.add_note('a note')
            raise e
        """),
        block("""
            import dataclasses, pickle
            @dataclasses.dataclass
            class P:
                x: int
            print(pickle.loads(pickle.dumps(P(3))), __name__, P.__module__)
        """),
        block("""
            import inspect
            def f():
                # a comment
                return 1
            print(inspect.getsource(f))
        """),
        block("""
            import sys
            sys.exit('a message')
        """),
        "raise SystemExit(256 + 7)",
        block("""
            import atexit
            atexit.register(print, 'at exit')
            print('first')
        """),
        block("""
            import threading
            printed = threading.Event()
            def work():
                printed.wait()
                print('from a thread')
            threading.Thread(target=work).start()
            print('main')
            printed.set()
        """),
        block("""
            import threading
            t = threading.Thread(target=lambda: 1 / 0, name='t')
            t.start()
            t.join()
            print('after')
        """),
        block("""
            import sys
            sys.stdout = None
            print('nowhere')
            sys.stderr.write('still here')
        """),
        block("""
            import sys
            print('before')
            sys.stdout.close()
        """),
        block("""
            class Loud(Exception):
                def __str__(self):
                    raise ValueError
            raise Loud
        """),
        "print('héllo \\ud800 \\x00 \\r\\n \\u2028')",
        block(r"""
            x = 1
            if x:
                print('''a
              b'''); print("it's", {'k': "v"}, end='\r\n')
        """),
        block("""
            import asyncio
            async def main():
                await asyncio.sleep(0)
                async with asyncio.TaskGroup() as g:
                    g.create_task(asyncio.sleep(0))
                return 5
            print(asyncio.run(main()))
            print(asyncio.run(main()))
        """),
        block("""
            import asyncio
            x = await asyncio.sleep(0, 'value')
            print(x)
            raise ValueError(x)
        """),
        block("""
            import warnings
            warnings.warn('careful')
        """),
        block("""
            import logging
            logging.warning('logged')
            logging.getLogger('x').error('as well')
        """),
        block("""
            return_val(None)
            return_val(5)
            return_val({'a': 1})
        """),
        block("""
            import json, sys
            print(sys.argv, __name__, 'json' in globals(), 'faasrt' in str(globals()))
        """),
    ],
    "javascript": [
        block("""
            console.log('%s is %d', 'x', 5, {a: {b: {c: {d: 1}}}}, [1, 'two'], new Map([[1, 2]]));
            console.error(new Set([1]));
        """),
        block("""
            console.table([{a: 1, b: 'x'}]);
            console.group('g'); console.log('in'); console.groupEnd();
            console.info('i'); console.debug('d');
        """),
        "console.count(); console.count('x'); console.assert(1 === 2, 'no'); console.dir({a: 1});",
        block(r"""
            Deno.stdout.writeSync(new TextEncoder().encode('bytes'));
            await Deno.stdout.write(new TextEncoder().encode('more\n'));
        """),
        "process.stdout.write('node\\n'); process.stderr.write('err\\n');",
        block("""
            setTimeout(() => console.log('3'), 2000);
            queueMicrotask(() => console.log('2'));
            console.log('1');
            process.nextTick(() => console.log('tick'));
        """),
        block(r"""
            const w = Deno.stdout.writable.getWriter();
            await w.write(new TextEncoder().encode('stream\n'));
            w.releaseLock();
        """),
        "addEventListener('unload', () => console.log('bye')); console.log('hi');",
        "Deno.exitCode = 7; console.log('x');",
        "process.exitCode = 5;",
        block("""
            import { readFileSync } from 'node:fs';
            import path from 'node:path';
            console.log(typeof readFileSync, path.join('a', 'b'));
        """),
        block("""
            export default function f() {}
            export const x = 5;
            console.log(typeof f, x);
        """),
        block("""
            function f() { throw new RangeError('r'); }
            function g() { f(); }
            g();
        """),
        block("""
            console.log('a');
            await Promise.reject(new TypeError('t'));
        """),
        block("""
            Promise.reject(new Error('nobody'));
            await new Promise((r) => setTimeout(r, 50));
            console.log('not reached');
        """),
        block("""
            addEventListener('unhandledrejection', (e) => {
                e.preventDefault();
                console.log('handled');
                setTimeout(() => console.log('after'), 0);
            });
            const rejected = Promise.reject(1);
        """),
        "setTimeout(() => { throw new Error('late'); }, 5);",
        block("""
            class Custom extends Error { constructor(m) { super(m); this.name = 'Custom'; } }
            throw new Custom('c');
        """),
        "return_val(undefined); return_val(5); return_val({a: 1});",
        'console.log(\'{"stdout":"forged","stderr":"","ret_val":"x"}\');',
        "console.log(typeof require, typeof module, this, import.meta.main);",
    ],
    "typescript": [
        block("""
            enum Colour { Red = 1, Green }
            interface P { x: number }
            const p: P = { x: Colour.Green };
            console.log(p, Colour[1]);
        """),
        block("""
            abstract class A<T> { constructor(public readonly v: T) {} }
            class B extends A<number> {}
            console.log(new B(3));
        """),
        block("""
            type T = { a?: string };
            const t = {} as T;
            console.log(t.a!.length);
        """),
        "const x: number = ;\n",
    ],
}

# Programs whose results a server easily changes. code: (outcome, stdout, part of stderr)
EXACT_PYTHON: dict[str, tuple[Outcome, str, str]] = {
    block("""
        import logging
        print('hi')
    """): (Outcome.OK, "hi\n", ""),
    block("""
        import asyncio
        async def f(): print('in', end='')
        asyncio.run(f())
    """): (Outcome.OK, "in", ""),
    block("""
        print('hi')
        raise SyntaxError(5)
    """): (Outcome.USER_ERROR, "hi\n", "SyntaxError"),
    block("""
        print('hi')
        class E(Exception):
            def __getattr__(self, n): raise KeyError(n)
        raise E('x')
    """): (
        Outcome.USER_ERROR,
        "hi\n",
        "raise E('x')",  # CPython cannot print this exception completely
    ),
    block("""
        class E(Exception):
            @property
            def lineno(self): raise OSError
        raise E
    """): (Outcome.USER_ERROR, "", "E"),
    block("""
        class M(type):
            __name__ = 5
        class E(Exception, metaclass=M): pass
        raise E
    """): (Outcome.USER_ERROR, "", ""),
    block("""
        import sys, io
        sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding='utf-8')
        print('hi')
    """): (
        Outcome.OK,
        "hi\n",
        "",
    ),
    block("""
        import sys, io
        sys.stdout = io.TextIOWrapper(sys.stdout.detach())
        print('hi')
    """): (Outcome.OK, "hi\n", ""),
    block("""
        greeting = 'bye'
        class A:
            def __del__(self): print(greeting)
        a = A()
    """): (Outcome.OK, "bye\n", ""),
    "\ufeffprint('after a mark')": (Outcome.OK, "after a mark\n", ""),
    block("""
        import inspect
        class A:
            x = 1
        print(inspect.getsource(A), __file__.split('/')[-1])
    """): (
        Outcome.OK,
        "class A:\n    x = 1\n main.py\n",
        "",
    ),
}
EXACT_JAVASCRIPT: dict[str, tuple[Outcome, str, str]] = {
    "console.log(new Error('shown').stack);": (Outcome.OK, "Error: shown\n    at main.js:1:13\n", ""),
    "console.error(new Error('shown'));": (Outcome.OK, "", "at main.js:1:15"),
    "process.on('unhandledRejection', (e) => console.log('caught', e.message)); Promise.reject(new Error('a'));": (
        Outcome.OK,
        "caught a\n",
        "",
    ),
    block("""
        process.on('uncaughtException', (e) => console.log('caught', e.message));
        setTimeout(() => { throw new Error('a'); });
    """): (
        Outcome.OK,
        "caught a\n",
        "",
    ),
    "process.on('exit', (code) => console.log('exit', code));": (Outcome.OK, "exit 0\n", ""),
    "addEventListener('unload', () => console.log('bye')); Deno.exit(0);": (Outcome.OK, "bye\n", ""),
    "addEventListener('load', () => console.log('loaded')); await 1; console.log('x');": (
        Outcome.OK,
        "x\nloaded\n",
        "",
    ),
    "addEventListener('load', () => { throw new Error('late') });": (Outcome.USER_ERROR, "", "Error: late"),
    "dispatchEvent(new Event('error')); dispatchEvent(new Event('x')); console.log('x');": (Outcome.OK, "x\n", ""),
    "globalThis.dispatchEvent = () => true; console.log('x');": (Outcome.OK, "x\n", ""),
    "Deno.addSignalListener('SIGUSR1', () => {}); queueMicrotask(() => console.log('x'));": (Outcome.OK, "x\n", ""),
    "const { port1, port2 } = new MessageChannel(); port2.onmessage = (e) => { console.log(e.data); port2.close() };"
    " port1.postMessage('x');": (Outcome.OK, "x\n", ""),
    "Deno.unrefTimer(setTimeout(() => console.log('never'), 60_000)); setTimeout(() => console.log('x'), 1);": (
        Outcome.OK,
        "x\n",
        "",
    ),
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

# Programs that print random numbers and secrets, which differ in each run.
RANDOM = {
    "random": "import random; print(random.random(), random.Random().random(), random.randbytes(8))",
    "secrets": "import secrets; print(secrets.token_hex())",
    "os.urandom": "import os; print(os.urandom(16))",
    "uuid": "import uuid; print(uuid.uuid4(), uuid.uuid1(), uuid.getnode())",
    "tempfile": "import tempfile; print(next(tempfile._get_candidate_names()))",
    "numpy": "import numpy; print(numpy.random.random(), numpy.random.default_rng().random())",
    "numpy's seeds": "import numpy; print(numpy.random.get_bit_generator().seed_seq.spawn(1)[0].generate_state(2))",
    "pandas": "import pandas; print(list(pandas.Series(range(99)).sample(9)))",
    "scipy": "import scipy.stats; print(scipy.stats.norm.rvs(size=2))",
    "sympy": "import sympy.core.random; print(sympy.core.random.rng.random())",
    "sympy's symbols": "import sympy; print(sympy.Dummy().dummy_index)",
    "sklearn": "import sklearn.utils; print(sklearn.utils.check_random_state(None).random())",
    "joblib": "import sklearn, multiprocessing.process as p; print(p.current_process().authkey.hex())",
    "multiprocessing": "import multiprocessing.process as p; print(p.current_process().authkey.hex())",
}


def returning(expressions: list[str], language: str) -> str:
    """Return a program whose function f(n) returns the value of the expression with this number."""
    if language == "python":
        return f"made = [{', '.join(f'lambda: {each}' for each in expressions)}]\ndef f(n): return made[n]()"
    return f"const made = [{', '.join(f'() => ({each})' for each in expressions)}];\nconst f = (n) => made[n]();"


# Deno's own permissions refuse these programs with the error NotCapable, with and without a folder.
REFUSED_JAVASCRIPT = [
    "Deno.readTextFileSync('/etc/passwd')",
    *(f"Deno.readTextFileSync('/sandbox/{name}runner.js')" for name in ("", "display_", "session_")),
    "await fetch('http://127.0.0.1:8000')",
    "Deno.listen({ port: 0 })",
    "new Deno.Command('/bin/ls').outputSync()",
    "Deno.env.toObject()",
    "import { Session } from 'node:inspector'; new Session().connect()",
    "import { open } from 'node:inspector'; open(0)",
]
