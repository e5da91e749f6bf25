"""Programs that use the system: threads, processes, files, signals, sockets. See test_native_programs.py."""

from __future__ import annotations

THREADS = {
    "threads": """
import threading
results, barrier = [], threading.Barrier(20)
def work(n):
    barrier.wait()
    results.append(n)
threads = [threading.Thread(target=work, args=(n,)) for n in range(20)]
for t in threads:
    t.start()
for t in threads:
    t.join()
print(sorted(results), threading.active_count(), threading.current_thread() is threading.main_thread())
print(threading.main_thread().name, threads[0].name, threading.main_thread().daemon)
""",
    "main thread's ids": "import os, threading\nm = threading.main_thread()\nprint(m.ident == threading.get_ident(), m.native_id == os.getpid())",
    "locals of threads": "import threading\nd = threading.local()\nd.x = 1\ndef f():\n    print(hasattr(d, 'x'))\nt = threading.Thread(target=f)\nt.start()\nt.join()",
    "thread pool": "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(8) as p:\n    print(sum(p.map(lambda x: x * x, range(1000))))",
    "timer": "import threading\ndone = threading.Event()\nt = threading.Timer(0.01, done.set)\nt.start()\nprint(done.wait(10))",
    "lock and condition": """
import threading
c, items = threading.Condition(), []
def consume():
    with c:
        c.wait_for(lambda: items)
        print(items.pop())
t = threading.Thread(target=consume)
t.start()
with c:
    items.append('item')
    c.notify()
t.join()
""",
    "stack of a thread": """
import sys, threading
sys.setrecursionlimit(10**6)
threading.stack_size(128 << 20)
def depth(n):
    return n and 1 + depth(n - 1)
t = threading.Thread(target=lambda: print(depth(100_000)))
t.start()
t.join()
print(threading.stack_size())
""",
    "stack size": "import threading\nprint(threading.stack_size())",
    "switch interval": "import sys\nprint(sys.getswitchinterval())",
    "settrace of threads": "import threading\nthreading.settrace(None)\nprint(threading.gettrace(), threading.getprofile())",
}

PROCESSES = {
    "subprocess": "import subprocess\nprint(subprocess.run(['echo', 'x y'], capture_output=True, text=True))",
    "subprocess inherits": "import subprocess\nprint('one', flush=True)\nsubprocess.run('echo two; echo three >&2', shell=True)\nprint('four')",
    "subprocess fails": "import subprocess\nprint(subprocess.run(['sh', '-c', 'exit 3']).returncode)\nsubprocess.run(['false'], check=True)",
    "subprocess is missing": "import subprocess\nsubprocess.run(['no-such-program'])",
    "subprocess by a signal": "import subprocess\nprint(subprocess.run(['sh', '-c', 'kill -9 $$']).returncode)",
    "subprocess times out": "import subprocess\ntry:\n    subprocess.run(['sleep', '60'], timeout=0.05)\nexcept subprocess.TimeoutExpired as e:\n    print(e.cmd, round(e.timeout, 2), e.output)",
    "subprocess with input": "import subprocess\nprint(subprocess.check_output(['tr', 'a-z', 'A-Z'], input='text', text=True))",
    "pipe of processes": """
import subprocess
a = subprocess.Popen(['printf', 'b\\na\\n'], stdout=subprocess.PIPE)
b = subprocess.Popen(['sort'], stdin=a.stdout, stdout=subprocess.PIPE)
a.stdout.close()
print(b.communicate(), a.wait())
""",
    "subprocess in a session of its own": """
import os, signal, subprocess
for options in ({'start_new_session': True}, {'preexec_fn': os.setsid}, {'preexec_fn': lambda: os.setsid()}):
    p = subprocess.Popen(['sleep', '60'], **options)
    print(os.getpgid(p.pid) == p.pid != os.getpgid(0))
    os.killpg(os.getpgid(p.pid), signal.SIGTERM)
    print(p.wait())
p = subprocess.run(['no-such-program'], start_new_session=True)
""",
    "fork in a session of its own": """
import os
if not (pid := os.fork()):
    print(os.setsid(), os.getpgid(0) == os.getpid(), flush=True)
    os._exit(0)
os.waitpid(pid, 0)
""",
    "name of its session": "import os\nif not (pid := os.fork()):\n    os.setsid(); print(os.getsid(0) == os.getpid(), flush=True)\n    os._exit(0)\nos.waitpid(pid, 0)",
    "setsid": "import subprocess\nprint(subprocess.run(['setsid', 'echo', 'x'], capture_output=True))",
    "job control": "import subprocess\nprint(subprocess.run(['bash', '-c', 'set -m; sleep 60 & kill -- -$!; wait $!; echo $?'], stdout=-1, stderr=-3).stdout)",
    "interpreter in a process": """
import subprocess, sys
code = 'import sys; print(sys.version_info[:2], sys.argv, sys.flags.isolated); sys.exit(4)'
print(subprocess.run([sys.executable, '-I', '-c', code, 'x'], capture_output=True, text=True).stdout)
""",
    "runs itself": """
import subprocess, sys
if len(sys.argv) > 1:
    print('child', sys.argv[1:], __name__)
else:
    print(subprocess.check_output([sys.executable, __file__, 'x'], text=True))
""",
    "os.system": "import os\nprint('one', flush=True)\nprint(os.waitstatus_to_exitcode(os.system('echo two; exit 3')))",
    "os.popen": "import os\nprint(os.popen('echo x').read())",
    "fork": """
import os, sys
pid = os.fork()
if pid == 0:
    print('child')
    sys.exit(3)
print('parent', os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
""",
    "fork with a full buffer": "import os, sys\nprint('twice')\npid = os.fork()\nif pid:\n    os.waitpid(pid, 0)",
    "fork whose child fails": "import os\npid = os.fork()\nif pid == 0:\n    1 / 0\nprint(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))",
    "fork whose child runs exit handlers": "import atexit, os\natexit.register(lambda: print(os.getpid() == parent))\nparent = os.getpid()\npid = os.fork()\nif pid:\n    os.waitpid(pid, 0)",
    "fork whose child goes on": """
import os, sys
r, w = os.pipe()
if os.fork() == 0:
    os.close(w)
    os.read(r, 1)
    sys.exit(5)
print('parent')
sys.stdout.flush()
os.write(w, b'x')
os.wait()
""",
    "posix_spawn": "import os\nprint(os.waitstatus_to_exitcode(os.waitpid(os.posix_spawn('/bin/sh', ['sh', '-c', 'exit 6'], {}), 0)[1]))",
    "process group": """
import os, signal
pid = os.fork()
if pid == 0:
    os.setpgid(0, 0)
    signal.pause()
try:
    os.setpgid(pid, pid)
except OSError:
    pass
os.killpg(pid, signal.SIGTERM)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
""",
    "pool that forks": "import multiprocessing as mp\ndef f(x):\n    return x * x\nwith mp.get_context('fork').Pool(2) as p:\n    print(sum(p.map(f, range(100))))",
    "pool that spawns": "import multiprocessing as mp\ndef f(x):\n    return x * x\nif __name__ == '__main__':\n    with mp.get_context('spawn').Pool(2) as p:\n        print(p.map(f, range(5)))",
    "process of a fork server": """
import multiprocessing as mp
def f(q):
    q.put((mp.current_process().name, __name__))
if __name__ == '__main__':
    context = mp.get_context('forkserver')
    q = context.Queue()
    p = context.Process(target=f, args=(q,))
    p.start()
    print(q.get())
    p.join()
    print(p.exitcode)
""",
    "process that prints": """
import multiprocessing as mp
def f():
    print('child', mp.current_process().name, mp.parent_process().name)
    1 / 0
p = mp.get_context('fork').Process(target=f)
p.start()
p.join()
print(p.exitcode)
""",
    "process left running": """
import multiprocessing as mp
def f(e):
    e.wait()
    print('child')
context = mp.get_context('fork')
e = context.Event()
context.Process(target=f, args=(e,)).start()
e.set()
""",
    "process pool": "from concurrent.futures import ProcessPoolExecutor\ndef f(x):\n    return x + 1\nif __name__ == '__main__':\n    with ProcessPoolExecutor(2) as p:\n        print(list(p.map(f, range(3))))",
    "objects shared by processes": """
import multiprocessing as mp
def f(v, a, l):
    with l:
        v.value += 1
        a[0] = 7
v, a, l = mp.Value('i', 1), mp.Array('d', 2), mp.Lock()
ps = [mp.get_context('fork').Process(target=f, args=(v, a, l)) for _ in range(2)]
for p in ps:
    p.start()
for p in ps:
    p.join()
print(v.value, a[:])
""",
    "shared memory": """
from multiprocessing import shared_memory
m = shared_memory.SharedMemory(create=True, size=100)
m.buf[:3] = b'abc'
other = shared_memory.SharedMemory(m.name)
print(bytes(other.buf[:3]))
other.close()
m.close()
m.unlink()
""",
    "manager": "import multiprocessing as mp\nif __name__ == '__main__':\n    with mp.Manager() as m:\n        d = m.dict()\n        d['a'] = 1\n        print(dict(d))",
    "pipe of multiprocessing": "import multiprocessing as mp\na, b = mp.Pipe()\na.send({'x': [1]})\nprint(b.recv(), b.poll())",
    "no child": "import os\ntry:\n    os.wait()\nexcept ChildProcessError as e:\n    print(e)",
}

FILES = {
    "advice about a file": "import os\nfd = os.open(__file__, 0)\nfor name in sorted(vars(os)):\n    if name.startswith('POSIX_FADV_'):\n        print(name, os.posix_fadvise(fd, 0, 0, getattr(os, name)))",
    "file": "with open('f.txt', 'w') as f:\n    print(f.write('é\\n'), f.encoding, f.mode, f.name)\nprint(open('f.txt', 'rb').read())",
    "folder": """
import os, pathlib, shutil
print('main.py' in os.listdir('.'), os.getcwd() == os.path.dirname(__file__))
os.makedirs('a/b')
pathlib.Path('a/b/c').write_text('x')
os.symlink('b', 'a/link')
os.link('a/b/c', 'a/d')
print([(r, sorted(d), sorted(f)) for r, d, f in os.walk('a')], os.stat('a/d').st_nlink, oct(os.stat('a').st_mode))
shutil.rmtree('a')
print(os.path.exists('a'))
""",
    "tempfile": """
import os, tempfile
with tempfile.NamedTemporaryFile('w+') as f, tempfile.TemporaryDirectory() as d, tempfile.TemporaryFile() as t:
    f.write('x')
    f.seek(0)
    print(f.read(), os.path.isdir(d), t.write(b'x'), oct(os.stat(f.name).st_mode), oct(os.stat(d).st_mode))
print(tempfile.gettempdir())
""",
    "sqlite": """
import sqlite3
c = sqlite3.connect('a.db')
c.execute('create table t(a, b)')
with c:
    c.executemany('insert into t values(?, ?)', [(1, 'x'), (2, None)])
print(c.execute('select * from t order by a').fetchall(), c.execute('pragma journal_mode=wal').fetchall())
c.close()
try:
    sqlite3.connect('a.db').execute('select nope from t')
except sqlite3.OperationalError as e:
    print(e)
print(sqlite3.connect(':memory:').execute('select 1').fetchall())
""",
    "descriptors": "import os\nprint(sorted(map(int, os.listdir('/proc/self/fd')))[:3])\nf = open('main.py')\nprint(f.fileno(), os.pipe(), os.dup(1))",
    "descriptors are inheritable": "import os\nprint([os.get_inheritable(n) for n in range(3)], os.get_inheritable(os.open('main.py', 0)))",
    "dup2": "import os\nfd = os.open('out', os.O_RDWR | os.O_CREAT)\nsaved = os.dup(1)\nos.dup2(fd, 1)\nprint('to the file', flush=True)\nos.dup2(saved, 1)\nprint(open('out').read())",
    "posix": """
import os
print(oct(os.umask(0o022)), os.access('main.py', os.R_OK), os.path.islink('main.py'), os.sep, os.linesep == '\\n')
fd = os.open('f', os.O_RDWR | os.O_CREAT, 0o600)
print(os.write(fd, b'abcdef'), os.pread(fd, 2, 1), os.lseek(fd, 0, os.SEEK_CUR), os.pwrite(fd, b'Z', 0))
os.ftruncate(fd, 3)
os.fsync(fd)
print(os.fstat(fd).st_size, oct(os.fstat(fd).st_mode), os.read(fd, 9), os.path.getsize('f'))
os.chmod('f', 0o640)
os.utime('f', (1, 2))
os.rename('f', 'g')
print(oct(os.stat('g').st_mode), os.stat('g').st_mtime, os.path.realpath('g') == os.path.join(os.getcwd(), 'g'))
os.truncate('g', 1)
os.mkfifo('fifo')
print({e.name: e.is_file() for e in os.scandir() if e.name in ('fifo', 'g')}, os.get_terminal_size.__name__, os.getenv('LANG'), os.cpu_count() > 0)
print(os.pathconf('.', 'PC_NAME_MAX'), os.sysconf('SC_PAGE_SIZE'), os.strerror(2), os.get_blocking(1))
""",
    "own source": "print(open(__file__).read() == open('main.py').read(), __file__)\nprint(open('main.py').readline())",
    "mmap": "import mmap\nopen('f', 'wb').write(b'abc')\nwith open('f', 'r+b') as f, mmap.mmap(f.fileno(), 0) as m:\n    m[0:1] = b'X'\nprint(open('f').read(), mmap.mmap(-1, 10)[:2])",
    "locks of files": "import fcntl\nf = open('f', 'w')\nfcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)\nfcntl.lockf(f, fcntl.LOCK_EX)\nprint(fcntl.fcntl(f, fcntl.F_GETFD))",
    "archives": "import zipfile, tarfile, gzip\nwith zipfile.ZipFile('a.zip', 'w') as z:\n    z.write('main.py')\nprint(zipfile.ZipFile('a.zip').namelist())\nwith tarfile.open('a.tar.gz', 'w:gz') as t:\n    t.add('main.py')\nprint(tarfile.open('a.tar.gz').getnames(), gzip.decompress(gzip.compress(b'x')))",
    "module in the folder": "open('helper.py', 'w').write('x = 5\\nprint(__name__, __file__)')\nimport sys\nsys.path.insert(0, '')\nimport helper\nprint(helper.x)",
    "shelve and dbm": "import shelve, dbm.dumb\nwith shelve.Shelf(dbm.dumb.open('s', 'c')) as s:\n    s['a'] = [1]\n    print(dict(s))",
    "read-only places": "import os\nfor path in ('/usr/x', '/etc/passwd'):\n    print(os.path.exists('/usr'), os.path.isfile('/etc/passwd'))",
    "devices": "print(open('/dev/null').read() == '', len(open('/dev/urandom', 'rb').read(3)))\ntry:\n    open('/dev/full', 'wb', 0).write(b'x')\nexcept OSError as e:\n    print(e)",
    "/dev/zero": "print(open('/dev/zero', 'rb').read(2))",
    "/dev/zero written": "open('/dev/zero', 'wb', 0).write(b'x')",
    "anonymous mmap": """
import mmap
def show(function):
    try:
        print(function())
    except Exception as error:
        print(type(error), error)
class Mine(mmap.mmap):
    pass
for make in (mmap.mmap, Mine):
    show(lambda: make(-1, 50))
    show(lambda: make(fileno=-1, length=3, access=mmap.ACCESS_COPY)[:])
    show(lambda: make(-1, 3, offset=4096))
    show(lambda: make(-1, -1))
    show(lambda: make(-1, 3, 'x'))
    show(lambda: make(-1))
    show(lambda: make())
show(lambda: vars(mmap.mmap(-1, 1)))
print(mmap.mmap, mmap.mmap.__name__, mmap.mmap.__doc__)
""",
}

SIGNALS = {
    "handler": "import os, signal\nsignal.signal(signal.SIGUSR1, lambda n, f: print('got', signal.Signals(n).name, f.f_lineno))\nos.kill(os.getpid(), signal.SIGUSR1)\nprint('on')",
    "alarm": """
import signal, threading
done = threading.Event()
def handler(number, frame):
    print('alarm')
    done.set()
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.01)
print(done.wait(60))
""",
    "alarm that raises": """
import signal
def handler(number, frame):
    raise TimeoutError('too long')
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.05)
while True:
    pass
""",
    "dispositions": """
import signal
for n in sorted(signal.valid_signals()):
    print(n, signal.getsignal(n))
print(signal.pthread_sigmask(signal.SIG_BLOCK, []))
""",
    "mask": "import os, signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\nos.kill(os.getpid(), signal.SIGUSR1)\nprint(signal.sigpending(), signal.sigwait([signal.SIGUSR1]))",
    "SIGCHLD": """
import os, signal, time
done = []
def handler(number, frame):
    print('child')
    done.append(number)
signal.signal(signal.SIGCHLD, handler)
if os.fork() == 0:
    os._exit(0)
while not done:
    time.sleep(0.001)
print(done, os.wait()[1])
""",
    "SIGPIPE": "import os\nr, w = os.pipe()\nos.close(r)\nos.write(w, b'x')",
    "SIGTERM handled": "import os, signal, sys\nsignal.signal(signal.SIGTERM, lambda *a: sys.exit(11))\nos.kill(os.getpid(), signal.SIGTERM)",
    "wakeup": "import signal, socket\na, b = socket.socketpair()\na.setblocking(False)\nsignal.set_wakeup_fd(a.fileno())\nsignal.signal(signal.SIGUSR1, lambda *x: None)\nsignal.raise_signal(signal.SIGUSR1)\nprint(b.recv(5))",
    "functions": "import signal\nprint([repr(getattr(signal, name)).split(' at ')[0] for name in dir(signal)])",
    "faulthandler": "import faulthandler, sys\nprint(faulthandler.is_enabled())\nfaulthandler.dump_traceback()",
    "faulthandler at a crash": "import faulthandler, ctypes\nfaulthandler.enable()\nctypes.string_at(0)",
    "SIGINT while asyncio runs": """
import asyncio, os, signal
async def main():
    asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGINT)
    await asyncio.get_running_loop().create_future()
asyncio.run(main())
""",
}

SOCKETS = {
    "names of services": "import mimetypes, socket\nprint(socket.getservbyname('http'), socket.getservbyport(22), socket.getprotobyname('tcp'), mimetypes.guess_type('x.flac'))",
    "socketpair": "import socket\na, b = socket.socketpair()\na.sendall(b'hello')\na.shutdown(socket.SHUT_WR)\nprint(b.recv(10), b.recv(10), a.family)",
    "unix server": """
import socket, threading
s = socket.socket(socket.AF_UNIX)
s.bind('s.sock')
s.listen()
def serve():
    c, _ = s.accept()
    with c:
        c.sendall(c.recv(10).upper())
t = threading.Thread(target=serve)
t.start()
c = socket.socket(socket.AF_UNIX)
c.connect('s.sock')
c.sendall(b'text')
print(c.recv(10))
t.join()
c.close()
s.close()
""",
    "selectors": "import selectors, socket\ns = selectors.DefaultSelector()\na, b = socket.socketpair()\ns.register(a, selectors.EVENT_READ)\nb.send(b'x')\nprint(type(s).__name__, [e for _, e in s.select(5)])",
    "passing of descriptors": "import os, socket\na, b = socket.socketpair()\nsocket.send_fds(a, [b'x'], [os.open('main.py', 0)])\nprint(len(socket.recv_fds(b, 9, 1)[1]))",
    "asyncio": """
import asyncio
async def work(n):
    await asyncio.sleep(0.001 * n)
    return n
async def main():
    print(await asyncio.gather(*map(work, range(3))))
    print(await asyncio.to_thread(sum, [1, 2]))
    try:
        async with asyncio.timeout(0.01):
            await asyncio.sleep(60)
    except TimeoutError as e:
        print(repr(e))
    p = await asyncio.create_subprocess_exec('echo', 'x', stdout=-1)
    print(await p.communicate(), p.returncode)
print(asyncio.run(main()), asyncio.run(work(1)))
""",
    "asyncio over a unix socket": """
import asyncio
async def handle(reader, writer):
    writer.write((await reader.readline()).upper())
    await writer.drain()
    writer.close()
async def main():
    async with await asyncio.start_unix_server(handle, 'a.sock'):
        reader, writer = await asyncio.open_unix_connection('a.sock')
        writer.write(b'line\\n')
        print(await reader.read())
        writer.close()
        await writer.wait_closed()
asyncio.run(main())
""",
    "asyncio reads stdin": """
import asyncio, sys
async def main():
    reader = asyncio.StreamReader()
    try:
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    except ValueError as e:
        print(e)
asyncio.run(main())
""",
    "asyncio in debug mode": "import asyncio\nasync def main():\n    print(asyncio.get_running_loop().get_debug())\nasyncio.run(main(), debug=True)",
    "no running loop": "import asyncio\ntry:\n    asyncio.get_running_loop()\nexcept RuntimeError as e:\n    print(e)",
    "runner": "import asyncio\nwith asyncio.Runner() as r:\n    print(r.run(asyncio.sleep(0, 5)), r.run(asyncio.sleep(0, 6)))",
}
