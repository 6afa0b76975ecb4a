from __future__ import annotations

import importlib
import pkgutil

import pytest

import pixellm

MODULES = sorted(
    module.name for module in pkgutil.walk_packages(pixellm.__path__, prefix="pixellm.")
)


def test_every_module_can_be_imported_and_says_what_it_is() -> None:
    assert [name for name in MODULES if not importlib.import_module(name).__doc__] == []


def test_public_names_are_there_and_listed() -> None:
    for name in pixellm.__all__:
        assert getattr(pixellm, name) is not None
    assert set(pixellm.__all__) == {"__version__", *pixellm._HOMES} == set(dir(pixellm))


def test_an_unknown_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = pixellm.lode
