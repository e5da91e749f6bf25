# Runs the cells of a session, one after another, in one process. A part of python_native.py.
#
# The process gets each job as a message over its channel, with descriptors: stdin, stdout, stderr, and one for the
# messages of the job. The rest is as for a program: it reads the job from stdin, and sends "started" and "done". A job
# with a cell is {code, cell, files, memoryBytes, maxMessageBytes}. A job with "branch" forks the process; it has one
# more descriptor, the channel of the branch. The branch sends a byte over it, so that the server knows which process it
# is. It gets its rules of Landlock, its root folder, and the list of its shared memory if it has no /proc. Other jobs
# write files.
#
# A cell can leave anything behind, such as threads, signal handlers, and replaced functions of the standard library. So
# where it matters for later cells, this file uses no function that a program can replace.

import _signal
import _socket
import array
import ctypes
import errno
import fcntl
import json
import os
import stat
import sys
import threading

JOB_MESSAGES_FD = 254
MAX_JOB_DESCRIPTORS = 8
SIGNALS = _signal.valid_signals() - {_signal.SIGINT}  # blocked between cells; SIGINT is ignored instead
FUTURES = 0x1FF0000  # the flags of `from __future__ import`, which hold for later cells, too
COPY_BYTES, PAGE = 2**20, 4096
COPIED = ("/tmp", "/dev/shm")  # the folders with files of the program
LANDLOCK_RESTRICT_SELF = 446  # on each architecture
CLONE = {"x86_64": 56, "aarch64": 220}.get(os.uname().machine)
CLONE_FLAGS = 0x8000 | 0x100_0000 | 0x20_0000  # CLONE_PARENT, CLONE_CHILD_SETTID, CLONE_CHILD_CLEARTID
PR_GET_TID_ADDRESS = 40
CAPABILITY_HEADER = b"\x22\x05\x08\x20\0\0\0\0"  # version 3, for this process
libc = ctypes.PyDLL(None, use_errno=True)
plain_fork, system_call = libc.fork, libc.syscall  # without the hooks of `os.fork`
change_root = libc.chroot
before_fork, after_fork = ctypes.pythonapi.PyOS_BeforeFork, ctypes.pythonapi.PyOS_AfterFork_Child
duplicate, close_fd, scan_json = os.dup2, os.close, json.JSONDecoder().scan_once
control = fcntl.fcntl
set_handler, set_mask, set_trace, set_profile = _signal.signal, _signal.pthread_sigmask, sys.settrace, sys.setprofile


def serve_session(job):
    global has_files, messages_fd
    has_files, messages_fd = False, JOB_MESSAGES_FD  # cells are in no file
    Session(job).serve()


def drop_capabilities():
    """Drop the capability with which a branch enters its root folder. This process is not a session."""
    libc.capset(CAPABILITY_HEADER, bytes(24))


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
            for target, fd in zip((0, 1, 2, JOB_MESSAGES_FD), descriptors):
                if fd != target:
                    duplicate(fd, target, target <= 2)
                    close_fd(fd)
            job = scan_json(read_exactly(int(read_exactly(8))).decode(), 0)[0]
            reports = True
            if "code" in job:
                self.run_cell(job)
            elif "branch" in job:
                reports = self.fork(descriptors[4])
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

    def fork(self, channel_fd):
        """Return whether this process ends the job. If there is a branch, the branch ends it."""
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
                problem = self.enter_branch()
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

    def enter_branch(self):
        """Return an error message, or ""."""
        descriptors = self.receive()
        if len(descriptors) < 2:
            return "its folders cannot be created"
        rules = descriptors[0]
        try:
            folder = os.getcwd()
        except OSError:  # it was removed
            folder = self.folder
        try:
            files = OpenFiles(descriptors)
        except OSError as error:
            return f"the files cannot be copied: {error.strerror}"
        # From here on, this process can only reach the files in its own root folder.
        if system_call(LANDLOCK_RESTRICT_SELF, rules, 0):
            is_nested = ctypes.get_errno() == errno.E2BIG
            return (
                "it is a branch of too many others, one after another" if is_nested else os.strerror(ctypes.get_errno())
            )
        if change_root(b"."):
            return f"its root folder cannot be entered: {os.strerror(ctypes.get_errno())}"
        for fd in descriptors:
            close_fd(fd)
        files.reopen(self.null_fd)
        os.chdir(folder if os.path.isdir(folder) else self.folder)
        if self.loop is not None:
            # Not closed, because this would change the event loop of the other process.
            ABANDONED.append(self.loop)
            self.leave_loop()
            self.loop = None
            sys.modules["asyncio"].set_event_loop(None)
        os.setpgid(0, 0)  # signals to its group are not for the session
        threading.main_thread()._native_id = threading.get_native_id()
        self.is_new = True
        return ""

    def leave_loop(self):
        """Close the descriptors of the event loop. With these, this process could change the event loop of the other
        process.
        """
        if not self.loop.is_closed():
            for name in ("_selector", "_ssock", "_csock"):
                one = getattr(self.loop, name, None)  # an event loop of another module has others
                if one is not None:
                    duplicate(self.null_fd, one.fileno(), False)

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
        if not self.stdout:  # released while it cannot write: a later cell must not get its output
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
    try:
        if os.stat("/proc/self/task").st_nlink > 3:  # two, and the number of threads; a jail may not let list it
            return "the program has other threads"
    except FileNotFoundError:
        pass  # a branch has no /proc if its jail hides it; then the launcher counts them
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


class OpenFiles:
    """Copies the files of a session to the root folder of this process, which becomes its working folder, and opens the
    copies in place of the files that are open or mapped.

    Args:
        descriptors: The second descriptor is the root folder. If the jail hides /proc, the third descriptor has the
            lines of /proc/self/maps about shared memory.
    """

    def __init__(self, descriptors):
        self.root = descriptors[1]
        os.fchdir(self.root)
        self.device, self.copies, self.nameless = os.stat(COPIED[0]).st_dev, {}, []
        for path in COPIED:
            copy_folder(path, path[1:], self.copies)
        try:
            numbers = [int(name) for name in os.listdir("/proc/self/fd")]
        except OSError:  # the jail hides /proc
            numbers = range(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        self.opened = [file for fd in numbers if fd not in descriptors for file in self.find(fd)]
        stored = os.statvfs(COPIED[0])
        is_empty = stored.f_files - stored.f_ffree <= 1 + len(COPIED)  # only the folders themselves
        mappings = descriptors[2] if len(descriptors) > 2 else "/proc/self/maps"
        self.mapped = [] if is_empty else [*self.find_mappings(mappings)]

    def find(self, fd):
        """Find out how to open a file or folder again. Pipes, sockets and devices stay as they are."""
        try:
            status = os.fstat(fd)
        except OSError:
            return
        kind = stat.S_IFMT(status.st_mode)
        if kind not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
            return
        flags = control(fd, fcntl.F_GETFL)
        if control(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC:
            flags |= os.O_CLOEXEC
        is_file = kind == stat.S_IFREG and not flags & os.O_PATH
        position = 0
        if is_file:
            try:
                position = os.lseek(fd, 0, os.SEEK_CUR)
            except OSError:
                pass  # some files of the kernel have none
        if is_file and status.st_dev == self.device:
            if status.st_ino not in self.copies:  # it is in no folder any more
                self.copy_nameless(fd, status)
            path = self.copies[status.st_ino]
        else:
            path = self.find_path(fd, status)
        yield fd, path, flags, position, kind

    def find_path(self, fd, status):
        """Return the path of a file or folder; "" if it is unknown."""
        try:
            return os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            pass  # the jail hides /proc
        if stat.S_ISDIR(status.st_mode):
            try:
                os.fchdir(fd)
                return os.getcwd()
            except OSError:  # it was removed
                return ""
            finally:
                os.fchdir(self.root)
        return self.copies.get(status.st_ino, "") if status.st_dev == self.device else ""

    def copy_nameless(self, fd, status):
        writer = self.create(status.st_ino)
        try:
            reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # the jail hides /proc
            # Without finding the holes by `lseek`, because the session has the same position.
            for position in range(0, status.st_size, PAGE):
                data = os.pread(fd, PAGE, position)
                if data.strip(b"\0"):
                    os.pwrite(writer, data, position)
            os.ftruncate(writer, status.st_size)
        else:
            copy_contents(reader, writer, status.st_size)
            close_fd(reader)

    def create(self, inode):
        """Create a file in place of one that is in no folder any more. It has a name until it is opened."""
        path = f"{COPIED[0]}/.faasrt-{os.urandom(8).hex()}"
        fd = os.open(path[1:], os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self.copies[inode] = path
        self.nameless.append((fd, path))
        return fd

    def find_mappings(self, source):
        """Find shared memory: the address, size, protection, offset and inode of each mapping of a file."""
        device = b"%02x:%02x" % (os.major(self.device), os.minor(self.device))
        try:
            with open(source, "rb", closefd=isinstance(source, str)) as file:
                lines = [line for line in file.read().splitlines() if b"s " in line[20:60]]
        except OSError:
            return
        for line in lines:
            addresses, rights, offset, place, inode = line.split(None, 5)[:5]
            if rights[3:] == b"s" and place == device:
                start, end = (int(address, 16) for address in addresses.split(b"-"))
                offset, inode, size = int(offset, 16), int(inode), end - start
                if inode not in self.copies:  # the program has closed it
                    write_at(self.create(inode), start, size, offset)
                protection = sum(bit for bit, right in zip((1, 2, 4), b"rwx") if right in rights)
                yield start, size, protection, offset, inode

    def reopen(self, null_fd):
        """Open the copies. The root folder is now the root folder of this process."""
        for fd, path, flags, position, kind in self.opened:
            new = null_fd
            try:
                new = open_again(path, flags & KEPT_FLAGS | KIND_FLAGS.get(kind, 0))
                if kind == stat.S_IFREG and not flags & os.O_PATH:
                    os.lseek(new, position, os.SEEK_SET)
            except OSError:
                if kind == stat.S_IFREG and not flags & os.O_PATH and not path.startswith(("/proc/", *COPIED)):
                    continue  # a file of the system
            duplicate(new, fd, not flags & os.O_CLOEXEC)
            if new != null_fd:
                close_fd(new)
        for address, size, protection, offset, inode in self.mapped:
            fd = open_again(self.copies[inode], os.O_RDWR | os.O_CLOEXEC)
            if map_memory(address, size, protection, MAP_SHARED_FIXED, fd, offset) != address:
                raise OSError(ctypes.get_errno(), "shared memory cannot be copied")
            close_fd(fd)
        for fd, path in self.nameless:
            os.unlink(path)
            close_fd(fd)


def open_again(path, flags):
    """Open a file, even if its mode denies it: it may have been created or changed so after it was opened."""
    try:
        return os.open(path, flags)
    except PermissionError:
        mode = stat.S_IMODE(os.stat(path).st_mode)
        os.chmod(path, 0o600)
        try:
            return os.open(path, flags)
        finally:
            os.chmod(path, mode)


KEPT_FLAGS = os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC | os.O_PATH
KIND_FLAGS = {stat.S_IFDIR: os.O_DIRECTORY, stat.S_IFLNK: os.O_NOFOLLOW}
MAP_SHARED_FIXED = 0x11
map_memory, write_at = libc.mmap, libc.pwrite
write_at.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long]
map_memory.restype = ctypes.c_void_p
map_memory.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]


def copy_folder(source, target, copies):
    """Copy the files in a folder, with their holes, modes, times and hard links. Skip other mounts. Add the paths of
    the copies, from the root folder, to `copies`, by the inodes of the files.
    """
    device, folders = os.stat(source).st_dev, [(source, target)]
    above_mounts = {target}  # those above an environment that is installed below /tmp, which exist already
    for old_folder, new_folder in folders:
        for name in os.listdir(old_folder):
            old, new = f"{old_folder}/{name}", f"{new_folder}/{name}"
            status = os.lstat(old)
            if status.st_dev != device:
                continue
            if stat.S_ISDIR(status.st_mode):
                try:
                    os.mkdir(new)
                except FileExistsError:
                    above_mounts.add(new)
                folders.append((old, new))
            elif stat.S_ISLNK(status.st_mode):
                os.symlink(os.readlink(old), new)
                copies[status.st_ino] = f"/{new}"
            elif status.st_ino in copies:
                os.link(copies[status.st_ino][1:], new)
            elif stat.S_ISREG(status.st_mode):
                copies[status.st_ino] = f"/{new}"
                copy_file(old, new, status)
    for old_folder, new_folder in folders[::-1]:
        if new_folder not in above_mounts:
            copy_status(os.lstat(old_folder), new_folder)


def copy_file(old, new, status):
    reader = os.open(old, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    writer = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
    copy_contents(reader, writer, status.st_size)
    close_fd(reader)
    close_fd(writer)
    copy_status(status, new)


def copy_contents(reader, writer, size):
    position = 0
    try:
        while position < size:
            position = os.lseek(reader, position, os.SEEK_DATA)
            end = os.lseek(reader, position, os.SEEK_HOLE)
            while position < end:
                data = os.pread(reader, min(end - position, COPY_BYTES), position)
                if not data:
                    return  # another process truncates it
                position += os.pwrite(writer, data, position)
    except OSError as error:
        if error.errno != errno.ENXIO:  # otherwise only a hole follows
            raise
    os.ftruncate(writer, size)


def copy_status(status, path):
    os.chmod(path, stat.S_IMODE(status.st_mode))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
