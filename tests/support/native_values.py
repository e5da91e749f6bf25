"""Programs that print the interpreter's state, text and results of libraries. See test_native_programs.py."""

from __future__ import annotations

STATE = {
    "argv": "import sys\nprint(sys.argv, len(sys.orig_argv), sys.orig_argv[-1])",
    "flags": "import sys\nprint(sys.flags)",
    "options": "import sys\nprint(sys._xoptions, sys.warnoptions, sys.dont_write_bytecode, sys.pycache_prefix)",
    "limits of sys": "import sys\nprint(sys.getrecursionlimit(), sys.int_info, sys.get_int_max_str_digits(), sys.maxsize, sys.hash_info, sys.float_info)",
    "platform": "import sys, platform, os, struct\nprint(sys.platform, platform.machine(), platform.python_version(), os.name, struct.calcsize('P'), sys.byteorder, platform.system())",
    "interpreter": "import sys\nprint(sys.version, sys.executable, sys.prefix, sys.base_prefix, sys.implementation, sys.api_version)",
    "hooks of sys": "import sys\nprint(sys.gettrace(), sys.getprofile(), sys.excepthook, sys.displayhook, sys.unraisablehook, sys.breakpointhook, sys.get_asyncgen_hooks(), sys.get_coroutine_origin_tracking_depth())",
    "last error": "import sys\nprint(sys.exc_info(), hasattr(sys, 'last_value'), sys.exception())",
    "importers": "import sys\nprint(sys.meta_path, sys.path_hooks, len(sys.builtin_module_names))",
    "path": "import sys\nprint([p for p in sys.path if 'site-packages' in p or 'lib/python' in p], '' in sys.path)",
    "streams of sys": """
import sys
for s in (sys.stdin, sys.stdout, sys.stderr):
    print(s, s.encoding, s.errors, s.newlines, s.line_buffering, s.write_through, s.isatty(), s.fileno(), s.mode)
    print(s.readable(), s.writable(), s.seekable(), s.closed, s.name, type(s.buffer).__name__, s.buffer.name)
    print(type(s.buffer.raw).__name__, s.buffer.raw.mode, s.buffer.raw.name, s.buffer.raw.closefd, s.buffer.raw)
print(sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__, sys.stdin is sys.__stdin__)
""",
    "globals": "print({k: v for k, v in globals().items() if k not in ('return_val', '__loader__')})",
    "locals are globals": "print(locals() is globals(), vars() is globals())",
    "__main__": "import __main__, sys\nprint(__main__.__name__, __main__ is sys.modules['__main__'], __spec__, __doc__, __package__, __main__)",
    "docstring": "'''The docstring.'''\nprint(__doc__)",
    "annotations": "x: int = 5\nprint(__annotations__)",
    "builtins": "import builtins\nprint(__builtins__ is builtins, sorted(vars(builtins)), exit, copyright.__class__)",
    "__import__": "print(__import__('os.path').__name__, __import__.__module__)",
    "frames": "import sys\nf = sys._getframe()\nprint(f.f_code.co_name, f.f_lineno, f.f_back, f.f_globals is globals(), f.f_code.co_flags)",
    "stack": "import inspect\ndef f():\n    return [(i.function, i.lineno, i.code_context) for i in inspect.stack()]\nprint(f())",
    "threads at the start": "import threading, sys\nprint(len(threading.enumerate()), len(sys._current_frames()))",
    "gc": "import gc\nprint(gc.isenabled(), gc.get_threshold(), gc.get_debug(), gc.garbage, gc.callbacks)",
    "gc of a cycle": "import gc\nclass A:\n    pass\nfor _ in range(3):\n    a = A()\n    a.a = a\ndel a\nprint(gc.collect() >= 3, gc.collect())",
    "audit": "import sys\nsys.addaudithook(lambda e, a: e == 'mine' and print(e, a))\nsys.audit('mine', 1)",
    "environment": "import os\nprint(sorted(k for k in os.environ if k not in os.environ.get('KEEP', '')), os.environ['HOME'], os.getcwd())\nos.environ['X'] = 'é'\nos.system('echo $X')\nprint(os.path.expanduser('~'), os.environb[b'X'])",
    "warnings' filters": "import warnings\nfor f in warnings.filters:\n    print(f)",
    "logging": "import logging\nlogging.warning('logged')\nlogging.getLogger('x').error('as well')\nlogging.info('hidden')\nprint(logging.root.handlers, logging.root.level)",
    "logging of times": "import logging, sys\nlogging.basicConfig(stream=sys.stdout, format='%(levelname)s %(name)s %(threadName)s %(processName)s %(module)s %(lineno)d %(filename)s %(message)s')\nlogging.warning('x')",
    "logging of relative time": "import logging\nr = logging.makeLogRecord({})\nprint(0 <= r.relativeCreated < 60_000)",
    "modules": "import sys\nprint('numpy' in globals(), 'faasrt' in sys.modules, 'pytest' in sys.modules, 'sys' in sys.modules, __name__ in sys.modules)",
    "modules of the jail": "import sys\nprint([m for m in sys.modules if 'faasrt' in m or m.startswith('jail')])",
    "times": "import time, os\nprint(time.process_time() < 60, time.perf_counter() > 0, time.thread_time() < 60, os.times().elapsed > 0, time.tzname, time.timezone)\nprint(time.strftime('%Y', time.gmtime(0)), time.time() > 1e9)",
    "usage": "import resource\nu = resource.getrusage(resource.RUSAGE_SELF)\nprint(u.ru_utime < 60, u.ru_maxrss > 0, resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime < 60)",
    "locale": "import locale, sys\nprint(locale.setlocale(locale.LC_ALL), locale.getpreferredencoding(), locale.getlocale(), sys.getfilesystemencoding(), sys.getfilesystemencodeerrors(), sys.getdefaultencoding(), locale.localeconv()['decimal_point'])",
    "locale set": "import locale\nprint(locale.setlocale(locale.LC_ALL, ''), f'{1234567:n}')\ntry:\n    locale.setlocale(locale.LC_ALL, 'xx_XX')\nexcept locale.Error as e:\n    print(e)",
    "user": "import os\nprint(os.getuid() == os.geteuid(), os.getgid() == os.getegid(), os.getpgrp() > 0, os.getpid() > 1)",
    "contextvars": "import contextvars\nv = contextvars.ContextVar('v', default=1)\nprint(v.get(), list(contextvars.copy_context()))",
    "decimal's context": "import decimal\nprint(decimal.getcontext(), decimal.Decimal(1) / 3)",
    "registries": "import copyreg, abc, codecs, mimetypes, csv\nprint(sorted(csv.list_dialects()), codecs.lookup('utf-8').name, mimetypes.guess_type('a.json'))",
    "finder caches": "import sys\nprint(type(sys.path_importer_cache), sys.path[:1] == sys.path[:1])",
    "tracemalloc": "import tracemalloc\nprint(tracemalloc.is_tracing())\ntracemalloc.start()\nx = [0] * 1000\nprint(tracemalloc.get_traced_memory()[0] > 7000)",
    "caches are empty": "import re, functools, linecache\nprint(linecache.getline('main.py', 1), list(linecache.cache)[:1])",
    "multiprocessing's state": "import multiprocessing as mp\nprint(mp.current_process().name, mp.parent_process(), mp.get_start_method(), mp.active_children(), mp.current_process().pid > 1)",
    "random's shape": "import random, secrets, uuid, os\nprint(0 <= random.random() < 1, len(secrets.token_hex(4)), uuid.uuid4().version, len(os.urandom(5)), uuid.uuid1().version)",
    "random with a seed": "import random\nrandom.seed(5)\nprint(random.random(), random.sample(range(100), 5), random.gauss(0, 1))\nprint(random.Random(1).randint(0, 10**9))",
    "hashes of values": "print(hash(1.5), hash(2**61), hash((1, 2)), hash(None) == hash(None), id(None) == id(None))",
    "interned": "import sys\nprint(sys.intern('x') is 'x'.strip(), sys.getsizeof([]), sys.getsizeof(''), sys.getrefcount(object()) )",
}

TEXT = {
    "unicode": "print('héllo 日本 🌍 \\x00 \\r\\n \\u2028', ascii('é'))",
    "surrogate printed": "print('\\ud800')",
    "surrogate on stderr": "import sys\nprint('\\ud800 \\udc80', file=sys.stderr)",
    "surrogateescape printed": "import os\nprint(os.fsdecode(b'\\xff'))",
    "bytes": "import sys\nsys.stdout.buffer.write(b'bytes\\n')\nprint('text')\nsys.stdout.write('no end')",
    "invalid bytes": "import sys\nsys.stdout.buffer.write(b'\\xff\\xfe\\x80a')",
    "order of buffers": "import os, sys\nprint('a')\nos.write(1, b'raw\\n')\nsys.stdout.buffer.write(b'buffer\\n')\nprint('b')",
    "order of streams": "import sys\nprint('out 1')\nprint('err 1', file=sys.stderr)\nsys.stderr.write('no end')\nprint('out 2', flush=True)\nsys.stderr.flush()",
    "stderr goes to stdout": "import os, sys\nos.dup2(1, 2)\nprint('out 1')\nprint('err 1', file=sys.stderr)\nprint('out 2')\nsys.stderr.write('err 2')\nsys.stderr.buffer.write(b'err 3')\n1 / 0",
    "reconfigure": "import sys\nsys.stdout.reconfigure(encoding='latin-1', errors='replace', newline='\\r\\n')\nprint('é \\u2028')",
    "big output": "print('x' * 700_000)\nimport sys\nsys.stderr.write('y' * 200_000)",
    "many lines": "for n in range(20_000):\n    print(n)",
    "input at the end": "try:\n    input('prompt')\nexcept EOFError as e:\n    print('EOF', e)",
    "input fails": "input('prompt? ')",
    "stdin at the end": "import sys, os, fileinput\nprint(repr(sys.stdin.read()), list(sys.stdin), repr(open(0, closefd=False).read()), os.read(0, 10), list(fileinput.input()))",
    "stdin is no terminal": "import sys, os, getpass\nprint(sys.stdin.isatty(), os.isatty(1))\ntry:\n    os.get_terminal_size()\nexcept OSError as e:\n    print(e)",
    "byte order mark": "\ufeffprint('after a mark')\nprint(open(__file__, 'rb').read(3))",
    "coding line": "# -*- coding: utf-8 -*-\nprint('é')",
    "coding line latin-1": "# coding: latin-1\nprint('é')",
    "coding line unknown": "# coding: nonsense\nprint('é')",
    "shebang": "#!/usr/bin/env python3\nprint('x')",
    "line continuation at the end": "x = 1 + \\\n",
    "only a comment": "# nothing",
    "identifiers": "ﬁ = 1\nprint(fi, 'ﬁ')",
    "form of numbers": "print(1e16, 1e-5, 0.1 + 0.2, 2 ** 100, 1_000, 0x_ff, float('nan'), -0.0, 5 // -2, complex(1, -0.0))",
    "pprint": "import pprint\npprint.pprint({'b': list(range(40)), 'a': {'x': 'y' * 60}})",
    "textwrap and string": "import textwrap, string\nprint(textwrap.fill('word ' * 30, 40))\nprint(string.Template('$a').substitute(a=1), string.printable.strip())",
    "help": "def f(a: int, *, b='x') -> str:\n    '''The doc.'''\nhelp(f)",
    "displayhook": "import sys\nsys.displayhook(5)\nsys.displayhook(None)\nprint(__builtins__._)",
    "argparse": "import argparse\np = argparse.ArgumentParser()\np.add_argument('name')\np.parse_args()",
    "argparse's help": "import argparse\np = argparse.ArgumentParser(description='d')\np.add_argument('--x', type=int, default=1)\nprint(p.format_help())\np.parse_args(['--x', 'y'])",
    "unittest": """
import unittest
class T(unittest.TestCase):
    def test_passes(self):
        self.assertEqual(1, 1)
    def test_that_fails(self):
        self.assertEqual([1, 2], [1, 3])
    @unittest.skip('why')
    def test_skipped(self):
        pass
if __name__ == '__main__':
    import io, re
    out = io.StringIO()
    result = unittest.main(argv=['x', '-v'], exit=False, testRunner=unittest.TextTestRunner(out)).result
    print(re.sub(r'in [0-9.]+s', 'in 0s', out.getvalue()), result)
""",
    "unittest exits": "import unittest\nclass T(unittest.TestCase):\n    def test(self):\n        self.fail('x')\nimport sys\nsys.stderr = open('/dev/null', 'w')\nunittest.main()",
    "doctest": "def f(x):\n    '''\n    >>> f(1)\n    3\n    '''\n    return x + 1\nimport doctest\nprint(doctest.testmod())",
    "getsource": "import inspect\ndef f():\n    # a comment\n    return 1\nclass A:\n    x = 1\n    def m(self):\n        return 'é'\nprint(inspect.getsource(f), inspect.getsource(A), inspect.getsource(A.m))\nprint(inspect.getsourcelines(f), inspect.getmodule(f), inspect.getsource(lambda: 1))\nprint(inspect.getsourcefile(f), inspect.getfile(A))",
    "source of the module": "import inspect, sys\nprint(inspect.getsource(sys.modules['__main__']))",
    "dis": "import dis\ndef f(x):\n    return x + 1\ndis.dis(f)",
    "code objects": "def f(): pass\nprint(f.__code__.co_filename.endswith('main.py'), f.__code__.co_firstlineno, f, f.__module__, f.__qualname__)".replace(
        ", f,", ","
    ),
}

LIBRARY = {
    "deep recursion": "import sys\nsys.setrecursionlimit(30_000)\ndef f(n):\n    return n and 1 + f(n - 1)\nprint(f(29_000))",
    "deep lru_cache": "import sys, functools\nsys.setrecursionlimit(1_000_000)\n@functools.lru_cache(None)\ndef f(n):\n    return n and 1 + f(n - 1)\nprint(f(10_000 if sys.version_info < (3, 12) else 300))",
    "lru_cache to the limit": "import functools\n@functools.lru_cache(None)\ndef f(n):\n    return n if n < 2 else f(n - 1) + f(n - 2)\nfor n in (300, 480, 2000):\n    try:\n        print(f(n) % 10**9)\n    except RecursionError as e:\n        print(n, str(e)[:31])\nprint(f.cache_info().currsize > 480)",
    "deep cmp, repr and json": "import json\nx = []\nfor _ in range(900):\n    x = [x]\nprint(len(repr(x)), x == x)\ntry:\n    json.dumps(x)\n    print('fits')\nexcept RecursionError as e:\n    print(e)",
    "deep copy": "import copy\nx = []\nfor _ in range(300):\n    x = [x]\nprint(copy.deepcopy(x) == x)",
    "deep parser": "try:\n    eval('(' * 150 + ')' * 150)\n    eval('-' * 50_000 + '1')\nexcept (MemoryError, RecursionError, SyntaxError) as e:\n    print(type(e).__name__, e)",
    "dataclasses": "from __future__ import annotations\nimport dataclasses, typing\n@dataclasses.dataclass(order=True, frozen=True, slots=True)\nclass P:\n    x: int\n    y: list[int] = dataclasses.field(default_factory=list)\nprint(P(3), P(1) < P(2), typing.get_type_hints(P), dataclasses.asdict(P(1)), P.__module__)\nP(1).x = 2",
    "pickle": "import pickle, dataclasses\n@dataclasses.dataclass\nclass P:\n    x: int\ndef f():\n    return 5\nprint(pickle.loads(pickle.dumps((P(3), f)))[1](), pickle.dumps(P), pickle.loads(pickle.dumps(P)) is P)\npickle.dumps(lambda: 1)",
    "copyreg and deepcopy": "import copy\nclass A:\n    def __reduce__(self):\n        return (A, ())\nprint(type(copy.deepcopy(A())) is A)",
    "enum": "import enum\nclass C(enum.Flag):\n    A = enum.auto()\n    B = enum.auto()\nprint(C.A | C.B, list(C), repr(C(0)))",
    "typing": "import typing\nclass T(typing.NamedTuple):\n    a: int\n    b: str = 'x'\nclass P(typing.Protocol):\n    def f(self): ...\nprint(T(1), typing.Optional[int], P, T.__annotations__)",
    "nested functions": "def outer():\n    n = 0\n    def inner():\n        nonlocal n\n        n += 1\n        return n\n    return inner\nf = outer()\nprint(f(), f(), f.__closure__[0].cell_contents, f.__qualname__)",
    "global in functions": "n = 0\ndef f():\n    global n, made\n    n, made = n + 1, 'made'\nf()\nprint(n, made, 'made' in globals())",
    "comprehension scope": "x = 5\nprint([x for x in range(3)], x, [y := 7 for _ in range(1)], y)\nclass A:\n    z = 1\n    try:\n        l = [z for _ in range(1)]\n    except NameError as e:\n        print(e)",
    "generators": "def g():\n    x = yield 1\n    print('got', x)\n    try:\n        yield 2\n    except ValueError as e:\n        print(repr(e))\n    return 3\ni = g()\nprint(next(i), i.send('s'))\ntry:\n    i.throw(ValueError('v'))\nexcept StopIteration as e:\n    print(e.value)",
    "match": "match {'a': [1, 2, 3]}:\n    case {'a': [first, *rest]}:\n        print(first, rest)",
    "metaclass and descriptors": "class M(type):\n    def __new__(c, n, b, d):\n        print('class', n, sorted(d))\n        return super().__new__(c, n, b, d)\nclass A(metaclass=M):\n    def __init_subclass__(cls):\n        print('sub', cls)\nclass B(A):\n    pass",
    "int64": "import array, struct, ctypes\nprint(array.array('l', [2**62]), struct.calcsize('l'), ctypes.c_long(2**63 - 1), ctypes.sizeof(ctypes.c_void_p))",
    "large integers": "print(len(str(3 ** 5000)), pow(7, 10**30, 10**9 + 7))\nint('9' * 5000)",
    "decimal": "from decimal import Decimal, getcontext\ngetcontext().prec = 50\nprint(Decimal(2).sqrt(), Decimal('1.10') + Decimal('2.2'))\nDecimal(1) / 0",
    "fractions and statistics": "from fractions import Fraction\nimport statistics\nprint(Fraction(1, 3) + Fraction('0.25'), statistics.stdev([1, 2, 4]), statistics.mode('aab'))",
    "math": "import math, cmath\nprint(math.factorial(25), math.isqrt(10**30), math.gcd(12, 18), math.fsum([0.1] * 10), cmath.sqrt(-1), math.comb(50, 25))\nmath.sqrt(-1)",
    "datetime": "import datetime, zoneinfo\nd = datetime.datetime(2024, 2, 29, tzinfo=datetime.timezone.utc)\nprint(d.isoformat(), d + datetime.timedelta(days=366), d.strftime('%A %j'), datetime.date.fromisocalendar(2024, 1, 1))",
    "zone": "import datetime, zoneinfo\nprint(datetime.datetime(2024, 7, 1, tzinfo=zoneinfo.ZoneInfo('Europe/Berlin')).isoformat())",
    "time zone set": "import os, time\nos.environ['TZ'] = 'EST5EDT'\ntime.tzset()\nprint(time.tzname, time.localtime(0).tm_hour)",
    "calendar": "import calendar\nprint(calendar.month(2024, 2))",
    "re": "import re\nprint(re.sub(r'(?P<a>\\w+) (\\w+)', r'\\2 \\g<a>', 'hello world'), re.findall(r'(?i)É', 'é'))\nre.compile('(')",
    "json": "import json\nprint(json.dumps({'é': [1.0, None, True, 'x\\u2028']}), json.dumps({1: float('inf')}), json.loads('[1e400]'))\njson.dumps(object)",
    "collections": "import collections, heapq, bisect, itertools, operator\nprint(collections.Counter('abca'), collections.deque(range(5), 3), collections.OrderedDict(a=1))\nh = [3, 1, 2]\nheapq.heapify(h)\nprint(h, bisect.bisect([1, 3], 2), list(itertools.pairwise('abc')), list(itertools.batched('abc', 2)) if hasattr(itertools, 'batched') else '')",
    "hashlib": "import hashlib, hmac, zlib, base64, binascii\nprint(hashlib.sha256(b'x').hexdigest(), hmac.new(b'k', b'm', 'md5').hexdigest(), zlib.crc32(b'x'), base64.b85encode(b'abc'), hashlib.blake2b(b'x').hexdigest()[:9])\nprint(hashlib.scrypt(b'p', salt=b's', n=2, r=1, p=1).hex()[:9], sorted(hashlib.algorithms_guaranteed))",
    "compression": "import bz2, lzma, zlib, gzip\nprint(all(m.decompress(m.compress(b'x' * 1000)) == b'x' * 1000 for m in (bz2, lzma, zlib, gzip)))",
    "csv and configparser": "import csv, io, configparser\no = io.StringIO()\ncsv.writer(o).writerow(['a,b', 'c\"d'])\nprint(repr(o.getvalue()))\nc = configparser.ConfigParser()\nc.read_string('[s]\\nx = 1')\nprint(c['s'].getint('x'))",
    "xml and html": "import xml.etree.ElementTree as E, html\nprint(E.tostring(E.fromstring('<a b=\"1\"><c/>é</a>')), html.escape('<&>'))\nE.fromstring('<a>')",
    "urllib": "import urllib.parse, ipaddress, email.message\nprint(urllib.parse.urlencode({'a': 'é &'}), urllib.parse.urlsplit('http://u@h:1/p?q#f'), ipaddress.ip_network('10.0.0.0/30').num_addresses)",
    "uuid": "import uuid\nprint(uuid.uuid5(uuid.NAMESPACE_DNS, 'x'), uuid.UUID(int=5))",
    "functools": "import functools\n@functools.singledispatch\ndef f(x):\n    return 'any'\n@f.register\ndef _(x: int):\n    return 'int'\nprint(f(1), f(''), functools.reduce(lambda a, b: a * b, range(1, 6)), functools.partial(f, 1))".replace(
        ", functools.partial(f, 1)", ""
    ),
    "ctypes": "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nprint(libc.abs(-5), ctypes.string_at(b'abc'))\nlibc.printf(b'from C %d\\n', 5)\nlibc.fflush(None)",
    "ast and tokenize": "import ast, tokenize, io\nprint(ast.dump(ast.parse('x = 1')), ast.unparse(ast.parse('x=(1)')), ast.literal_eval('{1: (2,)}'))\nprint(len(list(tokenize.generate_tokens(io.StringIO('x = 1\\n').readline))))",
    "importlib": "import importlib, importlib.util, importlib.resources, importlib.metadata\nprint(importlib.import_module('json.decoder').__name__, importlib.util.find_spec('nope'), importlib.util.find_spec('json').name)\nimportlib.reload(importlib.import_module('string'))\nimport nope.more",
    "runpy": "import runpy\nopen('m.py', 'w').write('print(__name__, __file__)\\nx = 5')\nprint(runpy.run_path('m.py', run_name='named')['x'])",
    "pdb without input": "x = 1\nbreakpoint()\nprint('on')",
    "timeit and profile": "import timeit, cProfile\nprint(timeit.timeit('1', number=10) >= 0)\np = cProfile.Profile()\np.runcall(sum, [1, 2])\nprint(len(p.getstats()) > 0)",
    "code and codeop": "import code, io, contextlib\ni = code.InteractiveInterpreter()\ni.runsource('print(1 + 1)')\ni.runsource('1 / 0')",
    "settrace": "import sys\nlines = []\ndef trace(frame, event, arg):\n    lines.append((event, frame.f_lineno))\n    return trace\ndef f():\n    x = 1\n    return x\nsys.settrace(trace)\nf()\nsys.settrace(None)\nprint(lines)",
    "setprofile": "import sys\nevents = []\nsys.setprofile(lambda f, e, a: events.append(e))\nlen('')\nsys.setprofile(None)\nprint(events)",
    "numpy": "import numpy as np\nprint(np.arange(100_000).sum(), np.int_(2**40) * 2**20, np.dtype(int), np.array([1.5, 2]).mean(), repr(np.float64(0.1)))\nprint(np.array([2**62]) * 4, np.linalg.det(np.eye(3) * 2), np.random.default_rng(5).integers(0, 10**9, 3), np.get_printoptions()['precision'])\nnp.ones(2) @ np.ones(3)",
    "numpy warns": "import numpy as np\nprint(np.array([1.0]) / 0, np.seterr()['divide'])\nnp.random.seed(1)\nprint(np.random.rand(2))",
    "numpy by itself": "import numpy, sys\nprint(0 <= numpy.random.rand() < 1, numpy.geterr(), 'faasrt' in sys.modules)",
    "pandas": "import pandas as pd\nd = pd.DataFrame({'a': [1, 2, 3], 'b': list('xyx')})\nprint(d.groupby('b').sum(), d.a.dtype, d.describe())\nd['nope']",
    "curses": "try:\n    import curses\n    print('curses')\nexcept ImportError as e:\n    print(e)",
    "missing package": "import no_such_package",
    "missing name": "from os import nope",
    "missing submodule": "import json.nope",
    "loop": "total = 0\nfor n in range(300_000):\n    total += n * n % 7\nprint(total)",
    "sort": "import random\nr = random.Random(1)\nx = [r.random() for _ in range(50_000)]\nprint(sorted(x) == sorted(reversed(x)), sum(x))",
    "memory error that is caught": "try:\n    x = bytearray(2**46)\nexcept MemoryError as e:\n    print('caught', e)",
}
