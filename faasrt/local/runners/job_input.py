# Reads a job from stdin. The rest of stdin is for the program.

import os


def read_exactly(size):
    # Not a buffered file, which would also read the beginning of the program's input.
    data = bytearray()
    while len(data) < size:
        piece = os.read(0, min(size - len(data), 1 << 20))
        if not piece:
            break
        data += piece
    return bytes(data)


def open_at_once(path, flags):
    """Do not wait for the reader of a pipe that a program has made."""
    return os.open(path, flags | os.O_NONBLOCK, 0o666)


def write_files(files, folder=""):
    """Write the files of a job. Their contents follow on stdin. A file with an absolute path is an executable."""
    for path, size in files:
        target = os.path.join(folder, path)
        parent = os.path.dirname(target)
        if parent:
            os.makedirs(parent, exist_ok=True)
        with open(target, "wb", opener=open_at_once) as file:
            file.write(read_exactly(size))
        if path.startswith("/"):
            os.chmod(path, 0o500)
