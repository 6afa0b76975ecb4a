from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pixellm.model.config import PixelLMConfig
from pixellm.model.projection import ImageProjector, grid_position_codes

CHANNELS = 24


def project(features: Tensor, *, normalise: bool) -> tuple[Tensor, ImageProjector]:
    torch.manual_seed(0)
    config = PixelLMConfig(
        text_config={"model_type": "llama", "hidden_size": 64, "num_attention_heads": 2},
        llm_grid=[4, 4],
        llm_projector_size=0,
        llm_positions=True,
        llm_normalise=normalise,
    )
    projector = ImageProjector(config, CHANNELS)
    with torch.inference_mode():
        return projector(features), projector


def test_normalised_cells_do_not_depend_on_the_scale_of_the_encoder() -> None:
    features = torch.randn(2, CHANNELS, 4, 4)
    tokens, _ = project(features, normalise=True)
    louder, _ = project(features * 50 + 7, normalise=True)
    torch.testing.assert_close(tokens, louder, atol=1e-3, rtol=1e-3)
    plain, _ = project(features, normalise=False)
    shouted, _ = project(features * 50, normalise=False)
    assert not torch.allclose(plain, shouted, atol=1.0)


def test_a_cells_place_is_as_visible_as_its_content_from_the_start() -> None:
    tokens, projector = project(torch.randn(64, CHANNELS, 4, 4) * 30, normalise=True)
    places = projector.positions.detach()
    content = tokens - places
    assert 0.3 < (places.std() / content.std()).item() < 3
    _, plain = project(torch.randn(2, CHANNELS, 4, 4), normalise=False)
    assert plain.positions.std() < 0.05


@pytest.mark.parametrize("grid", [(8, 8), (4, 12)])
def test_places_are_the_more_alike_the_nearer_they_lie(grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    codes = grid_position_codes(grid, 256).unflatten(0, grid)
    assert codes.square().mean().item() == pytest.approx(1, abs=1e-4)
    next_to = torch.cosine_similarity(codes[:, 1:], codes[:, :-1], dim=-1).mean()
    across = torch.cosine_similarity(codes[:, 0], codes[:, -1], dim=-1).mean()
    assert next_to > across + 0.3
    # One direction tells left from right, another one top from bottom.
    for cells in (codes, codes.transpose(0, 1)):
        half = cells.shape[1] // 2
        first, second = cells[:, :half], cells[:, half:]
        direction = (first - second).mean((0, 1))
        assert (first @ direction).min() > (second @ direction).max()
