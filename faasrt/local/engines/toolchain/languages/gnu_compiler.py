from __future__ import annotations

import re

from faasrt.local.engines.toolchain.toolchain import OUT, PROGRAM, Installation, read_output

DIAGNOSTIC = re.compile(
    # Errors of the compiler, and errors of the linker, which only names object files.
    r"^(?:(?P<file>[^\s:]+):(?P<line>\d+):(?:(?P<column>\d+):)? (?:fatal )?error: |(?:/usr/bin/ld: )?[^\s:]+:\S* "
    r"(?=undefined reference|multiple definition))(?P<message>.*)$",
    re.MULTILINE,
)
OPTIONS = ["-O2", "-pipe", "-o", f"{OUT}/main"]
COMMAND = [f"{PROGRAM}/main"]


def find(path: str) -> Installation:
    name = path.rpartition("/")[2]
    return Installation(version=f"{name} {read_output(path, '-dumpfullversion')}")
