"""The sources of the runners; and their messages, which a program can forge, as fields of an `EngineResult`.

The workers of the Python engine import this module too, so it must load quickly.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from faasrt.languages import Language
from faasrt.protocol.frames import cut_ret_val
from faasrt.protocol.return_val import take_return_val
from faasrt.protocol.streams import cut, cut_text
from faasrt.results import Outcome, UserError

# UTF-8 bytes to keep of an exception's name, and of its traceback.
_ERROR_BYTES = 32_768
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
# The format of a message. Decoding any other JSON may take seconds and hundreds of MB.
_MESSAGE = re.compile(rb'\{(?:"[a-z]+":(?:%b|[0-9]{1,9}|null)(?:,(?=")|(?=\}))){0,7}\}' % _STRING)


def read_runner(errors: str, runner: str) -> bytes:
    """Return the source of a runner: the file that describes errors, which guest programs share, and its own."""
    shared = files("faasrt.protocol.guest").joinpath(errors)
    return shared.read_bytes() + files("faasrt.local.runners").joinpath(runner).read_bytes()


def decode_message(data: bytes, start: int = 0) -> dict[str, Any]:
    """Decode a message, a flat JSON object that begins at `start`; return {} when it is malformed."""
    try:
        message: dict[str, Any] = json.loads(data[start:]) if _MESSAGE.fullmatch(data, start) else {}
    except ValueError:
        return {}
    return message


def read_text(message: Mapping[str, Any], name: str) -> str:
    """Return a text of a message; "" when it is missing or malformed."""
    text = message.get(name)
    return text if isinstance(text, str) else ""


def read_error(message: Mapping[str, Any], limit: int, *, unnamed: str) -> dict[str, Any]:
    """Return the fields of the result of a program that an error ended.

    Args:
        message: The message of the runner about the error.
        limit: UTF-8 bytes to keep of the error's own message.
        unnamed: The name of an error without one.
    """
    in_compiler = message.get("phase") == "compile"
    name, traceback = (cut_text(read_text(message, key), _ERROR_BYTES)[0] for key in ("name", "traceback"))
    return {
        "outcome": Outcome.SYNTAX_ERROR if in_compiler else Outcome.USER_ERROR,
        "error": UserError(name or unnamed, cut_text(read_text(message, "message"), limit)[0], traceback),
        "exit_code": 1,
        "line": _read_position(message.get("line")),
        "column": _read_position(message.get("column")),
    }


def _read_position(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 < value < 2**31 else None


def cut_streams(
    stdout: bytes, stderr: bytes, ret_val: bytes, limit: int, *, own_return_val: Language | None
) -> dict[str, Any]:
    """Return the streams of a program, each cut to the limit, and the sorted names of those that were cut.

    Args:
        stdout: The output of the program.
        stderr: Its errors.
        ret_val: Its return value.
        limit: UTF-8 bytes to keep of each stream.
        own_return_val: The language of a program that defines its own `return_val`, which prints the value.
    """
    streams = {"stdout": cut(stdout, limit), "stderr": cut(stderr, limit), "ret_val": cut_ret_val(ret_val, limit)}
    texts = {name: text for name, (text, _) in streams.items()}
    truncated = frozenset(name for name, (_, was_cut) in streams.items() if was_cut)
    if own_return_val is not None and not ret_val:
        texts["stdout"], texts["ret_val"], truncated = take_return_val(texts["stdout"], own_return_val, truncated)
    return {**texts, "truncated": sorted(truncated)}
