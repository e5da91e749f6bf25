"""How a request gets to a server and an answer back: deadlines, retries, replicas, limits.

**Deadlines.** Every call ends by its deadline: `queue_timeout_s` for its waits, and the time of one attempt, which is
the program's own limit and `grace_s`. All its attempts share that, and the server is told the time that is left.
Waiting for an endpoint's `/health` (`health_s` at most) costs the program none of its time; an endpoint that does not
answer it is asked again after 30 s. A cancelled call gives its permit and its connection back.

**Retries.** Code runs at most once, unless a call says `idempotent=True` (or `RetrySettings.idempotent` does for all):

    what happened                                                      by default      idempotent=True

    never sent: DNS, refused, TLS, connect timeout                     tried again     tried again
    refused before it ran: 429; 503 with `Retry-After` or              tried again     tried again
        `x-faasrt-not-started: 1`
    500, 502, another 5xx, a bare 503                                  raised          tried again
    504, no answer in time, a broken connection, an answer that        raised          tried again, if there is time
        cannot be read
    another 4xx, a 200 that carries an `error`, the call's deadline    raised          raised
    any outcome of the code                                            the result      the result

At most three attempts, after waits with full jitter (none to speak of where another replica is well), all within the
call's deadline. A budget for each family of languages, shared by all callers of a factory (ten retries, refilled by
successes), keeps a dead fleet from being hammered. `RetrySettings` has the numbers.

**Replicas.** With several URLs for a language, each call goes to the less full of two replicas. One that fails five
times in a row, or more than a fifth of at least 20 calls in 30 s, is left out for 5 s, doubling up to 300 s; then one
call tries it. If all are bad, all are used. The user's own failures never count. `BreakerSettings` has the numbers.

**Limits.** A manager has `LimiterSettings.max_concurrency` calls in flight at most. Each replica has a limit of its own
below that, for each family of languages: it starts at the size that its `/health` tells (else 16), grows while all goes
well, and shrinks when the server refuses or does not answer. Who waits is served in order. A call that ended here
while its code may still run there (its deadline passed, its connection broke, it was cancelled after it was sent)
counts until the code's time is over, unless the server's `/health` says that it `cancels_on_disconnect`, as the
embedded FaaS does.

`get_metrics().states` shows all of it, an `EndpointState` for each replica.

Example:
    >>> from faasrt.testing import FakeFaas
    >>> async with FakeFaas() as one, FakeFaas() as two:
    ...     one.down()
    ...     async with RuntimeManager(settings=Settings(endpoints={"python": [one.url, two.url]})) as manager:
    ...         results = [await manager.run_code("print(1)", "python") for _ in range(10)]
    >>> all(result.endpoint == two.url for result in results), two.executions
    (True, 10)
"""
