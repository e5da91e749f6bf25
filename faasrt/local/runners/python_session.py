# Runs the cells of a session, one after another, in one process. A part of python_native.py.
#
# The process gets each job as a message over its channel, with descriptors: stdin, stdout, stderr, and one for the
# messages of the job. The rest is as for a program: it reads the job from stdin, and sends "started" and "done". A job
# with a cell is {code, cell, files, memoryBytes, maxMessageBytes}. A job with "branch", the path of a folder, forks the
# process; it has one more descriptor, the channel of the branch. The branch sends a byte over it, so that the server
# knows which process it is, and gets its rules of Landlock when its folder has been created. Other jobs write files.
#
# A cell can leave anything behind, such as threads, signal handlers, and functions in place of those of the standard
# library. So this file uses no function that a program can replace, as far as it matters for later cells.

import _signal
import _socket
import array
import ctypes
import errno
import json
import os
import stat
import sys
import threading

JOB_MESSAGES_FD = 254
MAX_JOB_DESCRIPTORS = 8
SIGNALS = _signal.valid_signals() - {_signal.SIGINT}  # blocked between cells; SIGINT is ignored instead
FUTURES = 0x1FF0000  # the flags of `from __future__ import`, which hold for later cells, too
BRANCHES = ".branches"  # the folder in a session's folder that has the folders of its branches
LANDLOCK_RESTRICT_SELF = 446  # on each architecture
CLONE = {"x86_64": 56, "aarch64": 220}.get(os.uname().machine)
CLONE_FLAGS = 0x8000 | 0x100_0000 | 0x20_0000  # CLONE_PARENT, CLONE_CHILD_SETTID, CLONE_CHILD_CLEARTID
PR_GET_TID_ADDRESS = 40
libc = ctypes.PyDLL(None, use_errno=True)
plain_fork, system_call = libc.fork, libc.syscall  # without the hooks of `os.fork`
before_fork, after_fork = ctypes.pythonapi.PyOS_BeforeFork, ctypes.pythonapi.PyOS_AfterFork_Child
duplicate, close_fd, scan_json = os.dup2, os.close, json.JSONDecoder().scan_once
set_handler, set_mask, set_trace, set_profile = _signal.signal, _signal.pthread_sigmask, sys.settrace, sys.setprofile


def serve_session(job):
    global has_files, messages_fd
    has_files, messages_fd = False, JOB_MESSAGES_FD  # cells are in no file
    Session(job).serve()


class Session:
    """The state of a session that its program cannot see."""

    def __init__(self, job):
        self.channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, MESSAGES_FD)
        self.null_fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self.folder = os.getcwd()
        self.namespace = set_program("", [])
        del self.namespace["__file__"]
        self.namespace["return_val"] = return_val
        self.displays = Displays(send_display, 0)
        self.displays.install()
        self.stdout, self.stderr = sys.stdout, sys.stderr
        self.mask, self.flags, self.loop, self.is_new = set(), TOP_LEVEL_AWAIT, None, False
        set_memory_limit(job["memoryBytes"])

    def serve(self):
        self.settle()
        while True:
            descriptors = self.receive()
            for target, fd in zip((0, 1, 2, JOB_MESSAGES_FD), descriptors):  # noqa: B905
                if fd != target:
                    duplicate(fd, target, target <= 2)
                    close_fd(fd)
            job = scan_json(read_exactly(int(read_exactly(8))).decode(), 0)[0]
            reports = True
            if "code" in job:
                self.run_cell(job)
            elif "branch" in job:
                reports = self.fork(job["branch"], descriptors[4])
            else:
                self.write_files(job["files"])
            if reports:
                send("done")
            for fd in (0, 1, 2):
                duplicate(self.null_fd, fd)
            close_fd(JOB_MESSAGES_FD)
            if self.is_new:
                self.is_new = False
                reseed()

    def receive(self):
        size = _socket.CMSG_SPACE(4 * MAX_JOB_DESCRIPTORS)
        message, ancillary, _, _ = self.channel.recvmsg(1, size, _socket.MSG_CMSG_CLOEXEC)
        if not message:
            exit_now(0)
        rights = array.array("i")
        for _, _, data in ancillary:
            rights.frombytes(data)
        return [*rights]

    def write_files(self, files):
        send("started")
        path = ""
        try:
            for path, size in files:
                write_files([[path, size]], self.folder)
        except OSError as error:
            send("error", phase="run", name="OSError", message=f"{path}: {error.strerror}")

    def fork(self, folder, channel_fd):
        """Return whether this process is the one that ends the job: the branch, if there is one."""
        global pid
        send("started")
        try:
            problem = why_not_fork()
        except Exception as error:  # the program has changed something that is needed here
            problem = f"the session cannot be copied: {error!r}"
        child = -1 if problem else fork_sibling()
        if child == 0:
            pid = own_pid()
            try:
                duplicate(channel_fd, MESSAGES_FD, False)
                close_fd(channel_fd)
                self.channel.send(b"b")
                problem = self.enter_branch(folder)
            except Exception as error:
                problem = f"the branch cannot start: {error!r}"
            if problem:
                send("error", phase="run", name="Error", message=problem)
                send("done")
                exit_now(1)
            return True
        close_fd(channel_fd)
        if child > 0:
            return False
        problem = problem or "the system cannot start another process"
        send("error", phase="run", name="Error", message=problem)
        return True

    def enter_branch(self, folder):
        """Return an error message, or ""."""
        global memory_folder
        descriptors = self.receive()
        if not descriptors:
            return "its folder cannot be created"
        try:
            copy_folder(self.folder, folder)
        except OSError as error:
            return f"the files cannot be copied: {error.strerror}"
        # From here on, this process can only reach the files in its own folder.
        if system_call(LANDLOCK_RESTRICT_SELF, descriptors[0], 0):
            is_nested = ctypes.get_errno() == errno.E2BIG
            return (
                "it is a branch of too many others, one after another" if is_nested else os.strerror(ctypes.get_errno())
            )
        close_fd(descriptors[0])
        old, self.folder, memory_folder = self.folder, folder, folder
        try:
            inner = os.path.relpath(os.getcwd(), old)
        except OSError:
            inner = ".."
        inner = "." if inner.startswith("..") or not os.path.isdir(f"{folder}/{inner}") else inner
        os.chdir(os.path.normpath(f"{folder}/{inner}"))
        for name in ("HOME", "TMPDIR"):
            if os.environ.get(name) == old:
                os.environ[name] = folder
        sys.path[:] = [folder if path == old else path for path in sys.path]
        if "tempfile" in sys.modules:
            sys.modules["tempfile"].tempdir = None  # it looks for a folder again
        if self.loop is not None:
            ABANDONED.append(self.loop)  # not closed, because this would change the one of the other process
            self.loop = None
            sys.modules["asyncio"].set_event_loop(None)
        os.setpgid(0, 0)  # signals to its group are not for the session
        threading.main_thread()._native_id = threading.get_native_id()
        self.is_new = True
        return ""

    def run_cell(self, job):
        global FILE
        code = job["code"].encode("utf-8", "surrogatepass").decode("utf-8", "surrogatepass").removeprefix("\ufeff")
        limit = job["maxMessageBytes"]
        FILE = f"<cell {job['cell']}>"
        set_source(code, self.namespace)
        self.restore_streams()
        self.displays.begin(limit)
        if not RESERVE:
            RESERVE.append(memory_reserve())
        failure, phase, exit_code, has_begun = None, "compile", 0, False
        try:
            set_handler(_signal.SIGINT, _signal.default_int_handler)
            send("started")
            has_begun = True
            set_mask(_signal.SIG_SETMASK, self.mask)
            program = compile_with_value(code, FILE, self.flags)
            phase = "run"
            self.flags |= program.co_flags & FUTURES
            if program.co_flags & COROUTINE:
                self.run_coroutine(eval(program, self.namespace))
            else:
                exec(program, self.namespace)
            self.displays.show_value(self.namespace)
        except BaseException as error:
            failure = error
        try:
            if isinstance(failure, KeyboardInterrupt):
                close_figures()
            else:
                self.displays.show_figures()
        except BaseException as error:
            failure = failure or error
        interrupt = self.settle()
        failure = failure or interrupt
        if not has_begun:  # a signal handler of an earlier cell has raised an exception
            send("started")
        if failure is not None:
            if isinstance(failure, SyntaxError) and phase == "compile" and failure.text is None:
                failure.text = line_of(code, failure)
            RESERVE.clear()
            flush(sys.stderr, sys.stdout)
            if isinstance(failure, SystemExit):
                exit_code = exit_code_of(failure, sys.stderr)
            else:
                is_run = phase == "run" or isinstance(failure, KeyboardInterrupt)
                exit_code = report(failure, "run" if is_run else phase, limit, self.stderr)
            if exit_code:
                send("exit", code=exit_code)
        flush(sys.stdout, sys.stderr)
        self.stdout, self.stderr = working_stream(self.stdout, 1), working_stream(self.stderr, 2)
        if not self.stdout:  # released while it cannot write, so that its output does not become that of a later cell
            sys.stdout = sys.__stdout__ = None
        if own_pid() != pid:  # this is a process that the program has forked
            exit_now(exit_code)

    def settle(self):
        """Keep signals and hooks of the program away from the runner. Return a KeyboardInterrupt that came just now."""
        interrupt = mask = None
        while True:
            try:
                set_profile(None)
                set_trace(None)
                before = set_mask(_signal.SIG_BLOCK, SIGNALS)
                mask = before if mask is None else mask
                set_handler(_signal.SIGINT, _signal.SIG_IGN)
                self.mask = mask
                return interrupt
            except KeyboardInterrupt as error:
                interrupt = error
            except BaseException:
                pass  # of a hook or a handler of the program

    def restore_streams(self):
        sys.stdin = sys.__stdin__ = text_stream(0, "r", "surrogateescape")
        self.stdout = working_stream(self.stdout, 1) or text_stream(1, "w", "surrogatepass")
        self.stderr = working_stream(self.stderr, 2) or text_stream(2, "w", "backslashreplace")
        sys.stdout = sys.__stdout__ = self.stdout
        sys.stderr = sys.__stderr__ = self.stderr

    def run_coroutine(self, coroutine):
        import asyncio

        if self.loop is None or self.loop.is_closed():
            self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        task = self.loop.create_task(coroutine)
        try:
            self.loop.run_until_complete(task)
        except BaseException:
            if task.done():
                task.exception()  # otherwise the task logs that nothing has read it
            else:
                task.cancel()
                try:
                    self.loop.run_until_complete(task)
                except asyncio.CancelledError:
                    pass
            raise


def working_stream(stream, fd):
    try:
        stream.flush()
        return stream if stream.fileno() == fd else None
    except BaseException:
        return None


def line_of(code, error):
    lines = code.split("\n")
    return lines[error.lineno - 1] if error.lineno and error.lineno <= len(lines) else None


ABANDONED = []


def tid_address():
    """Return the address at which the C library has the number of this thread; 0 if it is unknown."""
    address = ctypes.c_ulong()
    if libc.prctl(PR_GET_TID_ADDRESS, ctypes.byref(address), 0, 0, 0) or not address.value:
        return 0
    return address.value if ctypes.c_int.from_address(address.value).value == own_pid() else 0


TID_ADDRESS = ctypes.c_void_p(tid_address())  # the same in the processes that are forked


def fork_sibling():
    """Fork this process as a child of the first process of the jail, so that the program never waits for it as for a
    child of its own. Return 0 in the new process, a positive number in this one, and -1 if it cannot start.
    """
    if CLONE and TID_ADDRESS:
        # As the C library forks a process with one thread, except for the parent. The last two arguments are the same,
        # because their order depends on the architecture.
        child = system_call(CLONE, CLONE_FLAGS, None, None, TID_ADDRESS, TID_ADDRESS)
        if child >= 0:
            if child == 0:
                before_fork()  # only here, because it calls functions of the program
                after_fork()
            return child
    # Through a process that ends at once.
    child = plain_fork()
    if child:
        return child if child > 0 and waited_for(child) else -1
    try:
        if os.fork():
            exit_now(0)
    except OSError:
        exit_now(1)
    return 0


def why_not_fork():
    if os.stat("/proc/self/task").st_nlink > 3:  # two, and the number of threads; a jail may not let list it
        return "the program has other threads"
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return ""
    return "the program has child processes, which it has not waited for"


def waited_for(child):
    try:
        status = os.waitpid(child, 0)[1]
    except ChildProcessError:  # the program ignores SIGCHLD
        return True
    _signal.sigtimedwait([_signal.SIGCHLD], 0)  # hide the signal from the program; all signals are blocked
    return status == 0


def copy_folder(source, target):
    """Copy the files in a folder, with their holes, modes, times and hard links. Skip other mounts, and branches."""
    device, links, folders = os.stat(source).st_dev, {}, [(source, target)]
    for old_folder, new_folder in folders:
        for name in os.listdir(old_folder):
            old, new = f"{old_folder}/{name}", f"{new_folder}/{name}"
            status = os.lstat(old)
            if status.st_dev != device or (name == BRANCHES and old_folder is source):
                continue
            if stat.S_ISDIR(status.st_mode):
                os.mkdir(new)
                folders.append((old, new))
            elif stat.S_ISLNK(status.st_mode):
                os.symlink(os.readlink(old), new)
            elif status.st_nlink > 1 and status.st_ino in links:
                os.link(links[status.st_ino], new)
            elif stat.S_ISREG(status.st_mode):
                links[status.st_ino] = new
                copy_file(old, new, status)
    for old_folder, new_folder in folders[:0:-1]:
        copy_status(os.lstat(old_folder), new_folder)


def copy_file(old, new, status):
    reader = os.open(old, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    writer = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
    position = 0
    try:
        while position < status.st_size:
            position = os.lseek(reader, position, os.SEEK_DATA)
            end = os.lseek(reader, position, os.SEEK_HOLE)
            while position < end:
                position += os.copy_file_range(reader, writer, end - position, position, position)
    except OSError as error:
        if error.errno != errno.ENXIO:  # otherwise only a hole follows
            raise
    os.ftruncate(writer, status.st_size)
    close_fd(reader)
    close_fd(writer)
    copy_status(status, new)


def copy_status(status, path):
    os.chmod(path, stat.S_IMODE(status.st_mode))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
