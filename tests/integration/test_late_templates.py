"""When the launcher ends a slot whose template is late, with a real process in the place of the template."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from faasrt.local.jail.launcher.slot import Slot
from support.served import until


class Late:
    """A slot that has been asked to start a program, its process, and the socket of that process."""

    def __init__(self, code: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", f"print(flush=True)\n{code}"], stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        self.process.stdout.readline()
        ours, self.control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.slot = Slot(0, self.process.pid, ours, has_executable=False)
        self.slot.start([])

    def is_over(self) -> bool:
        """Return whether the slot is over when the time for an answer has passed."""
        return self.slot.is_over(self.slot.ends_at)

    def state(self) -> str:
        return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.slot.close()
        self.slot.control.close()
        self.control.close()


@pytest.fixture
def late() -> Iterator[Callable[[str], Late]]:
    made: list[Late] = []

    def make(code: str) -> Late:
        made.append(Late(code))
        return made[-1]

    yield make
    for one in made:
        one.close()


async def test_a_template_that_is_ready_to_run_is_not_ended(late: Callable[[str], Late]) -> None:
    """It may only wait for a CPU, so it gets more time, again and again, but not for ever."""
    one = late("while True: pass")
    last = one.slot.ends_at + 600
    await until(lambda: one.state() == "R")
    for _ in range(3):
        before = one.slot.ends_at
        assert not one.is_over()
        assert one.slot.ends_at > before
    assert one.slot.is_over(last)


async def test_a_template_that_was_stopped_is_ended(late: Callable[[str], Late]) -> None:
    """Even if it was ready to run before."""
    one = late("while True: pass")
    await until(lambda: one.state() == "R")
    assert not one.is_over()
    one.process.send_signal(signal.SIGSTOP)
    await until(lambda: one.state() == "T")
    assert one.is_over()


async def test_a_template_that_sleeps_is_ended_unless_it_has_answered(late: Callable[[str], Late]) -> None:
    one = late("import time; time.sleep(1000)")
    await until(lambda: one.state() == "S")
    one.control.send(b"started")
    assert not one.is_over()
    one.slot.control.recv(100)
    await until(lambda: one.state() == "S")
    assert one.is_over()


async def test_a_slot_that_nothing_uses_is_ended(late: Callable[[str], Late]) -> None:
    """Whatever its template does."""
    one = late("while True: pass")
    await until(lambda: one.state() == "R")
    one.slot.end_when_idle()
    assert one.is_over()
