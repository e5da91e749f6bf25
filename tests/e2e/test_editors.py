"""What editors and type checkers show of the package."""

from __future__ import annotations

import inspect
import json
import pkgutil
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jedi
import pytest

import faasrt
from support import documents
from support.language_server import LanguageServer
from support.package import ROOT

pytestmark = [pytest.mark.documentation, pytest.mark.timeout(300)]

SNIPPETS = [snippet for snippet in documents.snippets_of("README.md") if snippet.kind == "python"]
USE = """
import faasrt
import faasrt.sync


async def use(manager: faasrt.RuntimeManager, runtime: faasrt.Runtime, session: faasrt.Session) -> None:
    await manager.run_code("print(1)", "python")
    await runtime.run_code("print(1)")
    await session.run_code("print(1)")
    manager.session("python")


def use_sync(manager: faasrt.sync.RuntimeManager) -> None:
    manager.run_code("print(1)", "python")


SETTINGS = faasrt.Settings()
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a user, with the programs of the README, `USE`, and a sample of the whole API."""
    folder = tmp_path_factory.mktemp("project")
    for snippet in SNIPPETS:
        (folder / f"readme_{snippet.number}.py").write_text(snippet.code)
    (folder / "use.py").write_text(USE)
    shutil.copy(ROOT / "tests/e2e/typed_sample.py", folder)
    environment = Path(sys.prefix)  # as an editor knows it; it has the package from the README's second command
    options = {"typeCheckingMode": "strict", "venvPath": str(environment.parent), "venv": environment.name}
    (folder / "pyrightconfig.json").write_text(json.dumps(options))
    return folder


@pytest.fixture(scope="module")
def server(project: Path) -> Iterator[LanguageServer]:
    with LanguageServer([str(Path(sys.executable).parent / "basedpyright-langserver"), "--stdio"], project) as server:
        yield server


@pytest.mark.parametrize(
    "command", ["mypy --strict --follow-imports silent .", "basedpyright"], ids=["mypy", "pyright"]
)
def test_type_checkers_accept_the_programs_of_users(command: str, project: Path) -> None:
    """In their strict modes. They find the package where it is installed, also in editable mode."""
    argv = [sys.executable, "-m", *command.split()]
    done = subprocess.run(argv, cwd=project, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("place", "method"),
    [
        ("await manager.run_code", faasrt.Runtime.run_code),
        ("await runtime.run_code", faasrt.Runtime.run_code),
        ("    manager.run_code", faasrt.Runtime.run_code),
        ("await session.run_code", faasrt.Session.run_code),
        ("    manager.session", faasrt.Runtime.session),
    ],
)
def test_hovering_a_method_shows_what_each_argument_means(
    place: str, method: Callable[..., object], project: Path, server: LanguageServer
) -> None:
    """The text has the signature, and the part of the docstring about each argument."""
    line = next(number for number, text in enumerate(USE.splitlines()) if place in text)
    shown = server.hover(project / "use.py", line, USE.splitlines()[line].index(method.__name__))
    arguments = shown.partition("Args")[2]
    for name in list(inspect.signature(method).parameters)[1:]:
        assert f"{name}:" in arguments.replace("`", ""), (name, shown)


def test_the_signature_of_settings_names_the_type_of_endpoints(project: Path, server: LanguageServer) -> None:
    """An editor, `inspect` and `help` show it."""
    line = USE.splitlines().index("SETTINGS = faasrt.Settings()")
    shown = server.hover(project / "use.py", line, USE.splitlines()[line].index("Settings"))
    assert "endpoints: Endpoints" in shown
    assert "Mapping[str, str | " in str(inspect.signature(faasrt.Settings).parameters["endpoints"].annotation)


def test_completion_lists_the_public_names() -> None:
    """Jedi, which IPython and Jupyter use, lists them, the modules and folders of the package, and private names."""
    text = "import faasrt\nfaasrt."
    names = {completion.name for completion in jedi.Script(text, project=jedi.Project(ROOT)).complete()}
    modules = {module.name for module in pkgutil.iter_modules(faasrt.__path__)} | {"docs"}
    assert {name for name in names if not name.startswith("_")} == set(faasrt.__all__) - {"__version__"} | {
        name for name in modules if not name.startswith("_")
    }
