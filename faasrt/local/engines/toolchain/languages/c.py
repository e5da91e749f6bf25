"""C, compiled by GCC with its default standard."""

from __future__ import annotations

from faasrt.languages import Language
from faasrt.local.engines.toolchain.languages import gnu_compiler
from faasrt.local.engines.toolchain.toolchain import Toolchain

C = Toolchain(
    language=Language.C,
    name="gcc",
    executable="gcc",
    package="gcc",
    find=gnu_compiler.find,
    compile=lambda _, sources: ["gcc", *gnu_compiler.OPTIONS, *sources, "-lm"],
    run=lambda *_: gnu_compiler.COMMAND,
    source_suffixes=(".c",),
    other_suffixes=(".h", ".inc"),
    diagnostic=gnu_compiler.DIAGNOSTIC,
    sample='#include <stdio.h>\nint main(void) { puts("ok"); return 0; }\n',
)
