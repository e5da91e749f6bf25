"""The frame of the benchmarks: contenders in processes of their own, asked in turn, in rounds.

A module that compares contenders starts itself once more for each (`--contender NAME`). Such a process measures when it
is asked to, one line of JSON in, one out, and sleeps in between. All contenders measure in every round, in an order
that is shuffled with a seed: what disturbs the machine for a while hits all alike, and ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import attrs

from benchmarks.report import Spread

Figures = dict[str, float]
Rounds = dict[str, list[Figures]]


def parser(words: str | None, *, rounds: int | None = None) -> argparse.ArgumentParser:
    """Make a parser with the options that all benchmarks have.

    Args:
        words: The docstring of the module.
        rounds: How often to measure unless told; None where nothing is repeated.
    """
    made = argparse.ArgumentParser(description=words, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", action="store_true", help="one JSON document in place of tables")
    if rounds is not None:
        made.add_argument("--rounds", type=int, default=rounds, help="measurements of each contender; medians count")
        made.add_argument("--seed", type=int, default=1, help="of the order in which the contenders measure")
    made.add_argument("--contender", help=argparse.SUPPRESS)
    return made


def answer(measure: Callable[..., Mapping[str, Any]]) -> None:
    """Be a contender: measure for each line of stdin."""
    for line in sys.stdin:
        print(json.dumps(measure(**json.loads(line))), flush=True)


class Measuring(Protocol):
    """What measures when it is asked."""

    def ask(self, *args: Any, **request: Any) -> Any:
        """Measure, with these arguments, and give the figures."""


class Contender:
    """A process that measures when it is asked.

    Args:
        module: The benchmark.
        name: Which of its contenders.
        options: Further options of its command line.
    """

    def __init__(self, module: str, name: str, *options: str) -> None:
        self._name = name
        command = [sys.executable, "-m", module, "--contender", name, *options]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, **request: Any) -> Any:
        """Measure with these arguments in the running process, and return the figures."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the contender {self._name} ended with exit code {self._process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


@attrs.frozen
class FreshContender:
    """A contender that measures in a new process each time, as memory is only to be had so."""

    module: str
    name: str

    def ask(self, **request: Any) -> Any:
        """Measure with these arguments in a new process, and return the figures."""
        with contenders(self.module, [self.name]) as started:
            return started[self.name].ask(**request)


@contextlib.contextmanager
def contenders(module: str, names: Iterable[str], *options: str) -> Iterator[dict[str, Contender]]:
    """Start contenders, and end them."""
    with contextlib.ExitStack() as stack:
        started = {}
        for name in names:
            started[name] = Contender(module, name, *options)
            stack.callback(started[name].close)
        yield started


def play(started: Mapping[str, Measuring], options: argparse.Namespace, **request: Any) -> Rounds:
    """Ask every contender the same in every round, and give the figures of each."""
    chosen = random.Random(options.seed)
    figures: Rounds = {name: [] for name in started}
    for _ in range(options.rounds):
        for name in chosen.sample(list(started), len(started)):
            figures[name].append(started[name].ask(**request))
    return figures


def spread(rounds: Rounds, contender: str, figure: str) -> Spread:
    """A figure of a contender over the rounds."""
    return Spread.of(found[figure] for found in rounds[contender])


def spreads(rounds: Rounds, contender: str) -> dict[str, Spread]:
    """Every figure of a contender over the rounds."""
    return {figure: spread(rounds, contender, figure) for figure in rounds[contender][0]}


def ratio(rounds: Rounds, contender: str, base: str, figure: str) -> Spread:
    """A figure of a contender as a multiple of another's, round by round."""
    pairs = zip(rounds[contender], rounds[base], strict=True)
    return Spread.of(mine[figure] / theirs[figure] for mine, theirs in pairs)
