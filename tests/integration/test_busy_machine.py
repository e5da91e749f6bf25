"""Time limits and priorities on a machine whose CPUs are busy with other processes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator

import pytest

from benchmarks.verdicts import busy_processes
from faasrt import FunctionTest, Outcome, RuntimeManager, Verdict
from support.helpers import PATIENT

pytestmark = pytest.mark.servers

LIMIT_MS = 600
USE_CPU = "import time\nuntil = time.process_time() + {}\nwhile time.process_time() < until: pass\nprint('right')"
ENDLESS = {
    "a loop": "while True: pass",
    "sleep": "import time; time.sleep(100)",
    "processes": "import os\nfor _ in range(3): os.fork()\nwhile True: pass",
    "threads": (
        "import threading\ndef loop():\n  while True: pass\nfor _ in range(8): threading.Thread(target=loop).start()"
    ),
    "sleep and work": "import time\nwhile True:\n  for _ in range(10_000): pass\n  time.sleep(0.001)",
    "stopped": "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
}

# These take milliseconds. The sum of a process's CPU time is what counts.
JS_FUNCTIONS = """
const used = () => { const { user, system } = Deno.cpuUsage(); return (user + system) / 1000; };
function compute(ms) { const until = used() + ms; while (used() < until); return ms; }
async function compute_later(ms) { await null; return compute(ms); }
async function compute_in_parts(ms) {
  for (let part = 0; part < 10; part += 1) { await sleep(0); compute(ms / 10); }
  return ms;
}
const sleep = (ms) => new Promise((go) => setTimeout(go, ms, ms));
function block(ms) { Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms); return ms; }
"""
# (func (export "f") (drop (memory.atomic.wait32 (i32.const 0) (i32.const 0) (i64.const -1)))), with a shared memory
_WEBASSEMBLY = "0061736d0100000001040160000003020100050401030101070501016600000a0f010d0041004100427ffe0102001a0b"
ENDLESS_CALLS = {
    "a loop": "for (;;);",
    "microtasks": "for (;;) await null;",
    "short sleeps": "for (;;) await new Promise((go) => setTimeout(go, 1));",
    "never settles": "await new Promise(() => {});",
    "blocks": "Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);",
    "blocks in WebAssembly": (
        f"new WebAssembly.Instance(new WebAssembly.Module(Uint8Array.fromHex('{_WEBASSEMBLY}'))).exports.f();"
    ),
    "a thread computes": (
        "const key = await crypto.subtle.importKey('raw', new Uint8Array(9), 'PBKDF2', false, ['deriveBits']);"
        "const how = { name: 'PBKDF2', hash: 'SHA-512', salt: new Uint8Array(9), iterations: 1e9 };"
        "await crypto.subtle.deriveBits(how, key, 64);"
    ),
    "false clocks": (
        "Deno.cpuUsage = () => ({ user: 0, system: 0 }); Date.now = performance.now = Math.min = () => 0;"
        "await new Promise(() => {});"
    ),
}


@pytest.fixture(scope="module")
def busy_cpu() -> Iterator[int]:
    """Yield a CPU on which four processes of others compute."""
    cpu = min(os.sched_getaffinity(0))
    with busy_processes(4, cpu):
        yield cpu


@pytest.fixture
async def busy(busy_cpu: int) -> AsyncIterator[RuntimeManager]:
    """Yield a manager whose programs run on the busy CPU only."""
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, [busy_cpu])  # its processes inherit this
    try:
        async with RuntimeManager.local(["python", "js"], timeouts=PATIENT) as manager:
            await manager.get_runtime("python")
            await manager.get_runtime("js")
            os.sched_setaffinity(0, cpus)
            yield manager
    finally:
        os.sched_setaffinity(0, cpus)


async def test_the_wait_for_a_cpu_does_not_count(busy: RuntimeManager) -> None:
    """Right programs that need most of their time limit are OK beside others and each other, with the wait stated."""
    codes = [USE_CPU.format(seconds) for seconds in (0.1, 0.3, 0.4) for _ in range(2)]
    results = await asyncio.gather(*(busy.run_code(code, "python", timeout_ms=LIMIT_MS) for code in codes))
    assert [(result.outcome, result.stdout) for result in results] == [(Outcome.OK, "right\n")] * len(codes)
    slowest = max(results, key=lambda result: result.duration_ms or 0)
    assert slowest.duration_ms is not None
    assert slowest.timings.waited_s is not None
    assert slowest.duration_ms / 1000 > LIMIT_MS / 1000
    assert slowest.duration_ms - 1000 * slowest.timings.waited_s < LIMIT_MS


async def test_the_wait_for_a_cpu_does_not_count_in_tests_of_functions(busy: RuntimeManager) -> None:
    """Right functions that need most of their time limit pass beside others. One that sleeps for longer does not."""
    code = f"def f(n):\n    {USE_CPU.format('n').replace(chr(10), chr(10) + '    ')}\n    return n"
    judgements = await asyncio.gather(
        *(
            busy.judge(code, [FunctionTest([0.3], 0.3)] * 2, language="python", function="f", timeout_ms=LIMIT_MS)
            for _ in range(4)
        )
    )
    assert [judgement.verdict for judgement in judgements] == [Verdict.PASSED] * 4
    code = "import time\ndef f(n):\n    time.sleep(n)\n    return n"
    tests = [FunctionTest([0], 0), FunctionTest([0.7], 0.7)]
    judgement = await busy.judge(code, tests, language="python", function="f", timeout_ms=LIMIT_MS)
    assert [result.verdict for result in judgement.results] == [Verdict.PASSED, Verdict.TIMEOUT]


@pytest.mark.parametrize("function", ["compute", "compute_later", "compute_in_parts", "sleep", "block"])
async def test_the_wait_for_a_cpu_does_not_count_in_tests_of_functions_in_javascript(
    busy: RuntimeManager, function: str
) -> None:
    """Right functions pass beside others, whether or not they block the event loop. Those that take too long do not."""
    runtime = await busy.get_runtime("js")
    too_long = 10 * LIMIT_MS if function == "sleep" else LIMIT_MS + 100
    results = await runtime.run_cases(JS_FUNCTIONS, function, [(300,), (too_long,)], timeout_ms=LIMIT_MS)
    assert [result.outcome for result in results] == [Outcome.OK, Outcome.TIMEOUT]


async def test_calls_in_javascript_that_never_end_are_timeouts(busy: RuntimeManager) -> None:
    """Whether they compute, sleep, change the clocks, or hide how they wait."""
    runtime = await busy.get_runtime("js")
    cases = await asyncio.gather(
        *(
            runtime.run_cases(f"async function endless() {{ {code} }}", "endless", [()], timeout_ms=LIMIT_MS)
            for code in ENDLESS_CALLS.values()
        )
    )
    outcomes = [results[0].outcome for results in cases]
    assert dict(zip(ENDLESS_CALLS, outcomes, strict=True)) == dict.fromkeys(ENDLESS_CALLS, Outcome.TIMEOUT)


@pytest.mark.parametrize("name", ENDLESS)
async def test_programs_that_never_end_are_timeouts(busy: RuntimeManager, name: str) -> None:
    """Whether they compute, sleep, or compete with themselves, they do not gain time from the wait for a CPU."""
    result = await busy.run_code(ENDLESS[name], "python", timeout_ms=LIMIT_MS)
    assert result.outcome is Outcome.TIMEOUT


async def test_a_fork_bomb_is_a_timeout(busy: RuntimeManager) -> None:
    """Its processes use little memory, which is counted however long a busy machine takes for it."""
    code = "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass"
    assert (await busy.run_code(code, "python", timeout_ms=2_000)).outcome is Outcome.TIMEOUT


async def test_a_session_keeps_its_state_after_a_time_limit(busy: RuntimeManager) -> None:
    """The wait for a CPU does not count in a session either. An endless run is interrupted."""
    async with busy.session("python") as session:
        assert (await session.run_code("x = 1\n" + USE_CPU.format(0.4), timeout_ms=LIMIT_MS)).stdout == "right\n"
        assert (await session.run_code("while True: pass", timeout_ms=LIMIT_MS)).outcome is Outcome.TIMEOUT
        assert (await session.run_code("print(x)")).stdout == "1\n"


@pytest.mark.parametrize(
    ("language", "use_cpu", "sleep"),
    [
        ("python", USE_CPU.format(0.3), "time.sleep(0.05)"),
        (
            "js",
            "const began = Date.now(); while (Date.now() < began + 1_500); console.log('right')",
            "await new Promise((resolve) => setTimeout(resolve, 50))",
        ),
    ],
    ids=["python", "js"],
)
async def test_a_session_states_the_wait_for_a_cpu(
    busy: RuntimeManager, language: str, use_cpu: str, sleep: str
) -> None:
    """Of each run alone, as the part of its duration."""
    async with busy.session(language) as session:
        computing = await session.run_code(use_cpu)
        assert computing.stdout == "right\n"
        sleeping = await session.run_code(sleep)
        for result in (computing, sleeping):
            assert result.duration_ms is not None
            assert result.timings.waited_s is not None
            assert 0 <= result.timings.waited_s < result.duration_ms / 1000
        # Four other processes compute on its CPU.
        assert (computing.timings.waited_s or 0) > (computing.duration_ms or 0) / 4_000


@pytest.mark.parametrize(("language", "code"), [("python", "while True: pass"), ("js", "for (;;);")])
async def test_many_sessions_keep_their_state_after_a_time_limit(
    busy: RuntimeManager, busy_cpu: int, language: str, code: str
) -> None:
    """An interrupted run has the time to end, even if its process waits for a CPU meanwhile."""

    async def lost_reason() -> str:
        async with busy.session(language) as session:
            assert (await session.run_code(code, timeout_ms=LIMIT_MS)).outcome is Outcome.TIMEOUT
            return session.lost_reason

    with busy_processes(60, busy_cpu):
        assert await asyncio.gather(*(lost_reason() for _ in range(24))) == [""] * 24


async def test_javascript(busy: RuntimeManager) -> None:
    """Deno has more threads than the program, which do not gain time for it."""
    code = "let n = 0; for (let i = 0; i < 2e8; i += 1) n += i; console.log('right')"
    results = await asyncio.gather(*(busy.run_code(code, "js", timeout_ms=2_000) for _ in range(4)))
    assert [(result.outcome, result.stdout) for result in results] == [(Outcome.OK, "right\n")] * 4
    assert (await busy.run_code("for (;;);", "js", timeout_ms=LIMIT_MS)).outcome is Outcome.TIMEOUT
