r"""How to use SandboxFusion and Piston servers, and what differs there.

## URLs

A URL names the protocol of its service. It works wherever an endpoint is named: in the environment, in
`Settings(endpoints=...)`, in `from_url`, and in `faasrt run --url`.

| URL | service |
|---|---|
| `http://host:8000` | coze-loop's python-faas and js-faas, and `faasrt serve` |
| `sandboxfusion+http://host:8080` | [SandboxFusion](https://github.com/bytedance/SandboxFusion) |
| `piston+https://host/api/v2` | [Piston](https://github.com/engineer-man/piston) |
| `dns+http://faas:8000`, `dns+piston+http://...` | one of these at each address of the name (`faasrt.discovery`) |

```python
from faasrt import Settings

settings = Settings(
    endpoints={
        "python": ["http://faas:8000", "sandboxfusion+http://fusion:8080"],
        "haskell": "piston+http://piston:2000/api/v2",
    }
)
for language, urls in settings.endpoints.items():
    print(language, *urls)
```

```text
python http://faas:8000 sandboxfusion+http://fusion:8080
haskell piston+http://piston:2000/api/v2
```

The replicas of a language may have different protocols. Deadlines, retries, circuit breakers, limits, metrics and
health work in the same way for all of them.

## Python and JavaScript

Programs travel in the envelope, so outcomes, exit codes, output, return values, `call_function`, `run_cases` and
`judge` are those of coze-loop's servers. `faasrt.protocol` explains the envelope.

| | SandboxFusion | Piston |
|---|---|---|
| a longer result, with output, error and return value | above 110 KB, cut to 64 KiB | above 44 KB, cut to 32 KiB |
| the time limit | any; the service gets 1 s more | at most PISTON_RUN_TIMEOUT, less 1 s |
| the memory limit | not sent; the service would limit the address space | sent |
| a request | any size | at most 100 kB |
| `stdin` in JavaScript | exact | gets a newline at its end if it has none; an empty one is a newline |

* Python runs in the service's CPython. The output of child processes is recorded too, and stands before the output that
  the program itself has buffered.
* JavaScript runs in the service's Node.js, which must be 18 or newer (20 for `import()` in CommonJS): as a CommonJS
  module, or as an ES module if it does not parse as the former. Output of child processes stands before that of the
  program. `run_cases` has no `stdin` there, and files cannot be collected.
* If a child process of a JavaScript program writes bytes that are not UTF-8 to stdout, SandboxFusion replaces the whole
  stream, with the result of the program. The outcome is then a USER_ERROR that says so. `run_cases` still has its
  results.
* A program that blocks in C code, or loops for ever in a callback of JavaScript, is killed by the service. The outcome
  is TIMEOUT, and its output is lost. So is the output of a program that kills its process (CRASHED).
* TypeScript is one of the other languages. So it depends on the service, and functions cannot be called.

## Other languages

A service may also run C++, Java and the other members of `Language`, and languages that faasrt does not know. Name the
latter by the service's lower-case name: `await manager.run_code(code, OtherLanguage("haskell"))`. `OtherLanguage` tells
type checkers that the name is not misspelt. Both are accepted if an endpoint's service may have them. SandboxFusion has
those of its API. Each Piston has other packages, and refuses the languages without a package with a `RejectedError`;
`faasrt health --json` shows its runtimes.

`run_code`, `judge` and `map` work, with `stdin` and `files`, and on Piston with `argv`. Such programs travel without an
envelope, so the result is what the service reports:

* A program that does not compile is a SYNTAX_ERROR with the messages of the compiler. The time limit begins after the
  compilation, for which the service has a limit of its own. A longer compilation is a SYNTAX_ERROR too.
* A program that was killed by a signal is CRASHED, and `result.error.name` is the signal.
* SandboxFusion cuts output at 219,264 bytes without a word. A stream of this length is in `result.truncated`. A program
  that prints much more is blocked until its time limit, which is an OUTPUT_LIMIT.
* On Piston, a program that prints more than PISTON_OUTPUT_MAX_SIZE is ended, and loses a part of its output:
  OUTPUT_LIMIT.
* Bytes that are not UTF-8 are lost: SandboxFusion replaces the whole stream by `[DecodeError] ...`, which is then in
  `result.truncated`, and Piston replaces them by U+FFFD.

The same holds for all programs with `Settings(envelope="never")`.

## Settings of a Piston server

Requests can only lower the limits of Piston, and its defaults are too low for most programs. Set, for example:

    PISTON_RUN_TIMEOUT=61000
    PISTON_RUN_CPU_TIME=61000
    PISTON_OUTPUT_MAX_SIZE=65536

A `RejectedError` names PISTON_RUN_TIMEOUT if the limit is too low for `timeout_ms`, which is 30 s by default. An
execution of `run_cases` may need three times the limit of a case. A `ServerError` names PISTON_OUTPUT_MAX_SIZE if a
result is too long; with the default of 1,024 bytes, only short results arrive.

## Failures of a service

These are errors, not outcomes: a SandboxError of SandboxFusion, the status XX and an empty 500 of Piston, an
interpreter that does not start, and a toolchain that is not installed ("command not found" with exit code 127, except
in Bash, where it is the program's own). A call that fails in this way is not retried, unless it is idempotent.

Under load, SandboxFusion can lose the output of a program. In the envelope, that is a `ServerError` too. Other programs
then end as usual, but with an empty output. A cache does not store their results if stdout is empty;
`result.metadata["may_lack_output"]` marks them.

## Protocols of your own

A package adds a protocol with an entry point of the group "faasrt.protocols". Its name is that in URLs, and its value
is an instance of a subclass of `faasrt.protocol.interface.ServiceProtocol`, which has three methods to write:

    [project.entry-points."faasrt.protocols"]
    judge0 = "my_package.judge0:PROTOCOL"

This interface is provisional. It may change in any release, so pin the version of faasrt.
"""

__docformat__ = "markdown"
