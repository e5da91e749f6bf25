"""The command `faasrt`. It needs the extra `cli`, and `local` for the embedded FaaS.

`faasrt/docs/command-line.md` lists the commands and their exit codes.
"""

from __future__ import annotations

import gc
import os
import sys
from importlib.util import find_spec


def main() -> None:
    for name in ("click", "jinja2", "rich", "zstandard"):
        if find_spec(name) is None:
            sys.stderr.write(f"faasrt: the command line needs {name}: pip install 'faasrt[cli]'\n")
            sys.exit(2)
    # Imported objects live until the end. Collecting garbage among them would take a sixth of the time of a command.
    gc.disable()
    from faasrt.cli.commands import run

    gc.freeze()
    gc.enable()
    code = run(sys.argv[1:])
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        # Discard what is left. The interpreter would report the error again, with the code 120.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = code or 3
    sys.exit(code)
