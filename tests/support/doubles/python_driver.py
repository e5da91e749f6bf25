"""Runs one program in CPython like python-faas runs it in Pyodide.

The program is the file `program.py` in the current folder. The driver writes how it ended to the file `report`. A
process without a report has died; in Pyodide, a SystemExit causes this. The output of the program goes to the real
streams. The driver runs isolated, so it cannot import other modules of the tests.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import json
import os
import re
import sys
import traceback
import types
from asyncio import events
from pathlib import Path

NAME = "<exec>"
RECURSION_LIMIT = 400  # the limit in python-faas

# The error that Deno prints for a SystemExit. The frames of the libraries surround those of the program.
DEATH = """\
\x1b[0m\x1b[1m\x1b[31merror\x1b[0m: Uncaught (in promise) PythonError: Traceback (most recent call last):
  File "/lib/python314.zip/pyodide/webloop.py", line 491, in run_handle
    h._run()
    ~~~~~~^^
  File "/lib/python314.zip/asyncio/events.py", line 94, in _run
    self._context.run(self._callback, *self._args)
    ~~~~~~~~~~~~~~~~~^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/lib/python314.zip/_pyodide/_base.py", line 619, in eval_code_async
    await CodeRunner(
    ...<10 lines>...
    .run_async(globals, locals)
  File "/lib/python314.zip/_pyodide/_base.py", line 420, in run_async
    coroutine = eval(self.code, globals, locals)
{own}
    at {b}new_error{e} ({c}file:///<pyodide>/pyodide.asm.mjs{e}:{y}1{e}:{y}568655{e})
    at {b}<anonymous>{e} ({c}wasm://wasm/0249d42a{e}:{y}wasm-function[0]{e}:{y}0x65562{e})
    at {b}<anonymous>{e} ({c}wasm://wasm/0249d42a{e}:{y}wasm-function[0]{e}:{y}0x6562a{e})
    at {b}callPyObjectKwargsPromising{e} ({c}file:///<pyodide>/pyodide.asm.mjs{e}:{y}1{e}:{y}624284{e})
    at async {b}Object.Module.callPyObjectMaybePromising{e} ({c}file:///<pyodide>/pyodide.asm.mjs{e}:{y}1{e}:{y}624643{e})
"""
COLOURS = {"b": "\x1b[0m\x1b[1m\x1b[3m", "c": "\x1b[0m\x1b[36m", "y": "\x1b[0m\x1b[33m", "e": "\x1b[0m"}


def main() -> None:
    source = Path("program.py").read_bytes().decode("utf-8", "surrogatepass")
    report = os.open("report", os.O_WRONLY | os.O_CREAT | os.O_EXCL)  # before the program can change the folder
    # Before the program can replace them. `json.dumps` uses functions that it can replace.
    write, exit_now, quote = os.write, os._exit, json.encoder.encode_basestring_ascii
    sys.argv = [""]
    sys.stdout.reconfigure(line_buffering=True)  # keeps the order of prints and direct writes to the descriptor
    asyncio.run = nested_run
    sys.setrecursionlimit(RECURSION_LIMIT)
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        end = asyncio.new_event_loop().run_until_complete(cell(source, vars(module)))
    except (SystemExit, KeyboardInterrupt) as error:
        die(error)
    flush()
    value = end.get("value")
    text = "null" if value is None else quote(value) if isinstance(value, str) else f"[{quote(value[0])}]"
    write(report, f'{{"failed": {"true" if end["failed"] else "false"}, "value": {text}}}'.encode())
    # The server does not wait for remaining tasks, threads and exit handlers.
    exit_now(0)


async def cell(source: str, namespace: dict[str, object]) -> dict[str, object]:
    """Run the program in the running loop. Return whether it failed, and the value of its last expression."""
    try:
        body, last = compile_cell(source)
        await evaluate(body, namespace)
        value = None if last is None else await evaluate(last, namespace)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException:
        return {"failed": True}
    if value is None or isinstance(value, str):
        return {"failed": False, "value": None if value is None else str(value)}
    return {"failed": False, "value": [type(value).__name__]}  # a value without the method `substring`


def compile_cell(source: str) -> tuple[types.CodeType, types.CodeType | None]:
    """Return the code before the last expression, and the last expression if it has no semicolon after it."""
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    tree = compile(source, NAME, "exec", flags | ast.PyCF_ONLY_AST, dont_inherit=True)
    last = None
    if tree.body and isinstance(tree.body[-1], ast.Expr) and not re.search(r";\s*(#[^\n]*\s*)?\Z", source):
        last = compile(ast.Expression(tree.body.pop().value), NAME, "eval", flags, dont_inherit=True)
    return compile(tree, NAME, "exec", flags, dont_inherit=True), last


async def evaluate(code: types.CodeType, namespace: dict[str, object]) -> object:
    value = eval(code, namespace)
    return await value if code.co_flags & inspect.CO_COROUTINE else value


def nested_run(main, *, original=asyncio.run, **options):
    """Replace `asyncio.run` with one that works inside a running loop, as in Pyodide: it runs another loop."""
    loop = events._get_running_loop()
    events._set_running_loop(None)
    try:
        return original(main, **options)
    finally:
        events._set_running_loop(loop)


def flush() -> None:
    for stream in (sys.stdout, sys.__stdout__):
        with contextlib.suppress(Exception):  # the program may have closed or replaced the stream
            stream.flush()


def die(error: BaseException) -> None:
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename != NAME:
        frame = frame.tb_next
    own = "".join(traceback.format_tb(frame) + traceback.format_exception_only(error))
    try:
        sys.__stderr__.flush()
        os.write(2, DEATH.format(own=own, **COLOURS).encode("utf-8", "replace"))
    finally:
        os._exit(1)


main()
