"""Sends requests and receives answers: deadlines, retries, replicas, limits.

**Queue.** A call is sent when it has a permit, that is, when both its manager and an endpoint have room for it. Other
calls wait in order, by default without a time limit; `LimiterSettings` can limit the length of the queue and the wait.
Waiting calls fail at once when the manager closes. While the circuit breaker of every endpoint is open, one call at a
time probes each endpoint. The other calls wait, and fail after `RetrySettings.connect_retry_s`.

**Deadlines.** The deadline of a call starts when it gets its first permit; retries do not restart it. All attempts and
the delays between them must finish within the program's time limit plus `grace_s` (and plus `startup_s` on servers that
start an interpreter for each request). Each request contains the time that is left. Waiting for an endpoint's `/health`
(at most `health_s`) does not count. A cancelled call returns its permit and closes its connection.

**Profiles.** The first call to an endpoint requests its `/health`, which says what the server can do. The first call
after a failure requests it again, because another server may have replaced the endpoint. If this fails, the last report
is still used. An endpoint that does not answer is asked again after 30 s, and one that has never answered also by the
next call in a compiled language. If another kind of server has replaced the endpoint meanwhile, calls that show this
raise `ProtocolError`.

**Retries.** Code runs at most once, unless a call has `idempotent=True` (or all calls do, by
`RetrySettings.idempotent`):

    failure                                                            by default      idempotent=True

    never sent: DNS, refused, TLS, connect timeout                     retried         retried
    refused before it ran: 429; 503 with `Retry-After` or              retried         retried
        `x-faasrt-not-started: 1`
    500, 502, another 5xx, a bare 503, a failure of a SandboxFusion    raised          retried
        or Piston server in a 200
    504, no answer in time, a broken connection, an unreadable         raised          retried, if there is time
        answer
    another 4xx, a 200 with an `error`, the call's deadline            raised          raised
    any outcome of the code                                            the result      the result

At most three attempts are made, within the deadline of the call, and up to six more while replicas refuse the call or
cannot be reached, and another one is healthy. So calls survive a restart of many replicas at once. A retry costs no
budget if the replica was not reached or is about to stop, and another one is healthy. While endpoints are down, a call
is retried for `connect_retry_s` (10 s), without a limit of attempts. These attempts cost no budget, because the circuit
breakers limit them. The deadline still applies: a call with `timeout_ms=500` is retried for at most 2.5 s. The delays
between attempts are random ("full jitter"), and short if another replica is healthy. A budget (ten retries, refilled by
successes) limits the load of retries on endpoints that are down. Each family of languages has a budget: JavaScript and
TypeScript are one family, and every other language is a family of its own. All callers of a factory share the budgets.
`RetrySettings` has the numbers of attempts and the delays.

**Replicas.** With several URLs for a language, two replicas are chosen at random, and each call goes to the less loaded
one, unless that one is known to be slow or failing; see `faasrt/docs/concurrency.md`. If a replica fails five
times in a row, or more than a fifth of at least 20 calls in 30 s, its circuit breaker opens: it gets no calls for 5 s,
doubling up to 300 s; then one call probes it. If all breakers are open and calls wait, each replica is probed after
5 s, or after a tenth of `connect_retry_s` if it is down or loses connections; the first probe after a lost connection
is sent at once. A call that need not wait is sent to any replica that is not down. With `connect_retry_s=0`, it is sent
to any replica, and calls that wait fail at once. Failures of the user's code never count. `BreakerSettings` has the
numbers.

**Limits.** A manager has at most `LimiterSettings.max_concurrency` calls in flight. In addition, each replica has an
adaptive limit for each family of languages. It starts at the capacity in its `/health`, which is also its maximum (else
it starts at 16), grows with successes, and shrinks when the server refuses a call or does not answer. If a call fails
or is cancelled while its code may still run on the server (its deadline passed, or its connection broke), it counts
until the time limit of the code, unless `/health` reports `cancels_on_disconnect`, as it does on the embedded FaaS.

**Changes.** The replicas behind the name in a `dns+` URL come and go (`faasrt.discovery`), and
`RuntimeManager.reconfigure` changes endpoints and settings. A call keeps the settings with which it began; each of its
attempts goes to one of the endpoints that there are then.

`get_metrics().states` has an `EndpointState` for each replica.

Example:
    >>> from faasrt.testing import FakeFaaS
    >>> async with FakeFaaS() as one, FakeFaaS() as two:
    ...     one.down()
    ...     async with RuntimeManager(settings=Settings(endpoints={"python": [one.url, two.url]})) as manager:
    ...         results = [await manager.run_code("print(1)", "python") for _ in range(10)]
    >>> all(result.endpoint == two.url for result in results), two.executions
    (True, 10)
"""
