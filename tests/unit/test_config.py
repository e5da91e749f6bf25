"""Settings: validated when made, and read from the environment in one place."""

from __future__ import annotations

import math
from typing import Any

import attrs
import pytest

from faasrt import (
    BreakerSettings,
    CodeTask,
    ConfigurationError,
    ExecutionResult,
    FaasrtError,
    Language,
    LimiterSettings,
    Outcome,
    RetrySettings,
    SandboxConfig,
    Settings,
    TaskFailure,
    TaskResult,
    TaskSuccess,
    TimeoutSettings,
    UnsupportedLanguageError,
)
from faasrt._checks import parse_base_url
from faasrt.config import names_endpoints


def test_sandbox_defaults() -> None:
    """The defaults are those of the documentation."""
    assert SandboxConfig() == SandboxConfig(
        memory_limit_mb=128, timeout_limit_s=30.0, max_output_bytes=1_048_576, network_enabled=False
    )


@pytest.mark.parametrize("value", [0, -1, True, math.nan, math.inf, "30", None, [], 10**400])
@pytest.mark.parametrize("name", ["memory_limit_mb", "timeout_limit_s", "max_output_bytes"])
def test_sandbox_refuses_what_is_no_limit(name: str, value: Any) -> None:
    """Zero, negatives, bools, NaN, infinities and non-numbers are refused, and the message names the field."""
    with pytest.raises(ConfigurationError, match=name):
        SandboxConfig(**{name: value})


def test_sandbox_refuses_other_flags() -> None:
    """`network_enabled` is a bool and nothing else."""
    with pytest.raises(ConfigurationError, match="network_enabled"):
        SandboxConfig(network_enabled=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [LimiterSettings, TimeoutSettings, RetrySettings, BreakerSettings])
def test_small_settings_are_validated(kind: type) -> None:
    """Every number of the small classes is checked."""
    for field in attrs.fields(kind):
        for bad in (0, -1, math.nan, "1"):
            with pytest.raises(ConfigurationError, match=field.name):
                kind(**{field.name: bad})


@pytest.mark.parametrize("name", ["sandbox", "timeouts", "limiter", "retry", "breaker"])
def test_settings_hold_the_right_classes(name: str) -> None:
    """A dict or another class is refused by name."""
    with pytest.raises(ConfigurationError, match=name):
        Settings(**{name: {}})


@pytest.mark.parametrize("token", ["", "a\nb", "é", 5, "a\0"])
def test_a_token_must_fit_into_a_header(token: Any) -> None:
    """It is refused when it is set, and never shown."""
    with pytest.raises(ConfigurationError, match="token"):
        Settings(token=token)


def test_tasks_are_checked() -> None:
    """A task knows its language, and a result is a verdict or an error, never both and never neither."""
    task = CodeTask("print(1)", "py", id="a", args=[1], kwargs={"b": 2})
    assert (task.language, task.args, task.kwargs) == (Language.PYTHON, (1,), {"b": 2})
    with pytest.raises(UnsupportedLanguageError):
        CodeTask("1", "ruby")
    result = ExecutionResult(outcome=Outcome.OK)
    assert TaskSuccess(0, task, result).error is None
    failure = TaskFailure(0, task, FaasrtError("x"))
    assert failure.result is None
    assert isinstance(failure, TaskResult)
    assert failure.to_dict() == {
        "index": 0,
        "id": "a",
        "result": None,
        "error": {"name": "FaasrtError", "message": "x"},
    }
    assert TaskSuccess(1, task, result).to_dict()["result"] == result.to_dict()
    for kind in (TaskSuccess, TaskFailure):
        with pytest.raises(TypeError):
            kind(0, task)


@pytest.mark.parametrize(
    "url",
    ["", "host:8000", "ftp://host", "http://", "http://user:secret@host", "http://host/?q=1", "http://host/#f",
     "http://ho st", "http://host:99999", "http://host:0", 7, None],
)  # fmt: skip
def test_refuses_what_is_no_base_url(url: Any) -> None:
    """Other schemes, user info, queries, fragments and nonsense are refused, and secrets are not repeated."""
    with pytest.raises(ConfigurationError) as info:
        parse_base_url(url)
    assert "secret" not in str(info.value)


def test_base_url_loses_its_trailing_slash() -> None:
    """Paths are appended to it."""
    assert parse_base_url(" http://host:1/base/ ") == "http://host:1/base"


def test_endpoints_take_names_and_single_urls() -> None:
    """Keys may be aliases, values one URL or several; a replica named twice is one."""
    settings = Settings(endpoints={"py": "http://a:1", "TS": ["http://b:1", "http://b:1/"], "js": []})
    assert settings.endpoints == {Language.PYTHON: ("http://a:1",), Language.TYPESCRIPT: ("http://b:1",)}
    with pytest.raises(UnsupportedLanguageError):
        Settings(endpoints={"ruby": "http://a:1"})


@pytest.mark.parametrize(
    ("environ", "python", "javascript"),
    [
        ({"COZE_LOOP_PYTHON_FAAS_URL": "http://p:1"}, ("http://p:1",), None),
        ({"COZE_LOOP_JS_FAAS_URL": "http://j:1, http://k:2"}, None, ("http://j:1", "http://k:2")),
        ({"COZE_LOOP_FAAS_URL": "http://all:1"}, ("http://all:1",), ("http://all:1",)),
        ({"COZE_LOOP_PYTHON_FAAS_DOMAIN": "p", "COZE_LOOP_PYTHON_FAAS_PORT": "8"}, ("http://p:8",), None),
        (
            {
                "COZE_LOOP_PYTHON_FAAS_URL": "http://first:1",
                "COZE_LOOP_PYTHON_FAAS_DOMAIN": "second",
                "COZE_LOOP_PYTHON_FAAS_PORT": "2",
                "COZE_LOOP_FAAS_URL": "http://third:3",
            },
            ("http://first:1",),
            ("http://third:3",),
        ),
        ({"COZE_LOOP_JS_FAAS_DOMAIN": "j", "COZE_LOOP_JS_FAAS_PORT": "2", "COZE_LOOP_FAAS_URL": "http://all:3"},
         ("http://all:3",), ("http://j:2",)),
    ],
)  # fmt: skip
def test_environment_precedence(
    environ: dict[str, str], python: tuple[str, ...] | None, javascript: tuple[str, ...] | None
) -> None:
    """The URL of a language wins over its domain and port, and those over the URL for all languages."""
    endpoints = Settings.from_env(environ).endpoints
    assert endpoints.get(Language.PYTHON) == python
    assert endpoints.get(Language.JAVASCRIPT) == javascript
    assert endpoints.get(Language.TYPESCRIPT) == javascript
    assert names_endpoints(environ)


def test_arguments_win_over_the_environment() -> None:
    """An explicit argument is never overridden."""
    settings = Settings.from_env(
        {"COZE_LOOP_FAAS_URL": "http://env:1", "FAASRT_TOKEN": "env"}, endpoints={"py": "http://a:1"}, token="mine"
    )
    assert settings.endpoints == {Language.PYTHON: ("http://a:1",)}
    assert settings.token == "mine"
    assert "mine" not in repr(settings)


def test_no_endpoint_is_an_error_that_says_what_to_do() -> None:
    """The message names the variables and the embedded FaaS."""
    for environ in ({}, {"COZE_LOOP_FAAS_URL": " "}):
        with pytest.raises(ConfigurationError) as info:
            Settings.from_env(environ)
        for name in (
            "COZE_LOOP_PYTHON_FAAS_URL",
            "COZE_LOOP_JS_FAAS_URL",
            "COZE_LOOP_FAAS_URL",
            "RuntimeManager.local",
        ):
            assert name in str(info.value)
        assert not names_endpoints(environ)


def test_a_broken_variable_is_named() -> None:
    """The message says which variable is wrong; half a pair is an error too."""
    with pytest.raises(ConfigurationError, match="COZE_LOOP_JS_FAAS_URL"):
        Settings.from_env({"COZE_LOOP_JS_FAAS_URL": "j:1"})
    with pytest.raises(ConfigurationError, match="COZE_LOOP_JS_FAAS_PORT"):
        Settings.from_env({"COZE_LOOP_JS_FAAS_DOMAIN": "j"})


@pytest.mark.parametrize(
    ("name", "language"),
    [("py", "python"), ("Python", "python"), (" JS ", "javascript"), ("javascript", "javascript"), ("ts", "typescript"),
     ("TypeScript", "typescript"), (Language.PYTHON, "python")],
)  # fmt: skip
def test_language_aliases(name: str, language: str) -> None:
    """Every alias works, in any case."""
    assert Language.parse(name).value == language


@pytest.mark.parametrize("name", ["", "ruby", None, 3])
def test_unknown_languages_are_refused(name: Any) -> None:
    """The message lists what is known."""
    with pytest.raises(UnsupportedLanguageError, match="typescript"):
        Language.parse(name)
