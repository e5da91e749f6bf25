"""The programs that run on the engine `native` and with `python -I`, and those whose results differ by design."""

from __future__ import annotations

from support import native_ends, native_system, native_values

TABLES = {
    "exits": native_ends.EXITS,
    "errors": native_ends.ERRORS,
    "shutdown": native_ends.SHUTDOWN,
    "threads": native_system.THREADS,
    "processes": native_system.PROCESSES,
    "files": native_system.FILES,
    "signals": native_system.SIGNALS,
    "sockets": native_system.SOCKETS,
    "state": native_values.STATE,
    "text": native_values.TEXT,
    "library": native_values.LIBRARY,
}
PROGRAMS = {f"{table}, {name}": code for table, programs in TABLES.items() for name, code in programs.items()}

_FRAME = "the stack has one more frame, that of the runner, which catches the program's exception"
_INTERRUPT = "an uncaught KeyboardInterrupt is an error of the program with exit code 1, not the signal SIGINT"
_TEXT = "the program is text, which its coding line cannot change"
_SURROGATES = "lone surrogates reach the caller as they are"
_KEPT = "modules that were imported before the program are not cleared at its end, because that takes too long"
_LINES = "stdout is written line by line, so that the output before an endless loop or a hard exit reaches the caller"
# The programs whose results differ, with the reason. The test fails if a result does not differ.
BY_DESIGN = {
    "text, stderr goes to stdout": _LINES,
    "text, order of buffers": _LINES,
    "library, ctypes": _LINES,
    "state, environment": _LINES,
    "processes, fork with a full buffer": _LINES,
    "processes, name of its session": "a program has one session, because each one gets a share of the CPU time",
    "shutdown, descriptor 1 closed": _LINES,
    "shutdown, stdout is full": _LINES,
    "files, /dev/zero written": "it is the device /dev/full, which cannot be mapped: such memory would not be counted",
    "errors, null byte": "the program is compiled from a string, and the compiler has another message for strings",
    "errors, recursion": _FRAME,
    "errors, recursion over two functions": _FRAME,
    "errors, KeyboardInterrupt": _INTERRUPT,
    "errors, KeyboardInterrupt with a text": _INTERRUPT,
    "errors, SIGINT to itself": _INTERRUPT,
    "signals, SIGINT while asyncio runs": _INTERRUPT,
    "errors, traceback printed": _FRAME,
    "errors, traceback extracted": _FRAME,
    "signals, faulthandler": _FRAME,
    "signals, faulthandler at a crash": _FRAME,
    "state, frames": _FRAME,
    "state, stack": _FRAME,
    "shutdown, atexit exits": _FRAME,
    "shutdown, atexit exits with a text": _FRAME,
    "shutdown, __del__ fails at the end": "the source is still readable, so the traceback shows the line",
    "shutdown, __del__ on builtins": _KEPT,
    "shutdown, __del__ on a known module": _KEPT,
    "shutdown, task left pending": "the garbage collector visits the coroutine before the task",
    "state, argv": "sys.orig_argv has no -I",
    "state, flags": "the hash seed is fixed, and the environment and the folder of the program are not ignored",
    "state, streams of sys": _SURROGATES,
    "text, surrogate printed": _SURROGATES,
    "text, surrogateescape printed": _SURROGATES,
    "text, coding line latin-1": _TEXT,
    "text, coding line unknown": _TEXT,
}
