r"""How programs in the embedded FaaS differ from `python main.py` and `deno run main.ts`, and how safe the sandbox is.

Every program runs in a fresh sandbox. Nothing that it leaves behind reaches another program.

## The engines

| engine | languages | what runs | it is the default |
|---|---|---|---|
| `native` | Python | CPython itself, with the packages of an environment of yours | on Linux with namespaces |
| `wasm` | Python | CPython 3.15 as WebAssembly, with five packages (see below) | without namespaces, and on macOS |
| `deno` | JavaScript, TypeScript | Deno without permissions | always |
| named after a toolchain | C, C++, Go, Rust, Java, Bash | see `faasrt.docs.other_languages` | always |

The five packages of `wasm` are numpy, pandas, scipy, scikit-learn and sympy. `result.metadata` names the engine, the
version and the platform. `native` gives the results that authors of Python programs expect. `wasm` isolates more
strongly, and works where the kernel offers no namespaces.

```python
import asyncio

from faasrt import RuntimeManager

CODE = "import sys; print(sys.maxsize > 2**32)"


async def main():
    for engine in ("native", "wasm"):
        async with RuntimeManager.local(["python"], engines={"python": engine}) as manager:
            result = await manager.run_code(CODE, "python")
            print(result.metadata["engine"], "64 bits:", result.stdout.strip())


asyncio.run(main())
```

```text
native 64 bits: True
wasm 64 bits: False
```

On the command line it is `faasrt serve --engine python=wasm`. The first use of `wasm` on a machine compiles the
sandbox, which takes about 45 s; `faasrt warmup --engine python=wasm` does it ahead of time.

Programs on `wasm` start from a snapshot: a private copy of the memory of an interpreter that has already imported much
of the standard library, with new random numbers. There is one more snapshot for each of the five packages, which a
program that names the package gets. A server makes them in the
background, from half a minute after its start or when a program first needs one; `faasrt health` shows the progress.
`faasrt warmup` makes all of them. They take 300 MB in FAASRT_CACHE_DIR. Where snapshots do not work, a line in the log
says so. Programs then start the interpreter and import their packages anew.

To give native programs other packages, make an environment for them:
`RuntimeManager.local(python="/srv/graders/bin/python")`, or `faasrt serve --python /srv/graders/bin/python`. CPython
3.9 and newer work, and faasrt need not be installed there.

## Differences from CPython

| | CPython | `native` | `wasm` |
|---|---|---|---|
| `return_val(text)` | undefined | returns a value to the caller | the same |
| top-level `await` | a syntax error | works | works |
| stdin | yours | `stdin=...`, by default empty | the same |
| command line | yours | `["main.py", *argv]` | the same |
| environment variables | yours | a few of the sandbox's own | a few of the sandbox's own |
| integers of numpy, `sys.maxsize` | 64 bits | 64 bits | 32 bits: `np.arange(10**5).sum()` overflows |
| packages | yours | yours | the five above |
| network | yes | none; Unix sockets work | none, and no `socket`, no `ssl` |
| files | yours | a private, writable /tmp; packages and /usr are read-only | the standard library; see below |
| threads, `multiprocessing`, `subprocess` | yes | yes | no |
| `os.setsid`, `start_new_session=True` | a session | a process group; see below | no |
| `os.memfd_create` | yes | denied, because its memory is counted for no process; use a file in /dev/shm | no |
| `asyncio` | yes | yes | yes, without sockets and subprocesses |
| hash of a `str` | random | the same in every run | the same in every run |
| threads of numeric libraries | all CPUs | one | one |
| too much memory | depends on the machine | MEMORY_LIMIT | MEMORY_LIMIT |
| depth of recursion | 1,000 | 1,000 | 1,000; with a higher limit, about 14,000 through `lru_cache` |
| user and host | yours | uid 1000, host name `sandbox` | none |

All processes of a program are in one session, because the kernel divides CPU time between sessions. With more
sessions, a program would get more CPU time than others. `setsid` succeeds without effect in every language. Python
programs get a process group instead, so that `os.killpg(os.getpgid(child.pid), signal.SIGKILL)` ends a child with its
own children, and nothing else. In other languages, and with the command `setsid`, call `setpgid` for this.

CPython's own tests have the same results on `native` as without a sandbox, except for tests that need one of these.
Most of this also holds for Bash, C and the other toolchains.

| what a program uses | in the sandbox | because |
|---|---|---|
| sockets other than Unix sockets | refused | there is no network |
| terminals, such as `pty` | not found | there are none |
| `mmap.mmap(-1, n)`, which can be shared | a file in /tmp | such memory can outlive its mapping, uncounted |
| the same in subprocesses, or in other languages | refused | the same |
| mappings of /dev/zero | refused | the same |
| writing to /dev/zero | `ENOSPC` | it is the device /dev/full, which reads as zeros, too |
| more than 64 threads and processes, or 256 open files | refused | they would burden the machine |
| files of more than 64 MiB | `EFBIG` | /tmp has 64 MiB |
| a higher resource limit, limits of other processes | refused | the limits are those of the sandbox |
| the size of a pipe or socket buffer, leases | refused | no limit counts this memory of the kernel |
| extended attributes, System V IPC, inotify | refused | the same |
| `os.sendfile`, `os.splice` | `EINVAL`, `ENOSYS` | the same; `shutil` and others then read and write instead |
| flags of `os.preadv` and `os.pwritev` | refused | they show which files of the machine are cached |
| removing a missing file outside /tmp | `EROFS` | the folders there are read-only |
| files or processes of other users, /etc/shadow | `EINVAL`, not found | a program has one user |
| tracing of processes (`ptrace`, `perf`) | refused | programs do not need it |

On `wasm`, calls with `files` or `collect` give the program a working folder in memory, /tmp, of at most 64 MiB and
10,000 entries. So does the name matplotlib or seaborn in the program, because matplotlib needs a folder. Data that it
writes to a file can be read through another open file after `close` or `os.fsync`.

SQLite on `wasm` seeds its `random()` and `randomblob()` from the clock only, and programs that start within the same
second get the same numbers. Do not use them for secrets. Python's module `secrets` has real random numbers.

## Differences from Deno

| | `deno run` | `deno` here |
|---|---|---|
| `return_val(text)` | undefined | returns a value to the caller |
| permissions | asks | refuses: no network, environment, processes, system information |
| files | yours | a program that is sent with `files` or `collect` has /tmp to itself; others have none |
| `npm:`, `jsr:`, `https:` imports | work | a `TypeError` |
| `node:` modules | work | those that need no permission, such as `node:crypto` |
| `Worker` | works | undefined |
| `Worker` of `node:worker_threads` | works | an error below a memory limit of 480 MiB, as V8 reserves 512 MiB for it |
| types of TypeScript | removed (checked by `deno check`) | removed, not checked |
| `import.meta.main` | true | false |
| stdin, `Deno.args`, `process.argv` | yours | what `run_code` sends: `stdin`, `argv` |
| a promise that never settles, with nothing left to do | an error | USER_ERROR |

## Limits

| limit | option | default | what happens |
|---|---|---|---|
| wall-clock time | `timeout_ms`, `SandboxConfig(timeout_limit_s=...)` | 30 s | TIMEOUT |
| memory | `SandboxConfig(memory_limit_mb=...)` | 128 MiB | MEMORY_LIMIT |
| output | `SandboxConfig(max_output_bytes=...)` | 1 MiB per stream | cut; above twice that, OUTPUT_LIMIT |

The server has limits of its own (`faasrt serve --timeout-s --memory-mb --output-bytes`); a request can only lower them.
The memory of the interpreter, and of packages that the server imports in advance, does not count (on `native` even if
the server has not imported them yet). The least memory limit is 48 MiB for Python and 16 MiB for JavaScript. The memory
limit is approximate: `faasrt.local` says by how much.

A separate process ends each program at its time limit, even if the server is busy. Except on `wasm`, the time in which
all processes of a program wait for a busy server to read output or to send input does not count.

## Security

Native programs and Deno run in a jail that the Linux kernel enforces. It has two levels:

* `namespaces`: programs have users, processes, network, IPC, host name and a read-only root of their own, besides
  everything in `filters`. It works for root, and for other users where unprivileged user namespaces are allowed.
* `filters`: a list of allowed system calls (seccomp), Landlock, limits of the process (rlimits), and no capabilities.
  Containers with Docker's defaults allow this. Python runs on `wasm` at this level, unless you choose `native` too
  (`faasrt serve --level filters --engine python=native`). Then a program cannot create files, start processes or lock
  files, and it can find out which paths and processes the machine has.

WebAssembly is the first wall around programs on `wasm`. The second one is the level `confined`: before its first
program, each worker process of `wasm` restricts itself with Landlock, seccomp and rlimits. This needs no namespaces and
no root. A program that escaped from WebAssembly could then read the compiled sandbox and the snapshots, use a folder of
its worker, and reach later programs of this worker. It could not reach other files, the network or other processes, or
start any. Where the kernel does not support this (Linux older than 5.13), programs run without the second wall, and the
level is "".

`faasrt health` shows the level and the reason why it is not higher. `faasrt serve --level namespaces` refuses to start
below it. When the server starts, a program tries to break out of each new jail; if it can, the engine is not used.

A `native` program can read the machine's system libraries, the programs in /usr, and the packages of its Python
environment. Programs cannot reach other files, sockets, processes or environment variables of the machine, or data of
other programs. Web pages cannot reach the server. An address other than loopback needs a token.

A program can forge its own result, but not that of another program. So a grader that runs in the same program as the
answer that it grades can be deceived by the answer; run them as two programs.

Read in `faasrt.local` what is not protected, and what to add against real attackers, before others may use your server.
"""

__docformat__ = "markdown"
