# Sends the records of a program or of its cases to the client, as frames.

import os

os_write = os.write
MARK_BEGIN, MARK_END = "__COZE_RETURN_VAL_START__", "__COZE_RETURN_VAL_END__"


def write_all(fd, text):
    data = text.encode()
    while data:
        data = data[os_write(fd, data) :]


class FrameWriter:
    # The part of the guest that makes frames and sends them.

    def record(self, fields, limit=None):
        # Store the record of a case as JSON that fits into a frame. Send it now, as the next case may end the process.
        ms, limit = round((now() - self.began) * 1000, 3), limit or self.job["max_output_bytes"]
        error = fields.get("error")
        ended = {"index": self.index, "ms": ms, "outcome": fields["outcome"], "exit_code": fields.get("exit_code")}
        streams = {"ret_val": as_stream(self.ret_val)}
        if self.job["capture"]:
            streams |= {"stdout": self.out.take(), "stderr": self.err.take()}
        while True:
            content = ended | {name: render(*stream, limit) for name, stream in streams.items()}
            if error is not None:
                message = render(*as_stream(error["message"]), limit)
                traceback = shorten(error.get("traceback", ""), 20_000)
                content["error"] = {"name": error["name"][:200], "message": message, "traceback": traceback}
            record = encode(content)
            # JSON escapes may make the record too large for a frame.
            if limit < 100 or len(record.encode("utf-8", "surrogatepass")) <= self.job["record_bytes"]:
                break
            limit //= 2
        if self.folder is not None and self.patterns:
            record = f"{record[:-1]}, {self.collected()}}}"
        self.records.append(record)
        self.send_progress(record)
        return record

    def collected(self):
        # Return the fields of a record for the files that the program has left.
        job = self.job
        try:
            found, complete = self.folder.collect(self.patterns, job["max_output_bytes"], job["files_bytes"])
        except BaseException:
            found, complete = {}, False  # the program has removed the folder
        return f'"files": {encode(found)}, "has_all_files": {encode(complete)}'

    def announce(self):
        # A server returns stderr when the process dies, and stdout when the program raises.
        if self.server_return_val is not None:
            return self.send_progress("")
        frame = self.frame([], final=False)
        self.to_stderr(frame)
        self.to_stdout(f"{frame}\n")

    def send_progress(self, record):
        if not self.progress:
            return
        if self.server_return_val is None:
            self.to_stderr(self.frame([record], final=False))
        else:
            # The server keeps the last return value, so it must hold every record.
            frame = self.frame(self.records, final=False)
            self.progress_size += len(frame)
            self.server_return_val(frame)

    def frame(self, records, final=True):
        flags = f'"final":{encode(final)},"progress":{encode(self.progress)}'
        text = f'{{"nonce":{quote(self.job["nonce"])},{flags},"records":[' + ",".join(records) + "]}"
        # The padding of base64 marks the end of the frame, because some servers join lines.
        text += " " * ((1 - len(text)) % 3)
        return "faasrt1:" + to_base64(text)

    def send_result(self):
        frame = self.frame(self.records)
        if self.server_return_val is not None:
            return self.server_return_val(frame)
        if self.job["replace_fds"]:
            return self.to_stdout(f"\n{frame}\n")
        self.to_stdout(f"{MARK_BEGIN}\n{frame}\n{MARK_END}\n")

    def to_stdout(self, text):
        try:
            self.real_stdout.write(text)
            self.real_stdout.flush()
        except (OSError, ValueError):
            write_all(self.spare_stdout, text)

    def to_stderr(self, line):
        # Write to the process's own stderr, which servers return when the process ends without an answer.
        text = f"\n{line}\n"
        try:
            if IN_PYODIDE:
                import js
                from pyodide.ffi import to_js

                return js.Deno.stderr.writeSync(to_js(text.encode()))
        except Exception:
            pass  # the host is not Deno
        try:
            write_all(self.stderr_fd, text)
        except OSError:
            pass  # the program closed it
