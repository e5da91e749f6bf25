r'''Sessions: programs whose variables, imports and files live on between runs, with pictures, branches and files.

A session is for work in steps: an agent that looks at data, a notebook, a tree search over programs. Each step is a
run. It has its own outcome, output and limits, and sees what the steps before it have left. The programs on this page
can be saved and run with `python`; their output is shown below them.

## Open a session, and run code in it

`manager.session` returns an asynchronous context manager. Entering opens the session on a server, and leaving ends it.

```python
import asyncio

from faasrt import RuntimeManager


async def main():
    async with RuntimeManager.local(["python"]) as manager:
        async with manager.session("python", files={"prices.csv": "a,3\nb,4\n"}) as session:
            await session.run_code("import csv; prices = dict(csv.reader(open('prices.csv')))")
            result = await session.run_code("print(len(prices)); sum(map(int, prices.values()))")
            print(result.outcome, repr(result.stdout), result.displays[0].text)

            result = await session.run_code("total = 0\nprices['c']")
            print(result.outcome, result.error.traceback.splitlines()[1].strip())


asyncio.run(main())
```

```text
OK '2\n' 7
USER_ERROR File "<cell 3>", line 2, in <module>
```

* A run that fails is an outcome, as of `run_code`, and the session stays. Tracebacks name the runs `<cell 1>`,
  `<cell 2>` and so on.
* A run can use `await`. `input()` reads the `stdin` of the run. `session.stream_code` yields output while it runs.
* Any number of tasks may use a session. It does one thing at a time, and the others wait in order.
* A run is sent at most once. It is retried only if it never reached the server.

`faasrt.sync` has the same sessions for code without asyncio: `with manager.session("python") as session`.

## Show values, tables and figures

`result.displays` has what a run shows, in order:

* the value of its last expression, unless it is None or a semicolon follows;
* the arguments of `display(...)`, a function that every run can call;
* figures of matplotlib: `plt.show()` shows those that are open, and so does the end of the run, without `savefig`.

Each is a `Display`: its content by MIME type, as the object offers it, in the way of Jupyter (`_repr_html_`,
`_repr_png_` and the like). `display.text` is the text, which every value has, `display.html` the HTML of a table, and
`display.png` the bytes of an image.

```python
import asyncio

from faasrt import RuntimeManager

CODE = """
class Table:
    def __repr__(self):
        return "a table"

    def _repr_html_(self):
        return "<table><tr><td>1</td></tr></table>"

display("first")
Table()
"""


async def main():
    async with RuntimeManager.local(["python"]) as manager:
        result = await manager.run_code(CODE, "python", displays=True)
        for display in result.displays:
            print(display.text, display.html)


asyncio.run(main())
```

```text
'first' None
a table <table><tr><td>1</td></tr></table>
```

`run_code(..., displays=True)` shows the same for a single program, as here, and so do `CodeTask(..., displays=True)`
and `"displays": true` in a file of `faasrt batch`, whose `faasrt report` shows the images of its tasks.
`faasrt run --show DIR main.py` writes displays to files.

All displays of a run together have `max_output_bytes`. If content does not fit, `display.omitted` names its type, and
"displays" is in `result.truncated`. HTML and SVG come from the program: show them to others only in a sandboxed frame.

## Move files in and out

`write_files`, `read_files` and `list_files` use the working folder of the session. Patterns are those of `collect`.

```python
import asyncio

from faasrt import RuntimeManager


async def main():
    async with RuntimeManager.local(["python"]) as manager, manager.session("python") as session:
        await session.write_files({"data/in.txt": "3 4"})
        await session.run_code("a, b = open('data/in.txt').read().split(); open('sum.txt', 'w').write(a + '+' + b)")
        print(await session.read_files(["*.txt"]))


asyncio.run(main())
```

```text
{'sum.txt': b'3+4'}
```

## Branch: try several steps from one state

`fork` returns another session with the same variables and files. From then on, the two are separate. It takes
milliseconds, because the process of the session is forked, or its memory is copied. To rewind, fork before a step, and
close the session whose step failed.

```python
import asyncio

from faasrt import RuntimeManager

STEPS = ["state + 3", "state * 5", "state - 4"]


async def main():
    async with RuntimeManager.local(["python"]) as manager, manager.session("python") as session:
        await session.run_code("state = 1")
        best = session
        for _ in range(3):
            branches = [await best.fork() for _ in STEPS]
            runs = [branch.run_code(f"state = {step}; state") for branch, step in zip(branches, STEPS)]
            scores = [int(result.displays[0].text) for result in await asyncio.gather(*runs)]
            best = branches.pop(scores.index(max(scores)))
            for other in branches:
                await other.aclose()
            print(scores)


asyncio.run(main())
```

```text
[4, 5, -3]
[8, 25, 1]
[28, 125, 21]
```

### What branches share, and what not

* Variables, imports and files are copied. A change in one branch is not seen in another. A branch outlives the session
  from which it was forked.
* A branch has its own idle limit and memory limit, and counts for `--max-sessions`.
* Use relative paths. On `native`, a branch has another working folder, and an absolute path names a file of the
  session.
* Open files again in the branch. On `native`, a file that was open stays open, and its position is shared: reading in
  one branch moves it in the other.
* Make a new generator of random numbers in each branch. Generators go on from the same state, so two branches draw the
  same numbers. On `native`, the functions of `random` and `numpy.random` draw new ones.

`fork` raises `RejectedError`, which says why, and the session goes on:

* on `native`, while there are other threads or child processes, because they would not exist in the branch;
* on `wasm`, after the program has opened files of Python's library;
* in JavaScript and TypeScript, always.

On `native`, a session and its branches are processes in one jail:

* Together, they have 64 processes and threads, 64 MiB of files, and the sum of their memory limits. Packages that a
  session imports may take 192 MiB more.
* A branch can neither reach the files of the others nor trace them. From Linux 6.12 on, it cannot send them signals.
  The session can reach its branches.
* Branches of branches can be nested twelve deep.
* A process whose parent has ended (a daemon) goes on until the session and all of its branches have ended.

## Interrupt a run

Cancelling the task of a run interrupts it, like Ctrl-C, and so does leaving the block of `stream_code` early.
`session.interrupt()` does it from another task: then `run_code` returns a result, USER_ERROR with KeyboardInterrupt.
The state of the session is kept. In a web application, `run_until_disconnect(request, session.run_code(code))` of
`faasrt.web` interrupts the run when the client disconnects.

At its time limit, a run is interrupted in the same way, and the outcome is TIMEOUT. If it does not end within a second,
for example because it catches KeyboardInterrupt, the session ends.

## Limits, and how a session ends

| what | limit |
|---|---|
| time | `timeout_ms` of each run; by default that of the session's `sandbox` |
| output | `max_output_bytes` for each stream of each run, for its displays, and for `read_files` |
| memory | `memory_limit_mb` of the session's `sandbox`, for all that it keeps |
| idleness | `idle_timeout_s`, 600 by default. The server has a maximum (`faasrt serve --session-idle-s`) |
| number | `faasrt serve --max-sessions`; then `OverloadedError`, after retries |

Runs of one `Session` object wait for their turn in the client, without a limit of time. Then each waits for a permit
and a slot, like every call (`faasrt.docs.concurrency`); its deadline starts with the permit. If several clients use a
session, the server lets their runs wait as long as other programs, and then refuses them with 429.

These end a session:

* the end of its `async with` block, `aclose`, and the end of its manager. Runs in flight raise `RuntimeClosedError`;
* `idle_timeout_s` without a call. This also ends the sessions of a client that has disappeared;
* a run that exceeds the memory limit (MEMORY_LIMIT), crashes or calls `os._exit` (CRASHED), or cannot be interrupted
  (TIMEOUT). `sys.exit` only ends the run;
* the end of the server, or of the process of the session.

Then `session.lost_reason` is not empty, as soon as this client knows it. Later calls raise `SessionLostError`, whose
message has the reason. Then open another session, and repeat the steps that matter.

```python
import asyncio

from faasrt import RuntimeManager, SessionLostError


async def main():
    async with RuntimeManager.local(["python"]) as manager, manager.session("python") as session:
        print((await session.run_code("import os; os._exit(3)")).outcome)
        try:
            await session.run_code("print(1)")
        except SessionLostError as error:
            print(type(error).__name__, error.sent)


asyncio.run(main())
```

```text
CRASHED
SessionLostError no
```

## Tasks of asyncio that an earlier run has started

A session has one event loop, in which a run with a top-level `await` runs. Such a run can start a task. The task goes
on only while a later run awaits something, because the loop stands still between runs, and during code that does not
await. Threads do go on between runs; their output between runs is lost. If they use CPU time between runs on `native`,
Linux gives the session the lowest priority until its next run.

```python
import asyncio

from faasrt import RuntimeManager

START = """
import asyncio

async def work():
    await asyncio.sleep(0.01)
    return "done"

task = asyncio.create_task(work())
await asyncio.sleep(0)
"""


async def main():
    async with RuntimeManager.local(["python"]) as manager, manager.session("python") as session:
        for code in (START, "import time; time.sleep(0.05); task.done()", "await task"):
            result = await session.run_code(code)
            print([display.text for display in result.displays])


asyncio.run(main())
```

```text
[]
['False']
["'done'"]
```

## Continue a session in another process

`session.id` and `session.endpoint` are all that another process needs. The id is a secret: whoever has it, and may use
the server, can use the session.

    same = await manager.resume_session(session_id, endpoint)     # without the endpoint, each one is asked

The manager that has opened a session ends it when it is closed, and one that has resumed it does not. A resumed session
in an `async with` statement is ended at the end of the block.

## Servers

Sessions need the embedded FaaS (`RuntimeManager.local()` or `faasrt serve`): the engines `native` and `wasm` for
Python, and `deno` for JavaScript and TypeScript. python-faas, js-faas, SandboxFusion and Piston servers have none;
there, entering a session raises `InvalidRequestError`, and nothing is sent. Of several endpoints, one that has sessions
is chosen. All calls of a session go to the server that opened it, and nothing fails over. Without namespaces (see "The
jail and its levels" in `faasrt.docs.sandboxes`), sessions of `native` and `deno` have no files, and `native` has no
`fork`.

Opening a session, and each run, count as calls in metrics, events and logs, which contain neither code nor ids.

An open session that is idle holds memory, but no slot: its runs wait for a slot like every program. It holds the memory
of its process, except for imported packages, which sessions share.

On `wasm`, up to eight sessions, and their branches, share a process. WebAssembly separates them, as it separates
programs from the process. If the process is killed, all of them end. Their packages are imported when they open, from
the largest snapshot that exists (see `faasrt.docs.sandboxes`). They have no threads and no child processes, the
memory of a session never shrinks, and its working folder is in memory.
'''

__docformat__ = "markdown"
