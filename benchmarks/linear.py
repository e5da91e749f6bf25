"""Whether the CPU time for hostile text grows in proportion to its size: a text compared with one four times as long.

    python -m benchmarks.linear [--kb 512] [--rounds 5]

Each row is a text that a program can print, send or return, repeated up to the given size, and the function that reads
it. If the time is linear, four times the text takes four times as long; if it is quadratic, sixteen times. The column
`of decoding` compares it with the time for decoding the same text from JSON.
"""

from __future__ import annotations

import base64
import json
import statistics
import time
from collections.abc import Callable

from benchmarks.harness import parser
from benchmarks.report import Report
from faasrt.config import SandboxConfig
from faasrt.languages import Language
from faasrt.protocol.execution import WireRequest
from faasrt.protocol.health import EndpointProfile
from faasrt.protocol.program import Program
from faasrt.protocol.response import Answer, decode_object
from faasrt.protocol.return_val import defines_return_val, take_return_val

NONCE = "0123456789abcdef"
PROGRAM = Program.checked(Language.PYTHON, "pass", SandboxConfig(), timeout_ms=1_000)
REQUEST = WireRequest(body=b"", program=PROGRAM, timeout_ms=1_000, profile=EndpointProfile(), nonce=NONCE)
FRAME = "faasrt1:" + base64.b64encode(f'{{"nonce":"{NONCE}","final":false,"records":[]}}'.encode()).decode()


def _read(text: str) -> None:
    body = json.dumps({"output": {"stdout": text}, "metadata": {"duration": 5}}).encode()
    REQUEST.read(Answer(status=200, body=body))


def _defines(text: str) -> None:
    defines_return_val(text + "x return_val", Language.JAVASCRIPT)


def _take_python(text: str) -> None:
    take_return_val(text, Language.PYTHON)


def _take_javascript(text: str) -> None:
    take_return_val(text, Language.JAVASCRIPT)


STEPS: list[tuple[str, str, Callable[[str], None]]] = [
    ("blank lines before a program", "\n", _defines),
    ("`function` and spaces in a program", "function ", _defines),
    ("markers without an end", "__COZE_RETURN_VAL_START__\n", _take_python),
    ("empty markers", "__COZE_RETURN_VAL_START__\n__COZE_RETURN_VAL_END__\n", _take_python),
    ("lines of an opening brace", "{\n", _take_javascript),
    ("lines that are almost JSON", '{"}\n', _take_javascript),
    ("frames of the call in stdout", FRAME + "\n", _read),
    ("beginnings of frames in stdout", FRAME[:40], _read),
    ("lines of a stack in stdout", "    at temp.js\n", _read),
    ("text in stdout", "some text\n", _read),
]


def _cpu_ms(step: Callable[[str], object], text: str, rounds: int) -> float:
    times = []
    for _ in range(rounds):
        started = time.thread_time()
        step(text)
        times.append(time.thread_time() - started)
    return 1000 * statistics.median(times)


def main() -> None:
    options = parser(__doc__, rounds=5)
    options.add_argument("--kb", type=int, default=512, help="size of the shorter text in KB (default %(default)s)")
    args = options.parse_args()
    report = Report("linear", vars(args))
    for name, piece, step in STEPS:
        small, large = (piece * (size * args.kb * 1024 // len(piece)) for size in (1, 4))
        small_ms, large_ms = (_cpu_ms(step, text, args.rounds) for text in (small, large))
        body = json.dumps({"stdout": large}).encode()
        decoding = _cpu_ms(lambda data: decode_object(data), body, args.rounds)
        report.row(
            f"{args.kb} KB, and four times as much",
            text=name,
            **{
                "CPU ms": small_ms,
                "CPU ms of 4": large_ms,
                "growth": large_ms / small_ms if small_ms else 0.0,
                "of decoding": large_ms / decoding,
            },
        )
    report.print(args.json)


if __name__ == "__main__":
    main()
