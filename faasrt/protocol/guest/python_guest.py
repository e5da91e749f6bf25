# Runs the user's Python program on a server that would damage it, and hands everything back as one frame.
#
# The other files stand in front of this one; together they run in a namespace with its own copy of the builtins. The
# job and the frame are described in envelope.py. The program is hostile, or merely odd: what is needed after it has
# begun is taken hold of before that, and what it may have broken is put right again afterwards.

import atexit
import builtins
import gc
import os

os_write, os_exit = os.write, os._exit
MARK_BEGIN, MARK_END = "__COZE_RETURN_VAL_START__", "__COZE_RETURN_VAL_END__"
DEFAULT_RECURSION_LIMIT = 1000  # CPython's; python-faas runs programs at 400


def run_async(coroutine):
    import asyncio

    return asyncio.run(coroutine)


async def wait_for(awaitable):
    return await awaitable


def set_recursion_limit(limit):
    try:
        sys.setrecursionlimit(limit)
    except RecursionError:
        pass  # the program is ended at a depth above the limit; its process goes with it


def boolean(value):
    return "true" if value else "false"


def write_all(fd, text):
    data = text.encode()
    while data:
        data = data[os_write(fd, data) :]


class Guest:
    # One job: runs it, and keeps a record of each case, or of the program as the only one.

    def __init__(self, job, return_val):
        self.job, self.tell_return_val = job, return_val
        self.records, self.index, self.began = [], 0, now()
        self.ret_val, self.flooded, self.hits, self.running = "", False, 0, False
        self.guard = Guard(self.interrupt)
        self.threads, self.exit_functions = self.all_threads(), atexit._ncallbacks()
        self.real_stdout = sys.stdout
        self.pid, self.told = os.getpid(), 0
        self.out = self.err = None
        try:
            self.spare_stdout = os.dup(1)  # the program may close what sys.stdout writes to
        except (OSError, AttributeError):
            self.spare_stdout = None

    # What the program may break, before and after.

    def install(self):
        self.kept = {
            "builtins": dict(vars(builtins)),
            "streams": [(name, getattr(sys, name)) for name in ("stdout", "stderr", "__stdout__", "__stderr__")],
            "main": sys.modules["__main__"],
            "recursion": sys.getrecursionlimit(),
            "loop": None,
        }
        self.recursion_limit = max(self.kept["recursion"], DEFAULT_RECURSION_LIMIT)
        sys.setrecursionlimit(self.recursion_limit)
        sys.argv = [FILE]
        self.stderr = sys.stderr
        self.open_streams()
        if self.job["capture"]:
            self.patch("write", self.write_fd)
            self.patch("_exit", self.exit_hard)
        if not IN_PYODIDE and "asyncio" in sys.modules:
            # A server that runs us inside its loop would forbid the program a loop of its own.
            events = sys.modules["asyncio"].events
            self.kept["loop"] = events._set_running_loop, events._get_running_loop()
            events._set_running_loop(None)

    def open_streams(self):
        if self.job["capture"]:
            limit = self.job["max_output_bytes"]
            self.out, self.err = Recorder(1, limit, self.flood), Recorder(2, limit, self.flood)
            sys.stdout = sys.__stdout__ = self.out.text
            sys.stderr = sys.__stderr__ = self.stderr = self.err.text

    def flush_streams(self):
        # Those of the program's own making come first: they write to ours.
        for stream in (sys.stdout, sys.stderr, self.out and self.out.buffer, self.err and self.err.buffer):
            try:
                stream.flush()
            except Exception:
                pass  # closed, or none at all, or of the program's making

    def patch(self, name, value):
        for module in ("os", "posix"):
            if hasattr(sys.modules.get(module), name):
                setattr(sys.modules[module], name, value)

    def mend(self):
        # What formats a traceback uses the builtins too, and runs without much of a stack after a RecursionError.
        names = vars(builtins)
        for name in [name for name in names if name not in self.kept["builtins"]]:
            del names[name]
        names.update(self.kept["builtins"])
        set_recursion_limit(self.recursion_limit)

    def restore(self):
        self.mend()
        set_recursion_limit(self.kept["recursion"])
        for name, stream in self.kept["streams"]:
            setattr(sys, name, stream)
        sys.modules["__main__"] = self.kept["main"]
        self.patch("write", os_write)
        self.patch("_exit", os_exit)
        time.sleep = sleep
        if self.kept["loop"] is not None:
            set_running_loop, loop = self.kept["loop"]
            set_running_loop(loop)

    def write_fd(self, fd, data):
        recorder = {1: self.out, 2: self.err}.get(fd)
        return os_write(fd, data) if recorder is None else recorder.write_raw(data)

    # How a program is ended.

    def interrupt(self):
        self.hits += 1
        if self.hits > PATIENCE:
            self.end_process(self.ended_fields())
        raise Ended

    def flood(self):
        self.flooded = True
        if self.running:
            self.interrupt()

    def ended_fields(self):
        return {"outcome": "OUTPUT_LIMIT" if self.flooded else "TIMEOUT"}

    def exit_hard(self, status):
        if os.getpid() != self.pid:
            os_exit(status)  # a child of the program's
        self.end_process({"outcome": "CRASHED", "exit_code": int(status) & 0xFF if isinstance(status, int) else None})

    def end_process(self, fields):
        # End the process here and now, under the program; the frame goes wherever the server may still look.
        self.guard.disarm()
        self.restore()
        self.job["progress"] = False  # all of it follows
        if fields is not None:
            self.record(fields)
        if self.tell_return_val is None:
            self.to_stderr(self.frame(self.records))
        try:
            self.hand_over()
            self.flush_streams()
        finally:
            if IN_PYODIDE:
                import js

                js.Deno.exit(1)
            os_exit(1)

    # How it is run.

    def work(self):
        self.announce()
        self.install()
        try:
            if self.job["function"] is None or self.job["single"]:
                self.begin(0)
                self.record(self.guarded(self.run_whole))
            else:
                self.run_cases()
        finally:
            self.guard.disarm()
            self.restore()
        if os.getpid() != self.pid:
            os_exit(0)  # a child of the program's, which has come to the program's end as well
        if self.left_threads():
            self.end_process(None)  # the interpreter would wait for it
        self.hand_over()

    def begin(self, index):
        self.index, self.ret_val, self.flooded, self.hits = index, "", False, 0
        self.began = now()

    def guarded(self, action, *arguments):
        # Run something within the limits. A program that caught the guard's exception has passed them all the same.
        self.running = True
        try:
            try:
                self.guard.arm(self.job["case_ms"])
                fields = action(*arguments)
                self.flush_streams()
            finally:
                self.running = False
                self.guard.disarm()
        except Ended:
            self.running = False
            self.guard.disarm()
        except BaseException:
            fields = {"outcome": "CRASHED"}  # the program has broken us
        return self.ended_fields() if self.hits or self.flooded else fields

    def attempt(self, action, *arguments):
        # How a piece of the user's code ends; what it gives is under "value".
        reserve = memory_reserve()
        try:
            try:
                return {"outcome": "OK", "exit_code": 0, "value": action(*arguments)}
            finally:
                # Before any function of ours is called, which would be traced.
                sys.settrace(None)
                sys.setprofile(None)
        except Ended:
            raise
        except SystemExit as error:
            code = exit_code_of(error, self.stderr)
            return self.exit(code, "the program exited") if code else {"outcome": "OK", "exit_code": 0, "exited": True}
        except BaseException as error:
            del reserve
            self.mend()
            return self.error(error_fields(error, "run", self.job["max_output_bytes"]))

    def exit(self, code, words):
        error = {"name": "SystemExit", "message": words.replace("exited", f"exited with code {code}", 1)}
        return {"outcome": "USER_ERROR", "exit_code": code, "exited": True, "error": error}

    def error(self, fields):
        write(self.stderr, fields["traceback"])
        outcome = "SYNTAX_ERROR" if fields.get("phase") == "compile" else "USER_ERROR"
        return {"outcome": outcome, "exit_code": 1, "error": fields}

    def define(self):
        # Run the program in a module of its own; give how that ended, and the module's names.
        module = type(sys)("__main__")
        names = module.__dict__
        code = self.job["code"].removeprefix("\ufeff")
        names.update(__builtins__=builtins, __loader__=Source(code), __file__=FILE, return_val=self.return_val)
        sys.modules["__main__"] = module
        if not self.job["faithful"] or "linecache" in sys.modules:
            # For warnings, which look for the file; a server that starts fast has not got the time for this import.
            import linecache

            linecache.cache[FILE] = (len(code), None, [line + "\n" for line in code.split("\n")], FILE)
        try:
            program = compile(code, FILE, "exec", TOP_LEVEL_AWAIT, dont_inherit=True)
        except Ended:
            raise
        except BaseException as error:
            return self.error(error_fields(error, "compile", self.job["max_output_bytes"])), names
        return self.attempt(self.execute, program, names), names

    def execute(self, program, names):
        if program.co_flags & COROUTINE:
            run_async(eval(program, names))
        else:
            exec(program, names)

    def return_val(self, value):
        self.ret_val = as_text(value)

    def run_whole(self):
        fields, names = self.define()
        self.mend()
        if self.job["function"] is not None:
            return self.call(fields, names, self.job["cases"][0])
        # As the interpreter does at its end: what threads, exit handlers and finalizers print is not to be lost.
        self.end_pools()
        while left := self.left_threads():
            left[0].join()
        if atexit._ncallbacks() > self.exit_functions:
            atexit._run_exitfuncs()
        names = None
        sys.modules["__main__"] = self.kept["main"]
        gc.collect()
        return fields

    def end_pools(self):
        # The threads of a pool wait for work until the interpreter tells them that there will be none.
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
        return (
            set(threading.enumerate()) - {threading.main_thread(), threading.current_thread()} if threading else set()
        )

    def left_threads(self):
        # Those that the interpreter waits for at its end.
        return [thread for thread in self.all_threads() - self.threads if not thread.daemon]

    def run_cases(self):
        job, names = self.job, None
        if not job["isolate"]:
            self.begin(-1)
            fields = self.guarded(self.define)
            if isinstance(fields, tuple):
                fields, names = fields
            self.record(fields if names is None else self.defined(fields), job["definition_bytes"])
            if fields["outcome"] != "OK" or "exited" in fields:
                return
        started, size = now(), 0
        for index, case in enumerate(job["cases"], job["first"]):
            late = (now() - started) * 1000 > job["begin_within_ms"]
            if index > job["first"] and (late or size > job["batch_bytes"] or self.told > job["progress_bytes"]):
                return
            self.begin(index)
            fields = self.guarded(self.run_case, names, case)
            if job["limit_ms"] is not None and (now() - self.began) * 1000 > job["limit_ms"]:
                fields["outcome"], fields["exit_code"] = "TIMEOUT", None
                fields.pop("error", None)
            size += len(self.record(fields))
            if "exited" in fields or self.hits or self.flooded or fields["outcome"] == "CRASHED":
                return

    def run_case(self, names, case):
        fields = {"outcome": "OK"}
        if names is None:
            self.mend()
            self.open_streams()
            fields, names = self.define()
        return self.call(fields, names, case)

    def call(self, fields, names, case):
        if fields["outcome"] != "OK" or "exited" in fields:
            return self.defined(fields)
        name = self.job["function"]
        if not callable(names.get(name)):
            return self.error(self.missing(names, name))
        fields = self.attempt(self.apply, names[name], *case)
        if "exited" in fields:
            return self.exit(fields["exit_code"], f"the program exited before {name} returned")
        if fields["outcome"] == "OK":
            ended = self.attempt(encode, fields.pop("value"))
            if ended["outcome"] != "OK":
                return ended
            self.ret_val = ended["value"]
        return fields

    def defined(self, fields):
        # How the definition ended, when it ended the execution as well.
        if "exited" in fields:
            return self.exit(fields["exit_code"], "the program exited before its function was called")
        return fields

    def apply(self, function, args, kwargs):
        value = function(*args, **kwargs)
        return run_async(wait_for(value)) if hasattr(type(value), "__await__") else value

    def missing(self, names, name):
        if name in names:
            message = f"{name} is no function, but of type {type(names[name]).__name__}"
            return {"name": "TypeError", "message": message, "traceback": f"TypeError: {message}\n"}
        found = [
            key for key, value in names.items() if callable(value) and getattr(value, "__module__", "") == "__main__"
        ][:50]
        listed = "its functions: " + ", ".join(found) if found else "it defines none"
        message = f"the program defines no function {name}; {listed}"
        return {"name": "NameError", "message": message, "traceback": f"NameError: {message}\n"}

    # What is handed over.

    def record(self, fields, limit=None):
        # Keep how a case ended, as JSON that fits into a frame; and say so at once, in case the next one ends all.
        ms, limit = (now() - self.began) * 1000, limit or self.job["max_output_bytes"]
        error = fields.get("error")
        parts = [
            f'"index":{self.index}',
            f'"outcome":{quote(fields["outcome"])}',
            f'"exit_code":{"null" if fields.get("exit_code") is None else fields["exit_code"]}',
            f'"ms":{ms:.3f}',
        ]
        streams = {"ret_val": as_stream(self.ret_val)}
        if self.job["capture"]:
            streams |= {"stdout": self.out.take(), "stderr": self.err.take()}
        while True:
            texts = [f'"{name}":{render(*stream, limit)}' for name, stream in streams.items()]
            if error is not None:
                name, message = quote(error["name"][:200]), render(*as_stream(error["message"]), limit)
                traceback = quote(shorten(error.get("traceback", ""), 20_000))
                texts.append(f'"error":{{"name":{name},"message":{message},"traceback":{traceback}}}')
            record = "{" + ",".join(parts + texts) + "}"
            # Escapes can grow a text beyond what a frame may hold.
            if limit < 100 or len(record.encode("utf-8", "surrogatepass")) <= self.job["record_bytes"]:
                break
            limit //= 2
        self.records.append(record)
        self.tell_progress(record)
        return record

    def announce(self):
        # A server returns stderr when the process dies, and stdout when the program raises: one of them survives.
        if self.tell_return_val is not None:
            return self.tell_progress("")
        frame = self.frame([], final=False)
        self.to_stderr(frame)
        self.real_stdout.write(f"{frame}\n")
        self.real_stdout.flush()

    def tell_progress(self, record):
        if not self.job["progress"]:
            return
        if self.tell_return_val is None:
            self.to_stderr(self.frame([record], final=False))
        else:
            # The last one counts there, so it holds all.
            frame = self.frame(self.records, final=False)
            self.told += len(frame)
            self.tell_return_val(frame)

    def frame(self, records, final=True):
        flags = f'"final":{boolean(final)},"progress":{boolean(self.job["progress"])}'
        text = f'{{"nonce":{quote(self.job["nonce"])},{flags},"records":[' + ",".join(records) + "]}"
        # The padding of base64 marks the end of a frame where a server joins lines.
        text += " " * ((1 - len(text)) % 3)
        return "faasrt1:" + to_base64(text)

    def hand_over(self):
        frame = self.frame(self.records)
        if self.tell_return_val is not None:
            return self.tell_return_val(frame)
        text = f"{MARK_BEGIN}\n{frame}\n{MARK_END}\n"
        try:
            self.real_stdout.write(text)
            self.real_stdout.flush()
        except (OSError, ValueError):
            write_all(self.spare_stdout, text)

    def to_stderr(self, line):
        # Write to the process's own stderr, which servers show when the process ends without an answer.
        text = f"\n{line}\n"
        try:
            if IN_PYODIDE:
                import js
                from pyodide.ffi import to_js

                return js.Deno.stderr.writeSync(to_js(text.encode()))
        except Exception:
            pass  # another host than Deno
        try:
            write_all(2, text)
        except OSError:
            pass  # the program closed it


def main(payload, return_val=None):
    Guest(parse_json(a2b_base64(payload).decode()), return_val).work()
