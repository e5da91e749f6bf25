# Runs the user's Python program on a server that would damage its output, and returns everything as one frame.
#
# The other Python files precede this one, and all run in one namespace, which has its own copy of the builtins.
# envelope.py documents the job, and frames.py the frame. The program may be hostile: objects that are needed after its
# start are stored before, and objects that it may have changed are restored afterwards.

import atexit
import builtins
import gc
import json
import os
from binascii import a2b_base64

os_exit = os._exit
DEFAULT_RECURSION_LIMIT = 1000  # CPython's; python-faas runs programs at 400


def run_async(coroutine):
    import asyncio

    return asyncio.run(coroutine)


async def wait_for(awaitable):
    return await awaitable


def without_main_block(code):
    # Return the syntax tree of a program, in which the condition `__name__ == "__main__"` of a block is false.
    import _ast

    tree = compile(code, FILE, "exec", TOP_LEVEL_AWAIT | _ast.PyCF_ONLY_AST, dont_inherit=True)
    for node in tree.body:
        test = getattr(node, "test", None)
        if isinstance(node, _ast.If) and isinstance(test, _ast.Compare) and isinstance(test.ops[0], _ast.Eq):
            parts = [getattr(part, "id", getattr(part, "value", None)) for part in (test.left, *test.comparators)]
            if parts in (["__name__", "__main__"], ["__main__", "__name__"]):
                node.test = _ast.Constant(False, **{name: getattr(test, name) for name in test._attributes})
    return tree


def set_recursion_limit(limit):
    try:
        sys.setrecursionlimit(limit)
    except RecursionError:
        pass  # the stack is deeper than the limit; no matter, because the process ends after the program


class Guest(FrameWriter, InputGiver):
    # Runs one job, and keeps a record of the program or of each case.

    def __init__(self, job, return_val):
        self.job, self.server_return_val, self.source = job, return_val, job["code"].removeprefix("\ufeff")
        self.whole_cases = job["function"] is None and not job["single"]
        self.records, self.index, self.began = [], 0, now()
        self.ret_val, self.exceeded_output, self.interrupts, self.running = "", False, 0, False
        # A batch has this time. A single program has no longer than its limit, because the client does not wait longer.
        batch_ms = 0 if job["single"] else 2 * (job["case_ms"] or 0) + job["begin_within_ms"]
        self.guard = Guard(self.interrupt, self.end_at_limit, now() + batch_ms / 1000)
        self.threads, self.exit_functions = self.all_threads(), atexit._ncallbacks()
        self.stdin = self.folder = self.program = self.reserve = None
        self.real_stdout = sys.stdout
        self.pid, self.progress, self.progress_size = os.getpid(), not job["single"], 0
        self.out = self.err = self.names = self.set_running_loop = None
        self.files, self.stderr_fd = {}, 2
        try:
            self.spare_stdout = os.dup(1)  # in case the program closes the descriptor of sys.stdout
        except (OSError, AttributeError):
            self.spare_stdout = None

    # Setting up the interpreter, and restoring it.

    def install(self):
        self.builtins, self.main = dict(vars(builtins)), sys.modules["__main__"]
        modules = [sys.modules[name] for name in ("os", "posix") if name in sys.modules]
        streams = ("stdin", "stdout", "stderr")
        replaced = [(sys, name) for stream in streams for name in (stream, f"__{stream}__")]
        replaced += [(time, "sleep"), *((module, name) for module in modules for name in ("read", "write", "_exit"))]
        self.attributes = [(owner, name, getattr(owner, name)) for owner, name in replaced]
        self.host_recursion_limit = sys.getrecursionlimit()
        self.recursion_limit = max(self.host_recursion_limit, DEFAULT_RECURSION_LIMIT)
        sys.setrecursionlimit(self.recursion_limit)
        self.stderr = sys.stderr
        if self.job["replace_fds"]:
            self.replace_descriptors()
        self.open_streams()
        if self.job["capture"]:
            for module in modules:
                module.write, module._exit = self.write_fd, self.exit_hard
        if not IN_PYODIDE and "asyncio" in sys.modules:
            # On a server that runs the guest inside its event loop, the program could not start its own loop.
            events = sys.modules["asyncio"].events
            self.set_running_loop, self.loop = events._set_running_loop, events._get_running_loop()
            events._set_running_loop(None)

    def replace_descriptors(self):
        # Child processes and C code write to the descriptors, where their output would mix with the frames.
        try:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # Piston's standard input is a newline, never empty
            self.stderr_fd = os.dup(2)
            for fd in (1, 2):
                self.files[fd] = os.memfd_create("output")
                os.dup2(self.files[fd], fd)
        except (OSError, AttributeError):
            pass  # not on this platform

    def open_streams(self):
        if self.job["capture"]:
            limit, files = self.job["max_output_bytes"], self.files
            for file in files.values():
                os.ftruncate(file, 0)
                os.lseek(file, 0, os.SEEK_SET)
            self.out, self.err = (Recorder(fd, limit, self.on_output_limit, files.get(fd)) for fd in (1, 2))
            sys.stdout = sys.__stdout__ = self.out.text
            sys.stderr = sys.__stderr__ = self.stderr = self.err.text

    def flush_streams(self):
        # Streams that the program made come first, because they write to the recorders.
        for stream in (sys.stdout, sys.stderr, self.out and self.out.buffer, self.err and self.err.buffer):
            try:
                stream.flush()
            except Exception:
                pass  # closed, missing, or replaced by the program
        for recorder in (self.out, self.err):
            if recorder is not None:
                recorder.flush_text()

    def repair(self):
        # Formatting a traceback needs the builtins, and some stack after a RecursionError.
        names = vars(builtins)
        for name in names.keys() - self.builtins.keys():
            del names[name]
        names.update(self.builtins)
        set_recursion_limit(self.recursion_limit)

    def restore(self):
        self.repair()
        set_recursion_limit(self.host_recursion_limit)
        for owner, name, value in self.attributes:
            setattr(owner, name, value)
        sys.modules["__main__"] = self.main
        if self.set_running_loop is not None:
            self.set_running_loop(self.loop)
        if self.stderr_fd != 2:
            os.dup2(self.spare_stdout, 1)
            os.dup2(self.stderr_fd, 2)

    def write_fd(self, fd, data):
        recorder = {1: self.out, 2: self.err}.get(fd)
        return os_write(fd, data) if recorder is None else recorder.write_raw(data)

    # Ending a program.

    def interrupt(self):
        self.interrupts += 1
        if self.interrupts > MAX_INTERRUPTS:
            self.end_at_limit()
        raise LimitExceeded

    def end_at_limit(self):
        self.end_process(self.limit_result())

    def on_output_limit(self):
        self.exceeded_output = True
        if self.running:
            self.interrupt()

    def limit_result(self):
        return {"outcome": "OUTPUT_LIMIT" if self.exceeded_output else "TIMEOUT"}

    def exit_hard(self, status):
        if os.getpid() != self.pid:
            os_exit(status)  # a child process of the program
        self.end_process({"outcome": "CRASHED", "exit_code": int(status) & 0xFF if isinstance(status, int) else None})

    def end_process(self, fields):
        # End the process at once, while the program runs. The frame goes to every stream that the server may read.
        self.guard.disarm()
        self.restore()
        self.progress = False  # the final frame contains all records
        if fields is not None:
            self.record(fields)
        self.take_back()
        if self.server_return_val is None:
            self.to_stderr(self.frame(self.records))
        try:
            self.send_result()
            self.flush_streams()
        finally:
            if IN_PYODIDE:
                import js

                js.Deno.exit(1)
            os_exit(1)

    # Running a program.

    def run_job(self):
        self.announce()
        self.install()
        try:
            if self.job["single"]:
                self.begin(0)
                self.record(self.give(self.job["input"]) or self.run_guarded(self.run_whole))
            else:
                self.run_cases()
        finally:
            self.guard.disarm()
            self.restore()
        if os.getpid() != self.pid:
            os_exit(0)  # a child process of the program that reached the end too
        self.take_back()
        if self.remaining_threads():
            self.end_process(None)  # the interpreter would wait for these threads
        self.send_result()

    def begin(self, index):
        self.index, self.ret_val, self.exceeded_output, self.interrupts = index, "", False, 0
        self.began = now()

    def run_guarded(self, action, *arguments):
        # Run an action within the limits. A program that caught the guard's exception has exceeded them as well.
        self.running = True
        try:
            try:
                self.guard.arm(self.job["case_ms"])
                fields = action(*arguments)
                self.flush_streams()
            finally:
                self.running = False
                self.guard.disarm()
        except BaseException:
            # The guard stopped the program, or the program broke the guest.
            self.running = False
            self.guard.disarm()
            fields = {"outcome": "CRASHED"}
        return self.limit_result() if self.interrupts or self.exceeded_output else fields

    def run_user_code(self, action, *arguments):
        # Run a part of the user's code, and return how it ended; its return value is under "value".
        self.reserve = self.reserve or memory_reserve()
        try:
            try:
                return {"outcome": "OK", "exit_code": 0, "value": action(*arguments)}
            finally:
                # Do this first: a trace function of the program would also trace the guest's functions.
                sys.settrace(None)
                sys.setprofile(None)
        except LimitExceeded:
            raise
        except SystemExit as error:
            code = exit_code_of(error, self.stderr)
            return self.exit_result(code) if code else {"outcome": "OK", "exit_code": 0, "exited": True}
        except BaseException as error:
            self.reserve = None
            self.repair()
            return self.error_result(error_fields(error, "run", self.job["max_output_bytes"]))

    def exit_result(self, code, when=""):
        error = {"name": "SystemExit", "message": f"the program exited with code {code}{when}"}
        return {"outcome": "USER_ERROR", "exit_code": code, "exited": True, "error": error}

    def error_result(self, fields):
        write(self.stderr, fields["traceback"])
        outcome = "SYNTAX_ERROR" if fields.get("phase") == "compile" else "USER_ERROR"
        return {"outcome": outcome, "exit_code": 1, "error": fields}

    def define(self):
        # Run the program in a new module, and return how it ended.
        self.rewind()
        module = type(sys)("__main__")
        names = self.names = module.__dict__
        code = self.source
        path = FILE if self.folder is None else os.path.join(self.folder.path, FILE)
        names.update(__builtins__=builtins, __loader__=Source(code), __file__=path, return_val=self.return_val)
        sys.modules["__main__"] = module
        # The warnings module reads the source from here.
        linecache.cache[FILE] = (len(code), None, [line + "\n" for line in code.split("\n")], FILE)
        try:
            source = without_main_block(code) if self.job["imported"] and "__main__" in code else code
            program = self.program or compile(source, FILE, "exec", TOP_LEVEL_AWAIT, dont_inherit=True)
        except LimitExceeded:
            raise
        except BaseException as error:
            return self.error_result(error_fields(error, "compile", self.job["max_output_bytes"]))
        if self.job["isolate"]:
            # Compile once, unless each case must have the warnings of the compiler.
            self.err.flush_text()
            self.program = None if self.err.size else program
        fields = self.run_user_code(self.execute, program, names)
        if "exited" in fields and self.job["function"] is not None:
            return self.exit_result(fields["exit_code"], " before its function was called")
        return fields

    def execute(self, program, names):
        if program.co_flags & COROUTINE:
            run_async(eval(program, names))
        else:
            exec(program, names)

    def return_val(self, value):
        self.ret_val = as_text(value)

    def run_whole(self):
        fields = self.define()
        self.repair()
        if self.job["function"] is not None:
            return self.call(fields, self.job["cases"][0])
        # Do what the interpreter does when it exits, to get the output of threads, exit handlers and finalizers.
        self.end_pools()
        while left := self.remaining_threads():
            left[0].join()
        if atexit._ncallbacks() > self.exit_functions:
            atexit._run_exitfuncs()
        self.names = None
        sys.modules["__main__"] = self.main
        gc.collect()
        return fields

    def end_pools(self):
        # The threads of a pool wait for work until the interpreter's shutdown wakes them.
        pools = sys.modules.get("concurrent.futures.thread")
        if pools is not None:
            pools._shutdown = True
            for thread, queue in [*pools._threads_queues.items()]:
                if thread not in self.threads:
                    queue.put(None)
                    thread.join()
            pools._shutdown = False

    def all_threads(self):
        threading = sys.modules.get("threading")
        if threading is None:
            return set()
        return set(threading.enumerate()) - {threading.main_thread(), threading.current_thread()}

    def remaining_threads(self):
        # The threads for which the interpreter waits when it exits.
        return [thread for thread in self.all_threads() - self.threads if not thread.daemon]

    def run_cases(self):
        job = self.job
        problem = None if self.whole_cases else self.give(job["input"])
        if not job["isolate"]:
            self.begin(-1)
            fields = problem or self.run_guarded(self.define)
            self.record(fields, job["definition_bytes"])
            if fields["outcome"] != "OK":
                return
        started, size = now(), 0
        for index, case in enumerate(job["cases"], job["first"]):
            late = (now() - started) * 1000 > job["begin_within_ms"]
            full = size > job["batch_bytes"] or self.progress_size > job["progress_bytes"]
            if index > job["first"] and (late or full):
                return
            waited_before_s = waited_s()
            self.begin(index)
            if self.whole_cases:
                fields = self.run_program(case)
            else:
                fields = problem or self.run_guarded(self.run_case, case)
            if os.getpid() != self.pid:
                os_exit(0)  # a child process of the program
            took_s = now() - self.began
            if took_s * 1000 > job["limit_ms"]:
                took_s -= max(waited_s() - waited_before_s, 0)  # the wait for a CPU does not count
            if took_s * 1000 > job["limit_ms"]:
                fields["outcome"], fields["exit_code"] = "TIMEOUT", None
                fields.pop("error", None)
            size += len(self.record(fields))
            if self.whole_cases:
                self.take_back()
            elif "exited" in fields:
                return
            if self.interrupts or self.exceeded_output or fields["outcome"] == "CRASHED":
                return

    def run_case(self, case):
        if not self.job["isolate"]:
            return self.call({"outcome": "OK"}, case)
        self.repair()
        self.open_streams()
        return self.call(self.define(), case)

    def run_program(self, case):
        # Run the whole program with the input of a case.
        self.repair()
        self.open_streams()
        self.threads, self.exit_functions = self.all_threads(), atexit._ncallbacks()
        shared = self.job["input"]
        files = {**shared.get("files", {}), **case.get("files", {})}
        return self.give({**shared, **case, "files": files}) or self.run_guarded(self.run_whole)

    def call(self, fields, case):
        if fields["outcome"] != "OK":
            return fields
        if not self.job["single"]:
            self.rewind()
        name, names = self.job["function"], self.names
        if not callable(names.get(name)):
            return self.missing(name)
        arguments = with_tuples(case) if self.job["exact"] else case
        fields = self.run_user_code(self.apply, names[name], *arguments)
        if "exited" in fields:
            return self.exit_result(fields["exit_code"], f" before {name} returned")
        if fields["outcome"] == "OK":
            ended = self.run_user_code(encode, fields.pop("value"), "value", (), self.job["exact"])
            if ended["outcome"] != "OK":
                return ended
            self.ret_val = ended["value"]
        return fields

    def apply(self, function, args, kwargs):
        value = function(*args, **kwargs)
        return run_async(wait_for(value)) if hasattr(type(value), "__await__") else value

    def missing(self, name):
        names = self.names
        if name in names:
            kind, message = "TypeError", f"{name} is not a function, but of type {type(names[name]).__name__}"
        else:
            functions = [key for key, value in names.items() if callable(value)]
            found = [key for key in functions if getattr(names[key], "__module__", "") == "__main__"][:50]
            listed = "its functions: " + ", ".join(found) if found else "it has no functions"
            kind, message = "NameError", f"the program defines no function {name}; {listed}"
        return self.error_result({"name": kind, "message": message, "traceback": f"{kind}: {message}\n"})


def main(payload, return_val=None):
    Guest(json.loads(a2b_base64(payload)), return_val).run_job()


hide_lines(globals())
