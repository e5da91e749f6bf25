# Stops a program at its time limit, for servers that do not do this. envelope.py documents the cost and the limits.

import os
import time

now = time.monotonic
open_file, read_file, close_file = os.open, os.read, os.close
sleep = time.sleep
IN_PYODIDE = sys.platform == "emscripten"
# The guard raises its exception again after this interval if the program catches it, and finally ends the process.
INTERVAL_S, MAX_INTERRUPTS = 0.05, 10
EVENTS_PER_CHECK = 500
# An exception that is raised in Pyodide's event loop itself, outside a task or a callback, ends the process.
EVENT_LOOP_MODULES = ("pyodide.webloop", "asyncio.events")


def waited_s():
    # The seconds for which this thread was ready, but had no CPU; 0 where the kernel does not tell.
    try:
        fd = open_file("/proc/thread-self/schedstat", os.O_RDONLY)
        try:
            return int(read_file(fd, 100).split()[1]) / 1e9
        finally:
            close_file(fd)
    except (OSError, ValueError, IndexError):
        return 0.0


# Raised in the program to stop it at its time limit or its output limit.
class LimitExceeded(BaseException):
    pass


class Guard:
    # Calls `on_deadline` repeatedly from the deadline on, while the program runs. In Pyodide, calls `on_hang` if the
    # program awaits something at the deadline: then the interpreter does not run, and no exception can be raised in it.
    # The wait for a CPU puts the deadline off, but not after `latest`.

    def __init__(self, on_deadline, on_hang, latest=0.0):
        self.on_deadline, self.on_hang, self.latest = on_deadline, on_hang, latest
        self.waited_s = 0.0
        self.deadline = None
        self.watch = None
        self.asleep = False

    def arm(self, ms):
        if ms is None:
            return
        self.deadline, self.waited_s = now() + ms / 1000, waited_s()
        if self.watch is None:
            self.watch = self.by_signal() or self.by_interrupt_buffer() or self.by_events()
        self.watch(ms / 1000)

    def disarm(self):
        self.deadline = None
        if self.watch is not None:
            self.watch(None)

    def tick(self, _=None, frame=None):
        if self.asleep or self.deadline is None or now() < self.deadline:
            return
        if IN_PYODIDE and frame is not None and frame.f_globals.get("__name__") in EVENT_LOOP_MODULES:
            return  # the next interrupt, or `on_hang`, follows soon
        self.on_deadline()

    # Signals are handled in the thread that armed the guard.
    def on_signal(self, *_):
        if self.deadline is not None and self.deadline <= now() < self.latest:
            before_s, self.waited_s = self.waited_s, max(self.waited_s, waited_s())
            self.deadline += self.waited_s - before_s
        self.tick()

    def by_signal(self):
        import signal

        if not hasattr(signal, "setitimer") or IN_PYODIDE:
            return None
        set_handler, set_timer = signal.signal, signal.setitimer
        try:
            set_handler(signal.SIGALRM, self.on_signal)
        except ValueError:
            return None  # not the main thread

        def watch(s):
            if s is not None:
                set_handler(signal.SIGALRM, self.on_signal)  # an earlier case may have replaced the handler
            set_timer(signal.ITIMER_REAL, s or 0, INTERVAL_S if s else 0)

        return watch

    def sleep(self, seconds):
        # Pyodide's sleep ignores the interrupt buffer, or treats its exception as a failure of the event loop.
        if isinstance(seconds, bool) or not seconds > INTERVAL_S:
            return sleep(seconds)
        end = now() + seconds
        while (left := end - now()) > 0:
            self.asleep = True
            try:
                sleep(min(left, INTERVAL_S))
            finally:
                self.asleep = False
            self.tick()
        return None

    def by_interrupt_buffer(self):
        # Pyodide reads this buffer every few dozen steps to check for signals. This one compares the time instead.
        try:
            import signal

            import pyodide_js
            from pyodide.code import run_js
            from pyodide.ffi import create_proxy

            buffer = run_js(
                "(() => { let end = Infinity, timer; return { set 0(_) {},"
                f" get 0() {{ const t = Date.now(); if (t < end) return 0; end = t + {INTERVAL_S * 1000};"
                f" return {int(signal.SIGINT)}; }},"
                " arm(ms, hang) { end = Date.now() + ms; clearTimeout(timer);"
                f" if (hang) timer = setTimeout(hang, ms + {INTERVAL_S * 2000}); }} }}; }})()"
            )
            on_hang = create_proxy(self.on_hang)
            set_handler, set_buffer = signal.signal, pyodide_js.setInterruptBuffer
        except Exception:
            return None

        def watch(s):
            buffer.arm(1e15 if s is None else s * 1000, None if s is None else on_hang)
            if s is not None:
                set_handler(signal.SIGINT, self.tick)
                set_buffer(buffer)
                time.sleep = self.sleep

        return watch

    def by_events(self):
        monitoring = getattr(sys, "monitoring", None)
        if monitoring is None:
            return lambda s: None  # Python 3.11 in a thread: no method is available
        tool = next(number for number in range(5, -1, -1) if monitoring.get_tool(number) is None)
        events = monitoring.events.JUMP | monitoring.events.PY_START
        left = EVENTS_PER_CHECK

        def check(*_):
            nonlocal left
            left -= 1
            if left < 0:
                left = EVENTS_PER_CHECK
                self.tick()

        monitoring.use_tool_id(tool, "faasrt")
        monitoring.register_callback(tool, monitoring.events.JUMP, check)
        monitoring.register_callback(tool, monitoring.events.PY_START, check)
        return lambda s: monitoring.set_events(tool, 0 if s is None else events)
