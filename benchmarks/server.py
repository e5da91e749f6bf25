"""Runs a server in a process of its own."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping

import attrs

FAASRT = [sys.executable, "-c", "from faasrt.cli import main; main()"]


@attrs.frozen
class Server:
    """A running server."""

    process: subprocess.Popen[str]
    url: str


@contextlib.contextmanager
def serving(command: list[str], env: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Start a server, yield it, and end it afterwards.

    Args:
        command: The command. Its first line on stdout must contain the URL.
        env: The environment of the command; None means that of this process.
    """
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        yield Server(process, re.findall(r"http://\S+", process.stdout.readline())[0])
    finally:
        process.terminate()
        process.communicate()


@contextlib.contextmanager
def faas(*options: str) -> Iterator[Server]:
    """Run `faasrt serve`, and yield it when it can run every language."""
    with serving([*FAASRT, "serve", "--port", "0", *options]) as server:
        wait_ready(server.url)
        yield server


def wait_ready(url: str) -> None:
    """Wait until a server runs, and can run every language."""
    while not _ready(url):
        time.sleep(0.1)


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=30) as health:
            languages = json.load(health)["languages"].values()
            return bool(languages) and all(entry["status"] == "ready" for entry in languages)
    except urllib.error.URLError:
        return False
