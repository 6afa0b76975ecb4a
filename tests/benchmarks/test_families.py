"""The table of families, on the families that each need something of their own."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from measuring.families import check_text_family, check_vision_family, try_family

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "families.py"


def load_script() -> Any:
    spec = importlib.util.spec_from_file_location("families_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("family", ["gemma2", "gptj", "bloom"])
def test_a_family_of_language_models_keeps_what_is_its_own(family: str, tmp_path: Path) -> None:
    outcome = try_family(check_text_family, family, tmp_path)
    assert not (outcome.failure or outcome.refusal)
    assert load_script().holds(outcome)
    assert outcome.findings["trains"] is True
    assert all(isinstance(v, bool) or float(v) < 1e-3 for v in outcome.findings.values())


@pytest.mark.parametrize("family", ["swin", "siglip2_vision_model"])
def test_a_family_of_encoders_is_read_as_its_own_class_does(family: str, tmp_path: Path) -> None:
    outcome = try_family(check_vision_family, family, tmp_path)
    assert not (outcome.failure or outcome.refusal)
    assert load_script().holds(outcome)
    assert ("padding" in outcome.findings) == (family == "siglip2_vision_model")


def test_lora_is_refused_in_layers_that_read_past_it(tmp_path: Path) -> None:
    outcome = try_family(check_text_family, "mamba", tmp_path)
    assert not (outcome.failure or outcome.refusal)
    assert outcome.findings["trains"] is True
    assert "MambaMixer layers, which read" in str(outcome.findings["LoRA attached"])


def test_families_that_do_not_fit_are_refused_in_a_sentence(tmp_path: Path) -> None:
    for number, (check, family) in enumerate(
        [
            (check_text_family, "bert"),
            (check_vision_family, "vit_mae"),
            (check_vision_family, "levit"),
        ]
    ):
        outcome = try_family(check, family, tmp_path / str(number))
        assert outcome.refusal.endswith(".") and not outcome.failure
