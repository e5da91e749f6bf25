"""The terms that this documentation and the source code use.

## Programs and results

| term | meaning |
|---|---|
| program | the source code of a user, which need not be trusted |
| call | an execution that a client requests, with its retries; `map` and `run_cases` make several |
| attempt | one HTTP request of a call; a retry is another attempt |
| execution | one run of a program by a server |
| task | a `CodeTask`: a program of a batch, with its options |
| problem, sample | a question to a model, and one of its answers: a task with the name of the problem in `task_id` |
| case | a tuple of arguments for a function of the program (`run_cases`) |
| test | a `TestCase` (input and output), a `FunctionTest` (arguments and a value) or an `AssertTest` (a test program) |
| outcome | how a program ended: an `Outcome`, such as OK or TIMEOUT |
| verdict | how a test ended: a `Verdict`, such as PASSED or WRONG_ANSWER, or the name of an outcome |
| infrastructure failure | a failure of a server or of the connection to it; it raises a `ServiceError` |

## Servers and the client

| term | meaning |
|---|---|
| FaaS | a server that runs programs ("function as a service") |
| reference server | python-faas or js-faas, the servers of coze-loop |
| embedded FaaS | the server of this package: `LocalFaaS`, `faasrt serve` |
| endpoint | the URL of a FaaS; for a replica that was discovered, with its address: `http://faas:8000#10.1.2.3` |
| discovery | looking up the addresses of the name in a `dns+` URL; each address is a replica |
| endpoint group | the endpoints of a language; each call goes to one of them |
| profile | the properties of an endpoint, from its last `/health` |
| breaker | stops calls to an endpoint that fails: *closed* lets calls through, *open* stops them, *half-open* probes |
| permit | the right to have a call in flight; a call waits for one before it is sent |
| capacity | the number of programs that a server can run at once, from its `/health` |
| limiter | the limits of a manager: calls in flight, calls that wait, and how long they wait (`LimiterSettings`) |
| adaptive limit | the number of calls that may be in flight at an endpoint; it follows the answers of the endpoint |
| abandoned call | a call without a waiting client whose program may still run; it counts against the limit |
| sink | gets the events of the client and of the embedded FaaS: logs, metrics, traces |

## The protocol

| term | meaning |
|---|---|
| protocol | how the requests and answers of one kind of service are encoded; the URL of an endpoint names it |
| guest program | a program of faasrt that runs the user's program and returns its exact result |
| envelope | the guest program with the user's program inside it, as it is sent to a reference server |
| frame | a piece of output in which the guest program encodes a part of the result |
| record | the result of a program or case, as the guest program reports it in a frame |
| nonce | a random text in the frames of one answer, by which the client recognizes them |
| definitions | the part of an execution that runs a program once, before its function is called for the cases |
| lossless | (of a server) returns results unchanged, so it needs no envelope |
| cold start | the start of an interpreter for an execution; about 1.5 s on python-faas |
| loop guard | the part of the guest program that stops endless loops |
| fingerprint | identifies what runs the programs of a server; part of the key of a stored result |

## Sessions

| term | meaning |
|---|---|
| session | an interpreter that keeps variables, imports and files between runs |
| run, cell | a piece of code that a session runs; tracebacks name it `<cell 3>` |
| branch | a session that was made by `fork`, with the state of another one |
| display | a value, table or image that a program shows, in one or more formats: a `Display` |
| idle limit | the time without a call after which the server ends a session |

## The embedded FaaS

| term | meaning |
|---|---|
| engine | runs the programs of a language: `native` and `wasm` for Python, `deno` for JavaScript and TypeScript |
| toolchain | the compiler or interpreter of another language; the engine of that language has its name |
| jail | what the Linux kernel forbids to the processes of a program |
| level | the strength of a jail: `namespaces`, or `filters` without namespaces; `confined` for processes of `wasm` |
| launcher | the process that builds a jail once, and starts a process in it for each program |
| slot | a jail in which one program runs after another, as long as none leaves a trace |
| template | the first process of a slot, which forks the process of each program |
| tier | a launcher that has imported certain packages, so that programs that use them start faster |
| runner | the code in a sandbox that reads a job, runs the program, and reports how it ended |
| job | a program with its input and limits, on its way to a runner |
| warm process | a process that waits for a program, so that no program waits for the start of a process |
| canary | a program that tries to break out of a new jail; if it succeeds, the engine does not start |
"""

__docformat__ = "markdown"
