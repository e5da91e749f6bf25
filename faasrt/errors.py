"""The errors of faasrt.

Failures of the user's code are data (`ExecutionResult.outcome`). Failures of the infrastructure raise these errors:

    FaasrtError
    ├── ConfigurationError(ValueError)         a setting is wrong; nothing was sent
    ├── UnsupportedLanguageError(ValueError)   no endpoint runs the language; nothing was sent
    ├── InvalidRequestError(ValueError)        an argument is wrong; nothing was sent
    ├── CompareError                           the function `compare` failed; the program has run
    ├── StreamError                            a streamed run was used in the wrong order
    ├── RuntimeClosedError                     the manager, runtime or session was closed
    ├── ReturnValueError                       `result.value` was read, but `ret_val` was cut or is not JSON
    ├── ExecutionError                         only from `ExecutionResult.raise_for_outcome()`
    ├── QueueFullError                         too many calls are waiting already; nothing was sent
    └── ServiceError
        ├── ConnectError                       the server was never reached; the code did not run
        ├── ConnectionLostError                the request was sent, and the answer did not arrive
        ├── DeadlineExceededError              the deadline passed, or the wait in the queue was too long
        ├── OverloadedError                    the server has no free capacity (429, 503, some 504)
        ├── SessionLostError                   the session has ended, or its server is gone
        ├── RejectedError                      another 4xx
        ├── ServerError                        another 5xx, a 408, a 200 with an error, or a failed start
        └── ProtocolError                      the answer does not follow the protocol

The attribute `sent` of a `ServiceError` says whether the code may have run. Errors hold only strings and numbers, and
survive `pickle` and `copy`. `faasrt/docs/error-handling.md` says how to handle each.
"""

from __future__ import annotations

import reprlib
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack

from faasrt._attribute_docs import list_attributes

if TYPE_CHECKING:
    from faasrt.results import ExecutionResult

__all__ = [
    "CompareError",
    "ConfigurationError",
    "ConnectError",
    "ConnectionLostError",
    "DeadlineExceededError",
    "ExecutionError",
    "FaasrtError",
    "InvalidRequestError",
    "OverloadedError",
    "ProtocolError",
    "QueueFullError",
    "RejectedError",
    "ReturnValueError",
    "RuntimeClosedError",
    "ServerError",
    "ServiceError",
    "SessionLostError",
    "StreamError",
    "UnsupportedLanguageError",
]

Sent = Literal["no", "maybe", "yes"]
_REPR_CHARACTERS = 200
_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother = 2, 100, 100


def safe_repr(value: object) -> str:
    """Return the `repr` of a value, shortened to about 200 characters. If `repr` fails, name the type."""
    try:
        text = _REPR.repr(value)
    except Exception:  # repr raises for an int of more than 4,300 digits, and may raise for a class of the caller
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= _REPR_CHARACTERS else f"{text[:_REPR_CHARACTERS]}..."


def rounded_repr(value: float | tuple[float, ...] | None) -> str:
    """Return the `repr` of seconds or milliseconds with at most four decimals."""
    if isinstance(value, tuple):
        return repr(tuple(round(each, 4) for each in value))
    return repr(value if value is None else round(value, 4))


class FaasrtError(Exception):
    """The base class of the errors of faasrt.

    Example:
        >>> try:
        ...     await manager.run_code("print(1)", "cobol")
        ... except FaasrtError as error:
        ...     print(f"{type(error).__name__}: {error}")
        UnsupportedLanguageError: unknown language 'cobol': use one of python, javascript, typescript, c, cpp, go...
    """

    @property
    def message(self) -> str:
        """The text of the error without endpoint, attempts and time, which `str` adds to a `ServiceError`."""
        return Exception.__str__(self)


class ConfigurationError(FaasrtError, ValueError):
    """The settings, the environment or the installation are wrong; the message says how to fix them.

    Example:
        >>> SandboxConfig(timeout_limit_s=0)
        Traceback (most recent call last):
        faasrt.errors.ConfigurationError: timeout_limit_s must be a number above 0 and at most 86,400, got 0
    """


class UnsupportedLanguageError(FaasrtError, ValueError):
    """The language is unknown, no endpoint is configured for it, or the endpoints do not run it.

    Example:
        >>> async with RuntimeManager(settings=Settings(endpoints={"python": "http://faas:8000"})) as manager:
        ...     try:
        ...         await manager.run_code("console.log(1)", "js")
        ...     except UnsupportedLanguageError as error:
        ...         print(error)
        javascript is not supported here: no endpoint is configured for it (configured: python)
    """


class InvalidRequestError(FaasrtError, ValueError):
    """An argument of a call is wrong; nothing was sent.

    Example:
        >>> await manager.run_code("print(1)", "python", timeout_ms=0)
        Traceback (most recent call last):
        faasrt.errors.InvalidRequestError: timeout_ms must be finite and above 0, got 0
    """


class CompareError(FaasrtError):
    """The function that a caller passed as `compare` failed, after the program had run. `__cause__` is its exception.

    Example:
        >>> tests = [TestCase(expected="1")]
        >>> await manager.judge("print(1)", tests, language="py", compare=lambda output, expected: 1 / 0)
        Traceback (most recent call last):
        faasrt.errors.CompareError: compare raised ZeroDivisionError: division by zero
    """


class StreamError(FaasrtError):
    """A `StreamedRun` was used in the wrong order: its result was read too early, or it was entered twice.

    Example:
        >>> async with manager.stream_code("print(1)", "python") as run:
        ...     try:
        ...         run.result
        ...     except StreamError as error:
        ...         print(error)
        there is no result, because the program has not ended: iterate to the end of the output first
    """


class RuntimeClosedError(FaasrtError):
    """The runtime, manager or session was closed, before the call or during it.

    Example:
        >>> await manager.aclose()
        >>> await manager.run_code("print(1)", "python")
        Traceback (most recent call last):
        faasrt.errors.RuntimeClosedError: this manager is closed: make a new one
    """


class ReturnValueError(FaasrtError):
    """`ExecutionResult.value` was read, but `ret_val` was cut at the output limit or is not JSON.

    Example:
        >>> result = await manager.run_code("return_val('no JSON')", "python")
        >>> try:
        ...     result.value
        ... except ReturnValueError:
        ...     print("as text:", result.ret_val)
        as text: no JSON
    """


class QueueFullError(FaasrtError):
    """`LimiterSettings.max_queue` calls are waiting to be sent already; nothing was sent.

    Without `max_queue`, which is the default, the queue has no limit.

    Example:
        >>> limiter = LimiterSettings(max_concurrency=1, max_queue=1)
        >>> async with RuntimeManager.from_env(limiter=limiter) as manager:
        ...     calls = [manager.run_code("print(1)", "python") for _ in range(3)]
        ...     results = await asyncio.gather(*calls, return_exceptions=True)
        >>> [type(result).__name__ for result in results]
        ['ExecutionResult', 'ExecutionResult', 'QueueFullError']
    """


@list_attributes
class ExecutionError(FaasrtError):
    """The user's code failed; raised only by `ExecutionResult.raise_for_outcome()`.

    Example:
        >>> result = await manager.run_code("1 / 0", "python")
        >>> try:
        ...     result.raise_for_outcome()
        ... except ExecutionError as error:
        ...     print(error)
        ...     print(error.result.outcome, error.result.exit_code)
        the code ended as USER_ERROR: ZeroDivisionError: division by zero
        USER_ERROR 1
    """

    def __init__(self, message: str, result: ExecutionResult | None = None) -> None:
        super().__init__(message)
        self.result = result
        """The `ExecutionResult` whose outcome is not OK."""


class _Fields(TypedDict, total=False):
    """The keyword arguments of `ServiceError`."""

    quote: str
    hint: str
    endpoint: str
    attempts: int
    elapsed_s: float
    sent: Sent
    status: int | None
    blames_endpoint: bool


@list_attributes
class ServiceError(FaasrtError):
    """A FaaS, or the connection to it, failed. It says nothing about the user's code.

    Example:
        >>> from faasrt.testing import FakeFaaS, Reply
        >>> async with FakeFaaS() as fake, RuntimeManager.from_env({"COZE_LOOP_FAAS_URL": fake.url}) as manager:
        ...     fake.script(Reply.crash())
        ...     try:
        ...         await manager.run_code("print(1)", "python")
        ...     except ServiceError as error:
        ...         print(type(error).__name__, error.endpoint == fake.url, error.status, error.attempts, error.sent)
        ServerError True 500 1 yes
    """

    def __init__(
        self,
        reason: str,
        *,
        quote: str = "",
        hint: str = "",
        endpoint: str = "",
        attempts: int = 0,
        elapsed_s: float = 0.0,
        sent: Sent = "maybe",
        status: int | None = None,
        blames_endpoint: bool = True,
    ) -> None:
        text = f"{reason}: {quote}" if quote else reason
        super().__init__(f"{text}; {hint}" if hint else text)
        self.reason = reason
        """The failure in words of faasrt alone. Logs and events contain it."""
        self.quote = quote
        """The text of the server, the system or a library in the message; it may contain output of a program."""
        self.endpoint = endpoint
        """The base URL of the last attempt."""
        self.attempts = attempts
        """The number of attempts; 0 if none was started."""
        self.elapsed_s = elapsed_s
        """Seconds from the start of the call to the failure."""
        self.sent = sent
        """Whether the request may have reached the server. "no": it did not, so the code did not run. "maybe": at least
        a part of it was sent, but no complete answer arrived; the code may have run, and may still be running. "yes":
        the server answered; the code may have run, unless the answer refused it (any 429, a 503 with `Retry-After`, or
        a 503 or 504 with `x-faasrt-not-started: 1`). It covers all attempts of the call, except earlier ones in which
        the server refused to start the code. Read it to decide whether to repeat a call whose code must not run
        twice."""
        self.status = status
        """The HTTP status of the answer; None if there was no answer."""
        # False if a hostile program may have caused the error, or the server only has too many sessions. Such an error
        # must not open the endpoint's breaker.
        self.blames_endpoint = blames_endpoint

    def __str__(self) -> str:
        if not self.endpoint:
            return self.message
        tries = "1 attempt" if self.attempts == 1 else f"{self.attempts} attempts"
        return f"{self.message} [{self.endpoint}, {tries}, {self.elapsed_s:.2f} s, sent: {self.sent}]"


class ConnectError(ServiceError):
    """The server was never reached: DNS, a proxy, a refused connection, TLS, or a timeout. The code did not run.

    The call was retried for `RetrySettings.connect_retry_s`, within its deadline. If the certificate of the server was
    not accepted, or if the server does not speak TLS, it was retried only on other replicas.

    Example:
        >>> from faasrt.testing import FakeFaaS, Reply
        >>> retry = RetrySettings(connect_retry_s=0)
        >>> async with FakeFaaS() as fake, RuntimeManager.from_url(fake.url, retry=retry) as manager:
        ...     fake.down()
        ...     try:
        ...         await manager.run_code("print(1)", "python")
        ...     except ConnectError as error:
        ...         print(error.sent, error.attempts)
        no 3
    """

    def __init__(
        self, reason: str, *, connection_refused: bool = False, permanent: bool = False, **fields: Unpack[_Fields]
    ) -> None:
        super().__init__(reason, **fields)
        # The server has stopped, and so have its programs.
        self.connection_refused = connection_refused
        # The server's certificate was not accepted, or it does not speak TLS. Neither waiting nor a retry helps.
        self.permanent = permanent


class ConnectionLostError(ServiceError):
    """The request was sent and the answer did not arrive. The code may have run.

    Example:
        >>> from faasrt.testing import FakeFaaS, Reply
        >>> async with FakeFaaS() as fake, RuntimeManager.from_env({"COZE_LOOP_FAAS_URL": fake.url}) as manager:
        ...     fake.script(Reply(disconnect=True))
        ...     try:
        ...         await manager.run_code("print(1)", "python")
        ...     except ConnectionLostError as error:
        ...         print(error.sent, error.attempts)
        maybe 1
    """


class DeadlineExceededError(ServiceError):
    """The deadline of the call passed, or the call waited longer than `LimiterSettings.queue_timeout_s` to be sent.

    After such a wait, `sent` is "no". Otherwise the code may still be running on the server. `faasrt/docs/retries.md`
    says when the deadline is.

    Example:
        >>> from faasrt.testing import FakeFaaS, Reply
        >>> timeouts = TimeoutSettings(grace_s=0.1)
        >>> async with FakeFaaS() as fake:
        ...     fake.script(Reply(hang=True))
        ...     async with RuntimeManager.from_env({"COZE_LOOP_FAAS_URL": fake.url}, timeouts=timeouts) as manager:
        ...         try:
        ...             await manager.run_code("print(1)", "python", timeout_ms=50)
        ...         except DeadlineExceededError as error:
        ...             print(error.sent, error.attempts)
        maybe 1
    """


@list_attributes
class OverloadedError(ServiceError):
    """The server has no free capacity: a 429, a 503, or a 504 that says that nothing was started.

    Example:
        >>> from faasrt.testing import FakeFaaS, Reply
        >>> async with FakeFaaS() as fake, RuntimeManager.from_env({"COZE_LOOP_FAAS_URL": fake.url}) as manager:
        ...     fake.script(Reply.overloaded(retry_after=60))
        ...     try:
        ...         await manager.run_code("print(1)", "python")
        ...     except OverloadedError as error:
        ...         print(error.status, error.retry_after_s)
        429 60.0
    """

    def __init__(
        self, reason: str, *, retry_after_s: float | None = None, not_started: bool = False, **fields: Unpack[_Fields]
    ) -> None:
        super().__init__(reason, **fields)
        self.retry_after_s = retry_after_s
        """The seconds in `Retry-After`, or None."""
        self.not_started = not_started
        """Whether the answer states that the code was not started."""


class _AnsweredError(ServiceError):
    """An error whose answer contains a message from the server."""

    def __init__(self, reason: str, *, error: str = "", details: str = "", **fields: Unpack[_Fields]) -> None:
        super().__init__(reason, **fields)
        self.error = error
        """The `error` text in the answer, or ""."""
        self.details = details
        """The `details` text in the answer, or the beginning of a body that is not JSON."""


@list_attributes
class RejectedError(_AnsweredError):
    """The server refused the request (a 4xx other than 429). A retry would fail too.

    A 408 without the header `x-faasrt-not-started: 1` is a `ServerError` instead. `error` and `details` are the texts
    in the answer that say why the server refused.

    Example:
        >>> from faasrt.testing import FakeFaaS, Reply
        >>> async with FakeFaaS() as fake, RuntimeManager.from_env({"COZE_LOOP_FAAS_URL": fake.url}) as manager:
        ...     fake.script(Reply(status=400, details="code is too long"))
        ...     try:
        ...         await manager.run_code("print(1)", "python")
        ...     except RejectedError as error:
        ...         print(error.status, error.details)
        400 code is too long
    """


class SessionLostError(ServiceError):
    """The session has ended, or its server cannot be reached. The program of the call did not run.

    If the server cannot be reached, the session may still exist: `__cause__` is the `ConnectError`, and
    `Session.lost_reason` is "". Try again later, or open another session.

    The message says why a session has ended: it was idle for too long, an earlier program crashed or exceeded a limit,
    or the server was restarted. Its variables and files are then lost, so open another session. If the connection
    breaks while a program runs, the error is a `ConnectionLostError` instead.

    Example:
        >>> async with manager.session("python") as session:
        ...     result = await session.run_code("import os; os._exit(1)")
        ...     try:
        ...         await session.run_code("print(1)")
        ...     except SessionLostError:
        ...         print("lost after", result.outcome)
        lost after CRASHED
    """


@list_attributes
class ServerError(_AnsweredError):
    """The server failed: another 5xx, a 200 that reports its failure, or an interpreter that did not start.

    Also raised for a 408, which usually means that a proxy stopped waiting. Some servers return no outcomes. If such a
    server answers after the time limit that was sent, two answers are the outcome TIMEOUT: a 408 with an `error`, and a
    500 with an `error` and `details` that mention a timeout.

    Also raised, without an endpoint, when the local process that checks the syntax of Python fails.

    Example:
        >>> from faasrt.testing import FakeFaaS, Reply
        >>> async with FakeFaaS() as fake, RuntimeManager.from_env({"COZE_LOOP_FAAS_URL": fake.url}) as manager:
        ...     fake.script(Reply.crash())
        ...     try:
        ...         await manager.run_code("print(1)", "python")
        ...     except ServerError as error:
        ...         print(error.status, error.details)
        500 the worker died
    """


class ProtocolError(ServiceError):
    """The answer does not follow the protocol: a redirect, a body that is not a JSON object, or wrong types.

    Example:
        >>> from faasrt.testing import FakeFaaS, Reply
        >>> async with FakeFaaS() as fake, RuntimeManager.from_env({"COZE_LOOP_FAAS_URL": fake.url}) as manager:
        ...     fake.script(Reply(body=b"<html>a proxy's page</html>"))
        ...     try:
        ...         await manager.run_code("print(1)", "python")
        ...     except ProtocolError as error:
        ...         print(error)
        the answer is not JSON: Expecting value: line 1 column 1 (char 0) [http://...:..., 1 attempt, ... s, sent: yes]
    """
