"""Stores results in a folder, so that several processes can share them.

`client.cache` decides which results are stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

from faasrt.errors import ConfigurationError, safe_repr

if TYPE_CHECKING:
    import sqlite3

T = TypeVar("T")
DEFAULT_MAX_BYTES = 2**30
MIN_BYTES, _MAX_BYTES = 2**20, 2**44
# A new format gets a new name, so that two versions of faasrt can share a folder.
FILE_NAME = "results-1.sqlite3"
_APPLICATION_ID = 0x66617372
BUSY_S = 1.0
"""The seconds that a call waits for other processes that use the file."""
# The time of the last use is kept to the hour, so that most hits need no write.
_USED_RESOLUTION_S = 3_600
# Eviction leaves room for further results, so that not every result needs another eviction.
_KEPT_SHARE = 0.9
_TABLES = """
CREATE TABLE IF NOT EXISTS results (key TEXT PRIMARY KEY, value BLOB NOT NULL, used INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS results_by_use ON results (used);
"""


def _new_thread() -> ThreadPoolExecutor:
    # One thread, because a connection of sqlite3 executes one statement at a time. It starts at the first call.
    return ThreadPoolExecutor(1, "faasrt-cache")


class DiskCache:
    """A `Cache` in a folder: an SQLite file, which any number of processes on one machine may share.

    It holds the outputs, return values and tracebacks of programs, and no programs: only hashes of them. A new file has
    the mode 0600. Whoever can write it can forge results. A process that is killed leaves the file intact. The folder
    must be on a local file system.

    Above `max_bytes`, the results that have not been used for the longest time (to the hour) are deleted. The file then
    does not shrink; new results use the room.

    Args:
        path: The folder. It is created if it is missing, with its parents.
        max_bytes: The maximum size of the results in bytes, from 1 MiB to 16 TiB. A result that is larger than a
            quarter of it is not kept. Default: 1073741824.
        now: Returns the seconds since the epoch, for tests. Default: `time.time`.

    Raises:
        ConfigurationError: An argument is wrong.

    Example:
        >>> cache = DiskCache("results-cache", max_bytes=100_000_000)
        >>> async with RuntimeManager.from_env(cache=cache) as manager:
        ...     [(await manager.run_code("print(1)", "python")).cached for _ in range(2)]
        [False, True]
        >>> await cache.aclose()
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
        now: Callable[[], float] = time.time,
    ) -> None:
        if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str) or not os.fspath(path):
            raise ConfigurationError(f"the path of a cache must be a non-empty str or path, got {safe_repr(path)}")
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or not MIN_BYTES <= max_bytes <= _MAX_BYTES:
            raise ConfigurationError(
                f"max_bytes must be a whole number from {MIN_BYTES} to {_MAX_BYTES}, got {safe_repr(max_bytes)}"
            )
        self._folder, self._max_bytes = Path(path), max_bytes
        if not callable(now):
            raise ConfigurationError(f"now must be a function without arguments, got {type(now).__name__}")
        self._now = now
        self._thread = _new_thread()
        self._connection: sqlite3.Connection | None = None

    async def open(self) -> None:
        """Open the file, or create it. The other methods do so too.

        Raises:
            ConfigurationError: The file cannot be opened or created, is damaged, or is another kind of file.
            sqlite3.OperationalError: Another process has locked the file for 1 s.
        """
        await self._call(self._open)

    async def get(self, key: str) -> bytes | None:
        """Return the value with a key; None if there is none.

        Raises:
            ConfigurationError: See `open`.
            sqlite3.Error: The file cannot be read, or another process has locked it for 1 s.

        Cancellation: stops waiting; the file stays as it is.
        """
        return await self._call(lambda: self._get(key))

    async def _get_all(self, keys: Sequence[str]) -> list[bytes | None]:
        # In a thread, a value takes 10 us to read; passing one call to the thread takes ten times as long.
        return await self._call(lambda: [self._get(key) for key in keys])

    async def put(self, key: str, value: bytes) -> None:
        """Store a value, and delete old values above the maximum size. Return when it is written.

        Raises:
            ConfigurationError: See `open`.
            sqlite3.Error: The file cannot be written, or another process has locked it for 1 s.

        Cancellation: the value may still be stored.
        """
        await self._call(lambda: self._put(key, value))

    async def aclose(self) -> None:
        """Close the file. Closing twice is harmless, and a later call opens it again."""
        await self._call(self._close)
        ended, self._thread = self._thread, _new_thread()
        ended.shutdown(wait=False)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"DiskCache({str(self._folder)!r}, max_bytes={self._max_bytes})"

    async def _call(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None:
            return self._connection
        try:
            import sqlite3  # some builds of Python do not have it
        except ImportError as error:
            raise ConfigurationError(f"a cache on the disk needs Python's module sqlite3: {error}") from None
        path = self._folder / FILE_NAME
        connection = None
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                # SQLite gives its other files the mode of this one.
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            self._set_up(connection)
        except (OSError, sqlite3.Error) as error:
            if connection is not None:
                connection.close()
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
                raise
            reason = getattr(error, "strerror", None) or error
            raise ConfigurationError(
                f"cannot use the cache {path}: {reason}; if the file is damaged, delete the folder"
            ) from None
        except BaseException:
            if connection is not None:
                connection.close()
            raise
        self._connection = connection
        return connection

    def _set_up(self, connection: sqlite3.Connection) -> None:
        import sqlite3

        connection.execute("PRAGMA synchronous = NORMAL")
        # In this order: another process that creates the tables in between sets the id in the same transaction.
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (application_id,) = connection.execute("PRAGMA application_id").fetchone()
        if application_id != _APPLICATION_ID and (application_id or tables):
            raise ConfigurationError(f"{self._folder / FILE_NAME} is not a cache of faasrt: choose another folder")
        deadline = time.monotonic() + BUSY_S
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError:  # unlike other statements, this one does not wait for other processes
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        if application_id != _APPLICATION_ID:  # so a file that is locked can be opened
            connection.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA application_id = {_APPLICATION_ID}; COMMIT")

    def _get(self, key: str) -> bytes | None:
        connection = self._open()
        row = connection.execute("SELECT value, used FROM results WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        value, used = row
        now = int(self._now())
        if abs(now - used) >= _USED_RESOLUTION_S:
            connection.execute("UPDATE results SET used = ? WHERE key = ?", (now, key))
        return bytes(value)

    def _put(self, key: str, value: bytes) -> None:
        connection = self._open()
        if len(value) > self._max_bytes // 4:
            return
        connection.execute("INSERT OR REPLACE INTO results VALUES (?, ?, ?)", (key, value, int(self._now())))
        if self._used_bytes(connection) > self._max_bytes:
            self._evict(connection)

    def _evict(self, connection: sqlite3.Connection) -> None:
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            while self._used_bytes(connection) > _KEPT_SHARE * self._max_bytes:
                (count,) = connection.execute("SELECT count(*) FROM results").fetchone()
                if not count:
                    break
                oldest = "SELECT rowid FROM results ORDER BY used, rowid LIMIT ?"
                connection.execute(f"DELETE FROM results WHERE rowid IN ({oldest})", (count // 20 + 1,))  # noqa: S608

    @staticmethod
    def _used_bytes(connection: sqlite3.Connection) -> int:
        pages, free, size = (
            connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
