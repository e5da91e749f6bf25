"""What an endpoint says of itself in `GET /health`, as far as it matters for what is sent to it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs

from faasrt.languages import Language


@attrs.frozen(kw_only=True)
class EndpointProfile:
    """An endpoint, as a sender has to know it. The defaults are those of a server about which nothing is known.

    Attributes:
        faithful: It brings programs and results through unharmed by itself: plain requests will do.
        enforces_timeouts: It ends a program at its time limit.
        cancels_on_disconnect: It ends a program whose caller drops the connection.
        reference: It is one of the reference servers, on which an envelope is known to work: an answer without a frame
            means that the program was killed.
        starts_slowly: It starts an interpreter of a second or two for each request.
        timeout_limit_ms: The longest time limit that it grants, in milliseconds; None when it does not say.
        max_output_bytes: The bytes that it keeps of each stream; None when it does not say.
        capacities: For each language the programs that it runs at once, as far as it says.
    """

    faithful: bool = False
    enforces_timeouts: bool = False
    cancels_on_disconnect: bool = False
    reference: bool = False
    starts_slowly: bool = False
    timeout_limit_ms: int | None = None
    max_output_bytes: int | None = None
    capacities: Mapping[str, int] = attrs.field(factory=dict)


def read_profile(health: Mapping[str, Any]) -> EndpointProfile:
    """Read a profile off a health report; what is missing or of another type counts as not said.

    Source: python-faas and docker-compose's js-faas name themselves in `version`, the Helm chart's js-faas by its
    runtime and language; `capabilities` and `limits` are ours.
    """
    capabilities, limits = (_mapping(health.get(name)) for name in ("capabilities", "limits"))
    version = health.get("version")
    words = version if isinstance(version, str) else ""
    on_pyodide = words.startswith("pyodide-faas")
    runs_js = health.get("runtime") == "deno" and health.get("language") == "javascript"
    seconds, output = (_positive(limits.get(name)) for name in ("timeout_limit_s", "max_output_bytes"))
    return EndpointProfile(
        faithful=capabilities.get("faithful") is True,
        enforces_timeouts=capabilities.get("enforces_timeouts") is True,
        cancels_on_disconnect=capabilities.get("cancels_on_disconnect") is True,
        reference=on_pyodide or words.startswith("js-faas") or runs_js,
        starts_slowly=on_pyodide,
        timeout_limit_ms=None if seconds is None else math.ceil(seconds * 1000),
        max_output_bytes=None if output is None else math.ceil(output),
        capacities=_capacities(health),
    )


def is_reference_answer(metadata: Mapping[str, Any]) -> bool:
    """Return whether the metadata of an answer are those of a reference server, for gateways without `/health`."""
    runtime = metadata.get("runtime")
    if isinstance(runtime, str):
        return runtime.startswith("pyodide")
    return metadata.get("language") == "javascript" and metadata.get("status") in ("success", "completed")


def _capacities(health: Mapping[str, Any]) -> dict[str, int]:
    capacities = {}
    # python-faas tells the size of its pool, and runs one language.
    pool = _positive(_mapping(_mapping(health.get("pool_status")).get("config")).get("maxSize"))
    if pool is not None:
        capacities[Language.PYTHON.value] = math.ceil(pool)
    for name, language in _mapping(health.get("languages")).items():
        capacity = _positive(_mapping(language).get("capacity"))
        if capacity is not None:
            capacities[name] = math.ceil(capacity)
    return capacities


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _positive(value: Any) -> float | None:
    wanted = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if wanted and 0 < value < 1e15 else None
