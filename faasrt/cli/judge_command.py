from __future__ import annotations

import re
import ssl
import typing
from pathlib import Path
from typing import Any

import attrs
import click

from faasrt import _strict_json
from faasrt.cli.connect import make_settings, run_with_manager
from faasrt.cli.input import iter_lines, open_input, parse_line
from faasrt.cli.options import Number, memory_option, timeout_option
from faasrt.cli.output import CODE_FAILED, OK, colored, write
from faasrt.cli.report.text import one_line
from faasrt.judging import Compare, Judgement, Test, TestCase, TestResult, Tests, Verdict, check_tests, parse_test
from faasrt.languages import Language, OtherLanguage

_EXPECTED_SUFFIXES = (".out", ".ans")
_MAX_NAME_SHOWN, _MAX_REASON_SHOWN = 100, 200
_COMPARISONS = typing.get_args(typing.get_args(Compare)[0])


def judge_options(command: Any) -> Any:
    for option in (
        click.option("--stop-on-failure", is_flag=True, help="Skip the tests after the first one that does not pass."),
        click.option("--concurrency", type=Number(1, 10_000), help="The largest number of tests in flight."),
        click.option(
            "--compare",
            type=click.Choice(_COMPARISONS),
            help="How to compare outputs, or the values that a function returns.  [default: lines, or equal with "
            "--function]",
        ),
        click.option("--function", metavar="NAME", help="The function to test."),
        click.option("--tests", "tests_option", metavar="TESTS", help="The tests, in place of the argument."),
        memory_option(help="The memory limit in MiB."),
        timeout_option(help="The time limit of each test in milliseconds.  [default: 30000]"),
    ):
        command = option(command)
    return command


def read_tests(source: str, function: str | None) -> Tests:
    path = Path(source)
    if not path.is_dir():
        return check_tests(_read_lines(source, function))
    if function is not None:
        raise click.UsageError("with --function, the tests must be a file of JSON Lines, not a folder")
    return _read_pairs(path)


def _read_lines(source: str, function: str | None) -> list[Test]:
    """Read JSON Lines. The ids of tests are the numbers of their lines unless they have others."""
    tests: list[Test] = []
    try:
        with open_input(source) as file:
            for number, (_, line) in enumerate(iter_lines(file), 1):
                if line is not None and not line.strip():
                    continue
                try:
                    test = parse_test(parse_line(line), function)
                except ValueError as error:
                    raise click.UsageError(f"line {number} of {source}: {error}") from None
                tests.append(attrs.evolve(test, id=str(number)) if test.id is None else test)
    except OSError as error:
        raise click.UsageError(f"cannot read {source}: {error.strerror}") from None
    if not tests:
        raise click.UsageError(f"{source} has no test")
    return tests


def _read_pairs(path: Path) -> list[TestCase]:
    """Return the pairs of NAME.in and NAME.out or NAME.ans in a folder, by name."""
    try:
        files = {file.name: file for file in path.iterdir()}
        tests = []
        for name in sorted(files, key=_natural_order):
            if not name.endswith(".in"):
                continue
            stem = name.removesuffix(".in")
            partners = [files[stem + suffix] for suffix in _EXPECTED_SUFFIXES if stem + suffix in files]
            if len(partners) != 1:
                problem = "both" if partners else "neither"
                raise click.UsageError(
                    f"{path / name} has {problem} {stem}.out {'and' if partners else 'nor'} {stem}.ans"
                )
            tests.append(TestCase(files[name].read_bytes(), partners[0].read_bytes().decode(), id=stem))
    except OSError as error:
        raise click.UsageError(f"cannot read {error.filename or path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise click.UsageError(f"an expected output in {path} is not UTF-8 (byte {error.start})") from None
    lonely = [name for name in files if name.endswith(_EXPECTED_SUFFIXES) and f"{Path(name).stem}.in" not in files]
    if lonely:
        raise click.UsageError(f"{path / min(lonely)} has no {Path(min(lonely)).stem}.in")
    if not tests:
        raise click.UsageError(f"{path} has no test: there is no file NAME.in")
    return tests


def _natural_order(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts 2.in before 10.in."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if part[:1] in "0123456789" and part else (-1, part) for part in parts]


def judge_program(
    code: str,
    language: Language | OtherLanguage,
    tests: Tests,
    *,
    url: str | None,
    cacert: ssl.SSLContext | None,
    as_json: bool,
    memory_mb: int,
    **options: Any,
) -> int:
    timeout_ms = options.pop("timeout_ms")
    judgement = run_with_manager(
        lambda manager: manager.judge(code, tests, language=language, timeout_ms=timeout_ms, **options),
        make_settings(url, timeout_ms, memory_mb, cacert=cacert),
        [language],
        workers=None,
    )
    write(_strict_json.dump_bytes(judgement.to_dict()).decode() + "\n" if as_json else _table(judgement))
    return OK if judgement.passed else CODE_FAILED


def _table(judgement: Judgement) -> str:
    names = [one_line(test.test.id or "", _MAX_NAME_SHOWN) for test in judgement.results]
    width = max(map(len, names))
    lines = [f"{name:{width}}  {_describe(test)}".rstrip() for name, test in zip(names, judgement.results, strict=True)]
    return "\n".join([*lines, f"{judgement.passed_count} of {len(judgement.results)} tests passed\n"])


def _describe(test: TestResult) -> str:
    result = test.result
    color = {Verdict.PASSED: "green", Verdict.SKIPPED: "bright_black"}.get(test.verdict, "yellow")
    verdict = colored(f"{test.verdict:13}", color, err=False)
    duration = f"{result.duration_ms:8,.0f} ms" if result is not None and result.duration_ms is not None else " " * 11
    reason = test.difference
    if not reason and result is not None and result.error is not None:
        reason = f"{result.error.name}: {result.error.message}"
    return f"{verdict} {duration}  {one_line(reason, _MAX_REASON_SHOWN)}"
