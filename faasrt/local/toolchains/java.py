"""Java, compiled by javac and run by the JVM of the same JDK.

The main class is the public class of the program, else `Main`, else the first class. It has no package.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from faasrt.languages import Language
from faasrt.local.engines.toolchain import OUT, PROGRAM, Installation, Toolchain, mount_home, read_output

_TYPE = r"(?:(?:final|abstract|sealed|strictfp)[ \t]+)*(?:class|record|enum|interface)[ \t]+([A-Za-z_$][\w$]{0,199})"
_PUBLIC = re.compile(rf"^[ \t]*public[ \t]+{_TYPE}", re.MULTILINE)
_MAIN = re.compile(r"^[ \t]*(?:final[ \t]+)?class[ \t]+(Main)\b", re.MULTILINE)
_FIRST = re.compile(rf"^[ \t]*{_TYPE}", re.MULTILINE)
# One thread for the garbage collection, no file for other processes, and the data of a JVM that has started before.
_JVM = ["-XX:+UseSerialGC", "-XX:-UsePerfData", "-Xshare:auto"]
_JAVAC = [f"-J{option}" for option in [*_JVM, "-XX:TieredStopAtLevel=1", "-Xmx768m"]]
_STACK_MB = 64


def _find(path: str) -> Installation:
    folder = Path(path).resolve().parent.parent
    home, mounts = mount_home(str(folder), "java")
    version = _read_version(folder) or read_output(path, "--version").split()[1]
    # Debian's JDK has its configuration there.
    mounts |= {str(found): str(found) for found in Path("/etc").glob("java-*-openjdk")}
    return Installation(version=f"javac {version}", mounts=mounts, home=home)


def _read_version(folder: Path) -> str:
    """Return the version of a JDK; "" if its folder does not have it. This takes less time than a start of its JVM."""
    with contextlib.suppress(OSError):
        found = re.search(r'^JAVA_VERSION="([^"\n]+)"', (folder / "release").read_text("utf-8"), re.MULTILINE)
        return found[1] if found else ""
    return ""


def _file(code: str) -> str:
    """Return the name of the file, which is that of the main class."""
    found = _PUBLIC.search(code) or _MAIN.search(code) or _FIRST.search(code)
    return f"{found[1] if found else 'Main'}.java"


def _run(found: Installation, name: str, memory_mb: int) -> list[str]:
    limits = [f"-Xmx{memory_mb}m", f"-Xss{_STACK_MB}m"]
    return [f"{found.home}/bin/java", *_JVM, *limits, "-cp", PROGRAM, name.removesuffix(".java")]


JAVA = Toolchain(
    language=Language.JAVA,
    name="java",
    executable="javac",
    package="default-jdk-headless",
    find=_find,
    file=_file,
    compile=lambda found, sources: [f"{found.home}/bin/javac", *_JAVAC, "-encoding", "UTF-8", "-d", OUT, *sources],
    run=_run,
    source_suffixes=(".java",),
    diagnostic=re.compile(
        r"^(?P<file>[^\s:]+\.java):(?P<line>\d+): error: (?P<message>.*)(?:\n.*\n(?P<caret> *)\^)?", re.MULTILINE
    ),
    failure=re.compile(r'^Exception in thread "[^"\n]*" (?P<name>[\w.$]+)(?:: (?P<message>.*))?$', re.MULTILINE),
    out_of_memory=re.compile(r"\bjava\.lang\.OutOfMemoryError\b"),
    headroom_mb=128,
    sample='class Main { public static void main(String[] a) { System.out.println("ok"); } }',
)
