"""Java, compiled by javac and run by the JVM of the same JDK.

The main class is the public class of the program, else the first class with a `main`, else `Main`, else the first
class. It has no package.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from pathlib import Path

from faasrt.languages import Language
from faasrt.local.engines.toolchain.toolchain import OUT, PROGRAM, Installation, Toolchain, mount_home, read_output

# An unclosed comment or text block extends to the end of the program, an unclosed string to the end of its line.
_COMMENT = r"/\*.*?(?:\*/|\Z)|//[^\n]*+"
_STRING = r'''"""(?:\\.|[^\\])*?(?:"""|\Z)|"(?:\\.|[^"\\\n])*+"?|'(?:\\.|[^'\\\n])*+'?'''
_GAP = rf"(?:\s|{_COMMENT})++"
# Comments, strings, and the declarations that decide which class is the main class.
_TOKEN = re.compile(
    rf"{_COMMENT}|{_STRING}|\b(?:class|record|enum|interface){_GAP}(?P<name>(?:[^\W\d]|\$)[\w$]{{0,199}})|"
    rf"\b(?P<public>public)\b|\bvoid{_GAP}(?P<main>main)\b",
    re.DOTALL,
)
# The main class is searched for in this much of a program, so that the search takes less than 50 ms.
_SEARCHED_CHARS, _SEARCHED_TOKENS = 2**19, 20_000
# One thread for the garbage collection, no file for other processes, and the data of a JVM that has started before.
_JVM = ["-XX:+UseSerialGC", "-XX:-UsePerfData", "-Xshare:auto"]
_JAVAC = [f"-J{option}" for option in [*_JVM, "-XX:TieredStopAtLevel=1", "-Xmx768m"]]
_STACK_MB = 64


def _find(path: str) -> Installation:
    folder = Path(path).resolve().parent.parent
    home, mounts = mount_home(str(folder), "java")
    version = _read_version(folder) or read_output(path, "--version").split()[1]
    # Debian's JDK has its configuration there.
    mounts |= {str(path): str(path) for path in Path("/etc").glob("java-*-openjdk")}
    return Installation(version=f"javac {version}", mounts=mounts, home=home)


def _read_version(folder: Path) -> str:
    """Read the version of a JDK from its folder, which takes less time than a start of its JVM."""
    with contextlib.suppress(OSError):
        match = re.search(r'^JAVA_VERSION="([^"\n]+)"', (folder / "release").read_text("utf-8"), re.MULTILINE)
        return match[1] if match else ""
    return ""


def _file(code: str) -> str:
    with_main: list[str] = []
    names: list[str] = []
    depth, is_public, end = 0, False, 0
    tokens = itertools.islice(_TOKEN.finditer(code, 0, _SEARCHED_CHARS), _SEARCHED_TOKENS)
    for token in tokens:
        start = token.start()
        opened, closed = code.count("{", end, start), code.count("}", end, start)
        depth += opened - closed
        is_public = is_public and not opened and not closed and code.find(";", end, start) < 0
        end = token.end()
        if token["main"]:
            with_main += names[-1:] if depth == 1 else []
        elif token["public"]:
            is_public = depth == 0
        elif token["name"] and depth == 0:
            if is_public:
                return f"{token['name']}.java"
            names.append(token["name"])
    main = (with_main or (["Main"] if "Main" in names else names) or ["Main"])[0]
    return f"{main}.java"


def _run(installation: Installation, name: str, memory_mb: int) -> list[str]:
    limits = [f"-Xmx{memory_mb}m", f"-Xss{_STACK_MB}m"]
    return [f"{installation.home}/bin/java", *_JVM, *limits, "-cp", PROGRAM, name.removesuffix(".java")]


JAVA = Toolchain(
    language=Language.JAVA,
    name="java",
    executable="javac",
    package="default-jdk-headless",
    search_path=None,
    find=_find,
    file=_file,
    compile=lambda installation, sources: [
        f"{installation.home}/bin/javac",
        *_JAVAC,
        "-encoding",
        "UTF-8",
        "-d",
        OUT,
        *sources,
    ],
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
