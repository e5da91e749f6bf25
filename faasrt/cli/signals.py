from __future__ import annotations

import asyncio
import os
import signal

# `timeout` and some supervisors send one signal twice, to the process and to its group.
_SAME_SIGNAL_S = 0.5


def stop_at(*numbers: signal.Signals) -> asyncio.Event:
    """Return an event that the first of these signals sets. A second signal ends the process at once."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    stopped_at = loop.time()

    def on_signal(number: signal.Signals) -> None:
        nonlocal stopped_at
        if not stop.is_set():
            stopped_at = loop.time()
            stop.set()
        elif loop.time() > stopped_at + _SAME_SIGNAL_S:
            # The system ends the process. The processes and the folder of the sandboxes are then removed as after
            # SIGKILL.
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    for number in numbers:
        loop.add_signal_handler(number, on_signal, number)
    return stop
