from __future__ import annotations

import torch

from pixellm.engine.prefixes import Memory, PrefixStore


def memory(length: int, value: int = 0) -> Memory:
    """Two layers of (1, length, 2) float32: 32 bytes an id."""
    filled = torch.full((1, length, 2), float(value))
    return [(filled, filled)] * 2


def test_the_longest_common_beginning_is_found_for_its_image_alone() -> None:
    store = PrefixStore(10_000)
    store.put("a", [1, 2, 3], memory(3, 1))
    store.put("a", [1, 2, 4, 5], memory(4, 2))
    store.put("b", [1, 2, 4, 5, 6], memory(5, 3))
    found, length = store.find("a", [1, 2, 4, 5, 6])
    assert length == 4 and found[0][0][0, 0, 0] == 2
    assert store.find("a", [1, 2, 3, 9])[1] == 3
    assert store.find("a", [7, 1]) == ([], 0) == store.find("c", [1])
    assert store.knows("a") and not store.knows("c")


def test_a_longer_memory_takes_the_place_of_its_own_beginning() -> None:
    store = PrefixStore(10_000)
    store.put("a", [1, 2], memory(2, 1))
    store.put("a", [1, 2, 3], memory(3, 2))
    store.put("a", [1, 2], memory(2, 3))
    assert len(store) == 1 and store.num_bytes == 3 * 32
    found, length = store.find("a", [1, 2])
    assert length == 2 and found[0][0][0, 0, 0] == 2


def test_what_was_not_used_for_longest_goes_first_and_the_limit_holds() -> None:
    store = PrefixStore(10 * 32)
    for name in "abc":
        store.put(name, [1, 2, 3], memory(3))
    store.find("a", [1, 2, 3])
    store.put("d", [1, 2, 3], memory(3))
    assert [store.knows(name) for name in "abcd"] == [True, False, True, True]
    store.put("e", list(range(11)), memory(11))
    assert not store.knows("e") and len(store) == 3
    store.put("a", [1, 9, 9, 9], memory(4))
    assert store.num_bytes <= 10 * 32 and store.find("a", [1, 9, 9, 9])[1] == 4
    store.clear()
    assert len(store) == 0 == store.num_bytes


def test_a_store_without_room_is_closed() -> None:
    store = PrefixStore(0)
    store.put("a", [1], memory(1))
    assert not store.is_open and not store.knows("a")
