"""The command `faasrt`: needs the extra `cli`, and `local` for the embedded FaaS.

    faasrt run [FILE | - | -c CODE]       runs a program; the language is guessed from the suffix (.py .js .mjs .ts) or
                                          given with --language
    faasrt validate [FILE | - | -c CODE]  checks a program's syntax without running it
    faasrt serve                          serves the embedded FaaS (`faasrt.local`)
    faasrt health                         asks every endpoint for its health
    faasrt warmup                         prepares the sandboxes of this machine
    faasrt batch TASKS -o RESULTS         runs the tasks of a file
    faasrt report RESULTS                 makes one HTML page of a batch's results, with all that it needs in it:
                                          outcomes, latency, throughput, the slowest and the failing tasks

`faasrt COMMAND --help` tells the options. The program's stdout goes to stdout, its stderr to stderr; everything that
faasrt has to say goes to stderr. With no endpoint configured the embedded FaaS is used, and a line on stderr says so.

    exit code 0      all well
              1      the code failed
              2      wrong usage or input
              3      the infrastructure failed
              130    interrupted

**Batches.** Tasks are JSON Lines (.gz and .zst too, - for stdin) with `code` and `language`, and if wanted `id`,
`timeout_ms`, `function`, `args`, `kwargs` and `ext`; without `id` one is made of the line's number and text. A result
is JSON, too: `id`, `line` and `language`, then `outcome` and all that `ExecutionResult` has, or `infra_error`, or
`invalid_task`. It is on the disk before it counts, and `--resume` runs what has no verdict, after a `kill -9` too.
Exit codes: 0 every task has a verdict, 2 some line holds no task, 3 the infrastructure failed some, 130 after Ctrl-C,
of which the first lets tasks in flight end.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command, or say how to install what it needs."""
    for name in ("click", "jinja2", "rich", "zstandard"):
        if find_spec(name) is None:
            sys.stderr.write(f"faasrt: the command line needs {name}: pip install 'faasrt[cli]'\n")
            sys.exit(2)
    from faasrt.cli.main import run

    sys.exit(run(sys.argv[1:]))
