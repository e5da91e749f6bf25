"""The configuration of `serve`: flags, then FAASRT_TOKEN, then the file that --config names, then defaults.

The server reads it at its start and at each SIGHUP. The keys of the file are the names of the flags, such as
`timeout-s = 10`.
"""

from __future__ import annotations

import functools
import os
import select
import shutil
import ssl
import stat
import tomllib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from faasrt import _setting_checks as checks
from faasrt._run_option_checks import is_number
from faasrt.cli.options import Number
from faasrt.cli.serve_log import make_access_log
from faasrt.errors import ConfigurationError

if TYPE_CHECKING:
    from faasrt.local import LocalFaaS

_GIVEN = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
_MAX_FILE_BYTES = 1_000_000
PIPE_TIMEOUT_MS = 5_000
"""The time to wait for each part of a file that is a pipe."""
# A program in flight may run for its time limit, and has waited in the queue before.
_MORE_DRAIN_S = 5.0


def read_options(context: click.Context) -> dict[str, Any]:
    """Return the values of all options. Flags and the environment take precedence over the file."""
    options = dict(context.params)
    path = options.pop("config")
    if path is None:
        return options
    options_by_key = _options_by_key(context)
    for key, value in _read_toml(path).items():
        option = options_by_key.get(key)
        if option is None or option.name in ("config", "token"):
            hint = (
                "name its file with token-file"
                if key == "token"
                else f"the keys are {', '.join(_keys(options_by_key))}"
            )
            raise click.UsageError(f"{path}: {key} is not a key of this file: {hint}")
        assert isinstance(option, click.Option)
        assert option.name is not None
        try:
            converted = _convert(option, value, context)
        except click.BadParameter as error:
            raise click.UsageError(f"{path}: {key}: {error.message}") from None
        if context.get_parameter_source(option.name) not in _GIVEN:
            options[option.name] = converted
    return options


def _options_by_key(context: click.Context) -> dict[str, click.Parameter]:
    return {max(option.opts, key=len).removeprefix("--"): option for option in context.command.params}


def changed_keys(
    context: click.Context, old: Mapping[str, Any], new: Mapping[str, Any], changed: Iterable[str]
) -> list[str]:
    """Return the keys whose values differ, and the keys of files whose content differs."""
    names = {name for name in new if new[name] != old.get(name)}
    if "token" in changed:
        names.add("token_file")
    if "ssl" in changed:
        names |= {"tls_cert", "tls_key"}
    return [key for key, option in _options_by_key(context).items() if option.name in names]


def _keys(options_by_key: Mapping[str, Any]) -> list[str]:
    return sorted(options_by_key.keys() - {"config", "token", "help"})


def _read_toml(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(_read_text("--config", path))
    except tomllib.TOMLDecodeError as error:
        raise click.UsageError(f"{path} is not TOML: {error}") from None


def _convert(option: click.Option, value: Any, context: click.Context) -> Any:
    if option.is_flag:
        kind, fits = "true or false", isinstance(value, bool)
    elif option.multiple:
        kind, fits = "a list of strings", isinstance(value, list) and all(isinstance(item, str) for item in value)
    elif isinstance(option.type, Number):
        kind, fits = "a number", is_number(value)
    else:
        kind, fits = "a string", isinstance(value, str)
    if not fits:
        raise click.BadParameter(f"must be {kind}, got {value!r}")
    return option.type_cast_value(context, str(value) if is_number(value) else value)


def make_faas(context: click.Context, options: Mapping[str, Any]) -> LocalFaaS:
    from faasrt.local import LocalFaaS
    from faasrt.local.sandbox_limits import LIMIT_NAMES, limits_of

    host, python, drain_s = options["host"], options["python"], options["drain_s"]
    token = _find_token(context, options)
    if token is None and not checks.is_loopback(host):
        raise click.UsageError(f"--host {host} can be reached from other machines, so it needs --token or --token-file")
    if shutil.which(python) is None:
        raise click.UsageError(f"--python {python}: no such executable")
    limits = limits_of(
        *(
            {name: options[prefix + name] for name in LIMIT_NAMES if options[prefix + name] is not None}
            for prefix in ("", "largest_")
        )
    )
    return LocalFaaS(
        options["languages"] or None,
        workers=options["workers"],
        max_programs=options["max_programs"],
        max_wall_factor=options["max_wall_factor"],
        sandbox=limits.default,
        max_sandbox=limits.largest,
        host=host,
        port=options["port"],
        token=token,
        level=options["level"],
        engines=dict(options["engines"]),
        python=python,
        drain_s=limits.largest.timeout_limit_s + _MORE_DRAIN_S if drain_s is None else drain_s,
        access_log=make_access_log(options["log_format"]) if options["access_log"] else None,
        ssl=_read_certificates(options["tls_cert"], options["tls_key"]),
        max_connections=options["max_connections"],
        max_sessions=options["max_sessions"],
        session_idle_s=options["session_idle_s"],
        session_memory_mb=options["session_memory_mb"],
    )


def reads_files(options: Mapping[str, Any]) -> bool:
    return any(options[name] is not None for name in ("config", "token_file", "tls_cert"))


def _find_token(context: click.Context, options: Mapping[str, Any]) -> str | None:
    token: str | None = options["token"]
    path = options["token_file"]
    command_line = ParameterSource.COMMANDLINE
    file_is_flag = context.get_parameter_source("token_file") is command_line
    if file_is_flag and context.get_parameter_source("token") is command_line:
        raise click.UsageError("give --token or --token-file, not both")
    if path is None or (token is not None and not file_is_flag):
        return token
    try:
        return checks.check_token(_read_text("--token-file", path).removesuffix("\n").removesuffix("\r"))
    except ConfigurationError as error:
        raise click.UsageError(f"--token-file {path}: {error}") from None


def _read_certificates(certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise click.UsageError("--tls-cert and --tls-key need each other")
    contents = (_read_file("--tls-cert", certificate), _read_file("--tls-key", key))
    return _load_certificates(certificate, key, contents)


@functools.lru_cache(maxsize=2)
def _load_certificates(certificate: str, key: str, contents: tuple[bytes, bytes]) -> ssl.SSLContext:
    """Return the same context for files with the same contents."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    try:
        # Without a password, OpenSSL would ask for one on the terminal.
        context.load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise click.UsageError(
            f"--tls-cert {certificate} and --tls-key {key} are not a certificate and its key in PEM, without a "
            f"password: {reason}"
        ) from None
    return context


def _read_text(flag: str, path: str) -> str:
    try:
        return _read_file(flag, path).decode()
    except UnicodeDecodeError:
        raise click.UsageError(f"{flag} {path} is not UTF-8") from None


def _read_file(flag: str, path: str) -> bytes:
    try:
        # A FIFO without a writer would block the thread, and with it the end of the server.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISFIFO(mode):
                raise click.UsageError(f"{flag} {path} is not a file")
            poll, content = select.poll(), b""
            poll.register(file, select.POLLIN)
            while len(content) <= _MAX_FILE_BYTES:
                if not poll.poll(PIPE_TIMEOUT_MS):
                    raise click.UsageError(f"{flag} {path} is a pipe that sends nothing")
                piece = file.read(_MAX_FILE_BYTES)
                if not piece:
                    break
                content += piece
    except OSError as error:
        raise click.UsageError(f"cannot read {flag} {path}: {error.strerror or error}") from None
    if len(content) > _MAX_FILE_BYTES:
        raise click.UsageError(f"{flag} {path} is larger than {_MAX_FILE_BYTES:,} bytes")
    if stat.S_ISFIFO(mode) and not content:
        raise click.UsageError(f"{flag} {path} is a pipe that is empty, so it cannot be read again")
    return content
