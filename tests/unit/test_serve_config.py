"""The options of `faasrt serve` from flags, the environment and a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import pytest

from faasrt.cli import serve_config
from faasrt.cli.serve import serve_command
from faasrt.cli.serve_config import changed_keys, make_faas, read_options
from faasrt.local import LocalFaaS


def context_of(*arguments: str) -> click.Context:
    return serve_command.make_context("serve", [*arguments])


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "serve.toml"


def test_each_flag_is_a_key_of_the_file(config: Path) -> None:
    """The values are converted as those of the flags."""
    values: dict[str, tuple[str, Any]] = {
        "host": ('"127.0.0.2"', "127.0.0.2"),
        "port": ("0", 0),
        "language": ('["py", "js"]', ("python", "javascript")),
        "workers": ("3", 3),
        "max-programs": ("5", 5),
        "max-wall-factor": ("3", 3.0),
        "timeout-s": ("2", 2.0),
        "memory-mb": ("64", 64),
        "output-bytes": ("1_000", 1000),
        "token-file": ('"token"', "token"),
        "tls-cert": ('"cert"', "cert"),
        "tls-key": ('"key"', "key"),
        "max-connections": ("5", 5),
        "max-sessions": ("7", 7),
        "max-memory-mb": ("512", 512),
        "max-timeout-s": ("60", 60.0),
        "max-output-bytes": ("2_000_000", 2_000_000),
        "session-idle-s": ("60", 60.0),
        "session-memory-mb": ("2_048", 2048),
        "drain-s": ("0.5", 0.5),
        "level": ('"filters"', "filters"),
        "engine": ('["python=native"]', (("python", "native"),)),
        "python": ('"python3"', "python3"),
        "access-log": ("true", True),
        "log-format": ('"json"', "json"),
    }
    config.write_text("\n".join(f"{key} = {text}" for key, (text, _) in values.items()))
    context = context_of("--config", str(config))
    flags = {max(option.opts, key=len)[2:]: option.name for option in serve_command.params}
    options = read_options(context)
    assert {key: options[flags[key] or ""] for key in values} == {key: value for key, (_, value) in values.items()}
    assert set(flags) - set(values) == {"config", "token"}


@pytest.mark.parametrize(
    ("arguments", "environment", "token"),
    [
        ([], {}, "of the file"),
        (["--token", "flag"], {}, "flag"),
        ([], {"FAASRT_TOKEN": "variable"}, "variable"),
        (["--token-file", "other"], {"FAASRT_TOKEN": "variable"}, "of the other file"),
    ],
)
def test_the_token_of_a_flag_comes_first(
    config: Path, arguments: list[str], environment: dict[str, str], token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then come FAASRT_TOKEN and the file. The line break at the end of a token file is removed."""
    monkeypatch.chdir(config.parent)
    (config.parent / "token").write_text("of the file\r\n")
    (config.parent / "other").write_text("of the other file\n")
    config.write_text('token-file = "token"\n')
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    context = context_of("--config", str(config), *arguments)
    assert make_faas(context, read_options(context)).token == token


def test_the_time_to_drain_follows_the_time_limit() -> None:
    """A program in flight can finish, unless `--drain-s` is less."""

    def faas(*arguments: str) -> LocalFaaS:
        context = context_of(*arguments)
        return make_faas(context, read_options(context))

    assert faas("--timeout-s", "60").drain_s == 65
    assert faas("--timeout-s", "60", "--drain-s", "1").drain_s == 1


def test_a_file_is_read_again(config: Path) -> None:
    """A key that is removed from the file gets its default again."""
    config.write_text("workers = 3\n")
    context = context_of("--config", str(config))
    assert read_options(context)["workers"] == 3
    config.write_text("timeout-s = 1\n")
    assert (read_options(context)["workers"], read_options(context)["timeout_limit_s"]) == (None, 1.0)


def test_a_large_file_is_refused(config: Path) -> None:
    """A large file is not read to its end."""
    with config.open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(click.UsageError, match=r"is larger than 1,000,000 bytes"):
        read_options(context_of("--config", str(config)))


def test_a_file_may_be_a_link_or_a_descriptor(config: Path) -> None:
    """Kubernetes mounts secrets as symbolic links, and shells pass `<(command)` as the descriptor of a pipe."""
    config.write_text("workers = 3\n")
    link = config.with_name("link.toml")
    link.symlink_to(config)
    reading, writing = os.pipe()
    os.write(writing, b"workers = 4\n")
    os.close(writing)
    with config.open() as file:
        for path, workers in ((str(link), 3), (f"/dev/fd/{file.fileno()}", 3), (f"/dev/fd/{reading}", 4)):
            assert read_options(context_of("--config", path))["workers"] == workers
    with pytest.raises(click.UsageError, match="is a pipe that is empty, so it cannot be read again"):
        read_options(context_of("--config", f"/dev/fd/{reading}"))
    os.close(reading)


def test_a_fifo_without_a_writer_does_not_block(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A FIFO is refused after a moment, and so is a device."""
    monkeypatch.setattr(serve_config, "PIPE_TIMEOUT_MS", 1)
    os.mkfifo(config)
    with pytest.raises(click.UsageError, match="is a pipe that sends nothing"):
        read_options(context_of("--config", str(config)))
    with pytest.raises(click.UsageError, match="/dev/zero is not a file"):
        read_options(context_of("--config", "/dev/zero"))


def test_the_keys_that_changed_are_those_of_the_file(config: Path) -> None:
    """Files whose content changed are named by their keys, too."""
    config.write_text("timeout-s = 1\nworkers = 2\n")
    context = context_of("--config", str(config))
    old = read_options(context)
    config.write_text("timeout-s = 2\nworkers = 2\nmemory-mb = 200\n")
    changed = ["sandbox", "drain_s", "ssl", "token"]
    keys = ["timeout-s", "memory-mb", "token-file", "tls-cert", "tls-key"]
    assert changed_keys(context, old, read_options(context), changed) == keys
    assert changed_keys(context, old, old, []) == []
