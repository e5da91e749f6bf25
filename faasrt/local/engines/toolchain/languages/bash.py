from __future__ import annotations

import re

from faasrt.languages import Language
from faasrt.local.engines.toolchain.toolchain import Installation, Toolchain, read_output


def _find(path: str) -> Installation:
    return Installation(version=f"bash {read_output(path, '-c', 'echo ${BASH_VERSION%%(*}')}")


BASH = Toolchain(
    language=Language.BASH,
    name="bash",
    executable="bash",
    package="bash",
    find=_find,
    compile=lambda _, sources: ["bash", "-n", sources[0]],
    run=lambda _, name, memory_mb: ["bash", name],
    keeps_source=True,
    diagnostic=re.compile(r"^[^\s:]+: line (?P<line>\d+): (?P<message>syntax error.*|unexpected EOF.*)$", re.MULTILINE),
    # A bash that was built for debugging also prints the place in its own source.
    out_of_memory=re.compile(r": (?:xmalloc|xrealloc): (?:[^\s:]{1,200}:\d{1,9}: )?cannot allocate \d+ bytes"),
    sample="echo ok",
)
