r"""The server of the embedded FaaS: its HTTP API, refused requests, stopping, and changing options.

`faasrt serve` and `faasrt.local.LocalFaaS` are the same server. `faasrt.docs.sandboxes` is about the programs that it
runs, and `faasrt.docs.running_a_fleet` about many servers.

## The HTTP API

| request | answer |
|---|---|
| `POST /run_code` | runs a program |
| `POST /validate_code` | parses a program |
| `GET /health` | the languages, and why one cannot run |
| `GET /livez` | 200 while the process serves (no token) |
| `GET /readyz` | 200 while programs are accepted; 503 at the start, and before the end (no token) |
| `GET /metrics` | JSON, or the Prometheus text format when the `Accept` header asks for it |
| `GET /openapi.json` | the description of every field |
| `POST /sessions` | opens a session; 201 with its `id` |
| `POST /sessions/{id}/run` | runs a program in it |
| `POST /sessions/{id}/interrupt` | interrupts that program |
| `POST /sessions/{id}/fork` | opens a copy; 201 with its `id` |
| `POST /sessions/{id}/files`, `PUT` | reads files, writes files |
| `GET` and `DELETE /sessions/{id}` | its state; ends it |
| `/sandboxfusion/...`, `/piston/api/v2/...` | the clients of these services (`faasrt.docs.service_clients`) |

If the `Accept` header of a run names `application/x-ndjson`, the answer is lines of JSON: the output while the program
runs, and last `{"result": ...}` with the usual answer, or `{"error": {"status": ...}}` (`faasrt.protocol.json_lines`).
While the client does not read, the program waits when it prints, and this time counts for its time limit. stdout and
stderr in the result are then cut to 1 MiB, because the lines have all output. The stdout of a program that defines
`return_val` itself is sent at the end, because it contains the return value.

The header `Server-Timing` of a result has the times for the queue, for the compilation if there was one, and for the
run, in milliseconds: `queue;dur=0.1, run;dur=4.2`. Lines of JSON come without it.

If a program was ended at a limit, its `error_info` names the limit, its value, and whether the client or the server set
it: `{"name": "Timeout", "message": "timeout after 500 ms (limit of the client)"}`. If a program failed and printed
nothing to stderr, the server writes one line there that says why, such as `faasrt: timeout after 500 ms (limit of the
client)`, because the backend of coze-loop takes an empty stderr for success. The answer repeats this line as `notice`,
and faasrt's own client removes it from the result.

## Refused requests

The server refuses these requests before a program runs, with `{"error", "details"}`:

* bodies that are larger than 8 MiB, compressed, not declared as `application/json`, or not strict JSON (in more than 64
  KiB, only strings may be large);
* fields of a wrong type, and limits that it cannot enforce;
* a `Host` that is not its own, any `Origin`, and requests from other sites, so that no web page can reach it;
* a missing or wrong token, except for `/livez` and `/readyz`; it stands in `Authorization: Bearer TOKEN`, or is the
  password in the URL: `http://user:TOKEN@host:8000`;
* programs that cannot start now: 429 or 503, with `Retry-After` and `x-faasrt-not-started: 1`.

An address other than loopback needs a token. The server does not tell users apart. Without a certificate (`--tls-cert`)
it speaks plain HTTP.

## Sessions

`faasrt.docs.sessions` describes sessions (`manager.session`). On the server, a session is a process of
its own, or, on the engine `wasm`, one of several in a process. An open session holds memory. It holds one of the
`--workers` places only while a program runs in it, while it is opened and while it is forked; these wait in the same
queue as other programs. Requests for one session are done one at a time,
in order. One that waits for longer than programs may wait in the queue is refused with 429, and nothing has run.

| limit | flag of `faasrt serve` | option of `LocalFaaS` | default |
|---|---|---|---|
| open sessions, with forks; 0 turns sessions off | `--max-sessions` | `max_sessions` | 100 |
| the highest idle limit; clients ask for 600 s by default | `--session-idle-s` | `session_idle_s` | 3,600 s |
| the sum of the memory limits of all sessions, in MiB | `--session-memory-mb` | `session_memory_mb` | none |

A higher idle limit in a request is lowered. A session beyond the other limits is refused with 503, `Retry-After` and
`x-faasrt-not-started: 1`. The server never ends a session to make room for another one. A client that disconnects
during a run interrupts it; one that disappears between two runs leaves a session that ends at its idle limit.

The answer to a run also has `displays`, what the program displayed, and `session.ended`: why the session has ended with
this program, or "".

The `id` of a session is a secret of 24 random bytes: everybody who knows it, and the token of the server, can use the
session. The access log and events contain a short hash of it, or none. When a session has ended, or was never there,
its requests get 404 `session lost`, and `details` says why. The server remembers the reasons of the last 1,000. No
session survives the end of the server.

## Memory and connections

The server holds at most 64 MiB of bodies. The first 64 KiB of each body do not count, so large requests never keep out
small ones. If a larger body does not fit, the slowest client that sends less than 64 KiB per second loses its memory,
and gets a 429 with `x-faasrt-not-started: 1`. If no client is that slow, the larger body gets this 429. Unread answers
may hold another 64 MiB, or more if the largest answers of all programs that can run at once need more. If they exceed
this, the server disconnects the client that has taken the longest to read 64 KiB.

It holds at most 1,000 connections (or half of the process's descriptors), or `max_connections`. A further connection
gets a 503 with `x-faasrt-not-started: 1`, so that its client asks another server at once, instead of waiting in the
backlog. Over TLS, a connection counts before its handshake, and a further one is closed before it. Eight further
connections may send `/livez` and `/readyz`, in a second each, so that a server that is only busy is not restarted.
Clients that open many connections and send nothing can fill these eight, too.

Receiving the head of a request, receiving its body, and reading its answer may take 30 s each. While a program runs,
its time limit applies instead to a client that does not read its output. A TLS handshake may take 10 s. A client that
disconnects ends its program.

## Logs and recovery

An engine that fails for lack of descriptors, memory or disk recovers by itself, and `faasrt serve` logs the reason. The
log contains no part of a program. The access log, which is off by default, has the method, path, status, duration and
size of each request, and nothing of its query, headers or body. After SIGKILL, no process or file is left behind.

## Stopping

On SIGTERM, or with `LocalFaaS.drain`, the server refuses new programs, and those in flight finish, also those in the
queue. Then all sessions end. Meanwhile it listens: `/readyz` is 503, new programs get 503 with
`x-faasrt-not-started: 1` and `Retry-After`, and each answer closes its connection. When no program is in flight, it
stops as soon as all connections are closed.
Idle ones have five seconds from the signal, because clients of faasrt close them after four: so no request meets a
connection that is just being closed.

Before it stops listening, it accepts the connections in the backlog, and gives them one more second to send a request
and get the 503. Later connections are refused; clients retry them on another server. Only a connection that is made in
the microseconds between both may be reset.

After the grace time (`--grace-s`, `drain_s`) the programs that still run are ended. A second signal ends the server at
once. Load balancers may send requests for some seconds after the signal, which clients without retries see as failures;
a pause before the signal avoids this (in Kubernetes, a `preStop` hook that sleeps).

## Changing options

`LocalFaaS.reconfigure`, and SIGHUP for `faasrt serve` (see `faasrt.cli`), change all options but the address while
programs run. Requests in flight keep the old options, and open sessions their limits. Only engines whose options change
are replaced: the new one starts first, and the old one ends after its last program and its last session, so for a while
the machine holds both.
"""

__docformat__ = "markdown"
