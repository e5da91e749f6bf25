"""The errors of faasrt.

User-code trouble is data (`ExecutionResult.outcome`); infrastructure trouble is one of these::

    FaasrtError
    ├── ConfigurationError(ValueError)
    ├── UnsupportedLanguageError(ValueError)
    ├── InvalidRequestError(ValueError)
    ├── RuntimeClosedError
    ├── ReturnValueError
    ├── ExecutionError                    only from ExecutionResult.raise_for_outcome()
    ├── QueueFullError
    └── ServiceError
        ├── ConnectError                  never reached the server
        ├── ConnectionLostError           sent, and the answer did not arrive
        ├── DeadlineExceededError         the call's own deadline passed
        ├── OverloadedError               429 / 503
        ├── RejectedError                 another 4xx
        ├── ServerError                   5xx, or a 200 that carries an error
        └── ProtocolError                 an answer that is not the protocol

Errors hold strings and numbers only, and survive `pickle` and `copy`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from faasrt.results import ExecutionResult

Sent = Literal["no", "maybe", "yes"]


class FaasrtError(Exception):
    """The base of every error that faasrt raises on purpose."""


class ConfigurationError(FaasrtError, ValueError):
    """Settings, the environment or the installation do not allow what was asked; the message says what to change."""


class UnsupportedLanguageError(FaasrtError, ValueError):
    """The language is unknown, or no endpoint is configured for it."""


class InvalidRequestError(FaasrtError, ValueError):
    """An argument of a call is wrong; nothing was sent."""


class RuntimeClosedError(FaasrtError):
    """The runtime or manager was closed before this call."""


class ReturnValueError(FaasrtError):
    """`ExecutionResult.value` was read, but what `return_val` was given is not JSON."""


class QueueFullError(FaasrtError):
    """Too many callers already wait for a permit here; nothing was sent."""


class ExecutionError(FaasrtError):
    """The user's code did not end well; raised only by `ExecutionResult.raise_for_outcome()`.

    Attributes:
        result: The `ExecutionResult` whose outcome is not OK.
    """

    def __init__(self, message: str, result: ExecutionResult | None = None) -> None:
        super().__init__(message)
        self.result = result


class ServiceError(FaasrtError):
    """A FaaS, or the way to it, failed. The user's code is not to blame.

    Attributes:
        endpoint: The base URL that was tried last.
        attempts: How many attempts were made, from 1; 0 when none was started.
        elapsed_s: Seconds from the start of the call to the failure.
        sent: Whether the request reached the server: "no", "maybe" or "yes". "no" means that the code did not run.
        status: The HTTP status of the answer, or None when there was none.
    """

    def __init__(
        self,
        message: str,
        *,
        endpoint: str = "",
        attempts: int = 0,
        elapsed_s: float = 0.0,
        sent: Sent = "maybe",
        status: int | None = None,
    ) -> None:
        super().__init__(message)
        self.endpoint = endpoint
        self.attempts = attempts
        self.elapsed_s = elapsed_s
        self.sent = sent
        self.status = status

    def __str__(self) -> str:
        text = super().__str__()
        if not self.endpoint:
            return text
        tries = "1 attempt" if self.attempts == 1 else f"{self.attempts} attempts"
        return f"{text} [{self.endpoint}, {tries}, {self.elapsed_s:.2f} s, sent: {self.sent}]"


class ConnectError(ServiceError):
    """The server was never reached: DNS, a refused connection, TLS, or a connect timeout. The code did not run."""


class ConnectionLostError(ServiceError):
    """The request was sent and the answer did not arrive. The code may have run."""


class DeadlineExceededError(ServiceError):
    """The call's own deadline passed. Unless `sent` is "no", the code may still be running on the server."""


class OverloadedError(ServiceError):
    """The server refused for want of capacity (429 or 503).

    Attributes:
        retry_after_s: Seconds after which the server asks to be tried again, or None when it does not say.
        not_started: Whether the server says that it did not start the code.
    """

    retry_after_s: float | None = None
    not_started: bool = False


class _AnsweredError(ServiceError):
    """What `RejectedError` and `ServerError` share: the words of the server.

    Attributes:
        error: The server's `error` text, or "" when it gave none.
        details: The server's `details` text, or the beginning of a body that is not JSON.
    """

    error: str = ""
    details: str = ""


class RejectedError(_AnsweredError):
    """The server refused the request as wrong (a 4xx but 408 and 429); repeating it unchanged cannot help."""


class ServerError(_AnsweredError):
    """The server failed (a 5xx but 503, or a 200 that carries a top-level `error`)."""


class ProtocolError(ServiceError):
    """The answer is not the protocol of a FaaS: a redirect, a body that is no valid JSON object, or wrong types."""
