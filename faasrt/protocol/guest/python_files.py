# Decides which files of a program are collected. The server imports this file too.

from collections.abc import Iterable
from fnmatch import fnmatchcase


def matches_any(path: str, patterns: Iterable[str]) -> bool:
    """Return whether a relative path matches a pattern. As in a shell, `**` stands for any number of folders, and
    only a part of a pattern that begins with a dot matches a name that begins with a dot.
    """
    return any(matches(path.split("/"), pattern.split("/")) for pattern in patterns)


def matches(names: list[str], parts: list[str]) -> bool:
    # The positions in `parts` that the names so far can lead to.
    positions = skip_stars({0}, parts)
    for name in names:
        following: set[int] = set()
        for at in positions:
            part = parts[at] if at < len(parts) else ""
            if part == "**":
                if name[:1] != ".":
                    following.add(at)
            elif part and (part[0] == "." or name[:1] != ".") and fnmatchcase(name, part):
                following.add(at + 1)
        positions = skip_stars(following, parts)
    return len(parts) in positions


def skip_stars(positions: set[int], parts: list[str]) -> set[int]:
    # `**` also stands for no folder.
    found: set[int] = set()
    for at in positions:
        found.add(at)
        while at < len(parts) and parts[at] == "**":
            at += 1
            found.add(at)
    return found
