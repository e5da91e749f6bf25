"""The guide: how to do things with faasrt, and what to do when they go wrong.

* `faasrt.docs.cookbook`: ten short recipes, from one program to a tested web service.
* `faasrt.docs.programs`: input, files, live output, and judging programs and functions by tests.
* `faasrt.docs.sessions`: programs that keep their state, with pictures, files and branches.
* `faasrt.docs.rewards`: rewards for TRL, verl and Inspect AI, and cheats that they do not reward.
* `faasrt.docs.agents`: an MCP server for agents, and tools for their frameworks.
* `faasrt.docs.sandboxes`: how programs differ from plain CPython and Deno, limits, and security.
* `faasrt.docs.server`: the server of the embedded FaaS: HTTP API, stopping, changing options.
* `faasrt.docs.services`: SandboxFusion and Piston servers, and their further languages.
* `faasrt.docs.service_clients`: `faasrt serve` behind the clients of SandboxFusion and Piston.
* `faasrt.docs.other_languages`: C, C++, Go, Rust, Java and Bash.
* `faasrt.docs.error_handling`: which failures are results, which are exceptions, and what to do with each.
* `faasrt.docs.troubleshooting`: each error and common situation, and the remedy.
* `faasrt.docs.concurrency`: queues and limits, and which settings to change.
* `faasrt.docs.batches`: files of tasks and results, what `--resume` runs, and pass@k.
* `faasrt.docs.caching`: results that are reused.
* `faasrt.docs.logging_and_metrics`: logs, metrics and traces.
* `faasrt.docs.many_processes`: one server for several processes, such as the workers of uvicorn.
* `faasrt.docs.running_a_fleet`: many servers, on Kubernetes: sizing, autoscaling, security, upgrades and alerts.
* `faasrt.docs.glossary`: the terms that the documentation and the source code use.

The reference is in the docstrings of `faasrt` and its modules. Every program in the guide is run by the tests, and
prints the output shown below it; `...` stands for text that differs from run to run.
"""

__docformat__ = "markdown"
