"""Attacks by native Python programs, with ctypes and raw system calls. See `test_threats_native.py`.

Words in capitals are replaced by things outside of the sandbox: CANARY (a file with a secret), FOLDER (of the server),
HOST_SOCKET (a socket file), ABSTRACT (the name of an abstract socket), TCP_PORT, UDP_PORT and SERVER_PID.
"""

from __future__ import annotations

from textwrap import dedent

from faasrt import Outcome

# `call` makes a system call of x86-64 by its number.
PRELUDE = """
import ctypes, errno, fcntl, os, resource, signal, socket, struct, subprocess, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(number, *arguments):
    values = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    if (result := libc.syscall(ctypes.c_long(number), *values)) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def unix(kind=socket.SOCK_STREAM):
    one = socket.socket(socket.AF_UNIX, kind)
    one.setblocking(False)
    return one
def unix_pair(): return [one.detach() for one in socket.socketpair()]
def fill(one, size=65_536):
    try:
        while True: one.send(b'x' * size)
    except OSError: pass
def read(path):
    with open(path, 'rb') as file: return file.read(100)
def try_all(*functions):
    for function in functions:
        try: function()
        except OSError: pass
def connect(address):
    with socket.socket(socket.AF_UNIX) as one: one.connect(address)
# Where the jail hides /proc, programs look in other ways, as far as there are any.
def shown(path, otherwise=''):
    try:
        with open(path) as file: return file.read()
    except PermissionError: return otherwise
def exists(pid):
    try: os.kill(pid, 0)
    except OSError: return False
    return pid != os.getpid()
def others():
    try: return set(os.listdir('/proc')) - {'self', 'thread-self', str(os.getpid())}
    except PermissionError: return [pid for pid in range(2, 2000) if exists(pid)]
def is_open(fd):
    try: os.fstat(fd)
    except OSError: return False
    return True
def descriptors():
    try: return len(os.listdir('/proc/self/fd'))
    except PermissionError: return 1 + sum(map(is_open, range(256)))
"""


def attempt(body: str) -> str:
    """Return a program that prints "reached" if its body succeeds, and "denied" if it fails."""
    lines = body.replace("\n", "\n    ")
    return (
        f"{PRELUDE}\ntry:\n    {lines}\nexcept (Exception, SystemExit) as e:\n    print('denied', repr(e))\n"
        "else:\n    print('reached')"
    )


CLOCKS_OF_PROCESS_1 = {
    "CPU time of process 1": "time.clock_gettime(-14)",
    "a timer of process 1": "call(222, -14, 0, bytes(4))",
}
# Each attack raises an exception if the jail denies it.
DENIED = {
    # Files of the host, of the server, and of the system.
    "read a file": "print(read('CANARY'))",
    "read a file by way of the root": "print(read('/proc/self/root/../../CANARY'))",
    "read a file by way of the folder": "print(read('/proc/self/cwd/../../../../CANARY'))",
    "read a file with openat": "os.open('../' * 30 + 'CANARY', 0, dir_fd=os.open('/tmp', 0))",
    "read a file by a link": dedent("""
        os.symlink('CANARY', '/tmp/l')
        print(read('/tmp/l'))
    """),
    "read a file by a subprocess": "subprocess.run(['/bin/cat', 'CANARY'], check=True, stderr=-3)",
    "link to a file": "os.link('CANARY', '/tmp/l')",
    "stat a file": "os.stat('CANARY')",
    "list the server's folder": "print(os.listdir('FOLDER'))",
    "write a file": "open('CANARY', 'a')",
    "write into the server's folder": "open('FOLDER/new', 'w')",
    "read /etc/shadow": "print(read('/etc/shadow'))",
    "list /root": "print(os.listdir('/root/.ssh'))",
    "list /home": "print(os.listdir('/home'))",
    "list /sys": "print(os.listdir('/sys'))",
    "list /run": "print(os.listdir('/run'))",
    "list /var/tmp": "print(os.listdir('/var/tmp'))",
    "write to /": "open('/new', 'w')",
    "write to /etc": "open('/etc/passwd', 'a')",
    "write to /usr": "open('/usr/lib/new', 'w')",
    "write to /dev": "open('/dev/new', 'w')",
    "write to the packages": "open(os.__file__, 'a')",
    "chmod of the packages": "os.chmod(os.__file__, 0o777)",
    "utime of the packages": "os.utime(os.__file__)",
    "truncate the packages": "os.truncate(os.__file__, 0)",
    "unlink of the packages": "os.unlink(os.__file__)",
    "rename to a place outside": dedent("""
        open('/tmp/x', 'w').close()
        os.rename('/tmp/x', '/x')
    """),
    "open a file by its handle": "call(304, 0, bytes(100), 0)",
    "get a handle of a file": "call(303, -100, b'/usr', bytes(100), bytes(4), 0)",
    # /proc and devices.
    "/proc of the server": "print(os.listdir('/proc/SERVER_PID'))",
    "/proc/1": "print(os.listdir('/proc/1'))",
    "descriptors of process 1": "print(os.listdir('/proc/1/fd'))",
    "memory of process 1": "open('/proc/1/mem', 'rb')",
    "root of process 1": "print(os.listdir('/proc/1/root/'))",
    "root of the parent": "print(os.listdir(f'/proc/{os.getppid()}/root/'))",
    "other processes": "assert others()",
    "sysctl": "print(read('/proc/sys/kernel/core_pattern'))",
    "sysrq": "open('/proc/sysrq-trigger', 'w')",
    "kernel messages": "call(103, 3, bytes(100), 100)",
    "kernel memory": "print(read('/proc/kcore'))",
    "keys of others": "assert read('/proc/keys')",
    "locks of others": "print(read('/proc/locks'))",
    "sockets of others": "assert len(open('/proc/self/net/unix').readlines()) > 1",
    "own uid map": "open('/proc/self/uid_map', 'w').write('0 0 1')",
    "own oom score": "open('/proc/self/oom_score_adj', 'w').write('-1000')",
    "/dev/mem": "open('/dev/mem', 'rb')",
    "/dev/kmsg": "open('/dev/kmsg', 'rb')",
    "/dev/tty": "open('/dev/tty')",
    "/dev/ptmx": "open('/dev/ptmx')",
    "/dev/zero, which gives shared memory": dedent("""
        import mmap
        mmap.mmap(os.open('/dev/zero', os.O_RDWR), 4096)
    """),
    "/dev/fuse": "open('/dev/fuse')",
    "/dev/kvm": "open('/dev/kvm')",
    "/dev/userfaultfd": "open('/dev/userfaultfd')",
    "write to /dev/random": "open('/dev/random', 'wb')",
    "typing on the terminal": "fcntl.ioctl(0, 0x5412, b'x')",
    "a controlling terminal": "fcntl.ioctl(0, 0x540E, 0)",
    "signals on input": "fcntl.fcntl(1, fcntl.F_SETOWN, 1)",
    "a watch on a folder": "fcntl.fcntl(os.open('/usr', 0), 1026, 4)",
    "a lease": "fcntl.fcntl(os.open('/tmp/x', os.O_CREAT), 1024, 0)",
    # Sockets.
    **{
        f"a socket of family {family}, type {kind}": f"call(41, {family}, {kind}, {protocol})"
        for family, kind, protocol in [
            (2, 1, 0),
            (2, 2, 0),
            (2, 3, 255),
            (10, 1, 0),
            (10, 2, 0),
            (16, 3, 0),
            (16, 2, 9),
            (17, 3, 3),
            (17, 2, 768),
            (15, 3, 2),
            (30, 1, 0),
            (31, 1, 3),
            (38, 5, 0),
            (40, 1, 0),
            (41, 2, 0),
            (44, 3, 0),
            (2, 1, 262),
            (29, 3, 1),
        ]
    },
    "a socket with upper bits": "call(41, 1 << 32 | 2, 1, 0)",
    "a pair of internet sockets": "call(53, 2, 1, 0, bytes(8))",
    "loopback": "socket.create_connection(('127.0.0.1', TCP_PORT))",
    "a name server": "socket.getaddrinfo('example.org', 80)",
    "a socket file of the host": "connect('HOST_SOCKET')",
    "an abstract socket of the host": "connect('\\0ABSTRACT')",
    "a datagram to the host": "unix(socket.SOCK_DGRAM).sendto(b'x', 'HOST_SOCKET')",
    "a larger buffer": "unix().setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 30)",
    "a larger buffer by force": "unix().setsockopt(socket.SOL_SOCKET, 32, 1 << 30)",
    "a lock of an open file": "fcntl.fcntl(os.open(os.__file__, 0), 37, struct.pack('hhqqi4x', 0, 0, 0, 1, 0))",
    "a file without an access mode": "os.open('/usr', 3)",
    "a table of descriptors for a thread": "call(436, 3, 4, 2)",
    "a larger pipe": "fcntl.fcntl(1, 1031, 1 << 20)",
    # Other processes.
    "end the server": "os.kill(SERVER_PID, 9)",
    "a signal to process 1": dedent("""
        os.kill(1, 2)
        assert os.getuid() == 0
    """),
    "a signal to process 1 by pidfd": "signal.pidfd_send_signal(os.pidfd_open(1), 15)",
    "a queued signal to process 1": "call(129, 1, 10, bytes(128))",
    "a signal to a thread of process 1": "call(234, 1, 1, 2)",
    "a signal to all": "os.kill(-1, 9)",
    "ptrace of process 1": "call(101, 16, 1, 0, 0)",
    "ptrace of a child": dedent("""
        pid = os.fork()
        if not pid: signal.pause()
        call(101, 16, pid, 0, 0)
    """),
    "be traced": "call(101, 0, 0, 0, 0)",
    "read memory of process 1": "call(310, 1, bytes(16), 1, bytes(16), 1, 0)",
    "write memory of process 1": "call(311, 1, bytes(16), 1, bytes(16), 1, 0)",
    "descriptor of process 1": "call(438, os.pidfd_open(1), 0, 0)",
    "descriptor of itself": "call(438, os.pidfd_open(os.getpid()), 1, 0)",
    **CLOCKS_OF_PROCESS_1,
    "rules of Landlock": "call(446, 5, 0)",
    "rules of Landlock for nothing": "call(446, -1, 8)",
    "compare processes": "call(312, 1, 1, 0, 0, 0)",
    "advice for process 1": "call(440, os.pidfd_open(1), bytes(16), 1, 4, 0)",
    "limits of process 1": "resource.prlimit(1, resource.RLIMIT_NOFILE, (1, 1))",
    "limits of the server": "resource.prlimit(SERVER_PID, resource.RLIMIT_NOFILE, (1, 1))",
    "cores of process 1": "os.sched_setaffinity(1, {0})",
    "idle process 1": "os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0))",
    "renice process 1": "os.setpriority(os.PRIO_PROCESS, 1, 19)",
    "renice all": "os.setpriority(os.PRIO_USER, 0, 19)",
    "renice the user": "os.setpriority(os.PRIO_USER, os.getuid(), 19)",
    "disk priority": "call(251, 1, 0, 0)",
    "robust list of process 1": "call(274, 1, bytes(8), bytes(8))",
    "a child of the launcher": "call(56, 0x8000 | 17, 0, 0, 0, 0)",
    "a process of another namespace": "call(308, os.pidfd_open(1), 0x20000000)",
    # Rights.
    "become root": "os.setuid(0)",
    "become root with setresuid": "os.setresuid(0, 0, 0)",
    "another group": "os.setgid(0)",
    "groups": "os.setgroups([0])",
    "capabilities": "call(126, struct.pack('Ii', 0x20080522, 0), b'\\xff' * 24)",
    "ambient capabilities": "call(157, 47, 2, 0, 0, 0)",
    "keep capabilities": "call(157, 8, 1, 0, 0, 0)",
    "securebits": "call(157, 28, 0, 0, 0, 0)",
    "any capability": dedent("""
        x = ctypes.create_string_buffer(24)
        call(125, struct.pack('Ii', 0x20080522, 0), x)
        assert any(x.raw)
    """),
    "a set-uid program": "subprocess.run(['/usr/bin/su', '-c', 'id'], check=True, stdin=-3, capture_output=True)",
    "an own set-uid program": dedent(r"""
        import shutil
        shutil.copy('/usr/bin/id', '/tmp/id')
        os.chmod('/tmp/id', 0o4755)
        assert int(subprocess.run(['/tmp/id', '-u'], capture_output=True, text=True).stdout) != os.getuid()
    """),
    "a user namespace": "call(272, 0x10000000)",
    "a mount namespace": "call(272, 0x20000)",
    "a time namespace": "call(272, 0x80)",
    "clone into a user namespace": "call(56, 0x10000000 | 17, 0, 0, 0, 0)",
    "clone into a time namespace": "call(56, 0x80 | 17, 0, 0, 0, 0)",
    "clone with upper bits": "call(56, 1 << 32 | 0x10000000 | 17, 0, 0, 0, 0)",
    "a thread with descriptors of its own": "call(56, 0x10B00, 16, 0, 0, 0)",
    "clone3": "call(435, struct.pack('Q', 0x10000000) + bytes(80), 88)",
    "unshare(1)": "subprocess.run(['unshare', '-Ur', 'true'], check=True, stderr=-3)",
    "mount": "call(165, b'x', b'/tmp', b'tmpfs', 0, 0)",
    "remount": "call(165, 0, b'/', 0, 32, 0)",
    "umount": "call(166, b'/tmp', 2)",
    "new mounts": "call(430, b'tmpfs', 0)",
    "open a tree": "call(428, -100, b'/', 1)",
    "move a mount": "call(429, -100, b'/usr', -100, b'/tmp', 0)",
    "attributes of a mount": "call(442, -100, b'/', 0x8000, struct.pack('QQQQ', 0, 1, 0, 0), 32)",
    "read a file by a smaller root folder": dedent("""
        os.chroot('/usr/bin')
        print(read('../' * 30 + 'CANARY'))
    """),
    "pivot_root": "call(155, b'/tmp', b'/tmp')",
    "setns": "call(308, os.open('/proc/self/ns/net', 0), 0)",
    "a block device": "os.mknod('/tmp/b', 0o60666, os.makedev(8, 0))",
    "a character device": "os.mknod('/tmp/c', 0o20666, os.makedev(1, 1))",
    "host name": "call(170, b'x', 1)",
    "the clock": "time.clock_settime(time.CLOCK_REALTIME, 0)",
    "reboot": "call(169, 0xFEE1DEAD, 672274793, 0, 0)",
    "ports": "call(172, 3)",
    "personality": "call(135, 0x0040000)",
    "no more filter": "call(317, 0, 0, 0)",
    "another filter": "call(157, 22, 2, bytes(16), 0, 0)",
    "no_new_privs off": "call(157, 38, 0, 0, 0, 0)",
    "dumpable": "call(157, 4, 1, 0, 0, 0)",
    "a subreaper": "call(157, 36, 1, 0, 0, 0)",
    "layout of memory": "call(157, 35, 1, 0x1000, 0, 0)",
    # Limits.
    **{
        f"raise {name}": f"s, h = resource.getrlimit(resource.{name}); "
        f"resource.setrlimit(resource.{name}, (h + 1, h + 1))"
        for name in [
            "RLIMIT_AS",
            "RLIMIT_DATA",
            "RLIMIT_NPROC",
            "RLIMIT_NOFILE",
            "RLIMIT_FSIZE",
            "RLIMIT_STACK",
            "RLIMIT_CORE",
            "RLIMIT_MEMLOCK",
            "RLIMIT_MSGQUEUE",
            "RLIMIT_SIGPENDING",
            "RLIMIT_NICE",
            "RLIMIT_RTPRIO",
        ]
    },
    "no limit of core dumps": "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))",
    "no limit of core dumps by prlimit": "resource.prlimit(0, resource.RLIMIT_CORE, (0, 0))",
    "a higher priority": "os.nice(-1)",
    "real time": "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))",
    "a large file": dedent("""
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        os.truncate(os.open('/tmp/x', 65), 10**12)
    """),
    "a lot of locked memory": "call(149, ctypes.addressof(ctypes.create_string_buffer(1 << 20)), 1 << 20)",
    # Interfaces of the kernel that programs do not need.
    "io_uring": "call(425, 8, bytes(120))",
    "bpf": "call(321, 0, bytes(16), 16)",
    "perf": "call(298, bytes(128), 0, -1, -1, 0)",
    "userfaultfd": "call(323, 1)",
    "keys": "call(248, b'user', b'a', b'b', 1, -3)",
    "a session keyring": "call(250, 1, 0)",
    "memfd": "os.memfd_create('x')",
    "secret memory": "call(447, 0)",
    "shared memory without a file": "call(9, 0, 4096, 3, 0x21, -1, 0)",
    "shared memory, validated": "call(9, 0, 4096, 3, 0x23, -1, 0)",
    "SysV shared memory": "call(29, 0, 4096, 0o1777)",
    "SysV semaphores": "call(64, 0, 1, 0o1777)",
    "SysV messages": "call(68, 0, 0o1777)",
    "POSIX messages": "call(240, b'q', 0o102, 0o666, 0)",
    "inotify": "call(294, 0)",
    "fanotify": "call(300, 0, 0)",
    "asynchronous I/O": "call(206, 8, bytes(8))",
    "extended attributes": "os.setxattr('/tmp', b'user.x', b'x')",
    "vmsplice": "call(278, 1, bytes(16), 1, 0)",
    "splice": dedent("""
        r, w = os.pipe()
        os.write(w, b'x')
        call(275, r, 0, unix_pair()[0], 0, 1, 0)
    """),
    "sendfile": "call(40, unix_pair()[0], os.open('/usr/bin/env', 0), 0, 1)",
    "modify_ldt": "call(154, 0, bytes(16), 16)",
    "x32": "call(0x40000000 | 39)",
    "a call below 0": "call(-1)",
}

# The same for a process in the namespaces of the host. Landlock does not hide whether a path exists.
DENIED_WITHOUT_NAMESPACES = {
    **{name: body for name, body in DENIED.items() if name not in ("stat a file", *CLOCKS_OF_PROCESS_1)},
    "a subprocess": "subprocess.run(['/bin/true'])",
    "a fork": "os.fork()",
    "another program": "os.execv('/bin/true', ['true'])",
    "rights of a file": "os.chmod('CANARY', 0o777)",
    "times of a file": "os.utime('CANARY')",
    "owner of a file": "os.chown('CANARY', -1, -1)",
    "truncate a file": "os.truncate('CANARY', 0)",
    "a file without an access mode": "os.open('CANARY', 3)",
    "a terminal of the host": "os.open('/dev/ptmx', 3)",
    "a table of descriptors for a thread": "call(436, 3, 4, 2)",
    "truncate a file by opening it": "os.open('CANARY', os.O_RDONLY | os.O_TRUNC)",
    "unlink a file": "os.unlink('CANARY')",
    "a file in /tmp": "open('/tmp/faasrt-new', 'w')",
    "a file in /dev/shm": "open('/dev/shm/faasrt-new', 'w')",
    "an unnamed file": "os.open('/tmp', os.O_TMPFILE | os.O_RDWR)",
    "a list of processes": "print(os.listdir('/proc'))",
    "its own environment": "print(read('/proc/self/environ'))",
    "the network of the host": "print(read('/proc/net/tcp'))",
    "packets of the host": "print(read('/proc/self/net/softnet_stat'))",
    "the number of sessions on the host": "print(read('/proc/self/autogroup'))",
    "a lock that others see": "fcntl.flock(os.open(os.__file__, 0), fcntl.LOCK_EX)",
    "a lock of a part that others see": "fcntl.lockf(os.open(os.__file__, 0), fcntl.LOCK_SH)",
    "any Unix socket": "unix()",
    "a pair of datagram sockets": "socket.socketpair(type=socket.SOCK_DGRAM)",
    "a message to an address": "socket.socketpair()[0].sendmsg([b'x'], [], 0, 'HOST_SOCKET')",
    "a pair of sockets, connected anew": "socket.socketpair()[0].connect('HOST_SOCKET')",
    "a pair of sockets with a name": "socket.socketpair()[0].bind('\\0faasrt-name')",
    "a signal to the launcher": "os.kill(os.getppid(), 0)",
    "a signal to a thread of the launcher": "call(234, os.getppid(), os.getppid(), 0)",
    "a pidfd of the launcher": "os.pidfd_open(os.getppid())",
    "limits of the launcher": "resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE)",
    "cores of the launcher": "os.sched_setaffinity(os.getppid(), {0})",
    "priority of the launcher": "os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
    "live on without the launcher": "call(157, 1, 0, 0, 0, 0)",
}

# Those that are not attacks where each program has a uid, or for the processes in its group: its own folder and
# processes, locks that others see at any level, and names in /dev/shm.
_ALLOWED_FOR_USERS = (
    *("a subprocess", "a fork", "another program", "an unnamed file", "a signal to all", "a pidfd of the launcher"),
    *("a lock that others see", "a lock of a part that others see", "a file in /dev/shm"),
)
DENIED_FOR_USERS = {
    **{
        name: body if name == "a file in /tmp" else body.replace("/tmp", ".")
        for name, body in DENIED_WITHOUT_NAMESPACES.items()
        if name not in _ALLOWED_FOR_USERS
    },
    "a file of another program": "print(read('OTHER_HOME/secret'))",
    "the names in the folder of another program": "print(os.listdir('OTHER_HOME'))",
    "a file for another program": "open('OTHER_HOME/new', 'w')",
    "a link to a file of another program": "os.link('OTHER_HOME/secret', 'x')",
    "a file of another program, moved": "os.rename('OTHER_HOME/secret', 'x')",
    "a file of another program, removed": "os.unlink('OTHER_HOME/secret')",
    "the mode of a file of another program": "os.chmod('OTHER_HOME/secret', 0)",
    "the times of a file of another program": "os.utime('OTHER_HOME/secret')",
    "the size of a file of another program": "os.truncate('OTHER_HOME/secret', 0)",
    "the facts of a file of another program": "os.stat('OTHER_HOME/secret')",
    "its folder as the current one": "os.chdir('OTHER_HOME')",
    "the folders of all programs": "print(os.listdir(os.path.dirname(os.path.dirname(os.getcwd()))))",
    "the folder that has its own": "print(open('../new', 'w'))",
    "the mode of the folder that has its own": "os.chmod('..', 0o777)",
    "shared memory of another program": "open('/dev/shm/OTHER_SHM', 'rb')",
    "shared memory of another program, removed": "os.unlink('/dev/shm/OTHER_SHM')",
    "names in /dev/shm": "print(os.listdir('/dev/shm'))",
    "a folder in /dev/shm": "os.mkdir('/dev/shm/faasrt-new')",
    "a program in /dev/shm": dedent("""
        import shutil
        shutil.copy('/bin/true', '/dev/shm/faasrt-true')
        os.chmod('/dev/shm/faasrt-true', 0o755)
        subprocess.run(['/dev/shm/faasrt-true'], check=True)
    """),
    "a signal to another program": "os.kill(OTHER_PID, 0)",
    "the end of another program": "os.kill(OTHER_PID, 9)",
    "the end of another program by pidfd": "signal.pidfd_send_signal(os.pidfd_open(OTHER_PID), 9)",
    "a queued signal to another program": "call(129, OTHER_PID, 10, bytes(128))",
    "a process group of another program": "os.killpg(OTHER_PID, 9)",
    "the memory of another program": "open('/proc/OTHER_PID/mem', 'rb')",
    "the environment of another program": "print(read('/proc/OTHER_PID/environ'))",
    "the command of another program": "print(read('/proc/OTHER_PID/cmdline'))",
    "the root of another program": "print(os.readlink('/proc/OTHER_PID/root'))",
    "the folder of another program by /proc": "print(os.listdir('/proc/OTHER_PID/cwd'))",
    "the limits of another program": "resource.prlimit(OTHER_PID, resource.RLIMIT_NOFILE)",
    "the cores of another program": "os.sched_setaffinity(OTHER_PID, {0})",
    "the priority of another program": "os.setpriority(os.PRIO_PROCESS, OTHER_PID, 19)",
    "the priority of the server": "os.setpriority(os.PRIO_PROCESS, SERVER_PID, 19)",
    "the owner of a file, unchanged": "os.chown(os.__file__, -1, -1)",
    "another owner of a file": dedent("""
        open('x', 'w').close()
        os.chown('x', 1_879_100_001, -1)
    """),
    "blocks of the disk": "call(285, os.open('x', 65), 0, 0, 2**26)",
    "a server in the folder": "unix().bind('x')",
    "a message with an address": "socket.socketpair()[0].sendto(b'x', 'HOST_SOCKET')",
    "the processes of the machine": "print(os.listdir('/proc/self/task'))",
    "the network of the machine": "print(read('/proc/self/net/tcp'))",
    "the mounts of the machine": "print(read('/proc/self/mountinfo'))",
}

# Ways to use memory, also outside of one address space. Each program is stopped at the limit of 256 MiB.
MEMORY = {
    "one process": dedent("""
        x = []
        while True: x.append(b'x' * 2**20)
    """),
    "many processes": dedent("""
        for _ in range(8):
            if not os.fork(): break
        x = [b'x' * 2**20 for _ in range(100)]
        signal.pause()
    """),
    "children of a process without its first thread": dedent("""
        import threading
        def run():
            for _ in range(8):
                if not os.fork(): break
            x = [b'x' * 2**20 for _ in range(100)]
            time.sleep(60)
        threading.Thread(target=run).start()
        libc.syscall(60, 0)
    """),
    "files": dedent("""
        file = os.open('/tmp/x', 65)
        for _ in range(60): os.write(file, bytes(2**20))
        x = b'x' * (240 * 2**20)  # the limit is 256 MiB, besides the memory of the interpreter
        signal.pause()
    """),
    "pairs of sockets": dedent("""
        for _ in range(60):
            if not os.fork(): break
        x = []
        try:
            while True:
                x += (pair := socket.socketpair())
                for one in pair:
                    one.setblocking(False)
                    fill(one)
        except OSError: signal.pause()
    """),
    "connections that wait": dedent("""
        x = []
        for n in range(200):
            x.append(unix())
            x[n].bind(f'/tmp/{n}')
            x[n].listen(9999)
            for _ in range(200):
                with unix() as one:
                    one.connect(f'/tmp/{n}')
                    fill(one)
    """),
    "datagrams that wait": dedent(r"""
        x = []
        for n in range(240):
            x.append(unix(2))
            x[n].bind(f'\0{n}')
            for _ in range(11):
                with unix(2) as one:
                    one.connect(f'\0{n}')
                    fill(one, 200_000)
        signal.pause()
    """),
    "watches of epoll": dedent("""
        import select
        for _ in range(60):
            if not os.fork(): break
        r, _ = os.pipe()
        x = []
        files = [os.dup(r) for _ in range(120)]
        try:
            while True:
                x.append(select.epoll())
                for one in files: x[-1].register(one)
        except OSError: signal.pause()
    """),
    "watches of epoll of processes that cannot be read": dedent(r"""
        import shutil
        shutil.copy(os.path.realpath(sys.executable), '/tmp/x')
        os.chmod('/tmp/x', 0o111)
        os.environ['PYTHONHOME'] = sys.base_prefix
        code = '\n'.join([
            'import os, select, signal',
            'n = 60',
            'while n and os.fork(): n -= 1',
            'files = [os.dup(1) for _ in range(120)]',
            'x = []',
            'try:',
            '    while True:',
            '        x.append(select.epoll())',
            '        for one in files: x[-1].register(one)',
            'except OSError: signal.pause()',
        ])
        os.execv('/tmp/x', ['x', '-c', code])
    """),
    # An epoll watches each file under many numbers, and each open file of /proc/self/fdinfo keeps a text about all.
    "texts about an epoll": dedent("""
        import select
        x = select.epoll()
        files = [one for _ in range(40) for one in os.pipe()]
        for n in range(100, 220):
            for one in files:
                os.dup2(one, n)
                x.register(n)
        os.closerange(100, 220)
        try:
            while True: os.read(os.open(f'/proc/self/fdinfo/{x.fileno()}', 0), 1)
        except OSError: signal.pause()
    """),
    "watches of epolls that are sent": dedent("""
        import select
        a, b = socket.socketpair()
        files = [one for _ in range(30) for one in os.pipe()]
        for _ in range(240):
            x = select.epoll()
            for n in range(120, 220):
                for one in files:
                    os.dup2(one, n)
                    x.register(n)
            socket.send_fds(a, [b'x'], [x.fileno()])
            x.close()
        signal.pause()
    """),
    "locks": dedent("""
        file = os.open(os.__file__, 0)
        for n in range(10**5): fcntl.lockf(file, fcntl.LOCK_SH, 1, 2 * n)
        signal.pause()
    """),
    "locks of many processes": dedent("""
        for _ in range(59):
            if not os.fork(): break
        file = os.open(os.__file__, 0)
        for n in range(10**5): fcntl.lockf(file, fcntl.LOCK_SH, 1, 2 * n)
        signal.pause()
    """),
    "stacks": dedent("""
        import threading
        for _ in range(40):
            if not os.fork(): break
        x = bytearray(b'x') * 2**24
        signal.pause()
    """),
}

# Programs that take as many of a resource as they can, and the highest number that they may print.
BOUNDED = {
    "processes": (
        dedent("""
            try:
                while os.fork(): n += 1
                signal.pause()
            except OSError: pass
        """),
        64,
    ),
    "processes of processes": (
        dedent("""
            first = os.getpid()
            while True:
                try: os.fork()
                except OSError: break
            n = len(others())
            if os.getpid() != first: signal.pause()
        """),
        70,
    ),
    "threads": (
        dedent("""
            import threading
            x = threading.Event()
            try:
                while True:
                    threading.Thread(target=x.wait, daemon=True).start()
                    n += 1
            except RuntimeError: pass
        """),
        64,
    ),
    "zombies": (
        dedent("""
            try:
                while True:
                    if not os.fork(): os._exit(0)
                    n += 1
            except OSError: pass
        """),
        64,
    ),
    "sockets in messages": (
        dedent("""
            x = []
            for _ in range(100):
                a, b = socket.socketpair()
                x += [a, b]
                try:
                    for _ in range(9):
                        c, d = socket.socketpair()
                        c.setblocking(False)
                        fill(c)
                        socket.send_fds(a, [b'x'], [c.fileno()])
                        n += 1
                except OSError: pass
        """),
        257,
    ),
    "descriptors": (
        dedent("""
            try:
                while True:
                    os.dup(1)
                    n += 1
            except OSError: pass
        """),
        256,
    ),
    "MiB of files": (
        dedent("""
            signal.signal(signal.SIGXFSZ, 1)
            try:
                while True:
                    with open(f'/tmp/{n}', 'wb') as f: f.write(bytes(2**20))
                    n += 1
            except OSError: pass
        """),
        64,
    ),
    "inodes": (
        dedent("""
            try:
                while True:
                    os.mkdir(f'/tmp/{n}')
                    n += 1
            except OSError: pass
        """),
        4096,
    ),
    "links": (
        dedent("""
            try:
                while True:
                    os.symlink('x' * 4000, f'/tmp/{n}')
                    n += 1
            except OSError: pass
        """),
        4096,
    ),
    "timers": (
        dedent("""
            try:
                while True:
                    call(222, 1, 0, bytes(4))
                    n += 1
            except OSError: pass
        """),
        1024,
    ),
    "queued signals": (
        dedent("""
            signal.pthread_sigmask(0, [40])
            try:
                while True:
                    call(129, os.getpid(), 40, struct.pack('iii', 40, 0, -1) + bytes(116))
                    n += 1
            except OSError: pass
        """),
        1024,
    ),
    "MiB in pipes": (
        dedent("""
            x = 0
            try:
                while True:
                    r, w = os.pipe()
                    os.set_blocking(w, False)
                    try:
                        while True: x += os.write(w, bytes(4096))
                    except BlockingIOError: pass
            except OSError: n = x >> 20
        """),
        64,
    ),
    "eventfds and timerfds": (
        dedent("""
            try:
                while True:
                    call(290, 0, 0)
                    call(283, 1, 0)
                    n += 2
            except OSError: pass
        """),
        256,
    ),
    "watches of epoll": (
        dedent("""
            import select
            r, w = os.pipe()
            x = []
            try:
                while True:
                    x.append(select.epoll())
                    x[-1].register(r)
                    n += 1
            except OSError: pass
        """),
        256,
    ),
    "sessions, each with a share of the CPU time": (
        dedent("""
            r, w = os.pipe()
            x = {os.getsid(0)}
            for _ in range(20):
                if not (pid := os.fork()):
                    call(112)
                    os.write(w, b'1')
                    signal.pause()
                os.read(r, 1)
                x.add(os.getsid(pid))
            n = len(x)
        """),
        1,
    ),
    "core dumps": (
        dedent("""
            if not (pid := os.fork()): os.abort()
            n = os.WCOREDUMP(os.waitpid(pid, 0)[1]) + len([f for f in os.listdir('/tmp') if 'core' in f])
        """),
        0,
    ),
}

# Code that leaves something behind, and an expression that is true in another program if that can see it.
LEFTOVERS = {
    "a file": ("open('/tmp/spy', 'w').close()", "os.path.exists('/tmp/spy')"),
    "a file in /dev/shm": ("open('/dev/shm/spy', 'w').close()", "os.listdir('/dev/shm')"),
    "the program itself": ("pass", "set(os.listdir('/tmp')) - {'main.py', '.shm', *sys.prefix.split('/')[2:3]}"),
    "shared memory": (
        dedent("""
            from multiprocessing import shared_memory as s, resource_tracker as r
            r.register = lambda *a: None
            s.SharedMemory('spy', create=True, size=9)
        """),
        "any('spy' in f for f in os.listdir('/dev/shm'))",
    ),
    "a semaphore": (
        dedent("""
            import _multiprocessing as m
            m.SemLock(0, 1, 1, '/spy', False)
        """),
        "os.listdir('/dev/shm')",
    ),
    "a process": (
        dedent("""
            if not os.fork():
                os.setsid()
                os.fork()
                signal.pause()
        """),
        "others()",
    ),
    "an abstract name": (
        dedent(r"""
            x = unix()
            x.bind('\0spy')
            x.listen()
            if not os.fork(): signal.pause()
        """),
        "unix().bind('\\0spy') or 'spy' in shown('/proc/self/net/unix').replace('@spy', '', 1)",
    ),
    "the environment": (
        dedent("""
            os.environ['SPY'] = '1'
            os.putenv('SPY', '1')
        """),
        "os.getenv('SPY')",
    ),
    "a module": (
        dedent("""
            import json
            json.spy = 1
            sys.modules['spy'] = json
        """),
        "'spy' in sys.modules or hasattr(__import__('json'), 'spy')",
    ),
    "a builtin": (
        dedent("""
            import builtins
            builtins.spy = 1
        """),
        "'spy' in dir(__builtins__)",
    ),
    "the recursion limit": ("sys.setrecursionlimit(77)", "sys.getrecursionlimit() == 77"),
    "a handler": ("signal.signal(2, signal.SIG_IGN)", "signal.getsignal(2) == signal.SIG_IGN"),
    "random numbers": (
        dedent("""
            import random
            random.seed(5)
        """),
        "__import__('random').random() == 0.6229016948897019",
    ),
    "a mask": ("os.umask(0)", "os.umask(0) == 0"),
    "a limit": ("resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))", "resource.getrlimit(7)[0] == 50"),
    "a niceness": ("os.nice(19)", "os.nice(0) == 19"),
    "a core": (
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})",
        "len(os.sched_getaffinity(0)) < os.cpu_count()",
    ),
    "a descriptor": ("os.dup2(1, 100)", "os.path.exists('/proc/self/fd/100')"),
}

# Forged messages to the server, on descriptor 255, and the outcome of the program that sends them. They follow `WRITE`.
WRITE = dedent("""
    import os
    def w(data):
        while data: data = data[os.write(255, data):]
""")
FORGERIES = {
    "an early end": (
        dedent(r"""
            os.write(255, b'{"kind":"done"}\n')
            os._exit(0)
        """),
        Outcome.OK,
    ),
    "an exit code": (
        dedent(r"""
            os.write(255, b'{"kind":"exit"}\n')
            os._exit(7)
        """),
        Outcome.USER_ERROR,
    ),
    "an error": (
        dedent(r"""
            os.write(255, b'{"kind":"error","phase":"run","name":"Mine","message":"m"}\n')
            os._exit(1)
        """),
        Outcome.USER_ERROR,
    ),
    "an end at the memory": ('os.write(255, b\'{"kind":"error","name":"MemoryError"}\\n\')', Outcome.MEMORY_LIMIT),
    "no end": (
        dedent("""
            os.close(255)
            os._exit(0)
        """),
        Outcome.CRASHED,
    ),
    "a closed channel": ("os.close(255)", Outcome.CRASHED),
    "a channel that is stdout": ("os.dup2(1, 255)", Outcome.CRASHED),
    "a channel on another number": (
        dedent(r"""
            os.dup2(255, 50)
            os.write(50, b'x\n')
        """),
        Outcome.OK,
    ),
    "many ready messages": ('os.write(255, b\'{"kind":"ready"}\\n\' * 99)', Outcome.OK),
    "unknown kinds": ('os.write(255, b\'{"kind":"x"}\\n{"kind":[]}\\n{"kind":"\\n[]\\n1\\nnull\\n\\n\')', Outcome.OK),
    "broken text": ('os.write(255, b\'\\xff\\xfe\\n\\x00\\n{"kind":"ret_val","text":"\\xff"}\\n\')', Outcome.OK),
    "wrong types": (
        dedent(r"""
            os.write(255, b'{"kind":"ret_val","text":7}\n{"kind":"error","name":null}\n')
            os._exit(1)
        """),
        Outcome.USER_ERROR,
    ),
    "deep nesting": (
        dedent(r"""
            w(b'{"kind":"error","name":' + b"[" * 10**5 + b"\n")
            os._exit(1)
        """),
        Outcome.CRASHED,
    ),
    "a large number": (
        dedent(r"""
            w(b'{"kind":"error","line":' + b"9" * 10**5 + b"}\n")
            os._exit(1)
        """),
        Outcome.CRASHED,
    ),
    "a long message": ("while True: w(b'x' * 65_536)", Outcome.OUTPUT_LIMIT),
    "many messages": ('while True: w(b\'{"kind":"exit"}\\n\' * 4096)', Outcome.OUTPUT_LIMIT),
    "many errors": ('while True: w(b\'{"kind":"error","name":"E"}\\n\' * 2000)', Outcome.OUTPUT_LIMIT),
    "many empty lines": ("while True: w(b'\\n' * 65_536)", Outcome.OUTPUT_LIMIT),
    "a frame on stdout": ("print('__COZE_RETURN_VAL_START__\\nx\\n__COZE_RETURN_VAL_END__')", Outcome.OK),
    "stdout without end": ("while True: os.write(1, b'x' * 65_536)", Outcome.OUTPUT_LIMIT),
    "stdout of many processes": (
        dedent("""
            for _ in range(4): os.fork()
            while True: os.write(2, b'x' * 65_536)
        """),
        Outcome.OUTPUT_LIMIT,
    ),
    "a return value without end": (
        dedent("""
            x = 'x' * 10**6
            while True: return_val(x)
        """),
        Outcome.OUTPUT_LIMIT,
    ),
}

# Attempts to leave something to the next program in the same jail: what to do, and how to look for it.
#
# These end with their process. Those that look for a lock take a shared one, because they may still be ending in other
# jails when the next one looks.
KEPT_SLOTS = {
    "nothing": ("pass", "set(os.listdir('/tmp')) - {'main.py', *sys.prefix.split('/')[2:3]}"),
    "a lock": (
        "fcntl.flock(os.open('/etc/passwd', 0), fcntl.LOCK_EX)",
        "fcntl.flock(os.open('/etc/passwd', 0), fcntl.LOCK_SH | fcntl.LOCK_NB)",
    ),
    "a lock of a part": (
        "fcntl.lockf(os.open('/etc/passwd', 0), fcntl.LOCK_SH)",
        "fcntl.fcntl(os.open('/etc/passwd', 0), fcntl.F_GETLK, struct.pack('hhqqi4x', 1, 0, 0, 0, 0))[0] != 2",
    ),
    "a lease": ("try_all(lambda: fcntl.fcntl(os.open('/etc/passwd', 0), 1024, 0))", "False"),
    "a watch": ("try_all(lambda: call(294, 0))", "False"),
    "an alarm": ("signal.alarm(1)", "signal.alarm(0)"),
    "a timer": ("signal.setitimer(signal.ITIMER_REAL, 1, 1)", "signal.getitimer(signal.ITIMER_REAL)[0]"),
    "a timer of the kernel": ("call(222, 1, 0, bytes(4))", "shown('/proc/self/timers')"),
    "limits": ("resource.setrlimit(7, (60, 60))", "resource.getrlimit(7)[0] == 60"),
    "a limit of processes": ("resource.setrlimit(6, (1, 1))", "resource.getrlimit(6)[0] == 1"),
    "a niceness": ("os.nice(9)", "os.nice(0) >= os.getpriority(0, os.getppid()) + 9"),
    "a scheduler": ("os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))", "os.sched_getscheduler(0)"),
    "a mask": ("os.umask(0)", "os.umask(0) == 0"),
    "a folder": ("os.chdir('/usr')", "os.getcwd() == '/usr'"),
    "blocked signals": ("signal.pthread_sigmask(0, range(1, 65))", "signal.pthread_sigmask(0, [])"),
    "handlers": (
        "for number in (1, 2, 3, 10, 12, 14, 15, 17): signal.signal(number, signal.SIG_IGN)",
        "[number for number in (1, 2, 3, 10, 12, 14, 15, 17) if signal.getsignal(number) is signal.SIG_IGN]",
    ),
    "the handler of Ctrl-C": ("pass", "signal.getsignal(2) is not signal.default_int_handler"),
    "a signal at the end of the parent": (
        "call(157, 1, 10)",
        "call(157, 2, x := ctypes.create_string_buffer(4)) or x.raw[0] == 10",
    ),
    "a name": ("call(157, 15, b'spy')", "call(157, 16, x := ctypes.create_string_buffer(16)) or x.value == b'spy'"),
    "pipes that do not block": (
        "for fd in (0, 1, 2, 255): os.set_blocking(fd, False)",
        "not all(map(os.get_blocking, (0, 1, 2, 255)))",
    ),
    "no descriptors": ("os.closerange(0, 256)", "descriptors() != 5"),
    "many descriptors": (
        dedent("""
            try:
                while True: os.dup(1)
            except OSError: pass
        """),
        "descriptors() != 5",
    ),
    "forged messages": (
        "os.write(255, b'run{\"kind\":\"done\"}\\n' * 9 + b'clean')",
        "False",
    ),
    "signals at process 1": (
        dedent("""
            for number in {*range(1, 65)}:
                for target in (1, os.pidfd_open(1)):
                    try_all(lambda: os.kill(1, number))
                    try_all(lambda: signal.pidfd_send_signal(target, number))
                    try_all(lambda: call(129, 1, number, bytes(128)))
                    try_all(lambda: call(234, 1, 1, number))
        """),
        "'SigQ:\\t0/' not in shown('/proc/self/status', 'SigQ:\\t0/')",
    ),
    "signals at all processes": (
        dedent("""
            signal.signal(15, signal.SIG_IGN)
            for target in (0, -1): try_all(lambda: os.kill(target, 15))
        """),
        "False",
    ),
    "queued signals": (
        dedent("""
            signal.pthread_sigmask(0, [40])
            for _ in range(99): call(129, os.getpid(), 40, struct.pack('iii', 40, 0, -1) + bytes(116))
        """),
        "'SigQ:\\t0/' not in shown('/proc/self/status', 'SigQ:\\t0/')",
    ),
    "a group of process 1": ("try_all(lambda: os.setpgid(0, 1))", "os.getpgrp() != os.getpid()"),
    "limits of process 1": (
        "for number in range(16): try_all(lambda: resource.prlimit(1, number, (0, 0)))",
        "resource.getrlimit(7)[0] < 256",
    ),
    "the priority of process 1": ("try_all(lambda: os.setpriority(0, 1, 19))", "os.getpriority(0, 1) > 18"),
    "messages of System V": (
        "for number in (29, 64, 68): try_all(lambda: call(number, 77, 1, 0o1777))",
        "False",
    ),
    "messages of POSIX": ("try_all(lambda: call(240, b'spy', 0o102, 0o666, 0))", "False"),
    "keys": ("try_all(lambda: call(248, b'user', b'spy', b'spy', 3, -4))", "False"),
    "an abstract name": (
        dedent(r"""
            x = unix()
            x.bind('\0spy')
            x.listen()
        """),
        "unix().bind('\\0spy')",
    ),
    "sockets in messages": (
        dedent("""
            a, b = socket.socketpair()
            c, d = socket.socketpair()
            socket.send_fds(a, [b'x'], [c.fileno(), d.fileno()])
        """),
        "shown('/proc/self/net/unix').count('\\n') > 1",
    ),
    "locked memory": ("call(149, ctypes.addressof(x := ctypes.create_string_buffer(9000)), 9000)", "False"),
    "another program": ("os.execv('/bin/true', ['true'])", "False"),
    "its own kill": ("os.kill(os.getpid(), 9)", "False"),
}
# These leave a trace.
LOST_SLOTS = {
    "a sibling": ("call(56, 0x1208000, 0, 0, 0, 0) or time.sleep(60)", "False"),
    "a sibling that has ended": ("call(56, 0x1208000, 0, 0, 0, 0) or os._exit(0)", "False"),
    "a file": ("open('/tmp/spy', 'w').close()", "os.path.exists('/tmp/spy')"),
    "a file that is gone": ("os.unlink(os.open('/tmp/spy', 64) and '/tmp/spy')", "False"),
    "a name that is not UTF-8": (r"os.mkdir(b'/tmp/\xff\n' + b'x' * 250)", "len(os.listdir('/tmp')) > 2"),
    "a file in /dev/shm": ("open('/dev/shm/spy', 'w').close()", "os.listdir('/dev/shm')"),
    "a file in /dev/shm that is gone": ("os.unlink(os.open('/dev/shm/spy', 64) and '/dev/shm/spy')", "False"),
    "a folder without rights": (
        dedent("""
            os.mkdir('/tmp/spy')
            open('/tmp/spy/x', 'w').close()
            os.chmod('/tmp/spy', 0)
        """),
        "os.path.exists('/tmp/spy')",
    ),
    "a renamed folder that is gone": (
        dedent("""
            os.mkdir('/tmp/spy')
            os.rename('/tmp/spy', '/dev/shm/spy')
            os.rmdir('/dev/shm/spy')
        """),
        "False",
    ),
    "a sparse file": ("os.truncate(os.open('/tmp/spy', 65), 2**24)", "os.path.exists('/tmp/spy')"),
    "a file without a name": ("os.open('/tmp', os.O_TMPFILE | os.O_RDWR)", "False"),
    "a deleted file that is full": (
        dedent("""
            x = os.open('/tmp/spy', 65)
            os.unlink('/tmp/spy')
            os.write(x, bytes(2**20))
        """),
        "os.statvfs('/tmp').f_bfree < os.statvfs('/tmp').f_blocks - 9",
    ),
    "a pipe with a name": ("os.mkfifo('/tmp/spy')", "os.path.exists('/tmp/spy')"),
    "a symbolic link": ("os.symlink('/usr', '/tmp/spy')", "os.path.islink('/tmp/spy')"),
    "a hard link that is gone": (
        dedent("""
            os.link('main.py', 'spy')
            os.unlink('spy')
        """),
        "False",
    ),
    "its own file by another name": ("os.rename('main.py', 'spy')", "os.path.exists('/tmp/spy')"),
    "its own file, renamed twice": (
        dedent("""
            os.rename('main.py', 'spy')
            os.rename('spy', 'main.py')
        """),
        "False",
    ),
    "its own file, deleted": ("os.unlink('main.py')", "False"),
    "a folder in place of its own file": (
        dedent("""
            os.unlink('main.py')
            os.mkdir('main.py')
        """),
        "os.path.isdir('/tmp/main.py')",
    ),
    "a socket with a name": ("unix().bind('/tmp/spy')", "os.path.exists('/tmp/spy')"),
    "the mode of /tmp": ("os.chmod('/tmp', 0o700)", "os.stat('/tmp').st_mode & 0o777 == 0o700"),
    "no rights to /tmp": ("os.chmod('/tmp', 0)", "os.stat('/tmp').st_mode & 0o777 == 0"),
    "the mode of /dev/shm, set back": (
        dedent("""
            os.chmod('/dev/shm', 0o700)
            os.chmod('/dev/shm', 0o1777)
        """),
        "False",
    ),
    "the times of /tmp": ("os.utime('/tmp')", "False"),
    "other times of /tmp": ("os.utime('/tmp', (5, 5))", "5 in os.stat('/tmp')[7:]"),
    "the times of /dev/shm": ("os.utime('/dev/shm', (5, 5))", "5 in os.stat('/dev/shm')[7:]"),
    "a process that has ended": ("os.waitpid(os.fork() or os._exit(0), 0)", "False"),
    "a daemon": (
        dedent("""
            if not os.fork():
                os.setsid()
                if not os.fork(): signal.pause()
                os._exit(0)
        """),
        "others()",
    ),
    "a stopped child": (
        "os.fork() or os.kill(os.getpid(), 19)",
        "others()",
    ),
    "a child that does not notice signals": (
        "os.fork() or [signal.pthread_sigmask(0, range(1, 65)), signal.pause()]",
        "others()",
    ),
    "a thread that has ended": (
        "t = __import__('threading').Thread(target=int); t.start(); t.join()",
        "False",
    ),
    "a thread that outlives the program": (
        dedent("""
            import threading
            threading.Thread(target=signal.pause, daemon=True).start()
            os._exit(0)
        """),
        "False",
    ),
    "a subprocess": ("subprocess.run(['/bin/true'])", "False"),
}
_CYCLE = """
a, b = socket.socketpair()
socket.send_fds(a, [b'x'], [a.fileno(), b.fileno(), *held])
socket.send_fds(b, [b'x'], [a.fileno(), b.fileno(), *held])
"""
# Sockets that were sent to each other, and so outlive their process.
IN_FLIGHT = {
    "sockets": (f"held = []{_CYCLE}", "shown('/proc/self/net/unix').count('\\n') > 1"),
    "a lock": (
        f"fcntl.flock(x := os.open('/etc/passwd', 0), fcntl.LOCK_EX); held = [x]{_CYCLE}",
        "fcntl.flock(os.open('/etc/passwd', 0), fcntl.LOCK_SH | fcntl.LOCK_NB)",
    ),
    "an abstract name": (f"x = unix(); x.bind('\\0spy'); held = [x.fileno()]{_CYCLE}", "unix().bind('\\0spy')"),
    "a pipe": (f"held = os.pipe(){_CYCLE}", "False"),
}
# Programs that end in unusual ways or not at all, and their outcomes.
ENDS = {
    "abort": ("os.abort()", Outcome.CRASHED),
    "segmentation fault": ("ctypes.string_at(0)", Outcome.CRASHED),
    "kill": ("os.kill(os.getpid(), 9)", Outcome.CRASHED),
    "kill by a foreign function": ("libc.kill(os.getpid(), 9)", Outcome.CRASHED),
    "kill by a system call": ("call(200, os.getpid(), 15)", Outcome.CRASHED),
    "kill by a subprocess": ("subprocess.run(['/bin/sh', '-c', 'kill -9 $PPID'])", Outcome.CRASHED),
    "kill by a child": (
        dedent("""
            os.fork() or call(62, os.getppid(), 9)
            signal.pause()
        """),
        Outcome.CRASHED,
    ),
    "kill by pidfd": ("signal.pidfd_send_signal(os.pidfd_open(os.getpid()), 9)", Outcome.CRASHED),
    "kill by raise": ("signal.raise_signal(9)", Outcome.CRASHED),
    "an alarm": (
        dedent("""
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            signal.pause()
        """),
        Outcome.CRASHED,
    ),
    "a broken pipe": (
        dedent("""
            signal.signal(13, signal.SIG_DFL)
            r, w = os.pipe()
            os.close(r)
            os.write(w, b'x')
        """),
        Outcome.CRASHED,
    ),
    "kill of its group": ("os.killpg(0, 9)", Outcome.CRASHED),
    "a term signal": ("os.kill(os.getpid(), 15)", Outcome.CRASHED),
    "stop": (
        dedent("""
            os.kill(os.getpid(), 19)
            signal.pause()
        """),
        Outcome.TIMEOUT,
    ),
    "stop of a child": (
        dedent("""
            pid = os.fork() or os.kill(os.getpid(), 19)
            os.waitpid(pid, 0)
        """),
        Outcome.TIMEOUT,
    ),
    "a child that stops its parent": (
        dedent("""
            os.fork() or os.kill(os.getppid(), 19)
            signal.pause()
        """),
        Outcome.TIMEOUT,
    ),
    "a forbidden interface": (
        dedent(r"""
            import mmap
            m = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=7)
            m.write(b'\xb8\x14\x00\x00\x00\xcd\x80\xc3')
            ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()
        """),
        Outcome.CRASHED,
    ),
    "a daemon that holds stdout": (
        dedent("""
            if not os.fork():
                os.setsid()
                if not os.fork(): signal.pause()
                os._exit(0)
            os.wait()
        """),
        Outcome.OK,
    ),
    "daemons that ignore signals": (
        dedent("""
            if not os.fork():
                signal.pthread_sigmask(0, range(1, 65))
                os.setsid()
                while True: os.fork() or os._exit(0)
        """),
        Outcome.OK,
    ),
    "fork bomb": (
        dedent("""
            while True:
                try: os.fork()
                except OSError: pass
        """),
        Outcome.TIMEOUT,
    ),
    "vfork": ("libc.vfork() or signal.pause()", Outcome.TIMEOUT),
    "a thread that lives on": (
        dedent("""
            import threading
            threading.Thread(target=time.sleep, args=(60,)).start()
        """),
        Outcome.TIMEOUT,
    ),
    "an end of the main thread only": (
        dedent("""
            import threading
            threading.Thread(target=time.sleep, args=(60,)).start()
            call(60, 0)
        """),
        Outcome.TIMEOUT,
    ),
    "another program": ("os.execv('/bin/sleep', ['sleep', '60'])", Outcome.TIMEOUT),
    "CPU time": (
        dedent("""
            for _ in range(5): os.fork()
            while True: pass
        """),
        Outcome.TIMEOUT,
    ),
}
