"""Run a command where all users can read this interpreter and its packages, as in an image.

Only root can do this: python readable.py COMMAND ... For the command, a folder that other users cannot search, such as
/root, has only the interpreter, its environment and the current folder, if they are below it.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from faasrt.local.jail.launcher import syscalls
from faasrt.local.jail.launcher.syscalls import MS_PRIVATE, MS_REC, mount, move_mount, open_tree


def closed_parent(path: Path) -> Path | None:
    """Return the first folder on the way to a path that other users cannot search."""
    return next((one for one in reversed(path.parents) if not one.stat().st_mode & stat.S_IXOTH), None)


def main() -> None:
    folder = Path.cwd()
    needed = {Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), folder}
    needed = {path for path in needed if not needed & set(path.parents)}
    copies = [(path, closed_parent(path), open_tree(str(path))) for path in sorted(needed)]
    syscalls.unshare(syscalls.CLONE_NEWNS)
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    for closed in {closed for _, closed, _ in copies if closed}:
        mount("tmpfs", str(closed), "tmpfs", 0, "mode=755")
    for path, folder_above, copy in copies:
        if folder_above:
            path.mkdir(parents=True)
            move_mount(copy, str(path))
        os.close(copy)
    os.chdir(folder)
    os.execvp(sys.argv[1], sys.argv[1:])


main()
