from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pixellm.model.config import PixelLMConfig
from pixellm.model.decoder import Attention, PixelDecoder


def build_decoder(size: int = 16, **changes: Any) -> PixelDecoder:
    settings: dict[str, Any] = {
        "decoder_size": size,
        "decoder_heads": 2,
        "decoder_mlp_size": 32,
        "decoder_mask_size": 8,
    }
    torch.manual_seed(0)
    return PixelDecoder(PixelLMConfig(**{**settings, **changes})).eval()


def random_inputs(size: int, grids: list[int], count: int) -> tuple[Tensor, list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(1)
    targets = torch.randn(count, len(grids), size, generator=generator)
    features = [torch.randn(2, size, grid, grid, generator=generator) for grid in grids]
    return targets, features, torch.arange(count) % 2


@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize("similarity", [False, True], ids=["plain", "similarity"])
@torch.inference_mode()
def test_one_call_for_all_targets_equals_a_call_for_each(size: int, similarity: bool) -> None:
    decoder = build_decoder(size, decoder_similarity=similarity)
    targets, features, rows = random_inputs(size, [3, 4], 5)
    together = decoder(targets, features, rows)
    assert together.shape == (5, 16, 16)  # 4 cells, doubled before attention and after it
    for index, row in enumerate(rows.tolist()):
        one = slice(index, index + 1)
        alone = decoder(targets[one], [f[row : row + 1] for f in features], torch.tensor([0]))
        torch.testing.assert_close(alone[0], together[index], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("heads", "inner"), [(1, 16), (2, 8), (4, 16)])
def test_attention_between_tokens_and_pixels_projects_no_pixel_and_is_the_same(
    heads: int, inner: int
) -> None:
    torch.manual_seed(0)
    attention = Attention(16, heads, inner).double()
    tokens, places = torch.randn(3, 5, 16).double(), torch.randn(3, 5, 16).double()
    pixels, cells = torch.randn(3, 20, 16).double(), torch.randn(20, 16).double()
    placed = pixels + cells
    gathered = attention.gather(tokens, placed, pixels)
    torch.testing.assert_close(gathered, attention(tokens, placed, pixels))
    scattered = attention.scatter(pixels, placed, tokens + places, tokens)
    expected = pixels + attention(placed, tokens + places, tokens)
    torch.testing.assert_close(scattered, expected)
    (gathered.sum() + scattered.sum()).backward()
    assert all(weight.grad is not None for weight in attention.parameters())


@torch.inference_mode()
def test_a_coarse_mask_multiplies_finer_features_by_sigmoid_plus_one() -> None:
    decoder = build_decoder(decoder_upsampling=[1, 1])
    targets, features, rows = random_inputs(16, [3, 3], 2)
    decoder.scale_logits.copy_(torch.tensor([50.0, -50.0]))  # the sum is the coarse mask alone
    seen: list[Tensor] = []
    decoder.blocks[1].register_forward_pre_hook(lambda block, inputs: seen.append(inputs[1]))
    coarse = decoder(targets, features, rows)
    on_grid = F.interpolate(coarse[:, None], size=(3, 3), mode="bilinear").flatten(1)
    plain = features[1].flatten(2).transpose(1, 2)[rows]
    expected = plain * (on_grid.sigmoid() + 1)[..., None]
    torch.testing.assert_close(seen[0], expected + decoder.pixel_embedding)


def test_gamma_stays_on_the_simplex_while_it_learns() -> None:
    decoder = build_decoder()
    targets, features, rows = random_inputs(16, [2, 2], 2)
    optimizer = torch.optim.SGD([decoder.scale_logits], lr=50.0)
    before = decoder.scale_weights().detach()
    assert before.tolist() == [0.5, 0.5]
    decoder(targets, features, rows).square().mean().backward()
    optimizer.step()
    after = decoder.scale_weights().detach()
    assert bool((after >= 0).all()) and after.sum().item() == pytest.approx(1)
    assert not torch.equal(before, after)


def test_fixed_gamma_is_uniform_and_not_saved() -> None:
    learned, fixed = build_decoder(), build_decoder(scale_weights="fixed")
    assert fixed.scale_weights().tolist() == [0.5, 0.5]
    assert set(learned.state_dict()) - set(fixed.state_dict()) == {"scale_logits"}
    targets, features, rows = random_inputs(16, [2, 2], 2)
    fixed.load_state_dict({k: v for k, v in learned.state_dict().items() if k != "scale_logits"})
    torch.testing.assert_close(fixed(targets, features, rows), learned(targets, features, rows))


def test_the_similarity_path_matches_embeddings_with_pixels_directly() -> None:
    decoder = build_decoder(decoder_similarity=True)
    targets, features, rows = random_inputs(16, [2, 2], 2)
    with_path = decoder(targets, features, rows)
    with_path.sum().backward()
    for block in decoder.blocks:
        assert block.similarity_query.weight.grad.abs().sum() > 0
        block.similarity_scale.data.zero_()
        block.similarity_bias.data.zero_()
    decoder.target_norms = decoder.pixel_norms = torch.nn.ModuleList([torch.nn.Identity()] * 2)
    plain = build_decoder()
    state = {k: v for k, v in decoder.state_dict().items() if "similarity" not in k}
    plain.load_state_dict(state)
    # Switched off, and without its norms, what is left is the paper's block.
    torch.testing.assert_close(plain(targets, features, rows), decoder(targets, features, rows))
