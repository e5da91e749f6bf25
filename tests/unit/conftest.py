"""Tests of this folder use no sockets and no processes."""

from __future__ import annotations

import os
import socket
import subprocess
from typing import NoReturn

import pytest


@pytest.fixture(autouse=True)
def _no_sockets_no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that connects, listens, or starts a process."""

    def refuse(*_args: object, **_kwargs: object) -> NoReturn:
        raise AssertionError("a test in tests/unit uses no sockets and no processes")

    for owner, name in (
        (socket.socket, "bind"),
        (socket.socket, "connect"),
        (socket.socket, "connect_ex"),
        (subprocess.Popen, "__init__"),
        (os, "fork"),
    ):
        monkeypatch.setattr(owner, name, refuse)
