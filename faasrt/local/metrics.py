"""What `GET /metrics` says of the pools: as JSON, or in the Prometheus text format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from faasrt.local.pool import Pool


def as_json(pools: Sequence[Pool]) -> dict[str, Any]:
    """Give the metrics by engine."""
    engines = {
        pool.engine.name: {
            "executions": _by_language(pool),
            "refused": pool.refused,
            "failed": pool.failed,
            "active": pool.engine.active,
            "idle": pool.engine.idle,
            "queued": pool.queued,
            "capacity": pool.engine.capacity,
        }
        for pool in pools
    }
    return {"engines": engines}


def as_prometheus(pools: Sequence[Pool]) -> str:
    """Write the Prometheus text format."""
    lines = [
        "# HELP faasrt_local_executions_total Programs that were run, by how they ended.",
        "# TYPE faasrt_local_executions_total counter",
    ]
    for pool in pools:
        for (language, outcome), count in sorted(pool.outcomes.items()):
            lines.append(f'faasrt_local_executions_total{{language="{language}",outcome="{outcome}"}} {count}')
    for name, kind, words, read in _SERIES:
        lines += [f"# HELP faasrt_local_{name} {words}", f"# TYPE faasrt_local_{name} {kind}"]
        lines += [f'faasrt_local_{name}{{engine="{pool.engine.name}"}} {read(pool)}' for pool in pools]
    return "\n".join(lines) + "\n"


def _by_language(pool: Pool) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for (language, outcome), count in sorted(pool.outcomes.items()):
        counts.setdefault(language, {})[outcome] = count
    return counts


_SERIES: tuple[tuple[str, str, str, Callable[[Pool], int]], ...] = (
    ("refused_total", "counter", "Programs that were refused before they ran.", lambda pool: pool.refused),
    ("failed_total", "counter", "Programs whose engine failed.", lambda pool: pool.failed),
    ("active", "gauge", "Programs that run now.", lambda pool: pool.engine.active),
    ("idle", "gauge", "Processes that wait for a program.", lambda pool: pool.engine.idle),
    ("queued", "gauge", "Programs that wait for a sandbox.", lambda pool: pool.queued),
    ("capacity", "gauge", "Programs that can run at once.", lambda pool: pool.engine.capacity),
)
