"""Runs benchmarks that compare alternatives (contenders), each in a process of its own, in rounds.

A module that compares contenders starts itself again for each of them, with `--contender NAME`. Such a process reads a
line of JSON with arguments, measures, writes a line of JSON with the figures, and waits for the next line. In every
round all contenders measure one after another, in a random order that a seed fixes. Anything that disturbs the machine
for a while then affects all of them, and ratios compare measurements of the same round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import attrs

from benchmarks.report import Spread

Figures = dict[str, float]
Rounds = dict[str, list[Figures]]


def parser(description: str | None, *, rounds: int | None = None) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks have.

    Args:
        description: The docstring of the module.
        rounds: The default number of rounds; None for a benchmark without rounds.
    """
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    if rounds is not None:
        made.add_argument("--rounds", type=int, default=rounds, help="number of rounds (default %(default)s)")
        made.add_argument("--seed", type=int, default=1, help="seed for the order of contenders (default %(default)s)")
    made.add_argument("--contender", help=argparse.SUPPRESS)
    return made


def forget_endpoints() -> None:
    """Remove the user's endpoints from the environment of this process, and of those that it starts."""
    for name in [name for name in os.environ if name.startswith("COZE_LOOP_")]:
        del os.environ[name]


def serve_requests(measure: Callable[..., Mapping[str, Any]]) -> None:
    """Measure once for each line of stdin, and print the figures. This is what a contender's process does."""
    for line in sys.stdin:
        print(json.dumps(measure(**json.loads(line))), flush=True)


class Measurable(Protocol):
    """Something that can be measured again and again."""

    def ask(self, *args: Any, **request: Any) -> Any:
        """Measure with these arguments, and return the figures."""


class Contender:
    """A contender in a process that keeps running between measurements.

    Args:
        module: The module of the benchmark.
        name: The name of the contender.
        options: Further options of the command line.
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
            raise RuntimeError(f"the process of contender {self._name} ended with exit code {self._process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


@attrs.frozen
class FreshContender:
    """A contender that measures in a new process each time, because a used process has more memory."""

    module: str
    name: str

    def ask(self, **request: Any) -> Any:
        """Measure with these arguments in a new process, and return the figures."""
        with contenders(self.module, [self.name]) as started:
            return started[self.name].ask(**request)


@contextlib.contextmanager
def contenders(module: str, names: Iterable[str], *options: str) -> Iterator[dict[str, Contender]]:
    """Start the processes of contenders, and end them afterwards."""
    with contextlib.ExitStack() as stack:
        started = {}
        for name in names:
            started[name] = Contender(module, name, *options)
            stack.callback(started[name].close)
        yield started


def run_rounds(started: Mapping[str, Measurable], options: argparse.Namespace, **request: Any) -> Rounds:
    """Measure every contender with the same arguments in every round. Return the figures of each round."""
    chosen = random.Random(options.seed)
    figures: Rounds = {name: [] for name in started}
    for _ in range(options.rounds):
        for name in chosen.sample(list(started), len(started)):
            figures[name].append(started[name].ask(**request))
    return figures


def spread(rounds: Rounds, contender: str, figure: str) -> Spread:
    """Return the spread of a contender's figure over the rounds."""
    return Spread.of(round_figures[figure] for round_figures in rounds[contender])


def spreads(rounds: Rounds, contender: str) -> dict[str, Spread]:
    """Return the spreads of all figures of a contender."""
    return {figure: spread(rounds, contender, figure) for figure in rounds[contender][0]}


def ratio(rounds: Rounds, contender: str, base: str, figure: str) -> Spread:
    """Return the spread of a contender's figure divided by that of another contender in the same round."""
    pairs = zip(rounds[contender], rounds[base], strict=True)
    return Spread.of(mine[figure] / theirs[figure] for mine, theirs in pairs)
