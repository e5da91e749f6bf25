"""A copy of the executable of Deno whose relocations are applied already, so that its processes start faster.

In every process, the loader applies 167,000 relocations to 2.7 MB, which takes a fifth of the CPU time of a short
program. The copy is loaded at a fixed address, which is random for each copy. A copy is used by servers that start
within a day. The addresses of libraries, of the stack and of V8's memory stay random for each process.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import platform
import secrets
import shutil
import struct
import subprocess
import time
from array import array
from pathlib import Path
from typing import TypeAlias

from faasrt.errors import ConfigurationError
from faasrt.local.cache_folder import cache_dir, lock_folder

_MAX_AGE_S = 86_400.0
# The kernel loads position-independent executables here, too, and nothing else.
_LOWEST, _PAGES = 0x5500_0000_0000, 1 << 28
_PAGE_BYTES = 4_096
_CHECK_S = 60.0

_Buffer: TypeAlias = bytearray | mmap.mmap
_Loaded: TypeAlias = list[tuple[int, int, int]]  # the address, the size and the place in the file of each part
_HEADER = struct.Struct("<4sBB10xHHIQQQI6H")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_ENTRY = struct.Struct("<qQ")
_RELOCATION = struct.Struct("<QQq")
_SYMBOL = struct.Struct("<IBBHQQ")
_WORD = struct.Struct("<Q")
_KIND_AT, _ENTRY_AT = 16, 24  # in the header
_X86_64, _FIXED, _POSITION_INDEPENDENT = 62, 2, 3
_LOAD, _DYNAMIC, _STACK = 1, 2, 0x6474E551  # types of segments
_DYNAMIC_SYMBOLS = 11  # type of a section
_RELATIVE, _INDIRECT = 8, 37  # types of relocations
_ABSOLUTE, _THREAD_LOCAL = 0xFFF1, 6  # symbols that have no address
# Entries of the dynamic segment: PLTGOT, HASH, STRTAB, SYMTAB, RELA, INIT, FINI, JMPREL, INIT_ARRAY, FINI_ARRAY,
# PREINIT_ARRAY, GNU_HASH, VERSYM, VERNEED, VERDEF.
_ADDRESSES = {3, 4, 5, 6, 7, 12, 13, 23, 25, 26, 32, 0x6FFFFEF5, 0x6FFFFFF0, 0x6FFFFFFE, 0x6FFFFFFC}
# NULL, NEEDED, PLTRELSZ, RELASZ, RELAENT, STRSZ, SYMENT, SONAME, RPATH, PLTREL, DEBUG, TEXTREL, BIND_NOW, sizes of
# arrays, RUNPATH, FLAGS, FLAGS_1, RELACOUNT, VERNEEDNUM, VERDEFNUM.
_VALUES = {0, 1, 2, 8, 9, 10, 11, 14, 15, 20, 21, 22, 24, 27, 28, 29, 30, 33}
_VALUES |= {0x6FFFFFFB, 0x6FFFFFF9, 0x6FFFFFFF, 0x6FFFFFFD}
_PLT_BYTES, _RELA, _RELA_BYTES, _SYMBOLS, _PLT, _RELA_COUNT = 2, 7, 8, 6, 23, 0x6FFFFFF9


def relocated(executable: str) -> str:
    """Return the path of a relocated copy from the cache; or the executable itself if there can be none.

    The first call on a machine, and on a day, takes about half a second. Several processes may call this.
    """
    if platform.machine() != "x86_64":
        return executable
    try:
        status = Path(executable).stat()
        folder = cache_dir() / "deno"
        copy = folder / f"{status.st_size}-{status.st_mtime_ns}"
        with lock_folder(folder, wait=True):
            if not _is_usable(copy):
                _make_copy(executable, copy)
        return str(copy)
    except (OSError, ValueError, struct.error, subprocess.SubprocessError, ConfigurationError):
        return executable


def _is_usable(copy: Path) -> bool:
    """Return whether there is a copy that is not too old, and that only this user can have written."""
    with contextlib.suppress(FileNotFoundError):
        status = copy.lstat()
        is_own = status.st_uid == os.getuid() and not status.st_mode & 0o022
        return is_own and 0 <= time.time() - status.st_mtime < _MAX_AGE_S
    return False


def _make_copy(executable: str, copy: Path) -> None:
    """Make a copy, and remove old copies of other executables. Their processes continue. Copies that are not old stay,
    because another process may be about to use one. The caller has locked the folder.
    """
    new = copy.with_name("new")
    try:
        shutil.copyfile(executable, new)
        with new.open("r+b") as file, mmap.mmap(file.fileno(), 0) as data:
            relocate(data, _LOWEST + secrets.randbelow(_PAGES) * _PAGE_BYTES)
        new.chmod(0o755)  # programs have other users; the folder is private
        subprocess.run([new, "--version"], check=True, capture_output=True, timeout=_CHECK_S, env={})  # noqa: S603
        new.rename(copy)
        for other in copy.parent.glob("[0-9]*"):
            if not _is_usable(other):
                other.unlink()
    finally:
        new.unlink(missing_ok=True)


def relocate(data: _Buffer, base: int) -> None:
    """Turn a position-independent executable for x86-64 into one that is loaded at `base`, a multiple of the page size.
    Raise ValueError or struct.error if it has parts that this function does not know.
    """
    (magic, bits, endian, kind, machine, _, entry, segments_at, sections_at, _, _, _, count, _, section_count, _) = (
        _HEADER.unpack_from(data)
    )
    if (magic, bits, endian, kind, machine) != (b"\x7fELF", 2, 1, _POSITION_INDEPENDENT, _X86_64):
        raise ValueError("not a position-independent executable for x86-64")
    places = [segments_at + number * _SEGMENT.size for number in range(count)]
    segments = [_SEGMENT.unpack_from(data, place) for place in places]
    loaded: _Loaded = [(address, size, offset) for kind, _, offset, address, _, size, _, _ in segments if kind == _LOAD]
    dynamic = next(offset for kind, _, offset, *_ in segments if kind == _DYNAMIC)

    def place_of(address: int) -> int:
        start, _, offset = next(each for each in loaded if each[0] <= address < each[0] + each[1])
        return address - start + offset

    entries: dict[int, tuple[int, int]] = {}
    for place in range(dynamic, len(data), _ENTRY.size):
        tag, value = _ENTRY.unpack_from(data, place)
        if tag not in _ADDRESSES and tag not in _VALUES:
            raise ValueError(f"an unknown entry {tag:#x}")
        if tag == 0:
            break
        entries.setdefault(tag, (place, value))
    relocations, relative = entries[_RELA][1], entries[_RELA_COUNT][1]
    first = place_of(relocations)
    _apply_relative(data, base, array("Q", bytes(data[first : first + relative * _RELOCATION.size])), loaded)
    # The loader applies the others, which refer to libraries or depend on the processor.
    rest = relocations + relative * _RELOCATION.size
    rest_bytes = entries[_RELA_BYTES][1] - relative * _RELOCATION.size
    for address, size in ((rest, rest_bytes), (entries[_PLT][1], entries[_PLT_BYTES][1])):
        for place in range(place_of(address), place_of(address) + size, _RELOCATION.size):
            target, info, addend = _RELOCATION.unpack_from(data, place)
            addend += base if info & 0xFFFFFFFF in (_RELATIVE, _INDIRECT) else 0
            _RELOCATION.pack_into(data, place, target + base, info, addend)
    sections = (_SECTION.unpack_from(data, sections_at + n * _SECTION.size) for n in range(section_count))
    symbols_bytes = next(size for _, kind, _, _, _, size, *_ in sections if kind == _DYNAMIC_SYMBOLS)
    symbols = place_of(entries[_SYMBOLS][1])
    for place in range(symbols, symbols + symbols_bytes, _SYMBOL.size):
        name, info, other, section, value, size = _SYMBOL.unpack_from(data, place)
        if section not in (0, _ABSOLUTE) and info & 15 != _THREAD_LOCAL:
            _SYMBOL.pack_into(data, place, name, info, other, section, value + base, size)
    changed = {_RELA: rest, _RELA_BYTES: rest_bytes, _RELA_COUNT: 0}
    for tag, (place, before) in entries.items():
        value = changed.get(tag, before)
        _ENTRY.pack_into(data, place, tag, value + base if tag in _ADDRESSES else value)
    for place, (kind, flags, offset, address, physical, *sizes) in zip(places, segments, strict=True):
        if kind != _STACK:
            _SEGMENT.pack_into(data, place, kind, flags, offset, address + base, physical + base, *sizes)
    struct.pack_into("<H", data, _KIND_AT, _FIXED)
    _WORD.pack_into(data, _ENTRY_AT, entry + base)


def _apply_relative(data: _Buffer, base: int, words: array[int], loaded: _Loaded) -> None:
    """Each relocation has the address of a word, its type, and an address for the word."""
    start = end = offset = 0
    for target, info, addend in zip(words[::3], words[1::3], words[2::3], strict=True):
        if info != _RELATIVE:
            raise ValueError(f"a relocation of the type {info:#x} among the relative ones")
        if not start <= target < end:
            start, size, offset = next(each for each in loaded if each[0] <= target < each[0] + each[1])
            end = start + size
        _WORD.pack_into(data, target - start + offset, addend + base)
