r"""Programs in C, C++, Go, Rust, Java and Bash.

The embedded FaaS runs these languages if their toolchain is installed on the machine of the server:

| language | names | toolchain | Debian package | how a program is compiled |
|---|---|---|---|---|
| C | `c` | gcc | gcc | `gcc -O2`, with the default standard and `-lm` |
| C++ | `cpp`, `c++` | g++ | g++ | `g++ -std=gnu++20 -O2` |
| Go | `go`, `golang` | go | golang-go | by its compiler and linker, with the standard library only |
| Rust | `rust`, `rs` | rustc | rustc | `rustc --edition=2021 -O`, with the standard library only |
| Java | `java` | javac | default-jdk-headless | by javac; the JVM of the same JDK runs it |
| Bash | `bash`, `sh` | bash | bash | `bash -n` checks the syntax |

`faasrt languages` lists what can run, with versions; so does `GET /health`. The error for a language without its
toolchain names the package to install.

```python
import asyncio

from faasrt import RuntimeManager, TestCase

CODE = "read -r a b; echo $((a + b))"


async def main():
    async with RuntimeManager.local(["bash"]) as manager:
        result = await manager.run_code("echo out; echo problem >&2; exit 3", "bash")
        print(result.outcome, result.exit_code, result.stderr.strip())

        judgement = await manager.judge(CODE, [TestCase("1 2", "3"), TestCase("2 2", "5")], language="bash")
        print(judgement.score)

        checked = await manager.validate_code("if true; then", "bash")
        print(checked.valid, checked.diagnostics[0].line)


asyncio.run(main())
```

```text
USER_ERROR 3 problem
0.5
False 2
```

## What differs from Python and JavaScript

Input, files, collected files, live output, limits and `judge` work as for Python (`faasrt.docs.programs`). There is no
`return_val`, and `call_function` and `run_cases` raise `InvalidRequestError`: a program prints its results.

| what happens | outcome |
|---|---|
| the program does not compile | SYNTAX_ERROR; `result.stderr` is the output of the compiler |
| the compiler takes too long or too much memory | SYNTAX_ERROR, with the limit in the message |
| exit code other than 0 | USER_ERROR with the exit code; `result.error` names a Go or Rust panic, or a Java exception |
| a signal, such as SIGSEGV, SIGABRT or SIGKILL | CRASHED; `result.error.name` is the signal, or the C++ exception |
| out of memory, also if the program notices it (`std::bad_alloc`, `OutOfMemoryError`) | MEMORY_LIMIT |

`validate_code` returns all errors of the compiler with their lines and columns, and fills the cache (see below).

The compiler has limits of its own, 30 s and 1 GiB, and its time does not count for `timeout_ms`. The deadline of a call
is longer by these 30 s. `result.metadata["compile_ms"]` is the time of the compilation.

Files that are sent with the program and have the suffix of a source (such as .c, or .cpp, .cc and .cxx) are compiled
with it, and headers are found. Other files are there only when the program runs. If the kernel has Landlock, sources
cannot include files in /dev and /proc, because some of them never end. In Java, the main class is the public class,
else the first one with a `main`, else `Main`, else the first class, in the first 512 KiB of the program; it has no
package.

A program has 64 MiB of stack, and at most 64 threads and processes. Java's heap is as large as the memory limit.

## The cache of compiled programs

A compiled program is stored in `programs` in FAASRT_CACHE_DIR, by the content of its sources, the command and the
version of the compiler. So the next run of the same program takes a few milliseconds, also after a restart, and
`validate_code` compiles ahead of time. The cache holds 512 MiB; programs that were not used for the longest time are
removed first. Go's standard library is compiled once for a machine, which takes about a minute; `faasrt warmup` does it
ahead of time.

## Where they run

Programs run in the jail of the level `namespaces`, as native Python does, and so do compilers
(`faasrt.docs.sandboxes`). At the level `filters` these languages are not available. An engine starts when a program
first needs it, and first runs a short program to check that the toolchain works.

COZE_LOOP_FAAS_URL, `RuntimeManager.from_url` and `Settings(endpoints={"cpp": url})` name a server for them: an
embedded FaaS (`faasrt serve`), or a server of SandboxFusion or Piston (`faasrt.docs.services`). python-faas and js-faas
run every program as Python or as JavaScript, so faasrt sends them no other one.
"""

__docformat__ = "markdown"
