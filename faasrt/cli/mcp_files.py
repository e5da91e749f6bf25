"""The files of the host that `faasrt mcp` puts into sessions, and the files of sessions that it collects.

Only the command line names paths of the host.
"""

from __future__ import annotations

import asyncio
import contextlib
import glob
import hashlib
import itertools
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click

from faasrt.cli.output import write_message
from faasrt.client.session import Session
from faasrt.errors import InvalidRequestError, RejectedError
from faasrt.inputs import MAX_FILES, check_path, files_to_wire
from faasrt.protocol.program import encode_json

OUTPUT_FOLDER = "output"
"""The folder of a session whose files are collected."""
MAX_INPUT_BYTES = 32 * 2**20
# The body of a request to a FaaS has at most 8 MiB.
_MAX_REQUEST_BYTES = 8 * 2**20 - 4096
_MAX_COLLECTED_BYTES = 256 * 2**20
_WRITING = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPENING = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def read_host_files(files: Sequence[str], folders: Sequence[Path]) -> dict[str, bytes]:
    """Return the contents of the files of `--file` and `--files`, by their path in a session.

    Raises:
        UsageError: A file is missing, cannot be read, is not a file, or is too large, or two have the same path.
    """
    found: dict[str, bytes] = {}
    size = 0
    for name, path, option in itertools.chain(_named(files), *map(_inside, folders)):
        try:
            check_path(name, f"the name of {path} in a session")
            content = _read(path, MAX_INPUT_BYTES - size)
        except InvalidRequestError as error:
            raise click.UsageError(f"{error}; --file NAME=PATH gives a file another name") from None
        except OSError as error:
            raise click.UsageError(f"cannot read {path} for {option}: {error.strerror}") from None
        size += len(content)
        if size > MAX_INPUT_BYTES:
            raise click.UsageError(
                f"with {path}, the files have more than {MAX_INPUT_BYTES:,} bytes, the most for a session"
            )
        if _request_bytes({name: content}) > _MAX_REQUEST_BYTES:
            raise click.UsageError(
                f"{path} is too large for sessions ({len(content):,} bytes): as JSON, a file must have less than 8 MiB"
            )
        if name in found:
            raise click.UsageError(f"two files have the name {name}; --file NAME=PATH gives a file another name")
        found[name] = content
        if len(found) > MAX_FILES:
            raise click.UsageError(f"a session gets at most {MAX_FILES:,} files")
    return found


def _named(files: Sequence[str]) -> Iterator[tuple[str, Path, str]]:
    for text in files:
        name, has_path, path = text.partition("=")
        source = Path(path if has_path else text)
        yield name if has_path else source.name, source, "--file"


def _inside(folder: Path) -> Iterator[tuple[str, Path, str]]:
    links = 0

    def fail(error: OSError) -> None:
        raise click.UsageError(f"cannot read {error.filename} for --files: {error.strerror}")

    for parent, names, files in os.walk(folder, onerror=fail):
        names[:] = sorted(name for name in names if not name.startswith("."))
        links += sum(Path(parent, name).is_symlink() for name in names)
        for name in sorted(files):
            path = Path(parent, name)
            if path.is_symlink():
                links += 1
            elif not name.startswith("."):
                yield path.relative_to(folder).as_posix(), path, "--files"
    if links:
        write_message(f"{links} symbolic links in {folder} were left out; --file NAME=PATH follows a link")


def _read(path: Path, room: int) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a pipe must not wait for its other end
    with os.fdopen(fd, "rb") as stream:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(0, "it is not a regular file")
        return stream.read(max(room, 0) + 1)


def _request_bytes(files: Mapping[str, bytes]) -> int:
    return len(encode_json({"files": files_to_wire(files)}))


def split_files(files: Mapping[str, bytes]) -> list[dict[str, bytes]]:
    """Return the files in parts that a FaaS accepts in a request."""
    parts: list[dict[str, bytes]] = []
    room = 0
    for name, content in files.items():
        size = _request_bytes({name: content})
        if not parts or size > room:
            parts.append({})
            room = _MAX_REQUEST_BYTES
        parts[-1][name] = content
        room -= size
    return parts


class OutputFolder:
    """The folder of `--output-dir`. Each session gets a folder in it when it first has files to collect."""

    def __init__(self, path: Path) -> None:
        """Raise UsageError if the folder cannot be written."""
        self.path = path
        self.room = _MAX_COLLECTED_BYTES
        try:
            path.mkdir(parents=True, exist_ok=True)
            if not os.access(path, os.W_OK | os.X_OK):
                raise PermissionError(0, "it cannot be written")
        except OSError as error:
            raise click.UsageError(f"cannot use {path} for --output-dir: {error.strerror}") from None

    def add_folder(self, language: str) -> Path:
        """Create a new folder, such as python-1."""
        for number in itertools.count(1):
            with contextlib.suppress(FileExistsError):
                folder = self.path / f"{language}-{number}"
                folder.mkdir()
                return folder
        raise AssertionError


class Collector:
    """Copies the files below `output/` of a session that are new or have changed to a folder of the host."""

    def __init__(self, output: OutputFolder, language: str) -> None:
        self._output, self._language = output, language
        self._folder: Path | None = None
        self._written: dict[str, bytes] = {}

    async def collect(self, session: Session, max_bytes: int) -> list[str]:
        """Return lines for the model that name the files.

        Args:
            max_bytes: The size of all files that the session returns at once.
        """
        try:
            sizes = await session.list_files()
            wanted = {path: size for path, size in sizes.items() if path.startswith(f"{OUTPUT_FOLDER}/")}
            lines = [
                f"{path} is not given to the user: it has more than {max_bytes:,} bytes."
                for path, size in wanted.items()
                if size > max_bytes
            ]
            files: dict[str, bytes] = {}
            for batch in _batches(wanted, max_bytes):
                files |= await session.read_files([glob.escape(path) for path in batch])
        except RejectedError as error:
            return [f"The files in {OUTPUT_FOLDER}/ cannot be given to the user: {error.details or error}"]
        given, failed = await asyncio.to_thread(self._write, files)
        if given and self._folder is not None:
            lines.append(f"Given to the user, in {self._folder.name}: {', '.join(given)}")
        return lines + failed

    def _write(self, files: Mapping[str, bytes]) -> tuple[list[str], list[str]]:
        given, failed = [], []
        for path, content in files.items():
            digest = hashlib.sha256(content).digest()
            if self._written.get(path) == digest:
                continue
            name = path.removeprefix(f"{OUTPUT_FOLDER}/")
            try:
                check_path(name, "the path of a file")
                if len(content) > self._output.room:
                    raise OSError(0, f"more than {_MAX_COLLECTED_BYTES:,} bytes were collected")
                if self._folder is None:
                    self._folder = self._output.add_folder(self._language)
                _write_inside(self._folder, name, content)
            except (OSError, InvalidRequestError) as error:
                reason = error.strerror if isinstance(error, OSError) else str(error)
                failed.append(f"{path} cannot be given to the user: {reason}")
                continue
            self._output.room -= len(content)
            self._written[path] = digest
            given.append(name)
        return given, failed


def _batches(sizes: Mapping[str, int], max_bytes: int) -> Iterator[list[str]]:
    batch: list[str] = []
    room = max_bytes
    for path, size in sizes.items():
        if size > max_bytes:
            continue
        if size > room or len(batch) == _BATCH:
            yield batch
            batch, room = [], max_bytes
        batch.append(path)
        room -= size
    if batch:
        yield batch


_BATCH = 20  # paths of at most 32 parts, so that a request has at most 1,000


def _write_inside(folder: Path, name: str, content: bytes) -> None:
    """Write a file in a folder, or replace it, without following links, wherever other programs put them."""
    *parents, last = name.split("/")
    fd = os.open(folder, _OPENING)
    try:
        for parent in parents:
            with contextlib.suppress(FileExistsError):
                os.mkdir(parent, dir_fd=fd)
            inner = os.open(parent, _OPENING, dir_fd=fd)
            os.close(fd)
            fd = inner
        temporary = f".faasrt-{os.urandom(8).hex()}"
        with os.fdopen(os.open(temporary, _WRITING, 0o666, dir_fd=fd), "wb") as stream:
            stream.write(content)
        try:
            os.replace(temporary, last, src_dir_fd=fd, dst_dir_fd=fd)
        except OSError:
            os.unlink(temporary, dir_fd=fd)
            raise
    finally:
        os.close(fd)
