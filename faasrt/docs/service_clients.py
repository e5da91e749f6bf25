r"""Use `faasrt serve` behind the clients of SandboxFusion and Piston.

`faasrt serve` runs the programs of these clients in the same sandboxes. Only the URL of the client changes.

| client | URL |
|---|---|
| the package `sandbox-fusion` | `SANDBOX_FUSION_ENDPOINT=http://host:8000/sandboxfusion` |
| verl | `reward_model.sandbox_fusion.url=http://host:8000/sandboxfusion/run_code` |
| open-r1 | `PISTON_ENDPOINTS=http://host:8000/piston/api/v2` |

```python
import asyncio

import aiohttp

from faasrt.local import LocalFaaS


async def main() -> None:
    async with LocalFaaS(["python"]) as faas:
        await faas.wait_ready("python")
        request = {"language": "python", "code": "print(6 * 7)"}
        async with aiohttp.ClientSession() as session:
            async with session.post(f"{faas.url}/sandboxfusion/run_code", json=request) as response:
                answer = await response.json()
    print(answer["status"], repr(answer["run_result"]["stdout"]))


asyncio.run(main())
```

```text
Success '42\n'
```

## Starting the server

Requests of these clients name limits. Unlike in faasrt's own API, a limit above that of the server is refused, because
these services cannot report a lower one. So start the server with the highest limits that the clients ask for: verl
asks for 1,024 MiB and 10 s by default, and a SandboxFusion client for 10 s. Otherwise each reward of verl is 0, and its
log says `422 Client Error: memory_limit_MB: Input should be less than or equal to ...`.

    faasrt serve --memory-mb 1024 --timeout-s 30

These clients send no `Authorization` header of their own. If the server has a token, put it into the URL, with any
user: `http://user:TOKEN@host:8000/...`. They then send it with the scheme Basic, which all routes accept. Their own
logs may contain the URL.

## Differences from the services

The fields, statuses, exit codes, languages and refusals are those of the services. These differ:

* A request that cannot be fulfilled is refused, where the services ignore the part: unknown fields, two files of the
  same name, files outside of the working folder or not in base64, `run_cpu_time` below `run_timeout`, and code with
  lone surrogates. SandboxFusion's refusals have the status 422, and Piston's 400. A body may have 8 MiB. A memory limit
  of -1 is that of the server. Piston's memory limits, in bytes, are rounded down to MiB.
* On Piston, the program has its own name beside other files, which may import it. A program that is alone is `main.py`,
  `main.cjs` and so on.
* A language without a toolchain is a `SandboxError` of SandboxFusion, instead of exit code 127, which looks like a
  failure of the program. Piston lists only the languages that run.
* `nodejs`, `javascript` and `typescript` run in Deno, with the modules of Node: as an ES module if a line begins with
  `import` or `export`, else as a CommonJS module. CommonJS needs the level "namespaces", and starts more slowly than
  programs of faasrt's own API, because Deno loads its copy of Node. There are no packages of npm.
* Output is never lost: the limit is `--output-bytes`. A longer stream of SandboxFusion is cut, which `message` says; a
  program that prints more than twice the limit is ended, as a `TimeLimitExceeded`. On Piston, both are `OL` or `EL`.
  Bytes that are not UTF-8 become U+FFFD.
* A successful compilation has no output, and a compiler may take 30 s and 1 GiB.
* Piston's `output` is stdout, followed by stderr; `cpu_time` is null; `memory` is only known if the program exceeded
  its limit.
* `/run_jupyter` runs the cells in a session (`faasrt.docs.sessions`), on an engine that has sessions. `cell_timeout`,
  which the service ignores, is the time limit of each cell; without it, this is the limit of the server. If
  `total_timeout` is used up, or a cell ends the kernel, the answer is `Failed`, but still has the cells before.
  Tracebacks are those of CPython. All cells together may print and display four times `--output-bytes`.
* `/submit` and the other routes for data sets are missing, and so are Piston's WebSocket and the installation of
  packages, such as open-r1's `cms_ioi`.
* A program has the sandbox that `faasrt.docs.sandboxes` describes: no network, and no files of the machine.

## Overload

The services queue programs without a limit. Here a program waits up to 8 s, also while the server starts, and is then
refused with `Retry-After` and `x-faasrt-not-started: 1`, because clients stop waiting. SandboxFusion's refusal, which
the server also sends before it stops, has the status 504: verl sends the program again, up to three times. Any other
failure counts as a wrong answer in verl, so give it no more concurrent requests than the server can run in 8 s.
Piston's refusals have the status 429 or 503, which open-r1 tries again. A client that disconnects ends its program.
"""

__docformat__ = "markdown"
