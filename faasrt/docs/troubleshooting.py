r"""Each error and common situation, with its meaning and its remedy.

Start with `faasrt health`. It shows every endpoint, its engines and levels, and why one is not ready. With no endpoint
configured it starts the embedded FaaS and shows that.

## Errors before anything is sent

### ConfigurationError

A setting, an environment variable or the installation is wrong. The message names it and says what is allowed.

* *no endpoint is configured*: set `COZE_LOOP_FAAS_URL`, or use `RuntimeManager.local()`, or
  `RuntimeManager.from_env(local_fallback=True)`, which uses the embedded FaaS when no variable is set.
* *the embedded FaaS needs ...: pip install 'faasrt[local]'*: the extra `local` is not installed.
* *this manager belongs to another event loop*: a manager works in the loop that used it first. Make one in each
  `asyncio.run`, and one in each worker process of a web server (open it in `lifespan`, not at import).
* *a FaaS URL must name a known protocol*: the part before `+` in a URL is misspelt, or the package that has this
  protocol is not installed. *dns+ comes first, and once*: write `dns+piston+http://...`.
* *must have a host name, not an address*: remove `dns+`, because an address is one replica.
* *proxy* (or *session*) *must be None with dns+...*: an HTTP proxy, or a session of yours, resolves names itself.
  Remove `dns+` or the option.
* *settings.endpoints must not be empty* from `reconfigure`: pass all settings, not only those that change:
  `attrs.evolve(settings, limiter=...)`.
* *settings.endpoints must be empty, because this manager always uses its embedded FaaS*, *token must be the one ...*,
  *sandbox... must be at most ...*: `reconfigure` cannot change a running embedded FaaS. Make another manager.
* *listening on ... needs a token* (the command line says *--host ... needs --token*): pass `--token` or set
  `FAASRT_TOKEN`, on the server and for its clients.
* *cannot listen on 127.0.0.1:8000: ... address already in use*: another process has the port. Choose one with `--port`;
  `--port 0` takes a free one.
* *... cannot change while the server runs*: `host`, `port` and TLS stay as they are until the server starts again. All
  other options can change; `faasrt serve` says *the configuration stays as it was* and why, and goes on.
* *max_connections must be at most ...*: each connection is an open file. Raise the limit of the process (`ulimit -n`).
* *cannot write temporary files*: set `TMPDIR` and `FAASRT_CACHE_DIR` to folders that the process may write.

### UnsupportedLanguageError

The language is unknown, or no endpoint is configured for it. A URL such as `piston+https://host/api/v2` names a service
with further languages; see `faasrt.docs.services`. JavaScript and TypeScript share `COZE_LOOP_JS_FAAS_URL`. *is not
supported any more* means that `reconfigure` has removed the endpoints of the language, maybe while the call waited.

* *... is not installed on the server*: the embedded FaaS runs C, C++, Go, Rust and Java only with their toolchain. The
  message names its Debian package.
* *... needs the level namespaces*: these languages and Bash do not run in most containers; see
  `faasrt.docs.other_languages`.

### InvalidRequestError

An argument is wrong: empty code, `timeout_ms` of 0 or above the sandbox's limit, arguments that are not JSON. To allow
more time, raise the limit: `SandboxConfig(timeout_limit_s=60)`.

* *... does not run cpp programs*: python-faas and js-faas do not run C, C++, Go, Rust, Java and Bash. An embedded FaaS
  (`faasrt serve`) does if the toolchain is installed; its message names the Debian package that is missing.
* *has no sessions*, *cannot return displays*: python-faas, js-faas, SandboxFusion and Piston servers have none. The
  embedded FaaS has them for Python, JavaScript and TypeScript.
* *call_function is for Python, JavaScript and TypeScript*: programs in other languages print their results. Use
  `run_code`, or `judge` with `TestCase`.

### CompareError

The function that you passed as `compare` raised an exception, which is its `__cause__`, was a coroutine function, or
returned an object that is neither true nor false, such as a NumPy array. The program has run. The other verdicts of
this call of `judge` are lost. Programs may return values of any type, so return False for those that you do not expect.

### StreamError

A run of `stream_code` was used in the wrong order. Enter it with `async with`, once, and read `run.result` after the
last chunk.

### RuntimeClosedError

The manager or session was closed before the call or during it. Keep the `async with` block open for as long as calls
are made. The same error means that `LocalFaaS` or `FakeFaaS` was used before it was opened, or that
`LocalFaaS.reconfigure` got a server that was started.

### QueueFullError

Your process already has `max_queue` callers waiting. Refuse the request (503), or raise `max_queue` or
`max_concurrency`. It is never raised unless you set `LimiterSettings(max_queue=...)`. See `faasrt.docs.concurrency`.

## Errors of a server

These are subclasses of `ServiceError`. The message ends with the endpoint, the attempts, the time and `sent`.

### ConnectError

No server was reached: wrong host or port, a server that is down, a firewall, TLS. Try
`curl http://HOST:PORT/health`. In a container, `localhost` is the container itself: use the name of the service. The
code did not run. The call was already retried, for `RetrySettings.connect_retry_s` or until its deadline. If it made 0
attempts, it waited while another call probed the server. To get such errors sooner, set `connect_retry_s=0`.

* *no address of the name is known*: the name in a `dns+` URL was never resolved; the reason follows. Try
  `getent ahosts NAME` where the client runs. A headless Service has addresses only while pods are ready. If look-ups
  fail later, the client keeps the last addresses, and logs `replicas_changed` once.
* *no address of the name was found before the deadline*: the look-up for a retry took longer than
  the time that was left.

### ConnectionLostError

The connection broke before the answer was complete. The server was restarted, or a proxy has a shorter timeout than the
program needs. Raise the proxy's read timeout above `timeout_limit_s` plus `TimeoutSettings.grace_s`.

### DeadlineExceededError

No answer arrived in time. The server is overloaded or hangs, or it starts slowly: raise `TimeoutSettings(grace_s=...)`,
and `startup_s` for servers such as python-faas that start an interpreter for each request. *no permit was free within
... s* means that the call waited longer than `queue_timeout_s`, and nothing was sent: lower the load, add replicas, or
raise `queue_timeout_s`. *no connection of the session in the settings was free* means that your application
uses all connections of the session in `Settings(session=...)`, and nothing was sent. Give its connector a higher
`limit`, or pass a separate session.

### OverloadedError

The server has no free capacity (429 or 503), and retries did not help. Lower `max_concurrency`, add replicas, or start
the server with more `--workers`. `error.retry_after_s` says how long to wait. *the server is about to stop* means that
the only server drains, and *too many connections are open* that `--max-connections` is too low for its clients. *too
many sessions*: close sessions that are not used, lower their `idle_timeout_s`, or raise `--max-sessions`.

The embedded FaaS also answers 503 if an engine is not ready within `queue_timeout_s`, such as during the first
compilation, and when the process of a program could not be started. `faasrt health` shows the reason.

### RejectedError

The server refused the request (another 4xx); `error.error` and `error.details` say why. 401: the token is missing or
wrong. 404: the URL is not that of a FaaS, or a gateway needs a path. 413: the program is too large. 400 from the
embedded FaaS names the field that it cannot honour, such as `network_enabled`. Errors of Piston name the setting to
change, such as PISTON_RUN_TIMEOUT; see "Settings of a Piston server" in `faasrt.docs.services`.

### SessionLostError

The session has ended, or its server cannot be reached; the program did not run. Open another session, and repeat the
steps that matter. The message has the reason; see "Limits, and how a session ends" in `faasrt.docs.sessions`.

* *the session was idle for 600 s*: raise `idle_timeout_s`, and `faasrt serve --session-idle-s`.
* *there is no session with this id*: the server has been restarted, or a load balancer has sent the request to another
  server. Give the client the URL of each server, or a `dns+` URL, instead of that of the balancer.

### ServerError

The server failed (5xx), or its interpreter did not start. Look into its logs. *stopped waiting (HTTP 408)* usually
comes from a proxy whose timeout is shorter than the program needs. If your program is at fault, the server should say
so in a result; the embedded FaaS does.

### ProtocolError

The answer did not come from a FaaS. Often it is a login page, a redirect, or a proxy's error page. Check the URL with
`curl -i URL/health`.

## Errors after a result

### ReturnValueError

`result.value` was read, but the program called `return_val` with a text that is not JSON. Read `result.ret_val`, which
is the text. If it was cut, raise `max_output_bytes`.

### ExecutionError

`raise_for_outcome()` was called on a result that is not `OK`; `error.result` is that result.

## Unexpected results

### A package is missing: `ModuleNotFoundError: No module named 'numpy'`

Programs on `native` import what the interpreter of the server can import. Install the package there:
`pip install 'faasrt[science]'` brings numpy, pandas, scipy, scikit-learn and sympy. Or name another environment with
`faasrt serve --python`. On `wasm` there are those five and the standard library, and no others.

### MEMORY_LIMIT for a small program

The limit is 128 MiB by default. The interpreter and the packages that the server imports in advance do not count, but
all other packages and the data of the program do. Pass `SandboxConfig(memory_limit_mb=512)`. If you run your own
server, start it with `faasrt serve --memory-mb 512`: a request can only lower the server's limit.

### TIMEOUT although the program is fast

The time includes imports: the first import of a large package reads it from the disk. On python-faas, a sum over an
endless iterator, or another single call of C code, cannot be interrupted, and blocks a worker of the server.

### A number differs from my machine

Look at `result.metadata["platform"]`. On `wasm`, numpy's integers have 32 bits. See `faasrt.docs.sandboxes`.

### stdout is cut

`result.truncated` names the streams that were longer than `max_output_bytes`. Head and tail are kept.

## The embedded FaaS

### The first Python program takes 45 seconds

The engine `wasm` compiles its sandbox once for a machine (2.4 GB of memory, 300 MB of disk), and makes snapshots (300
MB). Run `faasrt warmup --engine python=wasm` when you build the image, and keep `FAASRT_CACHE_DIR` on a volume. The
engine `native` compiles nothing.

### `faasrt health` says that the level is `filters`

The kernel offers no namespaces to this process, as in a container with Docker's default profile. Python then runs on
`wasm`. To get `namespaces`, run on the host, in a virtual machine, or in a container that allows user namespaces:
`faasrt deploy containerfile` has the options of podman and docker, and `faasrt.docs.running_a_fleet` those of
Kubernetes. Do not use `--privileged` for this: it removes the container's own isolation.

### `the engine native needs the level namespaces`

You chose `native` where the level is `filters`. Choose `wasm`, see above, or choose the level as well
(`--level filters`), which isolates programs less.

### `programs run as another user, who cannot read ...`

At the level `filters`, root runs programs as another user. That user cannot read the interpreter, which is usually
below `/root`. Start the server as an ordinary user, or choose an interpreter that all users can read (`--python`).

### A process of the server was killed

The machine ran out of memory: limits are per program. Lower `--workers` or `--memory-mb`.

### Every reward of verl is 0

Its log has the reason: `422 Client Error: memory_limit_MB: ...` means that verl asks for more than the server allows;
increase `--memory-mb` or `--timeout-s` of `faasrt serve`. A 401 means that the token is missing in the URL, and a 504
that the server is too busy. See `faasrt.docs.service_clients`.

## The client

### Warnings about a manager that was never closed

Use `async with`, or call `await manager.aclose()` at the end.

### Nothing is logged

Logging is silent until the application configures it. See `faasrt.docs.logging_and_metrics`.

### Calls are slower than the server

Look at `result.timings`: `queued_s` is the wait for a permit here, `attempts_s` the time at the server. See
`faasrt.docs.concurrency`.
"""

__docformat__ = "markdown"
