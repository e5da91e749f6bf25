"""Docstrings: every public name has an example, every example runs, and the stated defaults match the code."""

from __future__ import annotations

import importlib
import inspect
import pydoc
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_asyncio

import faasrt
from faasrt import RuntimeManager
from faasrt.cli.commands import commands
from faasrt.cli.output import CODE_FAILED, INFRASTRUCTURE, INTERRUPTED, OK, USAGE
from faasrt.local import LocalFaaS
from support.documents import docstrings, examples_of, run_examples, text_of

pytestmark = [pytest.mark.documentation, pytest.mark.asyncio(loop_scope="session")]

DOCSTRINGS = dict(docstrings())
EXAMPLES = {name for name, text in DOCSTRINGS.items() if examples_of(name, text)}
# Examples that block the thread and need a Ray cluster: `test_ray.py` and `test_ray_serve.py` run them.
ELSEWHERE = {"faasrt.ray.run_tasks", "faasrt.ray.serve.app"}
# The modules besides `faasrt` with public names.
MODULES = (
    *("agents", "local", "ray", "ray.serve", "rewards", "sync", "telemetry.events", "telemetry.metrics"),
    *("telemetry.otel", "telemetry.prometheus", "testing", "web"),
)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def faas() -> AsyncIterator[LocalFaaS]:
    """A FaaS for all languages. The environment of the examples names its URL."""
    async with LocalFaaS(workers=1) as faas:
        for language in ("python", "javascript"):  # `/health` reports "degraded" while one of them starts
            await faas.wait_ready(language)
        yield faas


@pytest.mark.parametrize("name", sorted(EXAMPLES - ELSEWHERE))
async def test_examples_print_what_the_docstring_shows(
    name: str, faas: LocalFaaS, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Examples may use the names `manager` and `runtime`, and `RuntimeManager.from_env`."""
    monkeypatch.setenv("COZE_LOOP_FAAS_URL", faas.url)
    monkeypatch.chdir(tmp_path)
    async with RuntimeManager.from_env() as manager:
        await run_examples(name, DOCSTRINGS[name], manager=manager, runtime=await manager.get_runtime("python"))


def named(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


@pytest.mark.parametrize(
    "wrong",
    [
        ">>> print(1)",
        ">>> 1\n2",
        ">>> await asyncio.sleep(0, 1)\n2",
        ">>> 1\nTraceback (most recent call last):\nValueError",
        ">>> int('')\nTraceback (most recent call last):\nValueError: another",
    ],
)
async def test_a_wrong_example_fails(wrong: str) -> None:
    """Output that is missing in the docstring, a wrong exception and a missing exception each fail."""
    with pytest.raises(AssertionError):
        await run_examples("wrong", wrong)


async def test_every_public_name_has_an_example() -> None:
    """Each name of `faasrt`, and each method of `RuntimeManager`, `RuntimeFactory` and `Runtime`, has an example.

    Methods that `Runtime` shares with `RuntimeManager` need only one. `aclose` needs none, because of `async with`.
    """
    types = {"LanguageName", "LanguageOption", "OtherLanguage", "TaskResult"}
    public = [getattr(faasrt, name) for name in set(faasrt.__all__) - types - {"__version__"}]
    shared = {name for name, _ in public_methods(RuntimeManager)}
    for kind, others in ((RuntimeManager, set()), (faasrt.RuntimeFactory, set()), (faasrt.Runtime, shared)):
        public += [method for name, method in public_methods(kind) if name not in others | {"aclose"}]
    assert {named(inspect.unwrap(value)) for value in public} - EXAMPLES == set()


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`:DeprecationWarning")  # Ray Serve
async def test_every_public_name_of_other_modules_has_an_example() -> None:
    """The example is in the docstring of the name, of its module, or of the module that lists it."""
    for module in (f"faasrt.{name}" for name in MODULES):
        for name in importlib.import_module(module).__all__:
            value = pydoc.locate(f"{module}.{name}")
            if callable(value) and value.__module__.startswith("faasrt"):  # constants and types need no example
                assert {named(value), value.__module__, module} & EXAMPLES, name


def public_methods(kind: type) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in inspect.getmembers(kind, callable) if not name.startswith("_")]


SETTINGS = [
    faasrt.Settings,
    *(type(field.default) for field in attrs.fields(faasrt.Settings) if attrs.has(type(field.default))),
]


@pytest.mark.parametrize("kind", SETTINGS)
async def test_defaults_in_docstrings_match_the_code(kind: type) -> None:
    """The docstring of each settings class states the default of each number, flag and string."""
    attributes = str(inspect.getdoc(kind)).partition("Attributes:")[2].partition("Raises:")[0].partition("Example:")[0]
    said = {
        name: re.search(r"\bDefault: (.+?)\.(?!\d)", " ".join(text.split()))
        for name, text in re.findall(r"^ {4}(\w+): (.*?)(?=^ {4}\w+: |\Z)", attributes, re.DOTALL | re.MULTILINE)
    }
    defaults = {field.name: field.default for field in attrs.fields(kind)}
    assert list(said) == list(defaults)
    for name, default in defaults.items():
        if isinstance(default, bool | int | float | str):
            match = said[name]
            assert match, f"{kind.__name__}.{name}"
            assert match[1] == (str(default) if isinstance(default, bool | str) else f"{default:.15g}"), name


async def test_tables_in_docstrings_are_complete() -> None:
    """The tables list all outcomes, errors with their base classes, commands and exit codes."""
    rows = re.findall(r"^\| (`[A-Z_`, ]+`) \|", text_of("faasrt/docs/error-handling.md"), re.MULTILINE)
    assert re.findall(r"[A-Z_]+", " ".join(rows)) == list(faasrt.Outcome)
    lines = DOCSTRINGS["faasrt.errors"].splitlines()
    direct, below = (
        {getattr(faasrt, match[1]) for line in lines if (match := re.match(rf" {{{indent}}}[├└]── (\w+)", line))}
        for indent in (4, 8)
    )
    exported = {value for name in faasrt.__all__ if isinstance(value := getattr(faasrt, name), type)}
    errors = {value for value in exported if issubclass(value, faasrt.FaasrtError)} - {faasrt.FaasrtError}
    assert direct | below == errors
    assert below == {value for value in errors if issubclass(value, faasrt.ServiceError)} - {faasrt.ServiceError}
    page = text_of("faasrt/docs/command-line.md")
    listed = re.findall(r"^\| `faasrt (\w+)", page, re.MULTILINE)
    assert sorted(listed) == sorted(commands.commands)
    codes = re.findall(r"^\| (\d+) \|", page, re.MULTILINE)
    assert [int(code) for code in codes] == [OK, CODE_FAILED, USAGE, INFRASTRUCTURE, INTERRUPTED]
