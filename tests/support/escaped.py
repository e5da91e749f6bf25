"""A worker of the engine `wasm` whose programs have escaped from WebAssembly: it executes them itself, natively.

The other parts of the worker are those of production. `host_of(..., engine="wasm", boot=BOOT)` starts a server.
"""

from __future__ import annotations

# It imports what the attacks use, because a worker cannot read any modules later.
BOOT = """
import sys; sys.path[:] = sys.argv[3:]
import contextlib, ctypes, errno, fcntl, glob, io, os, resource, select, signal, socket, struct, subprocess, threading
import time, traceback
from faasrt.local.engines import wasi_worker
from faasrt.local.jail import canary, syscalls
def execute(bridge, sandbox):
    stdout, error = io.StringIO(), ""
    with contextlib.redirect_stdout(stdout):
        try:
            exec(bridge.job["code"], {"bridge": bridge, "glob": glob, "os": os})
        except BaseException:
            error = traceback.format_exc()
    return {"outcome": "USER_ERROR" if error else "OK", "stdout": stdout.getvalue(), "stderr": error, "files": {}}
def refuse(name):
    # A filter of another process, such as that of a container: this call does not exist.
    load, equal, return_, enosys = (0x20, 0, 0, 0), 0x15, 0x06, 0x0005_0000 | errno.ENOSYS
    code = [load, (equal, 0, 1, syscalls.NUMBERS[name]), (return_, 0, 0, enosys), (return_, 0, 0, 0x7FFF_0000)]
    syscalls.forbid_new_privileges()
    syscalls.install_filter(b"".join(struct.pack("HBBI", *instruction) for instruction in code))
wasi_worker.execute = execute
if sys.argv[1] == "serve":
    pass
wasi_worker.main()
"""


def boot_with(statement: str) -> str:
    """Return the code of a worker that first executes a statement."""
    return BOOT.replace("    pass\n", f"    {statement}\n")
