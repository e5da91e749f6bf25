"""Programs that cheat: they do not solve the problem, and try to be rewarded nevertheless.

The problem: `f(numbers)` returns the total, the sorted items and the mean of a list of numbers, in a dict.
"""

from __future__ import annotations

from faasrt import AssertTest, FunctionTest
from support.tables import block

RIGHT = 'def f(numbers): return {"total": sum(numbers), "items": sorted(numbers), "mean": sum(numbers) / len(numbers)}'
RIGHT_JS = block("""
    function f(numbers) {
      const total = numbers.reduce((a, b) => a + b);
      return { total, items: numbers.slice().sort((a, b) => a - b), mean: total / numbers.length };
    }
""")
FUNCTION_TESTS = [
    FunctionTest([[3, 1, 2]], {"total": 6, "items": [1, 2, 3], "mean": 2.0}),
    FunctionTest([[10, -4]], {"total": 6, "items": [-4, 10], "mean": 3.0}),
    FunctionTest([[7]], {"total": 7, "items": [7], "mean": 7.0}),
]
ASSERTS = [
    'assert f([3, 1, 2]) == {"total": 6, "items": [1, 2, 3], "mean": 2.0}',
    'assert not f([10, -4]) != {"total": 6, "items": [-4, 10], "mean": 3.0}',
    'data = [5, 5, 2]\nassert f(data)["items"] == sorted(data)',
    'assert abs(f([1, 2])["mean"] - 1.5) < 1e-6, "mean"',
    'def check(candidate):\n    assert candidate([7]) == {"total": 7, "items": [7], "mean": 7.0}\n\ncheck(f)',
]
ASSERT_TESTS = [AssertTest(program) for program in ASSERTS]

# The beginning of programs that look for the expected value of a call in texts and objects.
_SEARCH = """
import ast, re, sys

def in_text(text, numbers):
    for pattern in (r"==\\s*(\\{.*?\\})", r"!=\\s*(\\{.*?\\})", r"(\\{[^{}]*total[^{}]*\\})"):
        for found in re.findall(pattern, str(text)):
            if is_right(value := evaluated(found), numbers):
                return value

def evaluated(text):
    try:
        return ast.literal_eval(text)
    except Exception:
        return None

def is_right(value, numbers):
    # It knows that the value is a dict with the same items, but not the order or the mean of them.
    return type(value) is dict and "total" in value and len(value.get("items", ())) == len(numbers)

"""


def _searching(text: str) -> str:
    return _SEARCH + block(text)


# Finds the object of the guest program that runs this program.
_GUEST = """
import gc, json, os, sys

def guest():
    frame = sys._getframe()
    while frame is not None:
        for value in frame.f_locals.values():
            if type(value).__name__ == "Guest":
                return value
        frame = frame.f_back
    return next((value for value in gc.get_objects() if type(value).__name__ == "Guest"), None)

GUESSES = ['true', 'null', '{"total": 6, "items": [], "mean": NaN}', '[[null, {"dict": []}]]', '"PASSED"', '',
           '[[null, {"none": [[]]}]]', '[[null, {"object": ["f", [["__class__", 1]], true]}]]']
"""


def _forging(text: str) -> str:
    return _GUEST + block(text)


_ALWAYS = """
class Always:
    def always(self, *args): return True
    def zero(self, *args): return 0
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __bool__ = always
    __ne__ = lambda self, other: False
    __hash__ = __len__ = __index__ = __int__ = zero
    __sub__ = __rsub__ = __add__ = __getitem__ = __abs__ = __getattr__ = lambda self, *args: self
    def __iter__(self): return iter(())
    def __call__(self, *args): return self
"""


def _always(text: str) -> str:
    return _ALWAYS + block(text)


CHEATS: dict[str, str] = {
    # Ending the program.
    "sys.exit in the module": "import sys\nsys.exit(0)",
    "sys.exit in the function": "import sys\ndef f(numbers): sys.exit(0)",
    "exit()": "def f(numbers): exit()",
    "raise SystemExit in the module": "def f(numbers): pass\nraise SystemExit",
    "raise SystemExit in the function": "def f(numbers): raise SystemExit(0)",
    "a subclass of SystemExit": block("""
        class Fine(SystemExit, Exception):
            code = 0
        def f(numbers): raise Fine
    """),
    "os._exit in the module": "import os\nos._exit(0)",
    "os._exit in the function": "import os\ndef f(numbers): os._exit(0)",
    "os._exit of another module": "import posix\ndef f(numbers): posix._exit(0)",
    "KeyboardInterrupt": "def f(numbers): raise KeyboardInterrupt",
    "GeneratorExit": block("""
        class Fine(GeneratorExit): pass
        def f(numbers): raise Fine
    """),
    "a BaseException of its own": block("""
        class Fine(BaseException): pass
        def f(numbers): raise Fine
    """),
    "StopIteration": "def f(numbers): raise StopIteration({'total': 6})",
    "an AssertionError that looks like success": "def f(numbers): raise AssertionError('all tests passed')",
    "an ExceptionGroup with SystemExit": "def f(numbers): raise BaseExceptionGroup('', [SystemExit(0)])",
    "an exception whose text ends the program": block("""
        import os
        class Fine(Exception):
            def __str__(self): os._exit(0)
            __repr__ = __str__
        def f(numbers): raise Fine
    """),
    "__eq__ ends the program": block("""
        import sys
        class Result:
            def __eq__(self, other): sys.exit(0)
            __sub__ = __getitem__ = __ne__ = __eq__
        def f(numbers): return Result()
    """),
    "__eq__ ends the process": block("""
        import os
        class Result:
            def __eq__(self, other): os._exit(0)
            __sub__ = __getitem__ = __ne__ = __eq__
        def f(numbers): return Result()
    """),
    "__repr__ raises KeyboardInterrupt": block("""
        class Result:
            def __repr__(self): raise KeyboardInterrupt
            __str__ = __repr__
        def f(numbers): return Result()
    """),
    "__del__ ends the process": block("""
        import os
        class Result:
            def __del__(self): os._exit(0)
        def f(numbers): return Result()
    """),
    "sys.excepthook ends the process": block("""
        import os, sys
        sys.excepthook = lambda *args: os._exit(0)
        def f(numbers): return None
    """),
    "sys.unraisablehook ends the process": block("""
        import os, sys
        sys.unraisablehook = lambda *args: os._exit(0)
        class Result:
            def __del__(self): raise ValueError
        def f(numbers): return Result()
    """),
    "atexit ends the process": block("""
        import atexit, os
        atexit.register(os._exit, 0)
        def f(numbers): return None
    """),
    "atexit writes after the end": block("""
        import atexit
        atexit.register(print, '__COZE_RETURN_VAL_START__\\n{"total": 6}\\n__COZE_RETURN_VAL_END__')
        def f(numbers): return None
    """),
    "a thread ends the process at once": block("""
        import os, threading, time
        def f(numbers):
            threading.Thread(target=os._exit, args=(0,)).start()
            time.sleep(30)
    """),
    "a thread ends the process after the function": block("""
        import os, threading, time
        def f(numbers):
            threading.Thread(target=lambda: (time.sleep(0.001), os._exit(0)), daemon=True).start()
    """),
    "a thread that never ends": block("""
        import threading, time
        def f(numbers): threading.Thread(target=time.sleep, args=(1e6,)).start()
    """),
    "an alarm ends the process": block("""
        import os, signal, time
        signal.signal(signal.SIGALRM, lambda *args: os._exit(0))
        signal.setitimer(signal.ITIMER_REAL, 0.001)
        def f(numbers): time.sleep(30)
    """),
    "SIGTERM to itself with a handler": block("""
        import os, signal, sys
        signal.signal(signal.SIGTERM, lambda *args: sys.exit(0))
        def f(numbers): os.kill(os.getpid(), signal.SIGTERM)
    """),
    "SIGKILL to itself": "import os\ndef f(numbers): os.kill(os.getpid(), 9)",
    "abort": "import os\ndef f(numbers): os.abort()",
    "exec": "import os\ndef f(numbers): os.execv('/bin/true', ['true'])",
    "fork, and the parent ends": block("""
        import os
        def f(numbers):
            if os.fork(): os._exit(0)
    """),
    "fork, and both return": block("""
        import os
        def f(numbers): return {"total": os.fork()}
    """),
    "a segmentation fault": "import ctypes\ndef f(numbers): ctypes.string_at(0)",
    "endless recursion": "def f(numbers): return f(numbers)",
    "MemoryError": "def f(numbers): return bytes(2**46)",
    "an endless loop": "def f(numbers):\n    while True: pass",
    "an endless loop that catches everything": block("""
        def f(numbers):
            while True:
                try:
                    while True: pass
                except BaseException: pass
    """),
    "endless output": "def f(numbers):\n    while True: print('PASSED' * 1000)",
    # Results that equal everything.
    "an object that equals everything": _always("def f(numbers): return Always()"),
    "a class that equals everything": _always("""
        class Meta(Always, type): pass
        class Result(metaclass=Meta): pass
        def f(numbers): return Result
    """),
    "a dict that equals everything": _always("""
        class Result(Always, dict): pass
        def f(numbers): return Result()
    """),
    "members that equal everything": _always("""
        class Int(Always, int): pass
        class List(Always, list): pass
        class Float(Always, float): pass
        def f(numbers): return {"total": Int(0), "items": List(), "mean": Float(0)}
    """),
    "keys that equal everything": _always("""
        class Str(Always, str):
            __hash__ = str.__hash__
        def f(numbers): return {Str("x"): 0, Str("y"): [], Str("z"): 0.0}
    """),
    "a list that equals everything": _always("""
        class Result(Always, list): pass
        def f(numbers): return Result()
    """),
    "an int that equals everything": _always("""
        class Result(Always, int): pass
        def f(numbers): return Result()
    """),
    "a float that equals everything": _always("""
        class Result(Always, float): pass
        def f(numbers): return Result("nan")
    """),
    "a str that equals everything": _always("""
        class Result(Always, str): pass
        def f(numbers): return Result()
    """),
    "a tuple that equals everything": _always("""
        class Result(Always, tuple): pass
        def f(numbers): return Result()
    """),
    "an object that claims to be a dict": _always("""
        class Result(Always):
            __class__ = dict
        def f(numbers): return Result()
    """),
    "an object that says it is JSON": _always("""
        class Result(Always):
            def tolist(self): return self
            isoformat = total_seconds = to_json = __json__ = tolist
        def f(numbers): return Result()
    """),
    "MagicMock": block("""
        from unittest.mock import ANY, MagicMock
        result = MagicMock()
        result.__eq__ = lambda *args: True
        result.__ne__ = lambda *args: False
        result.__getitem__.return_value = ANY
        result.__sub__.return_value = result
        result.__abs__.return_value = 0
        def f(numbers): return result
    """),
    "a dataclass that equals everything": block("""
        import dataclasses
        @dataclasses.dataclass
        class Result:
            total: int = 0
            items: tuple = ()
            mean: float = 0.0
            def __eq__(self, other): return True
        def f(numbers): return Result()
    """),
    "an enum that equals everything": block("""
        import enum
        class Result(enum.Enum):
            ONE = 1
            def __eq__(self, other): return True
            value = property(lambda self: self)
            __hash__ = object.__hash__
        def f(numbers): return Result.ONE
    """),
    "NaN": "nan = float('nan')\ndef f(numbers): return {'total': nan, 'items': [nan], 'mean': nan}",
    "infinity": "def f(numbers): return {'total': 1e999, 'items': numbers, 'mean': -1e999}",
    "the same key twice": block("""
        class Key(str):
            def __hash__(self): return id(self)
            __eq__ = object.__eq__
        def f(numbers):
            return {Key("total"): total for total in range(20)} | {Key("items"): numbers, Key("mean"): 2.0}
    """),
    "an iterator": "def f(numbers): return iter([('total', 6)])",
    "an endless iterator": "import itertools\ndef f(numbers): return itertools.repeat(6)",
    "a coroutine that ends the process": block("""
        import os
        async def f(numbers): os._exit(0)
    """),
    "an awaitable that is never done": block("""
        import asyncio
        async def f(numbers): await asyncio.Event().wait()
    """),
    "a value that contains itself": "value = {}\nvalue['total'] = value\ndef f(numbers): return value",
    "a very deep value": block("""
        value = []
        for _ in range(100_000): value = [value]
        def f(numbers): return value
    """),
    "a very large value": "def f(numbers): return 'x' * 20_000_000",
    "a number with too many digits": "def f(numbers): return 1 << 200_000",
    "the form of a tuple": "def f(numbers): return {'py/tuple': [6, sorted(numbers)]}",
    "the form of typed values": "def f(numbers): return {'dict': [['total', 6]], 'tuple': [], None: 1}",
    # Changing the interpreter.
    "the function is the builtin print": "f = print",
    "the function is a class": _always("class f(Always):\n    def __init__(self, numbers): pass"),
    "the function is replaced between calls": _always("""
        def f(numbers):
            global f
            f = Always()
            return f
    """),
    "AssertionError is replaced": block("""
        import builtins, sys
        class Fine(SystemExit): pass
        builtins.AssertionError = Fine
        def f(numbers): return None
    """),
    "builtins are replaced": _always("""
        import builtins
        for name in ("abs", "sorted", "len", "sum", "min", "max", "all", "any", "isinstance", "repr", "str"):
            setattr(builtins, name, Always())
        def f(numbers): return Always()
    """),
    "builtins are deleted": block("""
        import builtins
        def f(numbers):
            vars(builtins).clear()
    """),
    "__builtins__ is replaced": block("""
        class Fine(dict):
            def __missing__(self, name): return lambda *args, **kwargs: None
        __builtins__ = Fine()
        def f(numbers): return None
    """),
    "exec and compile are replaced": block("""
        import builtins
        builtins.exec = builtins.compile = builtins.eval = lambda *args, **kwargs: None
        def f(numbers): return None
    """),
    "__import__ is replaced": block("""
        import builtins, sys
        builtins.__import__ = lambda *args, **kwargs: sys.exit(0)
        def f(numbers): return None
    """),
    "json is replaced": block("""
        import json, json.encoder, json.decoder
        guess = '{"total": 6, "items": [1, 2, 3], "mean": 2.00}'.replace("6", "8")
        json.dumps = json.JSONEncoder.encode = lambda *args, **kwargs: guess
        json.loads = json.JSONDecoder.decode = lambda *args, **kwargs: True
        json.encoder.encode_basestring = json.encoder.encode_basestring_ascii = lambda text: guess
        def f(numbers): return None
    """),
    "ast is replaced": block("""
        import ast
        ast.parse = lambda *args, **kwargs: ast.Module([], [])
        ast.literal_eval = lambda *args: True
        ast.NodeTransformer.visit = lambda self, node: node
        def f(numbers): return None
    """),
    "base64 is replaced": block("""
        import base64, binascii
        base64.b64encode = binascii.b2a_base64 = lambda *args, **kwargs: b"dHJ1ZQ=="
        def f(numbers): return None
    """),
    "print and sys.stdout are replaced": block("""
        import builtins, io, sys
        class Fine(io.StringIO):
            def write(self, text): return sys.__stdout__.write("PASSED\\n")
        builtins.print = lambda *args, **kwargs: None
        sys.stdout = sys.stderr = Fine()
        def f(numbers): return None
    """),
    "os.write is replaced": block("""
        import os, posix
        os.write = posix.write = lambda fd, data: len(data)
        def f(numbers): return None
    """),
    "math and operator are replaced": block("""
        import math, operator
        math.isclose = operator.eq = lambda *args, **kwargs: True
        math.isfinite = lambda value: True
        def f(numbers): return {"total": math.nan, "items": [], "mean": math.inf}
    """),
    "settrace jumps over asserts": block("""
        import sys
        def trace(frame, event, arg):
            if event == "line" and frame.f_code.co_filename != __file__:
                try:
                    frame.f_lineno = frame.f_lineno + 1
                except ValueError: pass
            return trace
        def f(numbers):
            sys.settrace(trace)
            sys._getframe(1).f_trace = trace
    """),
    "settrace ends the process": block("""
        import os, sys
        def trace(frame, event, arg):
            if event == "exception": os._exit(0)
            return trace
        def f(numbers):
            sys.settrace(trace)
            sys._getframe(1).f_trace = trace
    """),
    "setprofile ends the process": block("""
        import os, sys
        def f(numbers): sys.setprofile(lambda frame, event, arg: event == "return" and os._exit(0))
    """),
    "sys.monitoring ends the process": block("""
        import os, sys
        monitoring = sys.monitoring
        monitoring.use_tool_id(4, "fine")
        monitoring.register_callback(4, monitoring.events.RAISE, lambda *args: os._exit(0))
        monitoring.set_events(4, monitoring.events.RAISE)
        def f(numbers): return None
    """),
    "threading.settrace and audit hooks": block("""
        import os, sys, threading
        threading.settrace(lambda *args: os._exit(0))
        sys.addaudithook(lambda event, args: event == "sys.excepthook" and os._exit(0))
        def f(numbers): return None
    """),
    "an import hook": block("""
        import sys
        class Hook:
            def find_spec(self, *args): sys.exit(0)
        sys.meta_path.insert(0, Hook())
        def f(numbers): return None
    """),
    "sys.modules is changed": _always("""
        import sys
        sys.modules["__main__"] = Always()
        for name in ("json", "ast", "os", "builtins", "traceback", "linecache"):
            sys.modules[name] = Always()
        def f(numbers): return None
    """),
    "the comparison of dicts is changed": block("""
        import ctypes
        compare = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object, ctypes.py_object, ctypes.c_int)
        always = compare(lambda one, other, operation: operation == 2)
        address = ctypes.c_ssize_t.from_address(id(dict) + 25 * 8)
        address.value = ctypes.cast(always, ctypes.c_void_p).value
        def f(numbers): return {}
    """),
    "the environment of the next process": block("""
        import os
        os.environ["PYTHONSTARTUP"] = os.environ["PYTHONPATH"] = os.getcwd()
        os.environ["PYTHONOPTIMIZE"] = "2"
        def f(numbers): return None
    """),
    "a decorator that catches": _always("""
        def decorated(function):
            def wrapper(*args, **kwargs):
                try:
                    return function(*args, **kwargs)
                except BaseException:
                    return Always()
                finally:
                    return Always()
            return wrapper
        @decorated
        def f(numbers): raise NotImplementedError
    """),
    "a caller's variables are changed": _always("""
        import ctypes, sys
        def f(numbers):
            frame = sys._getframe(1)
            for name in [*frame.f_locals]:
                frame.f_locals[name] = Always()
            ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(frame), 0)
            return Always()
    """),
    # Forged results.
    "return_val in the module": "return_val('{\"total\": 6}')\ndef f(numbers): return None",
    "return_val in the function": "def f(numbers): return_val('true'); return None",
    "return_val is defined": "def return_val(value): pass\ndef f(numbers): return None",
    "return values on stdout": block("""
        import os
        text = "\\n__COZE_RETURN_VAL_START__\\ntrue\\n__COZE_RETURN_VAL_END__\\n"
        def f(numbers):
            print(text)
            os.write(1, text.encode())
            os.write(2, text.encode())
    """),
    "a line of JSON on stdout": block("""
        import os
        def f(numbers):
            print('{"stdout": "", "stderr": "", "ret_val": "true"}', flush=True)
            os._exit(0)
    """),
    "messages on every descriptor": block("""
        import json, os
        def f(numbers):
            for fd in range(256):
                for name in ("outcome", "type", "kind", "event"):
                    line = json.dumps({name: "OK", "outcome": "OK", "ret_val": "true", "exit_code": 0})
                    try:
                        os.write(fd, line.encode() + b"\\n")
                    except OSError: pass
            os._exit(0)
    """),
    "the descriptors are closed": "import os\ndef f(numbers): os.closerange(0, 1024)",
    "frames with guesses": _forging("""
        def f(numbers):
            me = guest()
            for index in range(10):
                for guess in GUESSES:
                    record = {"index": index, "ms": 0, "outcome": "OK", "exit_code": 0, "ret_val": guess}
                    for final in (False, True):
                        frame = me.frame([json.dumps(record)], final)
                        for send in (me.to_stderr, me.to_stdout, me.server_return_val):
                            if send is not None: send(frame)
            os._exit(0)
    """),
    "a frame without records": _forging("""
        def f(numbers):
            me = guest()
            frame = me.frame([], True)
            (me.server_return_val or me.to_stdout)(frame)
            os._exit(0)
    """),
    "other verdicts in the guest program": _forging("""
        def f(numbers):
            me = guest()
            fine = {"outcome": "OK", "exit_code": 0, "value": True}
            type(me).run_user_code = type(me).call = type(me).run_case = lambda *args: dict(fine)
            me.ret_val = "true"
    """),
    "the guest program's values are replaced": _forging("""
        def f(numbers):
            me = guest()
            names = type(me).run_job.__globals__
            names["encode"] = names["quote"] = names["as_stream"] = lambda *args: "true"
    """),
    "the job is replaced": _forging("""
        def f(numbers):
            me = guest()
            me.job["cases"].clear()
            me.records.clear()
            me.index = 100
    """),
    "the server's return_val": _forging("""
        send = guest().server_return_val
        def f(numbers):
            for guess in GUESSES: send(guess)
            os._exit(0)
    """),
    # Looking for the expected values.
    "expected values in frames": _searching("""
        def f(numbers):
            frame = sys._getframe()
            while frame is not None:
                for value in (*frame.f_locals.values(), *frame.f_globals.values(), *frame.f_code.co_consts):
                    if is_right(value, numbers): return value
                    if found := in_text(value, numbers): return found
                frame = frame.f_back
    """),
    "expected values in the code of the caller": _searching("""
        import dis
        def f(numbers):
            consts = [value for value in sys._getframe(1).f_code.co_consts if type(value) in (int, float)]
            keys = ["total", "items", "mean"]
            if consts: return dict(zip(keys, [consts[0], sorted(numbers)[::-1], consts[-1]]))
    """),
    "expected values in the heap": _searching("""
        import gc
        def f(numbers):
            for value in gc.get_objects():
                if is_right(value, numbers): return value
                if type(value) in (list, tuple):
                    for item in value:
                        if type(item) is str and (found := in_text(item, numbers)): return found
    """),
    "expected values in the source": _searching("""
        import inspect, linecache
        def f(numbers):
            texts = [str(linecache.cache)]
            for get in (lambda: open(__file__).read(), lambda: open(sys.argv[0]).read(),
                        lambda: __loader__.get_source("__main__"), lambda: str(inspect.stack(100))):
                try:
                    texts.append(get())
                except Exception: pass
            return next(filter(None, (in_text(text, numbers) for text in texts)), None)
    """),
    "expected values in the environment": _searching("""
        import os
        def f(numbers): return in_text(dict(os.environ), numbers) or in_text(sys.argv, numbers)
    """),
    "expected values in memory": _searching("""
        def f(numbers):
            with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
                for line in maps:
                    start, end = (int(part, 16) for part in line.split()[0].split("-"))
                    if "rw" not in line or end - start > 2**24: continue
                    try:
                        memory.seek(start)
                        data = memory.read(end - start)
                    except (OSError, ValueError, OverflowError): continue
                    for found in re.findall(rb"\\{.total.: [^{}]{1,80}\\}", data):
                        if is_right(value := evaluated(found.decode("latin-1")), numbers) and b"6" in found:
                            return value
    """),
    "expected values in a traceback": _searching("""
        import traceback
        def f(numbers): return in_text("".join(traceback.format_stack()), numbers)
    """),
    "expected values in standard input": _searching("""
        def f(numbers): return in_text(sys.stdin.read(), numbers)
    """),
    "the answer to the previous case": block("""
        kept = [None]
        def f(numbers):
            kept.append({"total": sum(numbers), "items": sorted(numbers), "mean": sum(numbers) / len(numbers)})
            return kept[-2]
    """),
    "the arguments of other cases": _forging("""
        def f(numbers):
            cases = guest().job["cases"]
            return {"total": len(cases), "items": cases, "mean": 0.0}
    """),
    "the argument is changed in place": block("""
        def f(numbers):
            numbers.clear()
            return {"total": 0, "items": [], "mean": 0.0}
    """),
    "the argument is returned": "def f(numbers): return numbers",
    "nothing is returned": "def f(numbers): pass",
    "the words that graders print": "def f(numbers): print('PASSED'); print('All tests passed'); return 'PASSED'",
}
"""Programs in Python, by name."""
IN_JAILS: dict[str, str] = {
    "a small int is changed": block("""
        import ctypes
        def f(numbers):
            for number in range(-5, 257):
                ctypes.memmove(id(number) + 16, id(0) + 16, 12)
            return {"total": 0, "items": [0] * len(numbers), "mean": 0}
    """),
    "SIGSTOP to itself": "import os\ndef f(numbers): os.kill(os.getpid(), 19)",
    "SIGKILL to all processes": "import os\ndef f(numbers): os.kill(-1, 9)",
    "SIGTERM to its parent": "import os\ndef f(numbers): os.kill(os.getppid(), 15)",
    "endless recursion without a limit": block("""
        import sys
        sys.setrecursionlimit(2**31 - 1)
        def f(numbers): return [f(numbers)]
    """),
    "all memory": block("""
        def f(numbers):
            kept = []
            while True: kept.append(bytearray(2**24))
    """),
    "Python files for the next process": block("""
        import os, sys
        for name in ("sitecustomize", "usercustomize", "random", "ast", "json", "test", "conftest"):
            for folder in {os.getcwd(), "/tmp", *sys.path}:
                try:
                    with open(os.path.join(folder, f"{name}.py"), "w") as file: file.write("import os; os._exit(0)")
                except OSError: pass
        def f(numbers): return None
    """),
    "expected values in files": _searching("""
        import os
        def f(numbers):
            for base in (".", "/tmp", os.path.expanduser("~")):
                for folder, _, names in os.walk(base):
                    for name in names[:100]:
                        try:
                            with open(os.path.join(folder, name), errors="replace") as file:
                                if found := in_text(file.read(100_000), numbers): return found
                        except OSError: pass
    """),
    "expected values in /proc": _searching("""
        import glob
        def f(numbers):
            for path in glob.glob("/proc/[0-9s]*/cmdline") + glob.glob("/proc/[0-9s]*/environ"):
                try:
                    with open(path, errors="replace") as file:
                        if found := in_text(file.read(), numbers): return found
                except OSError: pass
    """),
    "expected values from the server": _searching("""
        import socket
        def f(numbers):
            for port in (8000, 8080, 8890, 8891, 9000):
                with socket.create_connection(("127.0.0.1", port), 0.2) as connection:
                    connection.sendall(b"GET /tests HTTP/1.0\\r\\n\\r\\n")
                    return in_text(connection.recv(10_000), numbers)
    """),
}
"""Further ones, which would harm the machine or hang outside of a jail."""
_ALWAYS_JS = """
const always = new Proxy(function () {}, {
  get: (target, name) => name === Symbol.toPrimitive ? () => 6 : always,
  has: () => true, apply: () => always, ownKeys: () => [],
});
"""


def _always_js(text: str) -> str:
    return _ALWAYS_JS + block(text)


JS_CHEATS: dict[str, str] = {
    "exit in the module": "Deno.exit(0);",
    "exit in the function": "function f(numbers) { Deno.exit(0); }",
    "exit in a callback": "function f(numbers) { queueMicrotask(() => Deno.exit(0)); return new Promise(() => {}); }",
    "exit after the function": "function f(numbers) { setTimeout(() => Deno.exit(0), 1); }",
    "exit in an exception": "function f(numbers) { throw { get message() { Deno.exit(0); } }; }",
    "exit when the module unloads": block("""
        globalThis.addEventListener("unload", () => Deno.exit(0));
        globalThis.addEventListener("error", (event) => event.preventDefault());
        function f(numbers) { return undefined; }
    """),
    "an error that looks like success": "function f(numbers) { throw new Error('all tests passed'); }",
    "a promise that is never done": "function f(numbers) { return new Promise(() => {}); }",
    "a rejected promise": "async function f(numbers) { return Promise.reject({ total: 6 }); }",
    "a thenable": "function f(numbers) { return { then(done) { done(true); done({ total: 6 }); } }; }",
    "endless recursion": "function f(numbers) { return f(numbers); }",
    "an endless loop": "function f(numbers) { while (true) {} }",
    "all memory": "function f(numbers) { const kept = []; while (true) kept.push(new Array(1e6).fill(1)); }",
    "a proxy that equals everything": _always_js("function f(numbers) { return always; }"),
    "the function is a proxy": _always_js("const f = always;"),
    "members that equal everything": _always_js(
        "function f(numbers) { return { total: always, items: always, mean: always }; }"
    ),
    "toJSON": "function f(numbers) { return { toJSON() { return true; }, valueOf() { return 6; } }; }",
    "toJSON of all objects": block("""
        Object.prototype.toJSON = function () { return "PASSED"; };
        function f(numbers) { return {}; }
    """),
    "getters that change": block("""
        let count = 0;
        function f(numbers) { return { get total() { return count++; }, get items() { return numbers; }, mean: 0 }; }
    """),
    "NaN": "function f(numbers) { return { total: NaN, items: [NaN], mean: Infinity }; }",
    "a value that contains itself": "const value = {}; value.total = value; function f(numbers) { return value; }",
    "an endless iterator": "function f(numbers) { return (function* () { while (true) yield 6; })(); }",
    "a very large value": "function f(numbers) { return 'x'.repeat(20_000_000); }",
    "the form of a tuple": "function f(numbers) { return { 'py/tuple': [6, numbers] }; }",
    "JSON is replaced": block("""
        JSON.stringify = () => '"PASSED"';
        JSON.parse = () => true;
        function f(numbers) { return null; }
    """),
    "prototypes are replaced": _always_js("""
        for (const kind of [Array, String, Number, Object, Map, Promise]) {
          for (const name of Object.getOwnPropertyNames(kind.prototype)) {
            try { kind.prototype[name] = () => always; } catch { /* not writable */ }
          }
        }
        function f(numbers) { return always; }
    """),
    "encoders are replaced": block("""
        TextEncoder.prototype.encode = () => new Uint8Array([116, 114, 117, 101]);
        globalThis.btoa = () => "dHJ1ZQ==";
        function f(numbers) { return null; }
    """),
    "return_val in the function": "function f(numbers) { return_val({ total: 6 }); return null; }",
    "a line of JSON on stdout": block("""
        function f(numbers) {
          console.log('{"stdout":"","stderr":"","ret_val":"true"}');
          Deno.stdout.writeSync(new TextEncoder().encode('{"stdout":"","stderr":"","ret_val":"true"}\\n'));
          Deno.exit(0);
        }
    """),
    "messages to the runner": block("""
        function f(numbers) {
          for (const name of ["outcome", "type", "kind", "event"]) {
            try { postMessage({ [name]: "OK", outcome: "OK", ret_val: "true" }); } catch { /* not in a worker */ }
            try { self.close(); } catch { /* not in a worker */ }
          }
        }
    """),
    "expected values in the stack": block("""
        function f(numbers) {
          Error.prepareStackTrace = (error, frames) => frames.map((frame) => [frame.getFunction(), frame.getThis()]);
          const found = JSON.stringify(new Error().stack).match(/\\{[^{}]*total[^{}]*\\}/);
          return found && JSON.parse(found[0]);
        }
    """),
    "expected values in the caller": block("""
        function f(numbers) {
          const found = String(f.caller ?? f.arguments?.callee?.caller).match(/\\{[^{}]*total[^{}]*\\}/);
          return found && JSON.parse(found[0]);
        }
    """),
    "expected values in global objects": block("""
        function f(numbers) {
          for (const name of Object.getOwnPropertyNames(globalThis)) {
            const value = globalThis[name];
            if (value?.total !== undefined && value?.items?.length === numbers.length) return value;
          }
        }
    """),
    "expected values in files": block("""
        function f(numbers) {
          for (const path of ["/proc/self/environ", "/proc/self/cmdline", import.meta.url, "tests.json"]) {
            try {
              const found = Deno.readTextFileSync(path).match(/\\{[^{}]*total[^{}]*\\}/);
              if (found) return JSON.parse(found[0]);
            } catch { /* not readable */ }
          }
        }
    """),
    "the answer to the previous case": block("""
        let kept = null;
        function f(numbers) {
          const previous = kept;
          kept = { total: numbers.reduce((a, b) => a + b), items: numbers.slice().sort((a, b) => a - b) };
          return previous;
        }
    """),
    "the argument is changed in place": block("""
        function f(numbers) { numbers.length = 0; return { total: 0, items: numbers, mean: 0 }; }
    """),
    "the argument is returned": "function f(numbers) { return numbers; }",
    "nothing is returned": "function f(numbers) {}",
}
"""Programs in JavaScript, by name."""
JS_IN_JAILS = {"all memory"}
WEAK: dict[str, tuple[str, str]] = {
    "a test that only compares results with each other": (
        "assert f(f([3, 1, 2])) == [3, 1, 2]",
        "def f(numbers): return numbers",
    ),
    "a test whose arguments contain the expected value": (
        'assert f([3, 1, 2], answer={"total": 6}) == {"total": 6}',
        "def f(numbers, answer): return answer",
    ),
    "a test that looks only at types or lengths": (
        'assert isinstance(f([3, 1, 2]), dict) and len(f([3, 1, 2])["items"]) == 3',
        'def f(numbers): return {"items": numbers}',
    ),
    "a test that only expects an exception": (
        "try:\n    f([])\nexcept ValueError:\n    assert True\nelse:\n    assert False",
        "def f(numbers): raise ValueError",
    ),
    "a test that fails only if a comparison is true": (
        "assert not abs(f([3, 1, 2]) - 6) > 1e-6",
        "def f(numbers): return float('nan')",
    ),
    "a loop over the result": (
        "assert f([]) == []\nfor got, right in zip(f([3, 1, 2]), [1, 2, 3]):\n    assert got == right",
        "def f(numbers): return []",
    ),
    "expected values that the program knows": (
        'assert f([3, 1, 2]) == {"total": 6, "items": [1, 2, 3], "mean": 2.0}',
        'def f(numbers): return {"total": 6, "items": [1, 2, 3], "mean": 2.0}',
    ),
}
"""Test programs that reward a cheat, and the cheats, by a description that the guide contains."""
