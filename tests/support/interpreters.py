"""CPython and Deno without a server, to compare the results of programs with."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import attrs
import deno

from support.package import WIRE

# Runs main.py as `python main.py` does, with return_val defined and top-level await allowed.
_PYTHON = """
import ast, asyncio, inspect, sys, traceback
def return_val(value):
    open("ret_val", "w", errors="surrogatepass").write("" if value is None else str(value))
def hook(kind, error, tb):
    while tb is not None and tb.tb_frame.f_code.co_filename != "main.py":
        tb = tb.tb_next
    traceback.print_exception(kind, error, tb)
sys.excepthook, sys.argv = hook, ["main.py"]
for stream in (sys.stdout, sys.stderr):
    stream.reconfigure(errors="surrogatepass", line_buffering=True)
names = vars(sys.modules["__main__"])
source = open("main.py", encoding="utf-8", errors="surrogatepass", newline="").read()
code = compile(source, "main.py", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
if code.co_flags & inspect.CO_COROUTINE:
    asyncio.run(eval(code, names))
else:
    exec(code, names)
"""
_DENO = """
globalThis.return_val = (value) => Deno.writeTextFileSync("ret_val", value == null ? "" : String(value));
await import(`./${Deno.args[0]}`);
"""


@attrs.frozen
class Ending:
    """The output, return value and exit code of a program."""

    stdout: str
    stderr: str
    ret_val: str
    exit_code: int


@functools.cache
def run_here(code: str, language: str) -> Ending:
    """Run a program in CPython or Deno, once in this process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if language == "python":
            (folder / "main.py").write_bytes(code.encode("utf-8", "surrogatepass"))
            argv = [sys.executable, "-I", "-X", "utf8", "-c", _PYTHON]
        else:
            file = "main.ts" if language == "typescript" else "main.js"
            (folder / file).write_bytes(code.encode())
            (folder / "driver.js").write_text(_DENO)
            argv = [deno.find_deno_bin(), "run", "-A", "--quiet", "--no-check", "--no-prompt", "driver.js", file]
        env = {"PATH": os.environ["PATH"], "NO_COLOR": "1", "DENO_DIR": str(folder / "deno"), "HOME": name}
        done = subprocess.run(argv, cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
        ret_val = folder / "ret_val"
        return Ending(
            stdout=done.stdout.decode("utf-8", "surrogatepass"),
            stderr=re.sub(rf"(file://)?{re.escape(name)}/", "", done.stderr.decode("utf-8", "surrogatepass")),
            ret_val=ret_val.read_bytes().decode("utf-8", "surrogatepass") if ret_val.exists() else "",
            exit_code=done.returncode,
        )


def recorded_programs() -> list[tuple[str, str, str]]:
    """Return each program in the recorded files once: the name of its case, its code and its language."""
    programs = {}
    for name, languages in (("python-faas", {}), ("js-faas", {"js": "javascript", "ts": "typescript"})):
        for line in (WIRE / f"{name}.jsonl").read_text().splitlines():
            record = json.loads(line)
            request = record.get("request")
            if isinstance(request, dict) and request.get("code"):
                language = request["language"].lower()
                programs[record["case"], name] = (request["code"], languages.get(language, "python"))
    return [(f"{name}: {case}", code, language) for (case, name), (code, language) in programs.items()]
