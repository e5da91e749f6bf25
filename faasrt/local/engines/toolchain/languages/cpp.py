"""C++, compiled by GCC with the newest standard that all supported versions know well."""

from __future__ import annotations

import re

from faasrt.languages import Language
from faasrt.local.engines.toolchain.languages import gnu_compiler
from faasrt.local.engines.toolchain.toolchain import Toolchain

CPP = Toolchain(
    language=Language.CPP,
    name="g++",
    executable="g++",
    package="g++",
    find=gnu_compiler.find,
    compile=lambda _, sources: ["g++", "-std=gnu++20", *gnu_compiler.OPTIONS, *sources],
    run=lambda *_: gnu_compiler.COMMAND,
    source_suffixes=(".cpp", ".cc", ".cxx"),
    other_suffixes=(".h", ".hh", ".hpp", ".hxx", ".inc", ".ipp", ".tpp"),
    diagnostic=gnu_compiler.DIAGNOSTIC,
    failure=re.compile(
        r"^terminate called after throwing an instance of '(?P<name>[^'\n]*)'(?:\n  what\(\):  (?P<message>.*))?$",
        re.MULTILINE,
    ),
    out_of_memory=re.compile(r"^terminate called after throwing an instance of 'std::bad_alloc'$", re.MULTILINE),
    sample='#include <iostream>\nint main() { std::cout << "ok\\n"; }\n',
)
