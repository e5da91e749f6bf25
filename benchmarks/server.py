"""A server in a process of its own, which prints its URL when it is ready."""

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
    """A server that runs."""

    process: subprocess.Popen[str]
    url: str


@contextlib.contextmanager
def serving(command: list[str], env: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Start a server, and have it end at the end.

    Args:
        command: What to run; its first line on stdout names the URL.
        env: Its environment; that of this process when None.
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
    """Run the embedded FaaS, by `faasrt serve`, and wait until it can run every language."""
    with serving([*FAASRT, "serve", "--port", "0", *options]) as server:
        while not _ready(server.url):
            time.sleep(0.1)
        yield server


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=30) as health:
            languages = json.load(health)["languages"].values()
            return bool(languages) and all(entry["status"] == "ready" for entry in languages)
    except urllib.error.HTTPError:
        return False
