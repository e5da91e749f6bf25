"""Runs a whole program several times in one execution of the guest program."""

from __future__ import annotations

import json
from typing import Any

import aiohttp

from faasrt import SandboxConfig
from faasrt.inputs import ProgramInput
from faasrt.languages import Language
from faasrt.protocol.envelope import GuestJob
from faasrt.protocol.health import EndpointProfile
from faasrt.protocol.program import Execution, GuestResponse
from faasrt.protocol.request import RunRequest
from faasrt.protocol.response import Answer

UNKNOWN = EndpointProfile()


def encode_inputs(*inputs: dict[str, Any]) -> list[str]:
    """Return the inputs of the cases as JSON."""
    return [json.dumps(ProgramInput.checked(Language.PYTHON, **given).to_wire()) for given in inputs]


async def run_whole_cases(
    url: str,
    code: str,
    cases: list[str],
    *,
    timeout_ms: int = 5_000,
    profile: EndpointProfile = UNKNOWN,
    **shared: Any,
) -> GuestResponse:
    """Run the cases in one execution on a server."""
    run = RunRequest.checked(Language.PYTHON, code, SandboxConfig(), timeout_ms=timeout_ms, **shared)
    execution = Execution(run=run, job=GuestJob(cases=cases, single=False, isolate=True))
    request = execution.request(profile, timeout_ms, url)
    headers = {"Content-Type": "application/json"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/run_code", data=request.body, headers=headers) as answer,
    ):
        return request.read(Answer(status=answer.status, body=await answer.read()))
