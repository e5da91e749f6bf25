"""The client's cost of a small Python program, by the protocol of the service: bytes, and CPU time.

    python -m benchmarks.protocols [--runs 200] [--rounds 5]

All programs but `plain` travel in the envelope. The answers have the form of those of real services, with what the
program prints on this machine.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from benchmarks.envelope import cpu_us
from benchmarks.harness import Figures, contenders, parser, ratio, run_rounds, serve_requests, spreads
from benchmarks.report import Report
from faasrt import Language, SandboxConfig
from faasrt.protocol import cozeloop
from faasrt.protocol.answer import Answer
from faasrt.protocol.execution import Execution
from faasrt.protocol.health import EndpointProfile
from faasrt.protocol.interface import ServiceProtocol
from faasrt.protocol.piston import Piston
from faasrt.protocol.program import Program
from faasrt.protocol.sandboxfusion import SandboxFusion

CODE = "def solve(n):\n    return sum(range(n))\n\nreturn_val(str(solve(100)))\nprint(6 * 7)\n"


def cozeloop_answer(stdout: str) -> dict[str, Any]:
    """Return the answer of coze-loop's servers, and of the embedded FaaS."""
    metadata = {"language": "python", "status": "success", "exit_code": 0, "timed_out": False, "duration": 20}
    return {"output": {"stdout": stdout, "stderr": "", "ret_val": ""}, "metadata": metadata}


def sandboxfusion_answer(stdout: str) -> dict[str, Any]:
    """Return the answer of SandboxFusion."""
    ran = {"status": "Finished", "execution_time": 0.02, "return_code": 0, "stdout": stdout, "stderr": ""}
    more: dict[str, Any] = {"message": "", "compile_result": None, "executor_pod_name": None, "files": {}}
    return {"status": "Success", "run_result": ran, **more}


def piston_answer(stdout: str) -> dict[str, Any]:
    """Return the answer of Piston."""
    ran = {"stdout": stdout, "stderr": "", "code": 0, "output": stdout, "signal": None, "message": None, "status": None}
    return {"run": {**ran, "cpu_time": 15, "wall_time": 55, "memory": None}, "language": "python", "version": "3.11.7"}


REFERENCE = EndpointProfile(reference=True, answered=True, version="python-faas")
# Protocol, profile of the service, whether the program is in an envelope, and the function that makes an answer.
CONTENDERS: Mapping[str, tuple[ServiceProtocol, EndpointProfile, bool, Callable[[str], dict[str, Any]]]] = {
    "plain": (cozeloop.PROTOCOL, attrs.evolve(REFERENCE, lossless=True), False, cozeloop_answer),
    "coze-loop": (cozeloop.PROTOCOL, REFERENCE, True, cozeloop_answer),
    "SandboxFusion": (SandboxFusion(), SandboxFusion.profile, True, sandboxfusion_answer),
    "Piston": (Piston(), Piston.profile, True, piston_answer),
}


def program_in(body: bytes) -> str:
    """Return the program in a request of any of the protocols."""
    fields = json.loads(body)
    return str(fields["files"][0]["content"] if "files" in fields else fields["code"])


def measure(contender: str, runs: int) -> Figures:
    """Return the size of a request and its answer, and the client's CPU time for them."""
    protocol, profile, in_envelope, answer_of = CONTENDERS[contender]
    checked = Program.checked(Language.PYTHON, CODE, SandboxConfig())
    execution = Execution(program=checked, mode="always" if in_envelope else "never")

    def encode() -> Any:
        return execution.request(profile, checked.timeout_ms, "", protocol)

    request = encode()
    printed = "42\n"
    if in_envelope:
        command = [sys.executable, "-I", "-c", program_in(request.body)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    answer = Answer(status=200, body=json.dumps(answer_of(printed)).encode())
    result = request.read(answer).result()
    assert result.stdout == "42\n", result
    assert not in_envelope or result.ret_val == "4950", result
    return {
        "request KB": len(request.body) / 1000,
        "answer KB": len(answer.body) / 1000,
        "encode us": cpu_us(encode, runs),
        "decode us": cpu_us(lambda: request.read(answer).result(), runs),
    }


def main() -> None:
    options = parser(__doc__, rounds=5)
    options.add_argument("--runs", type=int, default=200, help="requests and answers in a round")
    args = options.parse_args()
    if args.contender:
        serve_requests(functools.partial(measure, args.contender))
        return
    report = Report("protocols", vars(args))
    with contenders("benchmarks.protocols", CONTENDERS) as started:
        rounds = run_rounds(started, args, runs=args.runs)
        for name in started:
            ratios = {
                f"{figure} of coze-loop": ratio(rounds, name, "coze-loop", f"{figure} us")
                for figure in ("encode", "decode")
            }
            report.row("A small program", protocol=name, **spreads(rounds, name), **ratios)
    report.print(args.json)


if __name__ == "__main__":
    main()
