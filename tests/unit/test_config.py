"""Settings are validated when they are created. `Settings.from_env` reads them from environment variables."""

from __future__ import annotations

import math
import pickle
import re
from typing import Any

import aiohttp
import attrs
import pytest

from faasrt import (
    BreakerSettings,
    CodeTask,
    CompletedTask,
    ConfigurationError,
    ExecutionResult,
    FaasrtError,
    FailedTask,
    InvalidRequestError,
    Language,
    LimiterSettings,
    Outcome,
    RetrySettings,
    SandboxConfig,
    Settings,
    TaskResult,
    TimeoutSettings,
    UnsupportedLanguageError,
)
from faasrt._endpoint_urls import address_of, configured_url, replica_at, split_endpoint
from faasrt._setting_checks import parse_base_url


def test_sandbox_defaults() -> None:
    """The defaults of `SandboxConfig` are those of the documentation."""
    assert SandboxConfig() == SandboxConfig(
        memory_limit_mb=128, timeout_limit_s=30.0, max_output_bytes=1_048_576, network_enabled=False
    )


@pytest.mark.parametrize("value", [0, -1, True, math.nan, math.inf, "30", None, [], 10**400])
@pytest.mark.parametrize("name", ["memory_limit_mb", "timeout_limit_s", "max_output_bytes"])
def test_sandbox_refuses_invalid_limits(name: str, value: Any) -> None:
    """Zero, negatives, bools, NaN, infinities and non-numbers are refused, and the message names the field."""
    with pytest.raises(ConfigurationError, match=name):
        SandboxConfig(**{name: value})


def test_sandbox_refuses_a_network_flag_that_is_no_bool() -> None:
    with pytest.raises(ConfigurationError, match="network_enabled"):
        SandboxConfig(network_enabled=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [LimiterSettings, TimeoutSettings, RetrySettings, BreakerSettings])
def test_numbers_in_nested_settings_are_validated(kind: type) -> None:
    """Each field refuses zero (which turns two off), negative numbers, NaN and strings. The message names it."""
    for field in attrs.fields(kind):
        may_be_zero = field.name == "connect_retry_s"
        for bad in (-1, math.nan, "1", True) if may_be_zero else (0, -1, math.nan, "1"):
            with pytest.raises(ConfigurationError, match=field.name):
                kind(**{field.name: bad})


@pytest.mark.parametrize("name", ["sandbox", "timeouts", "limiter", "retry", "breaker"])
def test_nested_settings_of_a_wrong_class_are_refused(name: str) -> None:
    """For example a dict. The message names the field."""
    with pytest.raises(ConfigurationError, match=name):
        Settings(**{name: {}})


@pytest.mark.parametrize("token", ["", "a\nb", "é", 5, "a\0", " a", "a "])
def test_tokens_that_are_invalid_in_a_header_are_refused(token: Any) -> None:
    with pytest.raises(ConfigurationError, match="token"):
        Settings(token=token)


@pytest.mark.parametrize("name", ["Authorization", "authorization"])
def test_a_token_and_an_authorization_header_are_refused(name: str) -> None:
    """Otherwise one of them would win silently. The header may be set without a token."""
    assert Settings(headers={name: "Basic eA=="}).headers == {name: "Basic eA=="}
    with pytest.raises(ConfigurationError, match="Authorization"):
        Settings(headers={name: "Basic eA=="}, token="secret")


def test_tasks_and_task_results() -> None:
    """A task parses its language. A task result has either an `ExecutionResult` or an error."""
    task = CodeTask("print(1)", "py", id="a", args=[1], kwargs={"b": 2})
    assert (task.language, task.args, task.kwargs) == (Language.PYTHON, (1,), {"b": 2})
    with pytest.raises(UnsupportedLanguageError):
        CodeTask("1", "no language")
    result = ExecutionResult(outcome=Outcome.OK)
    assert CompletedTask(0, task, result).error is None
    failure = FailedTask(0, task, FaasrtError("x"))
    assert failure.result is None
    assert isinstance(failure, TaskResult)
    assert failure.to_dict() == {
        "index": 0,
        "id": "a",
        "result": None,
        "error": {"name": "FaasrtError", "message": "x"},
        "judgement": None,
    }
    assert failure.to_dict().keys() == CompletedTask(1, task, result).to_dict().keys()
    assert CompletedTask(1, task, result).to_dict()["result"] == result.to_dict()
    for kind in (CompletedTask, FailedTask):
        with pytest.raises(TypeError):
            kind(0, task)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout_ms": "x"}, "timeout_ms must be a number of milliseconds, got 'x'"),
        ({"timeout_ms": -1}, "timeout_ms must be finite and above 0, got -1"),
        ({"ext": {"a": 1}}, "ext must map str to str, got 'a': int"),
        ({"sandbox": 5}, "sandbox must be a SandboxConfig, got int"),
        ({"priority": 3}, "priority must be a non-empty str such as 'normal', got 3"),
        ({"idempotent": "yes"}, "idempotent must be True, False or None, got 'yes'"),
        ({"stop_on_failure": None}, "stop_on_failure must be True or False, got None"),
    ],
)
def test_options_of_a_task_are_checked_when_it_is_made(options: dict[str, Any], message: str) -> None:
    """The message is that of the call. A right task can be pickled and changed."""
    with pytest.raises(InvalidRequestError) as caught:
        CodeTask("1", "py", **options)
    assert str(caught.value) == message
    task = CodeTask("1", "py", timeout_ms=5, ext={"a": "b"}, priority="other", idempotent=True)
    assert pickle.loads(pickle.dumps(task)) == attrs.evolve(task, timeout_ms=5) == task
    with pytest.raises(InvalidRequestError):
        attrs.evolve(task, **options)


@pytest.mark.parametrize(
    "url",
    ["", "host:8000", "ftp://host", "http://", "http://user:secret@host", "http://host/?q=1", "http://host/#f",
     "http://ho st", "http://host:99999", "http://host:0", "nothing+http://host", "piston+ftp://host", "piston+http://",
     "+http://host", "piston://host", "http+piston://host", "piston+piston+http://host", 7, None],
)  # fmt: skip
def test_invalid_base_urls_are_refused(url: Any) -> None:
    """Other schemes, user info, queries and fragments are refused. The message does not contain the password."""
    with pytest.raises(ConfigurationError) as info:
        parse_base_url(url)
    assert "secret" not in str(info.value)


def test_base_urls_name_protocols() -> None:
    """A URL may name a protocol. The error of an unknown one lists those that are known."""
    assert parse_base_url("Piston+HTTP://host:1/api/v2/") == "piston+http://host:1/api/v2"
    assert parse_base_url("sandboxfusion+https://host") == "sandboxfusion+https://host"
    with pytest.raises(ConfigurationError, match=r"must name a known protocol \(piston, sandboxfusion, or none"):
        parse_base_url("judge0+http://host")
    with pytest.raises(ConfigurationError, match=r"must look like piston\+http://host:port"):
        parse_base_url("piston+ftp://host")


@pytest.mark.parametrize(
    ("url", "use"),
    [
        ("http://host:1/run_code", "'http://host:1', or 'sandboxfusion+http://host:1' for"),
        ("http://host:1/run_code/", "'http://host:1', or"),
        ("http://host:1/sandboxfusion/run_code", "'http://host:1', or"),
        ("sandboxfusion+http://host/sandboxfusion/run_code", "'sandboxfusion+http://host/sandboxfusion', got"),
        ("dns+http://host/base/run_code", "'dns+http://host/base', or 'dns+sandboxfusion+http://host/base' for"),
    ],
)
def test_paths_of_requests_are_no_base_urls(url: str, use: str) -> None:
    """The URL in verl's own setting would be a 404 for each program. The error names the URL to use."""
    with pytest.raises(ConfigurationError, match=f"must not end with /run_code: use {re.escape(use)}"):
        parse_base_url(url)


def test_base_urls_of_names() -> None:
    """`dns+` comes first. The endpoint of a replica has its address at the end, and the same protocol and HTTP URL."""
    url = parse_base_url("DNS+Piston+HTTP://Host:1/api/v2/")
    assert url == "dns+piston+http://Host:1/api/v2"
    for address in ("10.0.0.1", "fd00::1"):
        replica = replica_at(url, address)
        assert replica == f"piston+http://Host:1/api/v2#{address}"
        assert split_endpoint(replica) == split_endpoint(url) == ("piston", "http://Host:1/api/v2")
        assert (address_of(replica), configured_url(replica)) == (address, url)
    assert (address_of("http://a:1"), configured_url("http://a:1")) == ("", "http://a:1")
    for wrong in ("piston+dns+http://host", "dns+dns+http://host"):
        with pytest.raises(ConfigurationError, match=r"known protocol .* \(dns\+ comes first, and once\)"):
            parse_base_url(wrong)
    with pytest.raises(ConfigurationError, match=r"must look like dns\+http://host:port"):
        parse_base_url("dns+ftp://host")
    with pytest.raises(ConfigurationError, match="no fragment"):
        parse_base_url("http://host:1#10.0.0.1")
    for wrong in ("dns+http://10.0.0.1:8000", "dns+piston+http://[fd00::1]:2000/api/v2"):
        with pytest.raises(ConfigurationError, match="must have a host name, not an address"):
            parse_base_url(wrong)
    settings = Settings.from_env({"COZE_LOOP_FAAS_URL": "dns+http://a:1, http://b:1,dns+piston+http://c:1"})
    assert settings.endpoints[Language.PYTHON] == ("dns+http://a:1", "http://b:1", "dns+piston+http://c:1")
    assert settings == pickle.loads(pickle.dumps(settings))


async def test_names_exclude_options_that_choose_the_address() -> None:
    """A proxy, or a session of the caller, would resolve the name itself."""
    with pytest.raises(ConfigurationError, match=r"proxy must be None with dns\+http://a:1"):
        Settings(endpoints={"py": ["http://b:1", "dns+http://a:1"]}, proxy="http://proxy:1")
    async with aiohttp.ClientSession() as session:
        with pytest.raises(ConfigurationError, match="session must be None"):
            Settings.from_url("dns+http://a:1", http_session=session)


def test_endpoints_of_services_may_have_other_languages() -> None:
    """A key may be any language if no URL is one of coze-loop's protocol."""
    settings = Settings(endpoints={"Haskell": "piston+http://a:1"})
    assert settings.endpoints == {"haskell": ("piston+http://a:1",)}
    with pytest.raises(UnsupportedLanguageError):
        Settings(endpoints={"haskell": ["piston+http://a:1", "http://b:1"]})


def test_trailing_slashes_of_base_urls_are_removed() -> None:
    assert parse_base_url(" http://host:1/base/ ") == "http://host:1/base"


def test_endpoints_may_have_aliases_and_single_urls() -> None:
    """A key may be an alias of a language, and a value one URL or a list of URLs. Duplicate URLs are removed."""
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
    """The URL of a language overrides its domain and port, which override the URL for all languages."""
    endpoints = Settings.from_env(environ).endpoints
    assert endpoints.get(Language.PYTHON) == python
    assert endpoints.get(Language.JAVASCRIPT) == javascript
    assert endpoints.get(Language.TYPESCRIPT) == javascript


def test_arguments_override_the_environment() -> None:
    settings = Settings.from_env(
        {"COZE_LOOP_FAAS_URL": "http://env:1", "FAASRT_TOKEN": "env"}, endpoints={"py": "http://a:1"}, token="mine"
    )
    assert settings.endpoints == {Language.PYTHON: ("http://a:1",)}
    assert settings.token == "mine"
    assert "mine" not in repr(settings)


def test_missing_endpoints_are_an_error() -> None:
    """The message names the environment variables and the embedded FaaS."""
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


def test_invalid_environment_variables_are_named() -> None:
    """The message names the invalid variable. A domain without a port is an error, too."""
    for url in ("j:1", ","):
        with pytest.raises(ConfigurationError, match="COZE_LOOP_JS_FAAS_URL"):
            Settings.from_env({"COZE_LOOP_JS_FAAS_URL": url})
    with pytest.raises(ConfigurationError, match="COZE_LOOP_JS_FAAS_PORT"):
        Settings.from_env({"COZE_LOOP_JS_FAAS_DOMAIN": "j"})


@pytest.mark.parametrize(
    ("name", "language"),
    [("py", "python"), ("Python", "python"), (" JS ", "javascript"), ("javascript", "javascript"), ("ts", "typescript"),
     ("TypeScript", "typescript"), (Language.PYTHON, "python")],
)  # fmt: skip
def test_language_aliases(name: str, language: str) -> None:
    """Aliases are case-insensitive, and spaces around them are ignored."""
    assert Language.parse(name).value == language


@pytest.mark.parametrize("name", ["", "ruby", None, 3])
def test_unknown_languages_are_refused(name: Any) -> None:
    """The message lists the supported languages."""
    with pytest.raises(UnsupportedLanguageError, match="typescript"):
        Language.parse(name)
