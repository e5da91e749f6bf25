"""Runs main.py as `python main.py` does, with `return_val` defined and top-level await allowed."""

import ast
import asyncio
import inspect
import sys
import traceback
from pathlib import Path


def return_val(value):
    Path("ret_val").write_text("" if value is None else str(value), errors="surrogatepass")


def hook(kind, error, tb):
    while tb is not None and tb.tb_frame.f_code.co_filename != "main.py":
        tb = tb.tb_next
    traceback.print_exception(kind, error, tb)


sys.excepthook, sys.argv = hook, ["main.py"]
for stream in (sys.stdout, sys.stderr):
    stream.reconfigure(errors="surrogatepass", line_buffering=True)
names = vars(sys.modules["__main__"])
source = Path("main.py").read_bytes().decode("utf-8", "surrogatepass")
code = compile(source, "main.py", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
if code.co_flags & inspect.CO_COROUTINE:
    asyncio.run(eval(code, names))
else:
    exec(code, names)
