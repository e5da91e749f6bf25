"""The level of the jail that this machine has. Tests that need one of some levels are marked with `level`."""

from __future__ import annotations

import asyncio
import functools
import sys
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

NATIVE = pytest.mark.level("namespaces")
"""The mark of tests of native programs, compilers, or other parts of the jail that only namespaces have."""

NATIVE_PYTHON = pytest.mark.engine("native")
"""The mark of tests of Python programs that need the engine `native`, on machines where it is the default."""

LANDLOCK = pytest.mark.landlock
"""The mark of tests of what needs Landlock even at the level "namespaces": forks of sessions, and slots."""

_reached: set[str] = set()


def needs_namespaces(parameter: object) -> bool:
    """Return whether a parameter of a test is a level or an engine that needs namespaces, or a pair with one of the
    places of `threats.py` that do.
    """
    if isinstance(parameter, tuple) and parameter:
        return parameter[0] in ("namespaces", "folder", "session", "pod")
    return isinstance(parameter, str) and parameter in ("namespaces", "native")


def record_level(metadata: Mapping[str, Any]) -> None:
    """Record that the current test has run a program, by the metadata of its result. `.ci/levels` counts the levels."""
    _reached.add(str(metadata.get("level")))


def take_levels() -> list[str]:
    """Return the levels of the programs since the last call."""
    levels = sorted(_reached)
    _reached.clear()
    return levels


@functools.cache
def level_of_machine() -> tuple[str, str]:
    """Return the highest level that works here, and why it is not higher, or ""."""
    from faasrt.local.jail.level import find_level  # the embedded FaaS may not be installed

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as threads:  # this thread may have a loop
        found = threads.submit(asyncio.run, find_level("auto", Path(folder))).result()
        return found.name or "none", found.reason


@functools.cache
def engine_of_machine() -> tuple[str, str]:
    """Return the engine on which Python runs by default here, and why it is not `native`, or ""."""
    from faasrt.local.jail.level import LEVELS, why_unreadable

    level, reason = level_of_machine()
    if level not in LEVELS:
        return "wasm", reason
    if level == "users" and (reason := why_unreadable(sys.executable)):
        return "wasm", reason
    return LEVELS[level].python, reason


def without_level(lines: Iterable[str]) -> list[str]:
    """Return the lines of a log without the one that names the level of the jail. On a machine with the highest level,
    servers do not write it.
    """
    return [line for line in lines if not line.startswith("the level of the jail is ")]


def skip_without_level(item: pytest.Item) -> None:
    """Skip a test that needs another level or engine than that of this machine, or Landlock on a kernel without it."""
    if item.get_closest_marker("landlock"):
        from faasrt.local.jail.launcher.landlock import abi_version

        if not abi_version():
            pytest.skip("needs Landlock, which this kernel does not have")
    for mark in item.iter_markers("level"):
        level, reason = level_of_machine()
        if level not in mark.args:
            pytest.skip(f"needs the level {' or '.join(mark.args)}, and this machine has {level}: {reason}")
    for mark in item.iter_markers("engine"):
        engine, reason = engine_of_machine()
        if engine not in mark.args:
            pytest.skip(f"needs Python on {' or '.join(mark.args)}, and here it runs on {engine}: {reason}")
