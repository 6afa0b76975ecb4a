from __future__ import annotations

from typing import Any

import pytest

from pixellm.model.config import PixelLMConfig


def test_sizes_follow_from_the_settings() -> None:
    config = PixelLMConfig(num_scales=2, tokens_per_scale=3, image_token_id=100, llm_grid=[4, 6])
    assert config.group_size == 6 and config.num_image_tokens == 24
    assert config.codebook_token_ids == [101, 102, 103, 104, 105, 106]


def test_a_configuration_survives_its_own_dictionary() -> None:
    config = PixelLMConfig(
        vision_config={"model_type": "siglip_vision_model", "hidden_size": 32},
        text_config={"model_type": "qwen2", "hidden_size": 48, "tie_word_embeddings": True},
        vision_depths=[-1, 3],
    )
    again = PixelLMConfig.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()
    assert again.vision_config.hidden_size == 32 and again.text_config.model_type == "qwen2"
    assert again.tie_word_embeddings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"codebook_token_ids": [1, 2]}, "codebook_token_ids holds 2 ids"),
        ({"codebook_token_ids": [1, 2, 3, 4, 5, 5]}, "repeats an id"),
        ({"vision_depths": [-1]}, "vision_depths holds 1"),
        ({"decoder_upsampling": [1]}, "decoder_upsampling holds 1"),
        ({"decoder_upsampling": [1, 3]}, "must be 1 or 2"),
        ({"decoder_projector_sizes": [8]}, "decoder_projector_sizes"),
        ({"decoder_size": 60, "decoder_heads": 8}, "multiple of 2 x decoder_heads"),
        (
            {"evidence_depths": [8], "evidence_tokens": 65},
            "evidence_tokens is 65; .*most 64, 64 for",
        ),
        ({"target_refinement_alpha": 0.5}, "at least 1"),
        ({"vision_config": {"hidden_size": 8}}, "model_type"),
        *(
            ({"vision_config": {"model_type": "yolox", "extra_sizes": [share]}}, "of the canvas")
            for share in (0, -1.0, 1e9, float("nan"), "half")
        ),
    ],
)
def test_shapes_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PixelLMConfig(**settings)
