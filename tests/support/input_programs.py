"""Python programs with standard input, arguments and files, and their results on every kind of server.

The functions run a whole program several times in one execution of the guest program.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import aiohttp
import attrs

from faasrt import Outcome, SandboxConfig
from faasrt.inputs import ProgramInput
from faasrt.languages import Language
from faasrt.protocol.answer import Answer
from faasrt.protocol.envelope import GuestJob
from faasrt.protocol.execution import Execution
from faasrt.protocol.health import EndpointProfile
from faasrt.protocol.program import Program
from faasrt.protocol.response import Response
from support.tables import block

BYTES = bytes(range(256))
LARGE = BYTES * 20_000  # 5 MB
MANY = {f"f{number}.txt": str(number) for number in range(100)}
FILE_CALLS = """
import os, pathlib, shutil, tempfile
folder = pathlib.Path("d")
folder.mkdir()
(folder / "a").write_text("1")
os.rename("d/a", "d/b")
with open("d/b", "a") as file: file.write("2")
with open("d/b", "r+") as file:
    file.seek(1)
    file.write("XYZ")
    file.truncate(3)
print(os.listdir("d"), open("d/b").read(), os.path.getsize("d/b"))
os.makedirs("e/f/g")
shutil.copy("d/b", "e/f/g/c")
os.rename("e/f", "e/h")
print(sorted(str(path) for top in "de" for path in pathlib.Path(top).rglob("*")))
def attempt(action, *arguments):
    try:
        action(*arguments)
    except OSError as error:
        print(type(error).__name__)
attempt(os.mkdir, "d")
attempt(os.rmdir, "e")
attempt(open, "missing")
attempt(open, "missing/x", "w")
attempt(open, "d", "w")
attempt(open, "d/b/c")
attempt(os.rename, "d", "d/b")
attempt(os.rename, "missing", "x")
with tempfile.NamedTemporaryFile("w+", dir=".") as file:
    file.write("temporary")
    file.seek(0)
    print(file.read())
shutil.rmtree("e")
os.remove("d/b")
os.rmdir("d")
print(os.path.exists("d"), os.path.exists("e"), os.path.exists("main.py"))
"""
FILE_OUTPUT = """\
['b'] 1XY 3
['d/b', 'e/h', 'e/h/g', 'e/h/g/c']
FileExistsError
OSError
FileNotFoundError
FileNotFoundError
IsADirectoryError
NotADirectoryError
OSError
FileNotFoundError
temporary
False False True
"""


@attrs.frozen
class InputProgram:
    """A program and its result.

    Attributes:
        code: The program.
        stdout: Its output.
        options: The arguments of `run_code` for its input.
        outcome: Its outcome.
        files: The collected files.
        truncated: Whether files are missing.
    """

    code: str
    stdout: str
    options: Mapping[str, Any] = attrs.field(factory=dict)
    outcome: Outcome = Outcome.OK
    files: Mapping[str, bytes] = attrs.field(factory=dict)
    truncated: bool = False


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


PROGRAMS = {
    "no input": InputProgram(
        block("""
            import sys
            print(repr(sys.stdin.read()), sys.argv)
        """),
        "'' ['main.py']\n",
    ),
    "empty input": InputProgram(
        block("""
            import sys
            print(repr(sys.stdin.read()), sys.argv)
        """),
        "'' ['main.py']\n",
        {"stdin": "", "argv": [], "files": {}, "collect": []},
    ),
    "lines": InputProgram(
        block("""
            print(input())
            print(input())
            try: input()
            except EOFError: print('end')
        """),
        "a\nb\nend\n",
        {"stdin": "a\nb"},
    ),
    "lines of sys.stdin": InputProgram(
        block("""
            import sys
            print([line for line in sys.stdin], sys.stdin.fileno())
        """),
        "['a\\n', 'b'] 0\n",
        {"stdin": "a\nb"},
    ),
    "bytes": InputProgram(
        block("""
            import sys
            print(sys.stdin.buffer.read() == bytes(range(256)))
        """),
        "True\n",
        {"stdin": BYTES},
    ),
    "bytes as text": InputProgram("print(ascii(input()))", "'a\\udcff'\n", {"stdin": b"a\xff\n"}),
    "descriptor 0": InputProgram(
        block("""
            import os
            print(os.read(0, 2), os.read(0, 100), os.read(0, 1))
        """),
        "b'ab' b'cd' b''\n",
        {"stdin": "abcd"},
    ),
    "open(0)": InputProgram("print(open(0).read())", "abcd\n", {"stdin": "abcd"}),
    "closed input": InputProgram(
        block("""
            import os
            os.close(0)
            print('closed')
        """),
        "closed\n",
        {"stdin": "abcd"},
    ),
    "5 MB": InputProgram(
        block("""
            import hashlib, sys
            print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())
        """),
        digest(LARGE) + "\n",
        {"stdin": LARGE},
    ),
    "5 MB of text": InputProgram(
        block("""
            import sys
            print(len(sys.stdin.read()))
        """),
        "5000000\n",
        {"stdin": "0123456789" * 500_000},
    ),
    "5 MB that are never read": InputProgram("print('done')", "done\n", {"stdin": LARGE}),
    "unicode": InputProgram(
        block("""
            import os, sys
            print(input(), sys.argv[1:], 'é🌍.txt' in os.listdir())
            print(open('é🌍.txt', encoding='utf-8').read())
        """),
        "é🌍 ['é🌍'] True\né🌍\n",
        {"stdin": "é🌍\n", "argv": ["é🌍"], "files": {"é🌍.txt": "é🌍"}},
    ),
    "arguments": InputProgram(
        block("""
            import sys
            print(sys.argv[1:])
        """),
        "['a b', '', 'c\\nd', '-c', '--', '\"\\'', '$HOME']\n",
        {"argv": ["a b", "", "c\nd", "-c", "--", "\"'", "$HOME"]},
    ),
    "1,000 arguments": InputProgram(
        block("""
            import sys
            print(len(sys.argv), {len(text) for text in sys.argv[1:]})
        """),
        "1001 {2000}\n",
        {"argv": ["x" * 2000] * 1000},
    ),
    "100 files": InputProgram(
        block("""
            import os
            print(sum(name.endswith('.txt') for name in os.listdir()))
            print(sum(int(open(f'f{n}.txt').read()) for n in range(100)))
        """),
        "100\n4950\n",
        {"files": MANY},
    ),
    "file in a folder": InputProgram(
        block("""
            import os
            print(open('data/x/in.bin', 'rb').read() == bytes(range(256)), os.listdir('data'))
        """),
        "True ['x']\n",
        {"files": {"data/x/in.bin": BYTES}},
    ),
    "modules": InputProgram(
        block("""
            import helper, package.inner
            print(helper.name, package.inner.name)
        """),
        "helper inner\n",
        {"files": {"helper.py": "name = 'helper'", "package/inner.py": "name = 'inner'"}},
    ),
    "modules with names of the standard library": InputProgram(
        block("""
            import json, statistics, enum, csv
            print(json.name, statistics.name, enum.name, csv.name)
        """),
        "j s e c\n",
        {"files": {f"{name}.py": f"name = '{name[0]}'" for name in ("json", "statistics", "enum", "csv")}},
    ),
    "a file named __main__.py": InputProgram("print(__name__)", "__main__\n", {"files": {"__main__.py": "1"}}),
    "module written by the program": InputProgram(
        block("""
            open('own.py', 'w').write('name = 5')
            import own
            print(own.name)
        """),
        "5\n",
        {"files": {"a": ""}},
    ),
    "own file": InputProgram(
        block("""
            import os, sys
            print(os.path.samefile(__file__, 'main.py'), sys.path[0] == os.getcwd())
            print(open(__file__).readline())
        """),
        "True True\nimport os, sys\n\n",
        {"files": {"a": ""}},
    ),
    "calls": InputProgram(FILE_CALLS, FILE_OUTPUT, {"collect": ["**"]}),
    "file that is open twice": InputProgram(
        block("""
            import os
            file = open('a', 'w')
            file.write('1')
            file.flush()
            os.fsync(file.fileno())
            print(open('a').read())
        """),
        "1\n",
        {"collect": ["a"]},
        files={"a": b"1"},
    ),
    "collect": InputProgram(
        block("""
            import os
            os.makedirs('out/deep')
            for path in ('a.csv', 'b.txt', 'out/c.csv', 'out/deep/d.csv', '.hidden.csv'):
                open(path, 'w').write(path)
            open('out/e.bin', 'wb').write(bytes(range(256)))
        """),
        "",
        {"collect": ["*.csv", "out/**/*.csv", "out/*.bin", "main.py", "missing"]},
        files={"a.csv": b"a.csv", "out/c.csv": b"out/c.csv", "out/deep/d.csv": b"out/deep/d.csv", "out/e.bin": BYTES},
    ),
    "collect changed files": InputProgram(
        block("""
            import os
            open('a', 'a').write('2')
            os.remove('b')
        """),
        "",
        {"files": {"a": "1", "b": "1", "c": ""}, "collect": ["*"]},
        files={"a": b"12", "c": b""},
    ),
    "collect text": InputProgram(
        "open('a', 'w', encoding='utf-8').write('é🌍\\r\\n\\0\\x1b\\u2028' * 1000)",
        "",
        {"collect": ["a"]},
        files={"a": ("é🌍\r\n\0\x1b\u2028" * 1000).encode()},
    ),
    "collect more than fits": InputProgram(
        "for name in 'abcd': open(name, 'w').write(name * 400_000)",
        "",
        {"collect": ["*"]},
        files={"a": b"a" * 400_000, "b": b"b" * 400_000},
        truncated=True,
    ),
    "collect more than 1,000 files": InputProgram(
        "for number in range(1001): open(f'{number:04}', 'w').close()",
        "",
        {"collect": ["*"]},
        files={f"{number:04}": b"" for number in range(1000)},
        truncated=True,
    ),
    "collect from a deep folder": InputProgram(
        block("""
            import os
            os.makedirs('a/' * 31)
            open('a/' * 31 + 'kept', 'w').close()
            for _ in range(40):
                os.makedirs('b', exist_ok=True)
                os.chdir('b')
            open('lost', 'w').close()
        """),
        "",
        {"collect": ["**"]},
        files={"a/" * 31 + "kept": b""},
        truncated=True,
    ),
    "collect long paths": InputProgram(
        block("""
            import os
            for _ in range(6):
                os.mkdir('d' * 200)
                os.chdir('d' * 200)
                open('x', 'w').close()
        """),
        "",
        {"collect": ["**"]},
        files={"/".join(["d" * 200] * number + ["x"]): b"" for number in range(1, 6)},
        truncated=True,
    ),
    "timeout": InputProgram(
        block("""
            import time
            open('a', 'w').write('1')
            print('on', flush=True)
            time.sleep(60)
        """),
        "on\n",
        {"collect": ["*"], "timeout_ms": 1500},
        outcome=Outcome.TIMEOUT,
        files={"a": b"1"},
    ),
    "exception": InputProgram(
        block("""
            open('a', 'w').write('1')
            1 / 0
        """),
        "",
        {"collect": ["*"]},
        outcome=Outcome.USER_ERROR,
        files={"a": b"1"},
    ),
    "exit": InputProgram(
        block("""
            import sys
            open('a', 'w').write('1')
            sys.exit(3)
        """),
        "",
        {"collect": ["*"]},
        outcome=Outcome.USER_ERROR,
        files={"a": b"1"},
    ),
    "hard exit": InputProgram(
        block("""
            import os
            open('a', 'w').write('1')
            os._exit(3)
        """),
        "",
        {"collect": ["*"]},
        outcome=Outcome.CRASHED,
        files={"a": b"1"},
    ),
    "too much output": InputProgram(
        block("""
            open('a', 'w').write('1')
            while True: print('x' * 1000)
        """),
        "",
        {"collect": ["*"]},
        outcome=Outcome.OUTPUT_LIMIT,
        files={"a": b"1"},
    ),
    "syntax error": InputProgram("def", "", {"files": {"a": "1"}}, outcome=Outcome.SYNTAX_ERROR),
}


UNKNOWN = EndpointProfile()


def encode_inputs(*inputs: dict[str, Any]) -> list[str]:
    """Return the inputs of the cases as JSON."""
    return [json.dumps(ProgramInput.checked(Language.PYTHON, **options).to_wire()) for options in inputs]


async def run_whole_cases(
    url: str,
    code: str,
    cases: list[str],
    *,
    timeout_ms: int = 5_000,
    profile: EndpointProfile = UNKNOWN,
    **shared: Any,
) -> Response:
    """Run the cases in one execution on a server."""
    run = Program.checked(Language.PYTHON, code, SandboxConfig(), timeout_ms=timeout_ms, **shared)
    execution = Execution(program=run, job=GuestJob(cases=cases, single=False, isolate=True))
    request = execution.request(profile, timeout_ms, url)
    headers = {"Content-Type": "application/json"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/run_code", data=request.body, headers=headers) as answer,
    ):
        return request.read(Answer(status=answer.status, body=await answer.read()))
