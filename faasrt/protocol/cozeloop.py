"""coze-loop's protocol: python-faas, js-faas, and the embedded FaaS."""

from __future__ import annotations

from typing import Any

import attrs

from faasrt.errors import ProtocolError
from faasrt.languages import Language
from faasrt.protocol.answer import Answer, ParsedAnswer, decode_object, raise_for_status, read_answer
from faasrt.protocol.health import NO_HEALTH, EndpointProfile, read_profile
from faasrt.protocol.interface import ServiceProtocol
from faasrt.protocol.program import Program


class CozeLoop(ServiceProtocol):
    name = "FaaS"
    run_path = "/run_code"
    health_path = "/health"
    validates = True
    profile = EndpointProfile()
    has_profile = True

    def lists(self, language: Language | str) -> bool:
        return False  # each server names its languages in its health report

    def encode(self, program: Program, *, in_envelope: bool) -> bytes:
        return program.encode()

    def decode(self, answer: Answer, program: Program, *, nonce: str | None, timeout_ms: float) -> ParsedAnswer:
        return read_answer(answer, nonce, timeout_ms=timeout_ms, max_output_bytes=program.sandbox.max_output_bytes)

    def read_profile(self, answer: Answer) -> EndpointProfile | None:
        try:
            profile = read_profile(decode_object(answer.body))
        except ProtocolError:
            return EndpointProfile(answered=answer.status in NO_HEALTH)
        if profile.lossless or answer.status == 200:
            return profile
        if answer.status >= 500 and answer.status not in NO_HEALTH:
            return None
        return attrs.evolve(profile, answered=answer.status in NO_HEALTH)

    def read_health(self, answer: Answer) -> tuple[str, str, dict[str, Any]]:
        raise_for_status(answer)
        details = decode_object(answer.body)
        status, version = (str(details.get(name, ""))[:200] for name in ("status", "version"))
        return status, version, details


PROTOCOL = CozeLoop()
