"""The docstrings: every public name has an example, and every example of the package does what it says."""

from __future__ import annotations

import inspect
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import docstrings
import pytest
import pytest_asyncio

import faasrt
import faasrt.testing
from faasrt import RuntimeManager
from faasrt.local import LocalFaaS
from faasrt.ray import run_tasks

pytestmark = pytest.mark.asyncio(loop_scope="session")

EXAMPLES = {name: text for name, text in docstrings.docstrings() if docstrings.examples(name, text)}
# It blocks the thread, and needs a cluster: `test_ray.py` runs it.
ELSEWHERE = {"faasrt.ray.run_tasks"}
# Public among the modules of the package only.
INTERNAL = {"close_within", "patiently", "run_task"}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def faas() -> AsyncIterator[LocalFaaS]:
    """A FaaS of both engines, which the environment of the examples names."""
    async with LocalFaaS(workers=1) as faas:
        await faas.wait_ready("python")
        yield faas


@pytest.mark.parametrize("name", sorted(set(EXAMPLES) - ELSEWHERE))
async def test_examples(name: str, faas: LocalFaaS, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An example prints what stands below it, given the environment, and the manager and runtime that it may use."""
    monkeypatch.setenv("COZE_LOOP_FAAS_URL", faas.url)
    monkeypatch.chdir(tmp_path)
    async with RuntimeManager.from_env() as manager:
        await docstrings.run(name, EXAMPLES[name], manager=manager, runtime=await manager.get_runtime("python"))


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
async def test_a_wrong_example_is_found(wrong: str) -> None:
    """Output that the docstring does not show counts too, and so does an exception that does not come."""
    with pytest.raises(AssertionError):
        await docstrings.run("wrong", wrong)


async def test_every_public_name_has_an_example() -> None:
    """In its own docstring; so has each method of the manager and factory, and what a runtime has beyond these.

    `aclose` needs none: everybody writes `async with`.
    """
    public = [getattr(faasrt, name) for name in faasrt.__all__ if name != "__version__"]
    public += [LocalFaaS, run_tasks, *(getattr(faasrt.testing, name) for name in faasrt.testing.__all__)]
    shared = {name for name, _ in public_methods(RuntimeManager)} - {"run_code", "validate_code"}
    for kind, others in ((RuntimeManager, set()), (faasrt.RuntimeFactory, set()), (faasrt.Runtime, shared | INTERNAL)):
        public += [method for name, method in public_methods(kind) if name not in others | {"aclose"}]
    assert {named(value) for value in public} - set(EXAMPLES) == set()


def public_methods(kind: type) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in inspect.getmembers(kind, callable) if not name.startswith("_")]


SETTINGS = [
    faasrt.Settings,
    *(type(field.default) for field in attrs.fields(faasrt.Settings) if attrs.has(type(field.default))),
]


@pytest.mark.parametrize("kind", SETTINGS)
async def test_defaults_are_as_they_are_said_to_be(kind: type) -> None:
    """Each setting that is a number, a flag or a word says what it is by default, and that is so."""
    attributes = str(kind.__doc__).partition("Attributes:")[2].partition("Raises:")[0].partition("Example:")[0]
    said = {
        name: re.search(r"\bDefault: (.+?)\.(?!\d)", text)
        for name, text in re.findall(r"^ {8}(\w+): (.*?)(?=^ {8}\w+: |\Z)", attributes, re.DOTALL | re.MULTILINE)
    }
    defaults = {field.name: field.default for field in attrs.fields(kind)}
    assert list(said) == list(defaults)
    for name, default in defaults.items():
        if isinstance(default, bool | int | float | str):
            match = said[name]
            assert match, f"{kind.__name__}.{name}"
            assert match[1] == (str(default) if isinstance(default, bool | str) else f"{default:.15g}"), name
