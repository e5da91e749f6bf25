"""Sends requests and receives answers: deadlines, retries, replicas, limits.

**Queue.** A call needs a permit of its manager and one of an endpoint. Calls beyond the limits wait in order, without
limit; `LimiterSettings` can bound the length of the queue and the wait. Waiting calls fail at once when the manager
closes, or when the circuit breaker of every endpoint is open.

**Deadlines.** The deadline of a call starts with its permit: the program's own limit and `grace_s`, for all attempts
and the waits between them. The server is told the time that is left. Waiting for an endpoint's `/health` (`health_s`
at most) costs the program none of its time; an endpoint that does not answer it is asked again after 30 s. A cancelled
call returns its permit and its connection.

**Retries.** Code runs at most once, unless a call says `idempotent=True` (or `RetrySettings.idempotent` does for all):

    failure                                                            by default      idempotent=True

    never sent: DNS, refused, TLS, connect timeout                     retried         retried
    refused before it ran: 429; 503 with `Retry-After` or              retried         retried
        `x-faasrt-not-started: 1`
    500, 502, another 5xx, a bare 503                                  raised          retried
    504, no answer in time, a broken connection, an unreadable         raised          retried, if there is time
        answer
    another 4xx, a 200 that carries an `error`, the call's deadline    raised          raised
    any outcome of the code                                            the result      the result

At most three attempts, after waits with full jitter (short ones where another replica is healthy), all within the
call's deadline. A budget for each family of languages, shared by all callers of a factory (ten retries, refilled by
successes), limits the load of retries on dead endpoints. `RetrySettings` has the numbers.

**Replicas.** With several URLs for a language, each call goes to the less loaded of two replicas. The circuit breaker
of one that fails five times in a row, or more than a fifth of at least 20 calls in 30 s, opens for 5 s, doubling up to
300 s; then one call probes it. If all are open, all are used. The user's own failures never count. `BreakerSettings`
has the numbers.

**Limits.** A manager has at most `LimiterSettings.max_concurrency` calls in flight. Each replica has a limit of its own
below that, for each family of languages: it starts at the size that its `/health` tells (else 16), grows with
successes, and shrinks when the server refuses or does not answer. A call that ended here while its code may still run
there (its deadline passed, its connection broke, it was cancelled after it was sent) counts until the code's time is
over, unless the server's `/health` says that it `cancels_on_disconnect`, as the embedded FaaS does.

`get_metrics().states` has an `EndpointState` for each replica.

Example:
    >>> from faasrt.testing import FakeFaas
    >>> async with FakeFaas() as one, FakeFaas() as two:
    ...     one.down()
    ...     async with RuntimeManager(settings=Settings(endpoints={"python": [one.url, two.url]})) as manager:
    ...         results = [await manager.run_code("print(1)", "python") for _ in range(10)]
    >>> all(result.endpoint == two.url for result in results), two.executions
    (True, 10)
"""
