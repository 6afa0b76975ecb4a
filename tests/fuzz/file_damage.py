"""Seeded damage: plain values with something odd in them, and bytes with something broken."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    "",
    " ",
    "None",
    "1",
    "../../outside.jpg",
    "/dev/zero",
    "a\\b",
    "half \ud83d",
    "\x00",
    "[SEG0] <image> </s>",
    "x" * 5000,
    0,
    -1,
    1,
    7,
    2**31,
    10**30,
    0.5,
    -0.0,
    1e30,
    float("inf"),
    float("-inf"),
    float("nan"),
    [],
    {},
    [[]],
    [None],
    [[0, 0, 1, 1, "x", 2]],
    {"size": [-1, 3], "counts": "x"},
    {"size": [10**6, 10**6], "counts": "0"},
)
"""What annotation tools, other languages and hostile hands put where something else belongs."""


def mutate_values(values: Any, rng: random.Random) -> Any:
    """A deep copy with one to three places changed: replaced, dropped, doubled or renamed."""
    changed = copy.deepcopy(values)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(changed))
        if not places:
            return rng.choice(ODD_VALUES)
        parent, key = rng.choice(places)
        rng.choice((_replace, _replace, _replace, _drop, _double, _rename))(parent, key, rng)
    return changed


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """The bytes cut off, with some exchanged, with a part missing, or with rubbish in them."""
    changed = bytearray(data)
    kind = rng.randrange(5)
    if kind == 0:
        return bytes(changed[: rng.randrange(len(changed) + 1)])
    if kind == 1:
        for _ in range(rng.choice((1, 3, 20))):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    elif kind == 2:
        start = rng.randrange(len(changed))
        del changed[start : start + rng.choice((1, 8, 64))]
    elif kind == 3:
        start = rng.randrange(len(changed) + 1)
        changed[start:start] = rng.randbytes(rng.choice((1, 4, 64)))
    else:  # in the head, where sizes are
        for _ in range(rng.choice((1, 2, 6))):
            changed[rng.randrange(min(64, len(changed)))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
    return bytes(changed)


def to_json(values: Any, rng: random.Random) -> bytes:
    """As JSON text, sometimes as other programs write it, sometimes broken."""
    text = json.dumps(values, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    kind = rng.randrange(12)
    if kind == 0:
        return b"\xef\xbb\xbf" + text
    if kind == 1:
        return text.replace(b"\n", b"\r\n")
    if kind == 2:
        return mutate_bytes(text, rng)
    if kind == 3:
        return b"[" * 3000 + text
    return text


def _places(values: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key or index) below a value."""
    keys: Any = ()
    if isinstance(values, dict):
        keys = list(values)
    elif isinstance(values, list):
        keys = range(len(values))
    for key in keys:
        yield values, key
        yield from _places(values[key])


def _replace(parent: Any, key: Any, rng: random.Random) -> None:
    value = parent[key]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    near: tuple[Callable[[], Any], ...] = (
        lambda: copy.deepcopy(rng.choice(ODD_VALUES)),
        lambda: [value],
        lambda: str(value),
        lambda: value * 1000 if number else value,
        lambda: -value if number else None,
    )
    parent[key] = rng.choice(near)()


def _drop(parent: Any, key: Any, rng: random.Random) -> None:
    del parent[key]


def _double(parent: Any, key: Any, rng: random.Random) -> None:
    if isinstance(parent, list):
        parent.append(copy.deepcopy(parent[key]))
    else:
        parent[f"{key}_2"] = copy.deepcopy(parent[key])


def _rename(parent: Any, key: Any, rng: random.Random) -> None:
    if isinstance(parent, dict):
        parent[f"{key}s"] = parent.pop(key)
