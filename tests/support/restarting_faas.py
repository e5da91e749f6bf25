"""A FaaS that is a process, and writes the code of each program that it runs to a file: `python FILE PORT LOG`. It
prints its port.

After SIGTERM it refuses programs for a moment, as the embedded FaaS does, and then ends.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import TextIO

from aiohttp import web

HEALTH = {
    "capabilities": {"lossless": True, "enforces_timeouts": True, "cancels_on_disconnect": True},
    "languages": {"python": {"capacity": 16}},
}
REFUSAL = {"x-faasrt-not-started": "1", "Retry-After": "1", "Connection": "close"}
DRAIN_S = 0.3


async def serve(port: int, log: TextIO) -> None:
    stopping, end = asyncio.Event(), asyncio.Event()

    def stop() -> None:
        stopping.set()
        asyncio.get_running_loop().call_later(DRAIN_S, end.set)

    async def handle(request: web.Request) -> web.Response:
        if request.path == "/health":
            return web.json_response(HEALTH)
        fields = await request.json()
        if stopping.is_set():
            return web.json_response({"error": "stopping"}, status=503, headers=REFUSAL)
        print(fields["code"], file=log, flush=True)
        await asyncio.sleep(0.02)
        return web.json_response({"output": {"stdout": fields["code"]}, "outcome": "OK"})

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
    print(runner.addresses[0][1], flush=True)
    await end.wait()
    await runner.cleanup()


if __name__ == "__main__":
    with Path(sys.argv[2]).open("a") as file:
        asyncio.run(serve(int(sys.argv[1]), file))
