# The streams of a program: how they are recorded inside, and how they look in a frame.

import io
from binascii import a2b_base64, b2a_base64  # noqa: F401

try:
    from _json import encode_basestring as quote, make_scanner
except ImportError:
    from json.encoder import encode_basestring as quote

    make_scanner = None


class Scanner:
    # What json.JSONDecoder is to its scanner.
    strict, memo = False, {}
    object_hook = object_pairs_hook = array_hook = None
    parse_float, parse_int, parse_constant = float, int, float


def parse_json(text):
    # json and what it imports would double the time of a short run.
    try:
        return make_scanner(Scanner)(text, 0)[0]
    except Exception:
        import json

        return json.loads(text)


def decode(data):
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return data.decode("utf-8", "replace")


def pack(text):
    # A text as JSON: a string, or base64 of it where that is much shorter than its escapes.
    quoted = quote(text)
    if len(quoted) < 1.3 * len(text) + 100:
        return quoted
    return '{"base64":"' + to_base64(text) + '"}'


def to_base64(text):
    return b2a_base64(text.encode("utf-8", "surrogatepass"), newline=False).decode()


def as_stream(text):
    return text.encode("utf-8", "surrogatepass"), b"", 0


def render(head, tail, lost, limit):
    # A stream as JSON: the whole text, or head and tail with the number of the bytes that are lost between them.
    if len(head) + len(tail) + lost <= limit:
        return pack(decode(head + tail))
    first, last = head[: limit - limit // 2], (tail or head)[len(tail or head) - limit // 2 :]
    lost += len(head) + len(tail) - len(first) - len(last)
    return f'{{"head":{pack(decode(first))},"tail":{pack(decode(last))},"lost":{lost}}}'


class Recorder(io.RawIOBase):
    # Stands in for a standard stream: keeps the head and the tail of what is written.

    def __init__(self, fd, limit, on_flood):
        self.fd, self.limit, self.on_flood = fd, limit, on_flood
        self.head, self.tail, self.size = bytearray(), bytearray(), 0
        self.buffer = io.BufferedWriter(self)
        # Kept by name: the program may put anything in the place of sys.stdout.
        self.text = io.TextIOWrapper(self.buffer, encoding="utf-8", errors="surrogatepass", write_through=True)
        self.name = "<stdout>" if fd == 1 else "<stderr>"

    def writable(self):
        return True

    def fileno(self):
        return self.fd

    def write(self, data):
        data = bytes(data)
        self.size += len(data)
        room = max(0, self.limit - self.limit // 2 - len(self.head))
        self.head += data[:room]
        # A stream within its limit is never trimmed here.
        self.tail += data[room:][-self.limit :]
        if len(self.tail) > 2 * self.limit:
            del self.tail[: -self.limit]
        if self.size > 2 * self.limit:
            self.on_flood()
        return len(data)

    def write_raw(self, data):
        # Write what went past the text stream, after what went before it.
        self.flush_text()
        return self.write(data)

    def flush_text(self):
        try:
            self.buffer.flush()
        except (OSError, ValueError):
            pass  # the program closed its own stream, which flushed it

    def take(self):
        # Give what was written since the last time: head, tail, and how many bytes are lost between them.
        self.flush_text()
        head, tail, size = self.head, self.tail, self.size
        self.head, self.tail, self.size = bytearray(), bytearray(), 0
        if size <= self.limit:
            return head + tail, b"", 0
        return head, tail, size - len(head) - len(tail)
