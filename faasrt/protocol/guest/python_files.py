# Decides which files of a program are collected. The server imports this file too.

from collections.abc import Callable, Iterable
from fnmatch import translate
from re import compile as compile_regex
from time import monotonic

MAX_COLLECT_S = 1.0


class PathMatcher:
    # Matches the names on a path with patterns, one name after another. As in a shell, `**` stands for any number of
    # folders, and only a part of a pattern that begins with a dot matches a name that begins with a dot.
    #
    # `start` and the results of `after` are sets of the parts that remain of the patterns. A file matches if the set
    # after its name contains (). Files in a folder can only match if the set after its name contains anything else.
    #
    # One second after the matcher is created, it becomes late: nothing matches any more.

    def __init__(self, patterns: Iterable[str], clock: Callable[[], float] = monotonic) -> None:
        self.regexes: dict[str, Callable[[str], object]] = {}
        self.clock, self.end, self.is_late = clock, clock() + MAX_COLLECT_S, False
        self.start: set[tuple[str, ...]] = set()
        for pattern in patterns:
            parts: list[str] = []
            for part in pattern.split("/"):
                if part != "**" or parts[-1:] != ["**"]:
                    parts.append(part)
            self.add(self.start, tuple(parts))

    def add(self, remaining: set[tuple[str, ...]], parts: tuple[str, ...]) -> None:
        remaining.add(parts)
        if parts[:1] == ("**",):
            remaining.add(parts[1:])  # it also stands for no folder

    def after(self, remaining: set[tuple[str, ...]], name: str) -> set[tuple[str, ...]]:
        following: set[tuple[str, ...]] = set()
        for parts in remaining:
            self.is_late = self.is_late or self.clock() > self.end
            if self.is_late:
                return set()
            if not parts or (name[:1] == "." and parts[0][:1] != "."):
                continue
            if parts[0] == "**":
                self.add(following, parts)
            elif self.fits(name, parts[0]):
                self.add(following, parts[1:])
        return following

    def fits(self, name: str, part: str) -> bool:
        # Compiling a regular expression takes much longer than matching it.
        if part not in self.regexes:
            self.regexes[part] = compile_regex(translate(part)).match
        return self.regexes[part](name) is not None
