"""The time for which a program waits for a CPU, from the files of /proc."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest

from faasrt.local.jail.launcher import scheduling
from faasrt.local.jail.launcher.program import RunningProgram
from faasrt.local.jail.launcher.scheduling import CPUS, CpuTimes, niceness_after

MS = 1_000_000


class Program:
    """Processes in a folder like /proc, whose threads have run and waited for some milliseconds."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.processes = folder, list[str]()

    def set(
        self, pid: str, *threads: tuple[float, float], state: str = "R", ticks: int = 0, child_ticks: int = 0
    ) -> None:
        process = self.folder / pid
        if process.exists():
            shutil.rmtree(process)
        stat = ["0"] * 50
        stat[0], stat[11], stat[13], stat[17] = state, str(ticks), str(child_ticks), str(len(threads))
        for number, (run_ms, wait_ms) in enumerate(threads, int(pid)):
            for folder in [process / "task" / str(number), *([process] if number == int(pid) else [])]:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "stat").write_text(f"1 (x) {' '.join(stat)}")
                (folder / "schedstat").write_text(f"{run_ms * MS:.0f} {wait_ms * MS:.0f} 1\n")
        if str(process) not in self.processes:
            self.processes.append(str(process))


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


def update(times: CpuTimes, program: Program, elapsed_ms: float) -> float:
    return round(1000 * times.update(program.processes, elapsed_ms / 1000), 3)


def test_a_thread_waits_while_it_is_ready_and_does_not_run(program: Program) -> None:
    times = CpuTimes()
    program.set("1", (20, 30))
    assert update(times, program, 50) == 30
    program.set("1", (40, 30))
    assert update(times, program, 50) == 0  # it slept for 30 ms
    assert (round(times.used_s, 3), round(times.waited_s, 3)) == (0.04, 0.03)


def test_a_wait_counts_for_the_intervals_before_its_end(program: Program) -> None:
    """The kernel adds a wait when it is over. If the thread slept at the end of an interval, it did not wait there."""
    times = CpuTimes()
    program.set("1", (10, 0))
    assert update(times, program, 50) == 0
    program.set("1", (20, 80))
    assert update(times, program, 50) == 80
    program.set("1", (20, 80), state="S")
    assert update(times, program, 50) == 0
    program.set("1", (30, 180))
    assert update(times, program, 50) == 40


def test_a_wait_that_has_not_ended_is_pending(program: Program) -> None:
    """If the thread ran in the interval, at most the rest of it. It is unknown how long an older wait takes."""
    times = CpuTimes()
    program.set("1", (30, 0))
    update(times, program, 50)
    assert round(times.pending_s, 3) == 0.02
    program.set("1", (30, 0))
    update(times, program, 50)
    assert times.pending_s == math.inf
    program.set("1", (40, 60))
    update(times, program, 50)
    assert round(times.pending_s, 3) == 0.04
    program.set("1", (45, 60), state="S")
    update(times, program, 50)
    assert times.pending_s == 0


def test_threads_that_compete_with_each_other_gain_nothing(program: Program) -> None:
    """While one of them runs, the time counts, however long the others wait."""
    times = CpuTimes()
    program.set("1", (50, 0), (0, 50), (0, 50))
    assert update(times, program, 50) == 0


def test_many_processes_that_share_all_cpus_gain_nothing(program: Program) -> None:
    """None of them runs for long, but together they use the machine."""
    times = CpuTimes()
    count = 16 * CPUS
    for number in range(count):
        program.set(str(number), (50 * CPUS / count, 1000))
    assert update(times, program, 50) == 0


def test_many_processes_gain_what_others_take_from_them(program: Program) -> None:
    times = CpuTimes()
    count = 16 * CPUS
    for number in range(count):
        program.set(str(number), (25 * CPUS / count, 1000))
    assert update(times, program, 50) == 25


def test_the_time_of_children_that_have_ended_is_used_too(program: Program) -> None:
    times = CpuTimes()
    program.set("1", (1, 0), state="S")
    update(times, program, 50)
    program.set("1", (1, 0), state="S", child_ticks=scheduling._TICKS_PER_S)
    update(times, program, 2000)
    assert round(times.used_s, 3) == 1.001


def test_a_thread_earns_no_time_before_it_is_first_seen(program: Program) -> None:
    """Otherwise threads that end soon, whose CPU time is not seen, would stop the clock."""
    times = CpuTimes()
    program.set("1", (40, 10))
    assert update(times, program, 50) == 10  # the program begins with it
    program.set("1", (40, 10), (5, 45))
    assert update(times, program, 50) == 0
    program.set("1", (40, 10), (15, 85))
    assert update(times, program, 50) == 40
    program.set("1", (2, 40))  # another thread with the same number
    assert update(times, program, 50) == 0


def test_threads_that_have_ended_have_used_cpu_time(program: Program) -> None:
    """So they do not stop the clock of a thread that waits for them."""
    times, tick_ms = CpuTimes(), 1000 / scheduling._TICKS_PER_S
    program.set("1", (tick_ms, 0), state="S")
    update(times, program, 50)
    program.set("1", (2 * tick_ms, 1000), ticks=2 + round(50 * CPUS / tick_ms))
    assert update(times, program, 50) == 0
    assert round(1000 * times.used_s) == 2 * tick_ms + round(50 * CPUS / tick_ms) * tick_ms


def test_the_time_of_the_first_thread_counts_once_if_there_are_others(program: Program) -> None:
    times = CpuTimes()
    program.set("1", (40, 0))
    update(times, program, 50)
    program.set("1", (80, 0), (10, 0))
    update(times, program, 50)
    program.set("1", (90, 0))
    update(times, program, 50)
    assert round(1000 * times.used_s) == 100


def test_an_interval_in_which_many_processes_start_has_no_wait(program: Program) -> None:
    """They may end before their CPU time is seen."""
    times = CpuTimes()
    program.set("1", (10, 0), state="S")
    update(times, program, 50)
    program.set("1", (10, 50), state="S")
    for number in range(2, CPUS + 2):
        program.set(str(number), (0, 0))
    assert update(times, program, 50) == 50
    program.set("1", (10, 100))
    for number in range(50, CPUS + 51):
        program.set(str(number), (0, 0))
    assert update(times, program, 50) == 0
    assert times.pending_s == 0


def test_a_system_without_these_files_counts_wall_clock_time(tmp_path: Path) -> None:
    assert CpuTimes().update([str(tmp_path / "none")], 1.0) == 0


@pytest.fixture
def running(program: Program, monkeypatch: pytest.MonkeyPatch) -> RunningProgram:
    """Return a program whose time limit of a second began at 0."""
    monkeypatch.setattr(RunningProgram, "processes", program.processes)
    running = RunningProgram(1, 0)
    running.limit_time(0.0, 1.0, 100.0)
    return running


def test_a_program_is_not_ended_while_it_waits_for_a_cpu(program: Program, running: RunningProgram) -> None:
    """It has run in the interval in which its time would be over, and waits for the next time."""
    program.set("1", (900, 0))
    assert running.check_time(0.9, 0.05) == ""
    program.set("1", (910, 0))
    assert running.check_time(1.05, 0.05) == ""
    program.set("1", (920, 190))
    assert running.check_time(1.1, 0.05) == ""
    program.set("1", (1100, 190))
    assert running.check_time(1.3, 0.05) == "time"


def test_the_time_of_an_endless_loop_ends_where_the_kernel_does_not_tell_waits(
    program: Program, running: RunningProgram
) -> None:
    program.set("1", (0, 0))
    assert running.check_time(0.9, 0.05) == ""
    assert running.check_time(1.0, 0.05) == "time"


def test_the_priority_sinks_with_the_cpu_time() -> None:
    assert [niceness_after(used_s) for used_s in (0.0, 0.1, 0.3, 1.9, 2.0, 100.0)] == [0, 0, 3, 3, 6, 6]
