"""Finds the snippets of the README and the guide, and the examples in docstrings, and runs them as a reader would.

The examples run like those of `doctest`, but with top-level await. `doctest` itself does not support it, and xdoctest
accepts output that the docstring does not contain.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import doctest
import inspect
import io
import json
import os
import re
import runpy
import socket
import subprocess
import textwrap
import time
import traceback
import types
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import attrs
import pytest

import faasrt
from support.package import ROOT, modules
from support.served import CLEAN, PATIENCE_S

INSTALLED = Path(faasrt.__file__).parents[1]
"""The folder that the package is imported from: the checkout, or the site-packages that have a wheel."""
DOCUMENTS = ["README.md", *sorted(str(path.relative_to(INSTALLED)) for path in INSTALLED.glob("faasrt/docs/*.md"))]
"""The README, and the pages of the guide by their paths."""
LOGGING = "import logging\nlogging.basicConfig()\nlogging.getLogger('faasrt').setLevel('DEBUG')\n"


@attrs.frozen
class Snippet:
    """A program or a command in a document.

    Attributes:
        document: The document that contains it, as in `DOCUMENTS`.
        number: Its position in the document.
        kind: "python", "console" or "sh".
        code: The program, or the command.
        expected: The output in the document. "..." stands for any text.
        file: The file name for a program that is saved and not run, or "".
        installs: The arguments of the `pip install` commands between the previous snippet and this one.
    """

    document: str
    number: int
    kind: str
    code: str = attrs.field(repr=False)
    expected: str = attrs.field(repr=False)
    file: str = ""
    installs: tuple[str, ...] = ()

    @property
    def serves(self) -> bool:
        """Whether the snippet is a web application, which runs until it is stopped."""
        return bool(re.search(r"FastAPI\(|run_app\(", self.code))

    def __str__(self) -> str:
        return f"{self.document}-{self.number}-{self.kind}"


def text_of(document: str) -> str:
    """Return the text of a document."""
    return ((ROOT if document == "README.md" else INSTALLED) / document).read_text()


def indented_blocks(document: str, title: str) -> list[str]:
    """Return the indented blocks of a section of a document."""
    [section] = re.findall(rf"^## {title}\n(.*?)^## ", text_of(document), re.DOTALL | re.MULTILINE)
    blocks = re.findall(r"(?:^    .*\n(?:\n+(?=    ))?)+", section, re.MULTILINE)
    return [textwrap.dedent(block) for block in blocks]


def snippets_of(document: str) -> list[Snippet]:
    """Return the snippets of a document, in order."""
    text, end = text_of(document), 0
    snippets: list[Snippet] = []
    for match in re.finditer(r"^```(\w+)\n(.*?)^```\n?", text, re.DOTALL | re.MULTILINE):
        kind, code = match.groups()
        before, end = text[end : match.start()], match.end()
        if kind == "text":
            assert before.strip() == "", f"{document}: an output without a program before it: {code}"
            assert snippets[-1].kind == "python"
            snippets[-1] = attrs.evolve(snippets[-1], expected=code)
            continue
        saved = re.search(r"Save\s+it\s+as\s+`(\S+)`", before)
        parts = re.split(r"^\$ ", code, flags=re.MULTILINE)[1:] if kind == "console" else [code]
        for part in parts:
            command, _, expected = part.partition("\n") if kind == "console" else (part, "", "")
            installs = tuple(re.findall(r"`pip install ([^`]+)`", before)) if part is parts[0] else ()
            file = saved[1] if saved and kind == "python" else ""
            snippets.append(Snippet(document, len(snippets), kind, command, expected, file, installs))
    return snippets


def environment(python: Path, **variables: str) -> dict[str, str]:
    """Return the environment after the quick start, with the commands of a Python in PATH and without endpoints."""
    return {**CLEAN, "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}", **variables}


def run_here(snippet: Snippet, folder: Path) -> None:
    """Run a Python snippet in this process, and compare its output."""
    script = folder / "snippet.py"
    script.write_text(snippet.code)
    output = io.StringIO()
    with mock.patch.dict(os.environ, CLEAN, clear=True), contextlib.chdir(folder), contextlib.redirect_stdout(output):
        runpy.run_path(script.name, run_name="__main__")
    check_output(snippet, output.getvalue())


def run_snippet(snippet: Snippet, python: Path, folder: Path) -> None:
    """Run a snippet in a folder with the files of the snippets before it, and compare its output."""
    if snippet.kind == "python":
        script = folder / (snippet.file or "snippet.py")
        script.write_text(snippet.code)
        if snippet.file:
            return
        argv = [str(python), "-W", "error", script.name]
    else:
        argv = ["bash", "-c", f"{snippet.code}\ntrue"]
    done = subprocess.run(argv, env=environment(python), cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{snippet}: {done.stderr}"
    check_output(snippet, done.stdout, done.stderr)


def check_output(snippet: Snippet, stdout: str, stderr: str = "") -> None:
    same = doctest.OutputChecker().check_output(snippet.expected, stdout, doctest.ELLIPSIS)
    assert same, f"{snippet} prints\n{stdout}\nbut should print\n{snippet.expected}\n{stderr}"


def check_application(snippet: Snippet, python: Path, folder: Path) -> None:
    """Run a web application on a free port. Check that it answers, and cancels programs of disconnected clients."""
    with serving(snippet, python, folder) as (url, output):
        path, program = ("/grade", {}) if "FastAPI(" in snippet.code else ("/run", {"language": "python"})
        answer = post(f"{url}{path}", {**program, "code": "print(6 * 7)"})
        assert (answer["outcome"], answer["stdout"]) == ("OK", "42\n")
        answer = post(f"{url}{path}", {**program, "code": r"raise Exception('\ud800')"})  # UTF-8 cannot encode it
        assert (answer["outcome"], answer["error"]) == ("USER_ERROR", "\ud800")
        for wrong in ({**program, "code": ""}, {}):
            with pytest.raises(urllib.error.HTTPError, match="422"):
                post(f"{url}{path}", wrong)
        assert "CancelledError" not in output.read_text()
        with contextlib.suppress(TimeoutError):
            # Normally the program has started by then. On a slow machine it may still be in the queue.
            post(f"{url}{path}", {**program, "code": "while True: pass"}, timeout_s=1)
            raise AssertionError("the application did not wait for the program")
        for line in ("call_finished", "execution_finished"):  # of the client, and of the embedded FaaS
            wait_for(lambda line=line: re.search(rf"{line}.*CancelledError", output.read_text()))
    assert "Traceback" not in output.read_text()


@contextlib.contextmanager
def serving(snippet: Snippet, python: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """Run a web application, and write its log and that of faasrt to a file. Yield its URL and the file."""
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    code, argv = snippet.code, [str(python), snippet.file]
    if "FastAPI(" in code:
        argv = [str(python.parent / "uvicorn"), f"{snippet.file.removesuffix('.py')}:app", "--port", str(port)]
    else:
        assert "port=8080" in code
        code = code.replace("port=8080", f"port={port}")
    (folder / snippet.file).write_text(code)
    (folder / "log").mkdir(exist_ok=True)
    (folder / "log" / "sitecustomize.py").write_text(LOGGING)
    output = folder / "output"
    variables = environment(python, PYTHONPATH=str(folder / "log"))
    with output.open("wb") as sink:
        process = subprocess.Popen(argv, cwd=folder, env=variables, stdout=sink, stderr=sink)
    try:
        wait_for(lambda: process.poll() is not None or is_open(port))
        assert process.poll() is None, output.read_text()
        yield f"http://127.0.0.1:{port}", output
        process.terminate()
        process.wait(PATIENCE_S)
    finally:
        process.kill()
        process.wait()


def is_open(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition: object) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.02)


def post(url: str, body: dict[str, str], timeout_s: float = PATIENCE_S) -> dict[str, object]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=timeout_s) as answer:
        return dict(json.load(answer))


def docstrings() -> Iterator[tuple[str, str]]:
    """Yield each docstring of the package, with the dotted name of its module, class or function."""
    for module, path in modules().items():
        yield from _below(module, ast.parse(path.read_text()))


def _below(name: str, node: ast.Module | ast.stmt) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        if text := ast.get_docstring(node):
            yield name, text
        for child in node.body:
            yield from _below(f"{name}.{getattr(child, 'name', '')}", child)


def examples_of(name: str, docstring: str) -> list[doctest.Example]:
    """Return the examples of a docstring, in order."""
    return doctest.DocTestParser().get_examples(docstring, name)


async def run_examples(name: str, docstring: str, **names: Any) -> None:
    """Run the examples of a docstring in order, and compare their output.

    They can use `asyncio`, `faasrt`, the public names of the package, and `names`.
    """
    public = {public: getattr(faasrt, public) for public in faasrt.__all__}
    namespace = {"asyncio": asyncio, "faasrt": faasrt, **public, **names}
    for example in examples_of(name, docstring):
        got = await _run_example(name, example, namespace)
        wanted = example.want if example.exc_msg is None else example.exc_msg
        checker = doctest.OutputChecker()
        flags = doctest.ELLIPSIS | sum(flag for flag, on in example.options.items() if on)
        if not checker.check_output(wanted, got, flags):
            raise AssertionError(f"{name}:\n{example.source}\n{checker.output_difference(example, got, flags)}")


async def _run_example(name: str, example: doctest.Example, namespace: dict[str, Any]) -> str:
    """Return the output of an example, or the last line of the exception that it is documented to raise."""
    code = compile(example.source, name, "single", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            outcome = types.FunctionType(code, namespace)()
            if inspect.iscoroutine(outcome):
                await outcome
        except Exception as error:
            if example.exc_msg is None:
                raise
            return traceback.format_exception_only(error)[-1]
    assert example.exc_msg is None, f"{name}: nothing was raised by\n{example.source}"
    return printed.getvalue()
