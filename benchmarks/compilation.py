"""The one-time compilation of the Python sandbox, which the engine `wasm` needs: time, memory and disk.

    python -m benchmarks.compilation

It runs `faasrt warmup --engine python=wasm` with an empty cache, and then with the cache that this has filled.
"""

from __future__ import annotations

import os
import resource
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.harness import parser
from benchmarks.report import Report
from benchmarks.server import FAASRT

COMMAND = [*FAASRT, "warmup", "--engine", "python=wasm"]


def main() -> None:
    args = parser(__doc__).parse_args()
    report = Report("compilation", vars(args))
    with tempfile.TemporaryDirectory() as folder:
        for cache in ("empty", "filled"):
            started = time.perf_counter()
            subprocess.run(COMMAND, env=os.environ | {"FAASRT_CACHE_DIR": folder}, check=True, capture_output=True)
            elapsed_s = time.perf_counter() - started
            # The largest process until now; ru_maxrss is in KiB.
            peak_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
            # Files can have holes, so count blocks of 512 bytes.
            disk_mb = sum(path.stat().st_blocks for path in Path(folder).rglob("*")) / 2048
            report.row("faasrt warmup", cache=cache, s=elapsed_s, **{"peak MB": peak_mb, "disk MB": disk_mb})
    report.print(args.json)


if __name__ == "__main__":
    main()
