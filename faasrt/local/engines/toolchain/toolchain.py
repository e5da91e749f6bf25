"""The description of a toolchain: how to find it, compile and run a program, and read its errors.

Each module in `languages` describes one.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import attrs

from faasrt.languages import Language
from faasrt.local.errors import EngineError
from faasrt.local.process import Spawner

OUT = ".out"
"""The folder for the output of a compiler, in its working folder."""
PROGRAM = "/dev/shm/program"  # noqa: S108
"""The folder with the output of the compiler, while the program runs."""
JAIL_PATH = "/usr/local/bin:/usr/bin:/bin"
"""The folders with the commands that are in the jail."""
_TIMEOUT_S = 60.0


@attrs.frozen(kw_only=True)
class Installation:
    """An installed toolchain.

    Attributes:
        version: The name and the version, for people, such as "gcc 12.2.0".
        mounts: Read-only folders of the host that it needs besides /usr, by their path in the jail.
        home: The folder of the toolchain in the jail, if its commands need it.
        source: The path of its command on the host, for `Toolchain.prepare`.
    """

    version: str
    mounts: Mapping[str, str] = attrs.field(factory=dict)
    env: Mapping[str, str] = attrs.field(factory=dict)
    home: str = ""
    source: str = ""


@attrs.frozen(kw_only=True)
class Toolchain:
    """How the programs of a language are compiled and run.

    Attributes:
        package: The Debian package that contains `executable`.
        search_path: The folders in which `executable` is found. None means the PATH of the server; then `find` must
            mount the folder of the toolchain.
        find: Returns the installation, given the path of the executable, or raises EngineError. It may run commands.
        compile: Returns the command that compiles a program, or only checks its syntax, given the names of the source
            files. The first file is the program itself. The command runs in the folder of these files, and writes to
            the folder `OUT`.
        run: Returns the command that runs a program, without the arguments of the program, given the name of the
            program's file, and the memory limit in MiB. The output of the compiler is in `PROGRAM`.
        other_suffixes: The suffixes of other files that the compiler can read, such as headers.
        keeps_source: Whether the program runs from its source.
        diagnostic: Finds the errors in the compiler's output. The groups are `message`, and perhaps `file`, `line`, and
            `column` or `caret`, the spaces before a caret.
        failure: Finds the error in the stderr of a program that failed. The groups are `name` and perhaps `message`.
        out_of_memory: Finds the message in stderr that the program got no memory.
        headroom_mb: Memory that programs may use beyond their limit, for the runtime of the language.
        file: Returns the name of the program's file, given its source; None for the usual name.
        prepare: Prepares an installation in a folder, once for a machine, which takes long.
        sample: A program that prints "ok". It proves that the toolchain works in the jail.
    """

    language: Language
    name: str
    executable: str
    package: str
    search_path: str | None = JAIL_PATH
    find: Callable[[str], Installation]
    compile: Callable[[Installation, Sequence[str]], list[str]]
    run: Callable[[Installation, str, int], list[str]]
    source_suffixes: tuple[str, ...] = ()
    other_suffixes: tuple[str, ...] = ()
    keeps_source: bool = False
    diagnostic: re.Pattern[str]
    failure: re.Pattern[str] | None = None
    out_of_memory: re.Pattern[str] | None = None
    headroom_mb: int = 0
    file: Callable[[str], str] | None = None
    prepare: Callable[[Installation, Path, Spawner], Awaitable[Installation]] | None = None
    sample: str

    @property
    def missing(self) -> str:
        if self._path is not None:
            return ""
        return (
            f"{self.executable} is not installed on the server (on Debian and Ubuntu, it is in the package "
            f"{self.package})"
        )

    def locate(self) -> Installation:
        """Return the installation, or raise EngineError. This runs commands, so call it in a thread."""
        path = self._path
        if path is None:
            raise EngineError(self.missing)
        return self.find(path)

    @property
    def _path(self) -> str | None:
        return shutil.which(self.executable, path=self.search_path)


def mount_home(folder: str, name: str) -> tuple[str, dict[str, str]]:
    """Return where the folder of a toolchain is in the jail, and the mounts for it. Folders outside of /usr get a path
    of their own there, because the users of programs cannot reach the home folder of a user.
    """
    resolved = Path(folder).resolve()
    if resolved.is_relative_to("/usr"):
        return str(resolved), {}
    return f"/toolchain/{name}", {f"/toolchain/{name}": str(resolved)}


def read_output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True, cwd="/")  # noqa: S603
    except (OSError, subprocess.SubprocessError) as error:
        raise EngineError(f"{command[0]} does not work: {error}") from None
    return done.stdout.strip()
