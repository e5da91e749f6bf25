"""The options of a run: the signature of `run_code`, `RunOptions` and `CodeTask` state the same ones."""

from __future__ import annotations

import inspect
import typing
from typing import Any

import attrs
import pytest

from faasrt import CodeTask, Language, Runtime, RuntimeManager, TestCase, sync
from faasrt.config import EngineName, Level
from faasrt.judging import Compare, check_compare
from faasrt.languages import LanguageName
from faasrt.local.engine_choice import ENGINES
from faasrt.local.jail.level import LEVELS
from faasrt.tasks import RunOptions, field_forms

FORWARDED = ["run_code", "stream_code", "call_function", "run_cases", "judge", "validate_code", "session"]


def parameters(method: Any) -> dict[str, inspect.Parameter]:
    """Return the parameters of `run_code` that are options."""
    found = dict(inspect.signature(method).parameters)
    for name in ("self", "code", "language"):
        del found[name]
    return found


def test_run_options_are_the_parameters_of_run_code() -> None:
    types = typing.get_type_hints(Runtime.run_code)
    assert typing.get_type_hints(RunOptions) == {name: types[name] for name in parameters(Runtime.run_code)}


def test_a_task_has_all_options_with_their_defaults() -> None:
    fields = attrs.fields_dict(CodeTask)
    for name, parameter in parameters(Runtime.run_code).items():
        assert (name, fields[name].default) == (name, parameter.default)
    assert list(field_forms()) == list(fields)


@pytest.mark.parametrize("name", FORWARDED)
def test_the_manager_documents_the_same_call(name: str) -> None:
    """The methods of a manager have the parameters of the runtime's, also in `faasrt.sync`. Only the language is
    required, in a call, and by type checkers. Each docstring describes all arguments.
    """
    original = getattr(Runtime, name)
    for kind in (RuntimeManager, sync.RuntimeManager, sync.Runtime):
        method = getattr(kind, name)
        shown, expected = (dict(inspect.signature(each).parameters) for each in (method, original))
        language, default = shown.pop("language"), expected.pop("language").default
        assert shown == expected
        assert language.default is (default if kind is sync.Runtime else language.empty)
        assert method.__doc__ == (original if kind is sync.Runtime else getattr(RuntimeManager, name)).__doc__
        assert method.__name__ == name
        assert all(
            f" {each}: " in method.__doc__ for each in [*expected, "language"] if each not in ("self", "options")
        )


@pytest.mark.asyncio
@pytest.mark.parametrize("name", FORWARDED)
async def test_a_call_without_a_language_names_the_method(name: str) -> None:
    """So does a call with too many positional arguments."""
    manager = RuntimeManager.from_url("http://127.0.0.1:1")
    required = {"run_cases": ("1", "f", [[1]]), "session": ()}.get(name, ("1", "f"))
    required = required[:1] if name in ("run_code", "stream_code", "validate_code") else required
    method = getattr(manager, name)
    for arguments in (required, (*required, *"12345")):
        with pytest.raises(TypeError, match=rf"^RuntimeManager\.{name}\(\) (missing|takes)"):
            await method(*arguments)


MISSPELT: list[tuple[str, tuple[Any, ...]]] = [
    ("run_code", ("1", "python")),
    ("stream_code", ("1", "python")),
    ("call_function", ("1", "f")),
    ("run_cases", ("1", "f", [[1]])),
    ("judge", ("1", [TestCase()])),
    ("session", ("python",)),
]


@pytest.mark.asyncio
@pytest.mark.parametrize(("name", "arguments"), MISSPELT)
async def test_a_misspelt_option_is_named_with_the_method(name: str, arguments: tuple[Any, ...]) -> None:
    """The error names the method of the caller, and not one that it calls."""
    language = {} if "python" in arguments else {"language": "python"}
    async with RuntimeManager.from_url("http://127.0.0.1:1") as manager:
        for owner in (manager, await manager.get_runtime("python")):
            with pytest.raises(TypeError, match=rf"{name}\(\) got an unexpected keyword argument 'argvv'"):
                await getattr(owner, name)(*arguments, **language, argvv=[])


def test_names_for_type_checkers_are_those_that_are_accepted() -> None:
    assert sorted(typing.get_args(LanguageName)) == sorted(name for language in Language for name in language.names)
    assert set(typing.get_args(EngineName)) == {engine.name for engines in ENGINES.values() for engine in engines}
    assert typing.get_args(Level) == ("auto", *LEVELS)
    literals = typing.get_args(typing.get_args(Compare)[0])
    assert [check_compare(name) for name in literals] == ["exact", "lines", "tokens", "floats", "equal", "alike"]
