"""Draw the layers of the code, and check that their imports lead down.

    cd tests && python -m e2e.layers_picture > ../faasrt/docs/images/layers.svg

A layer may import those below it in its half, and those that both halves share. Only `faasrt.client.local_faas` imports
the server from the client, on first use. `LAYERS` has the places and the notes.
"""

from __future__ import annotations

import itertools
import re
import sys

from support.layers import imports_of
from support.package import PACKAGE, modules

# The layers, from top to bottom: column, row, and notes. A module belongs to the layer with the longest prefix.
LEFT, RIGHT, BOTH = (16, 172), (232, 172), (16, 388)
LAYERS = {
    "applications": (BOTH, 0, ["cli, sync, agents, web, ray, rewards, inspect_ai,", "testing, examples"]),
    "faasrt.client": (LEFT, 1, ["managers, runtimes,", "sessions, map, cache"]),
    "faasrt.transport": (LEFT, 2, ["deadlines, retries,", "replicas, permits"]),
    "faasrt.local.server": (RIGHT, 1, ["LocalFaaS"]),
    "faasrt.local.http": (RIGHT, 2, ["access, queue, routes"]),
    "faasrt.local.engines": (RIGHT, 3, ["native, wasm, deno,", "toolchains"]),
    "faasrt.local.jail": (RIGHT, 4, ["what the kernel enforces"]),
    "faasrt.local": (RIGHT, 5, ["processes, folders"]),
    "faasrt.telemetry": (BOTH, 6, ["events, log lines, metrics, traces"]),
    "faasrt.protocol": (BOTH, 7, ["what goes over the wire, and the envelope: no I/O"]),
    "faasrt": (BOTH, 8, ["settings, results, errors, tasks, tests: no I/O"]),
}
SERVER = ("faasrt.local.server", "faasrt.local.engine_choice", "faasrt.local.engine_tasks")
APPLICATIONS = re.compile(r"faasrt\.(__main__|agents|cli|examples|inspect_ai|ray|rewards|sync|testing|web)(\.|$)")
ROW, HEIGHT, TOP, WIDTH = 88, 60, 12, 420


def layer_of(module: str) -> str:
    if APPLICATIONS.match(module):
        return "applications"
    if module in SERVER:
        return "faasrt.local.server"
    while module not in LAYERS:
        module = module.rpartition(".")[0]
    return module


def wrong_imports() -> set[tuple[str, str]]:
    """Return the layers that import one beside or above them, with that one."""
    known, wrong = modules(), set()
    for module, path in known.items():
        if module in ("faasrt", "faasrt.local", "faasrt.client.local_faas"):
            continue  # they import names on first use
        layer = layer_of(module)
        column, row, _ = LAYERS[layer]
        for other in {layer_of(each) for each in imports_of(path, known) - {"faasrt"}} - {layer}:
            other_column, other_row, _ = LAYERS[other]
            if other_row <= row or (other_column not in (column, BOTH) and column != BOTH):
                wrong.add((layer, other))
    return wrong


def box(layer: str) -> str:
    (x, width), row, notes = LAYERS[layer]
    kind = {LEFT: "client", RIGHT: "server"}.get((x, width), "card")
    name = '<text class="lane" x="10" y="19">Applications</text>'
    if layer != "applications":
        name = f'<text class="code" x="10" y="19">{layer}</text>'
    lines = "".join(f'<text class="note" x="10" y="{37 + 16 * n}">{line}</text>' for n, line in enumerate(notes))
    return (
        f'  <g transform="translate({x} {TOP + ROW * row})">'
        f'<rect class="{kind} box" width="{width}" height="{HEIGHT}" rx="6"/>{name}{lines}</g>'
    )


def arrow(above: str, below: str) -> str:
    (x, width), row, _ = LAYERS[above]
    (other_x, other_width), other_row, _ = LAYERS[below]
    middle = (max(x, other_x) + min(x + width, other_x + other_width)) // 2
    begin, end = TOP + ROW * row + HEIGHT, TOP + ROW * other_row - 7
    return (
        f'  <path class="line" d="M{middle} {begin}V{end}"/><path class="head" d="M{middle - 5} {end - 1}h10l-5 7z"/>'
    )


def arrows() -> set[str]:
    """Return an arrow from each layer to the next one below it."""
    halves = [[layer for layer, (column, _, _) in LAYERS.items() if column in (half, BOTH)] for half in (LEFT, RIGHT)]
    return {arrow(above, below) for layers in halves for above, below in itertools.pairwise(layers)}


def drawing() -> str:
    height = TOP + ROW * max(row for _, row, _ in LAYERS.values()) + HEIGHT + 12
    style = (PACKAGE / "docs/images/call.svg").read_text("utf-8").partition("<style>")[2].partition("</style>")[0]
    y = TOP + ROW + HEIGHT // 2
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
            f'height="{height}" role="img">',
            "  <title>The layers of the code</title>",
            f"  <style>{style}</style>",
            f'  <rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
            *sorted(arrows()),
            f'  <path class="line dash" d="M188 {y}H225"/><path class="head" d="M224 {y - 5}v10l7 -5z"/>',
            *map(box, LAYERS),
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    assert wrong_imports() == set()
    sys.stdout.write(drawing())
