"""A protocol of another package, as an entry point would name it: its service answers with the program itself."""

from __future__ import annotations

from faasrt import ExecutionOutput, ExecutionResult, Language, Outcome
from faasrt.protocol.health import EndpointProfile
from faasrt.protocol.interface import ServiceProtocol
from faasrt.protocol.request import RunRequest
from faasrt.protocol.response import Answer, ParsedAnswer, raise_for_status


class EchoProtocol(ServiceProtocol):
    name = "Echo"
    run_path = "/echo"
    health_path = "/alive"
    profile = EndpointProfile(lossless=True)

    def lists(self, language: Language | str) -> bool:
        return language == "text"

    def encode(self, run: RunRequest, *, in_envelope: bool) -> bytes:
        return run.code.encode()

    def decode(self, answer: Answer, run: RunRequest, *, nonce: str | None, timeout_ms: float) -> ParsedAnswer:
        raise_for_status(answer)
        return ParsedAnswer(ExecutionResult(outcome=Outcome.OK, output=ExecutionOutput(answer.body.decode())))


PROTOCOL = EchoProtocol()
