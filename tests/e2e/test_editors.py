"""What editors and type checkers show of the package."""

from __future__ import annotations

import inspect
import json
import pkgutil
import pydoc
import re
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
from support.records import public_records

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
RECORDS = public_records()
FIELDS = [
    "import faasrt.rewards, faasrt.telemetry.events, faasrt.telemetry.metrics, faasrt.testing",
    *(
        f"def use_{number}_{field}(it: {kind}) -> None: print(it.{field})"
        for number, (kind, fields) in enumerate(RECORDS.items())
        for field in fields
    ),
]
OTHERS = """
import faasrt.sync
from faasrt.testing import FakeFaaS, FaultProxy


def use(error: faasrt.ServiceError, session: faasrt.Session, in_thread: faasrt.sync.Session) -> None:
    print(error.sent, faasrt.RejectedError("").details, session.language, in_thread.language)


def use_fakes(fake: FakeFaaS, proxy: FaultProxy) -> None:
    print(fake.capacity, proxy.bytes_dropped, faasrt.SandboxConfig(memory_limit_mb=64))
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a user, with the programs of the README, those above, and a sample of the whole API."""
    folder = tmp_path_factory.mktemp("project")
    for snippet in SNIPPETS:
        (folder / f"readme_{snippet.number}.py").write_text(snippet.code)
    (folder / "use.py").write_text(USE)
    (folder / "fields.py").write_text("\n".join(FIELDS))
    (folder / "others.py").write_text(OTHERS)
    shutil.copy(ROOT / "tests/e2e/typed_sample.py", folder)
    environment = Path(sys.prefix)  # as an editor knows it; it has the package from the README's second command
    options = {
        "typeCheckingMode": "strict",
        "reportUnnecessaryTypeIgnoreComment": "error",  # so that each refusal in the sample is one of pyright, too
        "venvPath": str(environment.parent),
        "venv": environment.name,
    }
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


def test_hovering_a_field_of_a_record_shows_its_text(project: Path, server: LanguageServer) -> None:
    """The text is that in `help`."""
    for number, line in enumerate(FIELDS[1:], 1):
        shown = server.hover(project / "fields.py", number, line.rindex(".") + 1)
        kind, field = re.findall(r"it: (\S+)\).*it\.(\w+)", line)[0]
        text = re.search(rf"^    {field}: (.+(?:\n {{8}}.+)*)", str(inspect.getdoc(pydoc.locate(kind))), re.MULTILINE)
        assert text, (kind, field)
        assert words(text[1]) in words(shown)


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("error.sent", "may have reached the server"),
        (").details", "text in the answer"),
        (" session.language", "The language of its programs"),
        ("in_thread.language", "The language of its programs"),
        ("fake.capacity", "maximum number of programs"),
        ("proxy.bytes_dropped", "number of bytes"),
        ("memory_limit_mb", "Memory in MiB"),
    ],
)
def test_hovering_another_attribute_shows_its_text(
    place: str, text: str, project: Path, server: LanguageServer
) -> None:
    """Those of errors, sessions and fakes, and the arguments of constructors of records."""
    number, line = next((number, line) for number, line in enumerate(OTHERS.splitlines()) if place in line)
    assert text in server.hover(project / "others.py", number, line.index(place) + len(place) - 1)


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
