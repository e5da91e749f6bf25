"""Messages of the runners in sandboxes, which a program can forge."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from faasrt.local.engines.runner_messages import decode_message


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"kind":"done"}', {"kind": "done"}),
        (b'{"kind":"exit","code":5}', {"kind": "exit", "code": 5}),
        (b'{"a":"\\"\\\\\\u00e9\\ud800","b":null,"c":0}', {"a": '"\\\u00e9\ud800', "b": None, "c": 0}),
        ('{"a":"é","a":"x"}'.encode(), {"a": "x"}),
        (b'{"a":"\xed\xa0\x80"}', {"a": "\ud800"}),
        (b'{"a":1,"b":1,"c":1,"d":1,"e":1,"f":1,"g":1}', dict.fromkeys("abcdefg", 1)),
        *(
            (data, {})
            for data in (
                *(b"", b"{", b"{}", b"x", b'{"a":1', b'{"a":1}}', b'{"a":1} ', b' {"a":1}', b'{"a":1,}', b'{"a": 1}'),
                *(b'{"a":}', b'{"a":01}', b'{"a":-1}', b'{"a":1.5}', b'{"a":1234567890}', b'{"a":true}', b'{"a":[]}'),
                *(b'{"a":{}}', b'{"A":1}', b'{"":1}', b'{"a":"x}', b'{"a":"\n"}', b'{"a":"\\x"}', b'{"a":"\xff"}'),
                b'{"a":1,"b":1,"c":1,"d":1,"e":1,"f":1,"g":1,"h":1}',
                b'{"a":1,"b":1,"c":1,"d":1,"e":1,"f":1,"g":1,}',
            )
        ),
    ],
)
def test_only_flat_messages_are_decoded(data: bytes, message: dict[str, Any]) -> None:
    """They have at most seven fields: strings, null, and numbers of up to nine digits."""
    assert decode_message(data) == message


@pytest.mark.parametrize("character", ["\x01", '"', "é"])
def test_a_large_message_takes_about_as_long_as_its_json(character: str) -> None:
    """A return value of 1 MiB, which is encoded as JSON twice, has up to 7 MB."""
    data = json.dumps({"kind": "ret", "text": json.dumps(character * 2**20)}, separators=(",", ":")).encode()
    assert len(data) > 4 * 2**20
    decode_s = max(_cpu_s(json.loads, data) for _ in range(3))
    assert min(_cpu_s(decode_message, data) for _ in range(5)) < 2 * decode_s


def _cpu_s(decode: Any, data: bytes) -> float:
    started = time.thread_time()
    decode(data)
    return time.thread_time() - started
