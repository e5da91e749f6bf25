from __future__ import annotations

import functools
import os
import ssl
from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem

from faasrt import _setting_checks as checks
from faasrt.config import SandboxConfig
from faasrt.errors import ConfigurationError, UnsupportedLanguageError
from faasrt.languages import Language, OtherLanguage, parse_language
from faasrt.tasks import field_forms
from faasrt.transport.tls_failures import TRUST

_LIMITS = SandboxConfig()
_MAX_TIMEOUT_S = 86_400


class Number(click.ParamType):  # type: ignore[type-arg]
    """A number from `minimum` to `maximum`, or above `minimum`; a whole one if `minimum` is an int. NaN and infinity
    are outside of every range.
    """

    def __init__(self, minimum: float, maximum: float, *, unit: str = "number", above: bool = False) -> None:
        self._minimum, self._maximum, self._above = minimum, maximum, above
        self._type = int if isinstance(minimum, int) else float
        self.name = unit

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = self._type(value)
        except ValueError:
            self.fail(f"{value!r} is not a {'whole ' if self._type is int else ''}number", param, ctx)
        if not self._minimum <= number <= self._maximum or (self._above and number == self._minimum):
            least = f"above {self._minimum:g}" if self._above else f"at least {self._minimum:,}"
            self.fail(f"{value} must be {least} and at most {self._maximum:,}", param, ctx)
        return number


class _LanguageType(click.ParamType):  # type: ignore[type-arg]
    name = "language"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Language | OtherLanguage:
        try:
            return parse_language(value)
        except UnsupportedLanguageError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(language) for language in Language if language.startswith(incomplete.lower())]


class _EngineType(click.ParamType):  # type: ignore[type-arg]
    name = "language=name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Language, str]:
        if isinstance(value, tuple):
            return value
        from faasrt.local.engine_choice import engine_names

        name, separator, engine = value.partition("=")
        if not separator:
            self.fail(f"{value!r} is not of the form LANGUAGE=NAME, such as python=wasm", param, ctx)
        try:
            language = Language.parse(name)
        except UnsupportedLanguageError as error:
            self.fail(str(error), param, ctx)
        known = engine_names(language)
        if engine not in known:
            self.fail(f"the engine of {language} must be {' or '.join(known)}, got {engine!r}", param, ctx)
        return language, engine

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from faasrt.local.engine_choice import engine_names

        # Bash treats "=" as the end of a word and may offer the language only.
        values = [f"{language}={name}" for language in Language for name in engine_names(language)]
        return [CompletionItem(value) for value in values if value.startswith(incomplete.lower())]


class CheckedType(click.ParamType):  # type: ignore[type-arg]
    def __init__(self, name: str, check: Callable[[str], str]) -> None:
        self.name, self._check = name, check

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return self._check(value)
        except ConfigurationError as error:
            self.fail(str(error), param, ctx)


# The library and the server name their own parameters in errors.
_OPTION_OF_PARAMETER = {
    "drain_s": "--drain-s",
    "max_connections": "--max-connections",
    "max_programs": "--max-programs",
    "max_wall_factor": "--max-wall-factor",
    "max_sessions": "--max-sessions",
    "session_idle_s": "--session-idle-s",
    "session_memory_mb": "--session-memory-mb",
    "memory_limit_mb": "--memory-mb",
    "timeout_limit_s": "--timeout-s",
    "timeout_ms": "--timeout-ms",
    "max_output_bytes": "--output-bytes",
    "max_sandbox.memory_limit_mb": "--max-memory-mb",
    "max_sandbox.timeout_limit_s": "--max-timeout-s",
    "max_sandbox.max_output_bytes": "--max-output-bytes",
}


def name_options(message: str) -> str:
    """Replace the name of a parameter with which a message begins by the option of the command line."""
    name, space, rest = message.replace(TRUST, "--cacert FILE").partition(" ")
    return _OPTION_OF_PARAMETER.get(name, name) + space + rest


def token_of_environment() -> str | None:
    try:
        return checks.check_token(token) if (token := os.environ.get("FAASRT_TOKEN")) else None
    except ConfigurationError as error:
        raise click.UsageError(f"FAASRT_TOKEN: {error}") from None


class _AuthorityType(click.Path):
    """A file of certificates in PEM. The value is a context that trusts only these."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, ssl.SSLContext):
            return value
        path = super().convert(value, param, ctx)
        try:
            return ssl.create_default_context(cafile=path)
        except ssl.SSLError:
            self.fail(f"{value} has no certificate in PEM, or a damaged one", param, ctx)
        except OSError as error:
            self.fail(f"cannot read {value}: {error.strerror}", param, ctx)


language_option = functools.partial(click.option, "--language", "-l", type=_LanguageType())
url_option = click.option(
    "--url",
    type=CheckedType("url", lambda text: ",".join(checks.parse_urls(text))),
    help="The base URL of a FaaS, such as http://host:8000 or piston+https://host/api/v2, or those of several "
    "replicas, separated by commas. It replaces those of the environment.",
)
cacert_option = click.option(
    "--cacert",
    metavar="FILE",
    type=_AuthorityType(exists=True, dir_okay=False),
    help="A file in PEM with the CAs that https:// endpoints may have, or a self-signed certificate, instead of the "
    "CAs of the system. The environment variable SSL_CERT_FILE does the same.",
)
timeout_option = functools.partial(
    click.option, "--timeout-ms", type=Number(0.0, _MAX_TIMEOUT_S * 1000, unit="ms", above=True)
)
MEMORY_LIMIT = Number(1, 65_536)
memory_option = functools.partial(
    click.option,
    "--memory-mb",
    metavar="MiB",
    type=MEMORY_LIMIT,
    default=_LIMITS.memory_limit_mb,
    show_default=True,
)
engine_option = click.option(
    "--engine",
    "engines",
    type=_EngineType(),
    multiple=True,
    help="The engine of a language, such as python=wasm. Can be repeated.",
)
workers_option = click.option(
    "--workers",
    type=Number(1, 256),
    help="The CPUs to use.  [default: all]",
)
token_option = click.option(
    "--token",
    type=CheckedType("text", checks.check_token),
    envvar="FAASRT_TOKEN",
    show_envvar=True,
    help="The bearer token that clients must send.",
)
TIME_LIMIT = Number(0.0, _MAX_TIMEOUT_S, unit="seconds", above=True)
OUTPUT_LIMIT = Number(1, 2**30, unit="bytes")
timeout_limit_option = functools.partial(
    click.option, "--timeout-s", "timeout_limit_s", type=TIME_LIMIT, default=_LIMITS.timeout_limit_s
)
output_option = functools.partial(
    click.option, "--output-bytes", "max_output_bytes", type=OUTPUT_LIMIT, default=_LIMITS.max_output_bytes
)


def run_options(command: Any) -> Any:
    for name, form in reversed(field_forms().items()):
        if name == "timeout_ms":
            command = timeout_option(help=form.help)(command)
        elif form.option:
            flag, _, metavar = form.option.partition(" ")
            command = click.option(flag, name, metavar=metavar, multiple=form.holds_several, help=form.help)(command)
    return command
