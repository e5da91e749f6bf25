# Gives a program its standard input and its files, and collects the files that it leaves.

import os
from binascii import a2b_base64

# Stored now, because the program may replace them.
os_open, os_read, os_close, os_fstat, scan_folder = os.open, os.read, os.close, os.fstat, os.scandir
MAX_CLEANUP_S = 1.0
MAX_FILES, MAX_ENTRIES, MAX_PATH_BYTES, MAX_PATH_PARTS = 1_000, 10_000, 1_024, 32
READ_FILE = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


def to_bytes(value):
    return value.encode() if isinstance(value, str) else a2b_base64(value["base64"])


def make_folder():
    # Not tempfile, because its import takes longer than a short program.
    failure = None
    for base in (os.environ.get("TMPDIR"), "/tmp", os.curdir):
        try:
            path = os.path.join(os.path.abspath(base or "/tmp"), f"faasrt-{os.urandom(8).hex()}")
            os.mkdir(path, 0o700)
            return path
        except OSError as error:
            failure = error
    raise failure


def remove(path, function=os.unlink):
    try:
        function(path)
    except OSError:
        pass


class StandardInput:
    # Is descriptor 0 where the platform allows this, otherwise only `sys.stdin` and `os.read`.

    def __init__(self, data):
        self.data, self.raw, self.fd, self.previous = data, None, None, None
        try:
            self.fd = self.open_file()
            self.previous = os.dup(0)
        except (OSError, AttributeError):
            pass

    def open_file(self):
        # Return a descriptor of a file that has been removed, and that can only be read.
        folder = make_folder()
        path = os.path.join(folder, "stdin")
        try:
            with open(path, "wb") as file:
                file.write(self.data)
            return os_open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        finally:
            remove(path)
            remove(folder, os.rmdir)

    def rewind(self):
        # Let the program read the input from its start.
        self.raw = None
        if self.fd is not None:
            try:
                os.lseek(self.fd, 0, os.SEEK_SET)
                os.dup2(self.fd, 0)
                self.raw = io.FileIO(0, "r", closefd=False)
                self.raw.name = "<stdin>"
            except (OSError, AttributeError):
                pass
        stream = io.BufferedReader(self.raw or io.BytesIO(self.data))
        self.raw = self.raw or stream.raw
        sys.stdin = sys.__stdin__ = io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape")
        sys.stdin.mode = "r"

    @property
    def is_descriptor(self):
        return isinstance(self.raw, io.FileIO)

    def read(self, fd, size):
        return self.raw.read(size) if fd == 0 else os_read(fd, size)

    def close(self):
        if self.previous is not None:
            os.dup2(self.previous, 0)
        for fd in (self.fd, self.previous):
            if fd is not None:
                os_close(fd)


class WorkingFolder:
    # A new folder, which is the current one and the first one from which modules are imported.

    def __init__(self, files, code):
        self.path, self.path_entries = make_folder(), list(sys.path)
        try:
            self.before = os.getcwd()
        except OSError:
            self.before = None
        self.write(FILE, code.encode())
        for path, content in files.items():
            self.write(path, to_bytes(content))
        os.chdir(self.path)
        sys.path.insert(0, self.path)
        self.shadowed = shadow_modules(os.listdir(self.path))

    def write(self, path, content):
        path = os.path.join(self.path, path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)

    def leave(self):
        # Restore the interpreter, and remove the folder.
        if self.before is not None:
            os.chdir(self.before)
        sys.path[:] = self.path_entries
        for name, module in list(sys.modules.items()):
            file = attribute(module, "__file__", str)
            if file is not None and file.startswith(f"{self.path}/"):
                del sys.modules[name]
        sys.modules.update(self.shadowed)
        end = now() + MAX_CLEANUP_S
        for folder, folders, files in os.walk(self.path, topdown=False):
            listed = [(name, os.unlink) for name in files] + [(name, os.rmdir) for name in folders]
            for name, function in listed:
                if now() > end:
                    return  # the client is waiting for the answer
                path = os.path.join(folder, name)
                remove(path, os.unlink if os.path.islink(path) else function)
        remove(self.path, os.rmdir)

    def collect(self, patterns, max_bytes, max_json_bytes):
        # Return the contents of matching files for JSON, by path, and whether all of them fit.
        found, complete = {}, True
        self.entries, self.matcher = 0, PathMatcher(patterns)
        for path in self.walk("", MAX_PATH_PARTS, self.matcher.start):
            if path is None:
                return found, False
            if path == FILE:
                continue
            try:
                size = len(path.encode())
                content = self.read(path, max_bytes - size) if size <= MAX_PATH_BYTES else None
            except (OSError, UnicodeEncodeError):
                content = None
            if content is not None:
                value = pack_bytes(content)
                text = value if isinstance(value, str) else value["base64"]
                json_size = len(quote(text).encode()) + len(quote(path).encode()) + 20
            if content is None or json_size > max_json_bytes or len(found) >= MAX_FILES:
                complete = False
                continue
            found[path] = value
            max_bytes -= size + len(content)
            max_json_bytes -= json_size
        return found, complete

    def walk(self, prefix, depth, remaining):
        # Yield the paths of the files that match, in order, and None if there are too many or time is up.
        with scan_folder(os.path.join(self.path, prefix)) as entries:
            listed = []
            for entry in entries:
                self.entries += 1
                if self.entries > MAX_ENTRIES:
                    yield None
                listed.append((entry.name, entry))
        for name, entry in sorted(listed):
            following = self.matcher.after(remaining, name)
            if self.matcher.is_late:
                yield None
            if () in following and entry.is_file(follow_symlinks=False):
                yield prefix + name
            elif any(following) and entry.is_dir(follow_symlinks=False):
                if depth > 1:
                    yield from self.walk(f"{prefix}{name}/", depth - 1, following)
                else:
                    yield prefix + name  # it cannot be read like a file, so files are missing

    def read(self, path, max_bytes):
        # Return the content of a file, or None if it is larger than a size.
        fd = os_open(os.path.join(self.path, path), READ_FILE)
        try:
            if os_fstat(fd).st_size > max_bytes:
                return None
            content = bytearray()
            while piece := os_read(fd, max(0, max_bytes) + 1 - len(content)):
                content += piece
        finally:
            os_close(fd)
        return bytes(content) if len(content) <= max_bytes else None


class InputGiver:
    # The part of the guest that gives a program its input.

    def give(self, given):
        # Give the program its input. Return None, or how the program ends if this is not possible.
        patterns, files = given.get("collect", ()), given.get("files", {})
        sys.argv = [FILE, *given.get("argv", ())]
        if self.whole_cases or "stdin" in given:
            self.stdin = StandardInput(to_bytes(given.get("stdin", "")))
        if self.whole_cases or files or patterns:
            try:
                self.folder = WorkingFolder(files, self.source)
            except OSError as error:
                if files or patterns:
                    message = f"the server has no folder for the files of the program: {error}"
                    return {"outcome": "CRASHED", "error": {"name": "OSError", "message": message}}
        self.patterns = patterns
        return None

    def rewind(self):
        if self.stdin is not None:
            self.stdin.rewind()
            if not self.stdin.is_descriptor:
                os.read = sys.modules["posix"].read = self.stdin.read

    def take_back(self):
        # Undo `give`, after the program has ended.
        for give_back in (self.stdin and self.stdin.close, self.folder and self.folder.leave):
            try:
                if give_back is not None:
                    give_back()
            except BaseException:
                pass  # the program has closed, changed or removed something
        self.stdin = self.folder = None


def pack_bytes(content):
    # Return the content as a text, or as base64 if that is shorter in JSON.
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = None
    if text is not None and len(quote(text).encode()) <= 4 * len(content) // 3 + 20:
        return text
    return {"base64": b2a_base64(content, newline=False).decode()}
