"""The command `faasrt`. It needs the extra `cli`, and `local` for the embedded FaaS.

    faasrt run [FILE | - | -c CODE] ARG...
                                          runs a program; the language is guessed from the suffix (such as .py, .ts or
                                          .cpp) or given with --language
    faasrt judge [FILE | - | -c CODE] TESTS
                                          judges a program by the tests in a folder: NAME.in with NAME.out or NAME.ans,
                                          or in a file of JSON Lines; with --function, a function of the program
    faasrt validate [FILE | - | -c CODE]  checks a program's syntax without running it
    faasrt serve                          serves the embedded FaaS (`faasrt.local`)
    faasrt mcp                            offers sandboxes to models as tools of MCP, over stdio, or HTTP with --http
                                          (`faasrt/docs/agents.md`)
    faasrt health                         requests /health from every endpoint
    faasrt languages                      lists the languages, and the versions with which the endpoints run them
    faasrt warmup                         starts every engine of the embedded FaaS once, and compiles what is missing
    faasrt batch TASKS -o RESULTS         runs the tasks of a file
    faasrt report RESULTS                 makes one self-contained HTML page about the results of a batch: outcomes,
                                          pass@k, reasons, languages, latency, throughput, the slowest tasks
                                          and the failed ones; with --json it prints the numbers
    faasrt deploy FILE                    prints a file for running many servers: kubernetes, containerfile,
                                          prometheus-rules or grafana-dashboard (`faasrt/docs/running-a-fleet.md`)

`faasrt COMMAND --help` lists the options. The program's stdout goes to stdout and its stderr to stderr; messages of
faasrt go to stderr. If no endpoint is configured, the embedded FaaS is used, with a message.

    exit code 0      success; for `batch`, every task has an outcome
              1      the code failed (`run`), fails a test (`judge`), or does not parse (`validate`)
              2      wrong usage or input, including a line of a batch that is not a task
              3      the infrastructure failed, an endpoint is not healthy (`health`), a language cannot run (`warmup`,
                     `serve`), or the output cannot be written
              130    interrupted by Ctrl-C or SIGTERM, of which the first ends `serve` and `mcp` with 0

**Input.** The stdin of `faasrt run` is that of the program if it is a pipe or a file; `--stdin FILE` takes another one.
`--file NAME=PATH` puts a file into the working folder of the program, and `--collect GLOB --output-dir DIR` writes the
files that the program leaves there. `--show DIR` writes the figures of matplotlib, tables and the value of the last
expression, as `1.png`, `1.html`, `1.txt` for the first one, and prints the paths.

**Limits.** The limit of the sandbox is 30 s and 128 MiB. A larger `--timeout-ms` or `--memory-mb` raises it; a server
may have a lower limit. The message of a program that was ended names the limit, such as `TIMEOUT after 2,000 ms
(limit)`, or `(limit of the server)`.

**Terminals.** Messages have colors on a terminal, unless `NO_COLOR` is set. Progress is one line, which is never wider
than the terminal. `faasrt serve` prints how a client uses it; `--access-log` writes a line to stderr for each request,
with its method, path, status, duration and the size of the answer.

**Servers.** The options of `faasrt serve` can also be in a TOML file, `--config FILE`, under the names of the flags:

    language = ["python", "javascript"]
    workers = 8
    timeout-s = 10
    token-file = "/run/secrets/token"

Flags and FAASRT_TOKEN come before the file. If there is `--config`, `--token-file` or `--tls-cert`, SIGHUP makes the
server read these files again: the token, the certificates, limits and engines change without losing a call. The old
token is invalid at once, so clients that still send it get a 401. Without these files, SIGHUP stops the server as
SIGTERM does, unless `nohup` started it. A wrong configuration is refused as a whole, with a line that says why; so is a
change of `host`, `port`, `log-format`, or from HTTP to HTTPS. SIGTERM and Ctrl-C stop the server when the programs in
flight have finished, after `--grace-s` at most; a second one stops it at once. See `faasrt/docs/server.md`.
With `--log-format json`, each line on stderr is a JSON object with `timestamp`, `level`, `logger` and `event`, also
those of the access log. The address stays on stdout.

**Shell completion.** This completes commands, options and languages in bash, for example in ~/.bashrc; zsh and fish
have `zsh_source` and `fish_source`:

    eval "$(_FAASRT_COMPLETE=bash_source faasrt)"

**Batches.** `faasrt/docs/batches.md` describes the files of tasks and results, `--resume` and pass@k. By default, the
number of tasks in flight is the number of programs that the servers run at once, as their `/health` says, and 16 for
each server that does not say. The summary on the terminal counts the errors by type, with their reasons. After the
first Ctrl-C, tasks in flight finish; a second one stops at once. If several exit codes apply, it is 130 before 3 before
2. With `--cache DIR`, tasks whose results are in this folder do not run, also in another batch; see
`faasrt/docs/caching.md`.
"""

from __future__ import annotations

import gc
import os
import sys
from importlib.util import find_spec


def main() -> None:
    for name in ("click", "jinja2", "rich", "zstandard"):
        if find_spec(name) is None:
            sys.stderr.write(f"faasrt: the command line needs {name}: pip install 'faasrt[cli]'\n")
            sys.exit(2)
    # Imported objects live until the end. Collecting garbage among them would take a sixth of the time of a command.
    gc.disable()
    from faasrt.cli.commands import run

    gc.freeze()
    gc.enable()
    code = run(sys.argv[1:])
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        # Discard what is left. The interpreter would report the error again, with the code 120.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = code or 3
    sys.exit(code)
