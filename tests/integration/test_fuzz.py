"""Run random programs with known results on the embedded FaaS and on the doubles of the reference servers.

    cd tests && python -m integration.test_fuzz [--programs 2000] [--seed N] [--in-flight 4]

Most programs are generated: each prints random text, may return a value, and ends in one of many ways. Its outcome,
output and value must be the expected ones. Other programs are mutated: some characters of a program of the tests are
changed. If Python's parser refuses a mutated program, its outcome must be SYNTAX_ERROR; otherwise any outcome is
accepted. No call may raise an exception.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import random
import sys
import time
from collections.abc import AsyncIterator, Iterator

import attrs

from faasrt import Outcome, RuntimeManager, Settings
from support.doubles import JsFaas, PythonFaas
from support.helpers import PATIENT
from support.programs import EXACT_JAVASCRIPT, EXACT_PYTHON, PROGRAMS
from support.tables import block

TEXTS = [
    "__COZE_RETURN_VAL_START__",
    "__COZE_RETURN_VAL_END__",
    "faasrt1:e30=",
    '{"stdout":"","stderr":"","ret_val":""}',
    '{"a": 1}',
    "{'a': [1, 2]}",
    "don't",
    'it\'s "quoted"',
    "\\n \\ \t end",
    "\n\n\n",
    "é 你好 🌍 \u2028",
    "\x00\x1b[31m",
    "Traceback (most recent call last):",
    "SyntaxError: no",
    "    at temp.js:18:4",
    "timeout",
    "",
]
PYTHON_ENDINGS = {
    "": Outcome.OK,
    block("""
        import sys
        sys.exit()
    """): Outcome.OK,
    block("""
        import sys
        sys.exit(3)
    """): Outcome.USER_ERROR,
    block("""
        import sys
        sys.exit('no')
    """): Outcome.USER_ERROR,
    "raise ValueError('timed out')": Outcome.USER_ERROR,
    "1 / 0": Outcome.USER_ERROR,
    "raise SyntaxError('mine')": Outcome.USER_ERROR,
    "raise KeyboardInterrupt": Outcome.USER_ERROR,
    block("""
        def f(n): return f(n + 1)
        f(0)
    """): Outcome.USER_ERROR,
    block("""
        import os
        os._exit(7)
    """): Outcome.CRASHED,
    "while True: pass": Outcome.TIMEOUT,
    block("""
        import time
        time.sleep(60)
    """): Outcome.TIMEOUT,
    block("""
        n = 0
        while True:
            try:
                while True: n += 1
            except Exception: pass
    """): Outcome.TIMEOUT,
    block("""
        def f(:
            pass
    """): Outcome.SYNTAX_ERROR,
}
JAVASCRIPT_ENDINGS = {
    "": Outcome.OK,
    "Deno.exit(0);": Outcome.OK,
    "Deno.exit(3);": Outcome.USER_ERROR,
    "throw new TypeError('timed out');": Outcome.USER_ERROR,
    "throw 5;": Outcome.USER_ERROR,
    "await Promise.reject(new Error('late'));": Outcome.USER_ERROR,
    "setTimeout(() => { throw new Error('later'); }, 5);": Outcome.USER_ERROR,
    "const f = (n) => f(n + 1); f(0);": Outcome.USER_ERROR,
    "setInterval(() => {}, 10);": Outcome.TIMEOUT,
    "await 1; const x = ;": Outcome.SYNTAX_ERROR,
}
# During an endless loop, the guest program of js-faas cannot return what was printed before.
JAVASCRIPT_LOOPS = {"while (true) {}": Outcome.TIMEOUT, "await 1; for (;;);": Outcome.TIMEOUT}


@attrs.frozen
class Program:
    """A program with its expected results. None accepts any value."""

    code: str
    language: str
    outcome: Outcome | None
    stdout: str | None
    ret_val: str | None


def generated(chance: random.Random) -> Program:
    """Return a generated program."""
    language = chance.choice(["python", "javascript", "typescript"])
    python = language == "python"
    endings = PYTHON_ENDINGS if python else JAVASCRIPT_ENDINGS | JAVASCRIPT_LOOPS
    ending, outcome = chance.choice(list(endings.items()))
    lines, stdout, ret_val = [], "", ""
    for _ in range(chance.randint(0, 6)):
        text = "".join(chance.choices(TEXTS, k=chance.randint(1, 4))) * chance.choice([1, 1, 1, 50])
        literal = repr(text) if python else json.dumps(text)
        match chance.randint(0, 3):
            case 0:
                lines.append(f"return_val({literal})")
                ret_val = text
            case 1:
                lines.append(f"# don't {chance.random()}" if python else f"// don't {chance.random()}")
            case _:
                lines.append(f"print({literal})" if python else f"console.log({literal});")
                stdout += text + "\n"
    if outcome is Outcome.SYNTAX_ERROR:
        stdout = ret_val = ""
    looped = ending in JAVASCRIPT_LOOPS
    return Program(
        "\n".join([*lines, ending or "0"]), language, outcome, None if looped else stdout, None if looped else ret_val
    )


def mutated(chance: random.Random) -> Program:
    """Return a program of the tests with some characters changed."""
    corpus = {
        "python": [*PROGRAMS["python"], *EXACT_PYTHON],
        "javascript": [*PROGRAMS["javascript"], *EXACT_JAVASCRIPT],
    }
    language = chance.choice(list(corpus))
    code = chance.choice(corpus[language])
    for _ in range(chance.randint(1, 3)):
        place = chance.randrange(len(code) + 1)
        code = (
            code[:place]
            + chance.choice(
                [
                    *block("""
                        ()[]{}'"
                        :; #=+x0
                    """),
                    "",
                ]
            )
            + code[place + chance.randint(0, 2) :]
        )
    outcome = None
    if language == "python":
        try:
            compile(code.removeprefix("\ufeff"), "main.py", "exec", 0x2000, dont_inherit=True)
        except (SyntaxError, ValueError):
            outcome = Outcome.SYNTAX_ERROR
        except Exception:
            pass
    return Program(code or "0", language, outcome, None, None)


def programs(count: int, seed: int) -> Iterator[Program]:
    """Yield generated programs (70 %) and mutated ones."""
    chance = random.Random(seed)
    for _ in range(count):
        yield generated(chance) if chance.random() < 0.7 else mutated(chance)


async def check(manager: RuntimeManager, program: Program) -> tuple[str, str]:
    """Run a program. Return its outcome, and a description of what is wrong with its result ("" if nothing is)."""
    timeout_ms = 1_000 if program.outcome in (Outcome.TIMEOUT, None) else 30_000
    result = await manager.run_code(program.code, program.language, timeout_ms=timeout_ms)
    problems = []
    if program.outcome not in (None, result.outcome):
        problems.append(f"outcome {result.outcome}, not {program.outcome}")
    for name in ("stdout", "ret_val"):
        expected = getattr(program, name)
        if expected is not None and getattr(result, name) != expected:
            problems.append(f"{name} {getattr(result, name)[:200]!r}, not {expected[:200]!r}")
    return str(result.outcome), "; ".join(problems)


@contextlib.asynccontextmanager
async def managers_by_name() -> AsyncIterator[dict[str, RuntimeManager]]:
    """Yield managers of the embedded FaaS, of the doubles, and of doubles without `/health`, as behind a gateway."""
    async with contextlib.AsyncExitStack() as stack:
        managers = {"embedded": await stack.enter_async_context(RuntimeManager.local(workers=2, timeouts=PATIENT))}
        for name, has_health, version in (("doubles", True, "docker-compose"), ("gateway", False, "helm")):
            python = await stack.enter_async_context(PythonFaas(has_health=has_health))
            js = await stack.enter_async_context(JsFaas(has_health=has_health, version=version))
            settings = Settings(endpoints={"python": python.url, "js": js.url, "ts": js.url}, timeouts=PATIENT)
            managers[name] = await stack.enter_async_context(RuntimeManager(settings=settings))
        yield managers


async def run(count: int, seed: int, in_flight: int) -> tuple[collections.Counter[str], list[str]]:
    """Run a number of programs, each with one of the managers. Return the counts of outcomes and all problems."""
    outcomes: collections.Counter[str] = collections.Counter()
    problems: list[str] = []
    room = asyncio.Semaphore(in_flight)

    async def one(name: str, manager: RuntimeManager, program: Program) -> None:
        async with room:
            try:
                outcome, problem = await check(manager, program)
            except Exception as error:
                outcome, problem = type(error).__name__, f"raised {error!r}"
        outcomes[outcome] += 1
        if problem:
            problems.append(f"{name}, {program.language}: {problem}\n{program.code!r}")

    async with managers_by_name() as managers, asyncio.TaskGroup() as group:
        for number, program in enumerate(programs(count, seed)):
            name = list(managers)[number % len(managers)]
            group.create_task(one(name, managers[name], program))
    return outcomes, problems


async def test_random_programs_have_the_expected_results() -> None:
    """Outcome, output and value are as expected on the embedded FaaS and on both doubles."""
    outcomes, problems = await run(30, seed=38, in_flight=4)
    assert problems == []
    assert sum(outcomes.values()) == 30
    assert len(outcomes) == 5


def main() -> None:
    """Print the outcomes and the problems. Exit with 1 if there are problems."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--in-flight", type=int, default=4)
    options = parser.parse_args()
    outcomes, problems = asyncio.run(run(options.programs, options.seed, options.in_flight))
    print(
        f"seed {options.seed}: {sum(outcomes.values())} programs,",
        ", ".join(f"{n} {o}" for o, n in outcomes.most_common()),
    )
    for problem in problems:
        print("WRONG", problem)
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
