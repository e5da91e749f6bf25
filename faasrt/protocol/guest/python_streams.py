# Records the streams of a program, and renders them for a frame.

import io
import os
from binascii import b2a_base64
from json.encoder import encode_basestring as quote


def decode(data):
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return data.decode("utf-8", "replace")


def pack(text):
    # Return the text, or base64 if JSON escapes would be much longer.
    return text if len(quote(text)) < 1.3 * len(text) + 100 else {"base64": to_base64(text)}


def to_base64(text):
    return b2a_base64(text.encode("utf-8", "surrogatepass"), newline=False).decode()


def as_stream(text):
    return text.encode("utf-8", "surrogatepass"), b"", 0


def render(head, tail, lost, limit):
    # Return a stream for JSON: the whole text, or its head, its tail, and the number of bytes lost between them.
    if len(head) + len(tail) + lost <= limit:
        return pack(decode(head + tail))
    first, last = head[: limit - limit // 2], (tail or head)[len(tail or head) - limit // 2 :]
    lost += len(head) + len(tail) - len(first) - len(last)
    return {"head": pack(decode(first)), "tail": pack(decode(last)), "lost": lost}


class Recorder(io.RawIOBase):
    # Replaces a standard stream, and keeps the head and the tail of the output.

    def __init__(self, fd, limit, on_output_limit, file=None):
        self.fd, self.limit, self.on_output_limit = fd, limit, on_output_limit
        # The file that replaces the descriptor, and the number of bytes read from it.
        self.file, self.position = file, 0
        self.head, self.tail, self.size = bytearray(), bytearray(), 0
        self.buffer = io.BufferedWriter(self)
        # Kept as an attribute, because the program may replace sys.stdout.
        self.text = io.TextIOWrapper(self.buffer, encoding="utf-8", errors="surrogatepass", write_through=True)
        self.name = "<stdout>" if fd == 1 else "<stderr>"

    def writable(self):
        return True

    def fileno(self):
        return self.fd

    def write(self, data):
        self.absorb()
        return self.keep(bytes(data))

    def absorb(self):
        # Read what child processes and C code have written to the descriptor.
        while self.file is not None and (data := os.pread(self.file, 65_536, self.position)):
            self.position += len(data)
            self.keep(data)

    def keep(self, data):
        self.size += len(data)
        room = max(0, self.limit - self.limit // 2 - len(self.head))
        self.head += data[:room]
        # The tail alone has room for the whole limit, so a stream within its limit is never cut here.
        self.tail += data[room:][-self.limit :]
        if len(self.tail) > 2 * self.limit:
            del self.tail[: -self.limit]
        if self.size > 2 * self.limit:
            self.on_output_limit()
        return len(data)

    def write_raw(self, data):
        # Write bytes directly, after the text that is still buffered.
        self.flush_text()
        return self.write(data)

    def flush_text(self):
        try:
            self.buffer.flush()
            self.absorb()
        except (OSError, ValueError):
            pass  # the program closed the stream, which flushed it

    def take(self):
        # Return the output since the last call: head, tail, and the number of bytes lost between them.
        self.flush_text()
        head, tail, size = self.head, self.tail, self.size
        self.head, self.tail, self.size = bytearray(), bytearray(), 0
        if size <= self.limit:
            return head + tail, b"", 0
        return head, tail, size - len(head) - len(tail)
