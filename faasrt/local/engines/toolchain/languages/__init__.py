"""The toolchains of the embedded FaaS: one module for each.

"How the code is laid out" (`faasrt/docs/code-layout.md`) says how to add a language.
"""

from __future__ import annotations

from faasrt.local.engines.toolchain.languages.bash import BASH
from faasrt.local.engines.toolchain.languages.c import C
from faasrt.local.engines.toolchain.languages.cpp import CPP
from faasrt.local.engines.toolchain.languages.go import GO
from faasrt.local.engines.toolchain.languages.java import JAVA
from faasrt.local.engines.toolchain.languages.rust import RUST

TOOLCHAINS = {toolchain.language: toolchain for toolchain in (C, CPP, GO, RUST, JAVA, BASH)}
