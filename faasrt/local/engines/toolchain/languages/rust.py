"""Rust, compiled by rustc with the edition 2021. Programs have the standard library, and no crates."""

from __future__ import annotations

import re

from faasrt.languages import Language
from faasrt.local.engines.toolchain.toolchain import OUT, PROGRAM, Installation, Toolchain, mount_home, read_output

_OPTIONS = ["--crate-type=bin", "--edition=2021", "-O", "-C", "strip=debuginfo", "--color=never", "-o", f"{OUT}/main"]


def _find(path: str) -> Installation:
    # rustup installs a proxy in the folder of the user, and the compiler elsewhere.
    home, mounts = mount_home(read_output(path, "--print", "sysroot"), "rust")
    version = " ".join(read_output(path, "--version").split()[:2])
    return Installation(version=version, mounts=mounts, home=home)


RUST = Toolchain(
    language=Language.RUST,
    name="rustc",
    executable="rustc",
    package="rustc",
    search_path=None,
    find=_find,
    # rustc finds the files of modules itself.
    compile=lambda installation, sources: [f"{installation.home}/bin/rustc", *_OPTIONS, sources[0]],
    run=lambda *_: [f"{PROGRAM}/main"],
    other_suffixes=(".rs",),
    diagnostic=re.compile(
        r"^error(?:\[\w+\])?: (?!aborting due to )(?P<message>.*)"
        r"(?:\n +--> (?P<file>[^\s:]+):(?P<line>\d+):(?P<column>\d+))?$",
        re.MULTILINE,
    ),
    failure=re.compile(
        r"^thread '.{0,200}?' (?:\(\d{1,20}\) )?(?P<name>panic)ked at .{1,1000}:\n(?P<message>.*)$", re.MULTILINE
    ),
    out_of_memory=re.compile(r"^memory allocation of \d+ bytes failed$", re.MULTILINE),
    sample='fn main() { println!("ok"); }',
)
