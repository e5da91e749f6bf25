"""The interface of protocols: how faasrt talks to one kind of service."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

from faasrt._attribute_docs import list_attributes
from faasrt.languages import Language
from faasrt.protocol.answer import Answer, ParsedAnswer, raise_for_status
from faasrt.protocol.health import EndpointProfile
from faasrt.protocol.program import Program

__all__ = ["ServiceProtocol"]


@list_attributes
class ServiceProtocol(abc.ABC):
    """How requests of one kind of service are encoded, and its answers are decoded. It does no I/O and has no state.

    Another package adds a protocol by an entry point of the group `faasrt.protocols`: the name is that in URLs
    (`NAME+http://host:port`), and the value is an instance of a subclass. This interface is provisional: it, and the
    other names of `faasrt.protocol` that a protocol needs, may change in any release. Pin the version of faasrt.
    """

    name: ClassVar[str]
    """The name of the service in messages."""
    run_path: ClassVar[str]
    """The path of `POST` requests that run a program, after the base URL."""
    health_path: ClassVar[str]
    """The path of `GET` requests for the health, after the base URL."""
    validates: ClassVar[bool] = False
    """Whether the service has `POST /validate_code`."""
    profile: ClassVar[EndpointProfile]
    """The properties of a service. If `has_profile`, these are the properties of a service that does not report any.
    With `lossless`, programs are sent without an envelope. Otherwise `decode` must find frames; see
    `protocol/processes.py`."""
    has_profile: ClassVar[bool] = False
    """Whether the answer to `health_path` tells the properties of a service."""

    @abc.abstractmethod
    def lists(self, language: Language | str) -> bool:
        """Return whether services of this kind may run a language for which the settings name no endpoint."""

    def may_compile(self, language: Language | str) -> bool:
        """Return whether the service may compile a program before its time limit begins."""
        return False

    @abc.abstractmethod
    def encode(self, program: Program, *, in_envelope: bool) -> bytes:
        """Return the body of a request.

        Args:
            program: The program. In an envelope, it is the guest program, and its time limit is the limit of the
                execution.
            in_envelope: Whether the program is in an envelope.
        """

    @abc.abstractmethod
    def decode(self, answer: Answer, program: Program, *, nonce: str | None, timeout_ms: float) -> ParsedAnswer:
        """Read the answer to a request.

        Args:
            program: The program of the caller, with the time limit of the program or of each case.
            nonce: The nonce of the frames; None if the program was not sent in an envelope.
            timeout_ms: The time limit of the execution in milliseconds; infinite if the service does not keep it.

        Raises:
            ServiceError: The service failed or refused, or did not follow the protocol.
        """

    def read_profile(self, answer: Answer) -> EndpointProfile | None:
        """Return the properties in an answer to `health_path`; None if the service does not work."""
        return self.profile

    def read_health(self, answer: Answer) -> tuple[str, str, dict[str, Any]]:
        """Return the status ("healthy" if all is well), the version or "", and details from an answer to `health_path`.

        Raises:
            ServiceError: The service failed.
        """
        raise_for_status(answer)
        return "healthy", "", {}
