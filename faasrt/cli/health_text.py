"""Describes a health report in lines for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from faasrt.languages import Language
from faasrt.protocol.registry import protocol_of
from faasrt.results import EndpointHealth


def label_of(health: EndpointHealth) -> str:
    """Return "healthy", "degraded" if only some of the languages run now, or "UNHEALTHY"."""
    return health.status if health.healthy or health.status == "degraded" else "UNHEALTHY"


def describe_engines(details: Mapping[str, Any]) -> list[str]:
    lines = []
    for language, state in _languages(details).items():
        if isinstance(state, dict) and "engine" in state:
            remedy = f". To get a higher one: {state['level_remedy']}" if state.get("level_remedy") else ""
            reason = f" ({state['level_reason']}{remedy})" if state.get("level_reason") else ""
            cgroup = ", cgroup" if state.get("cgroup") is True else ""
            level = f", level {state['level']}{reason}{cgroup}" if state.get("level") else ""
            version = f", {state['runtime']}" if state.get("runtime") else ""
            detail = f"; {state['detail']}" if state.get("detail") else ""
            lines.append(f"{language}: {state.get('status')}, engine {state['engine']}{version}{level}{detail}")
    return lines


def describe_languages(health: EndpointHealth) -> list[str]:
    details = health.details
    if isinstance(runtimes := details.get("runtimes"), list):
        return [_describe_runtime(runtime) for runtime in runtimes if isinstance(runtime, dict)]
    if not protocol_of(health.endpoint).has_profile:
        return ["the service does not list its languages" if health.healthy else "unknown"]
    served, missing = _languages(details), details.get("missing")
    reasons = missing if isinstance(missing, dict) else {}
    lines = []
    for language in Language:
        state = served.get(language.value)
        if isinstance(state, dict):
            text = state.get("detail") or state.get("runtime") or state.get("status")
        else:
            text = reasons.get(language.value, "not served")
        names = [language, *(name for name in language.names if name != language)]
        lines.append(f"{', '.join(names):16} {text}")
    return lines


def _describe_runtime(runtime: Mapping[str, Any]) -> str:
    aliases = runtime.get("aliases")
    names = [runtime.get("language"), *(aliases if isinstance(aliases, list) else [])]
    return f"{', '.join(map(str, names)):16} {runtime.get('version')}"


def _languages(details: Mapping[str, Any]) -> Mapping[str, Any]:
    languages = details.get("languages")
    return languages if isinstance(languages, dict) else {}
