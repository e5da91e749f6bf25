"""The part that both web backends share: requests, answers, and the status of each error.

A failure of the grader is part of the answer, with status 200. A wrong request is a 422. An infrastructure
failure is a 503 with `Retry-After` when there is no capacity or nothing was sent, and a 502 otherwise.
"""

from __future__ import annotations

import argparse
import functools
import logging
import math
from typing import Any

from pydantic import BaseModel, Field, ValidationError

import faasrt

log = logging.getLogger(__name__)
make_manager = functools.partial(faasrt.RuntimeManager.from_env, local_fallback=True)


class GradeRequest(BaseModel, extra="forbid"):
    """A grader, and the answer to grade."""

    grader: str = Field(max_length=100_000, description="A program with a function grade(answer, expected).")
    language: faasrt.Language = faasrt.Language.PYTHON
    answer: str = Field(max_length=100_000)
    expected: str = Field(max_length=100_000)
    timeout_ms: int = Field(default=5_000, gt=0, le=30_000)


class Score(BaseModel, extra="forbid"):
    """The value that a grader must return."""

    score: float = Field(ge=0, le=1, strict=True)
    reason: str = ""


class GradeResponse(BaseModel):
    """The grade, or the problem of the grader."""

    outcome: faasrt.Outcome
    grade: Score | None = None
    problem: str = ""
    stdout: str = ""


async def grade(manager: faasrt.RuntimeManager, request: GradeRequest) -> GradeResponse:
    """Run a grader. Its return value is untrusted, and is checked like a request."""
    args = [request.answer, request.expected]
    result = await manager.call_function(
        request.grader, "grade", args, language=request.language, timeout_ms=request.timeout_ms
    )
    response = GradeResponse(outcome=result.outcome, stdout=printable(result.stdout))
    if result.error is not None:
        response.problem = printable(f"{result.error.name}: {result.error.message}")
    elif result.ok:
        try:
            response.grade = Score.model_validate(result.value)
        except (faasrt.ReturnValueError, ValidationError):
            response.problem = "the grader returned no score from 0 to 1"
    return response


async def health(manager: faasrt.RuntimeManager) -> tuple[dict[str, Any], int]:
    """Return body and status for the health of every endpoint."""
    status = await manager.get_health_status()
    endpoints = {endpoint.endpoint: endpoint.status for endpoint in status.endpoints}
    return {"healthy": status.healthy, "endpoints": endpoints}, 200 if status.healthy else 503


def describe_error(error: Any) -> tuple[dict[str, str], int, dict[str, str]]:
    """Return body, status and headers for an error of faasrt, or for a pydantic error about a request.

    Only errors in the request are described in detail.
    """
    name = type(error).__name__
    if not isinstance(error, faasrt.FaasrtError):
        problems = (f"{part['loc'][-1] if part['loc'] else 'body'}: {part['msg']}" for part in error.errors())
        return {"error": "InvalidRequestError", "detail": printable("; ".join(problems))}, 422, {}
    if isinstance(error, (faasrt.InvalidRequestError, faasrt.UnsupportedLanguageError)):
        return {"error": name, "detail": str(error)}, 422, {}
    log.warning("%s at %s", name, getattr(error, "endpoint", "") or "no server")
    busy = isinstance(error, (faasrt.QueueFullError, faasrt.OverloadedError, faasrt.RuntimeClosedError))
    if busy or getattr(error, "sent", "") == "no":
        retry_after_s = math.ceil(getattr(error, "retry_after_s", None) or 1)
        return {"error": name, "detail": "no capacity; try again"}, 503, {"Retry-After": str(retry_after_s)}
    return {"error": name, "detail": "the code could not be run"}, 502, {}


def printable(text: str) -> str:
    """Replace lone surrogates. Programs can print them, but UTF-8 cannot encode them."""
    return text.encode("utf-8", "replace").decode()


def parse_address() -> argparse.Namespace:
    """Return the `host` and `port` of the command line."""
    parser = argparse.ArgumentParser(description="Grade answers over HTTP.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    return parser.parse_args()
