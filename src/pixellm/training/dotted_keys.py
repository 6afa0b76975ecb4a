"""Nested plain settings, as YAML gives them, by dotted keys: laid out flat, compared, set."""

from __future__ import annotations

from typing import Any


def flatten(settings: Any, path: str = "") -> dict[str, Any]:
    """{dotted key: value} of nested settings; items of lists go by index."""
    if not isinstance(settings, dict | list):
        return {path: settings}
    items = settings.items() if isinstance(settings, dict) else enumerate(settings)
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= flatten(value, f"{path}.{key}".lstrip("."))
    return flat


def differences(saved: Any, now: Any) -> dict[str, list[Any]]:
    """{dotted key: [saved, now]} of two nested settings; None where a key is missing."""
    before, after = flatten(saved), flatten(now)
    keys = dict.fromkeys([*before, *after])
    pairs = {key: [before.get(key), after.get(key)] for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set one `a.b=value` in nested mappings and lists, in place; list items go by index."""
    import yaml

    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"Override {override!r} must look like key.inner=value.")
    *parents, last = key.split(".")
    node: Any = raw
    for name in parents:
        is_section = isinstance(node, dict)
        node = node.setdefault(name, {}) if is_section else node[_index(node, name, override)]
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"Override {override!r}: the value is not valid YAML.") from error
    node[last if isinstance(node, dict) else _index(node, last, override)] = value


def _index(node: Any, name: str, override: str) -> int:
    """The index of a list that a name tells, or a message that says which would do."""
    if not isinstance(node, list):
        raise ValueError(f"Override {override!r}: there is nothing below {name!r}'s parent to set.")
    if not name.isdigit() or int(name) >= len(node):
        raise ValueError(
            f"Override {override!r}: {name!r} must be an index from 0 to {len(node) - 1}."
        )
    return int(name)
