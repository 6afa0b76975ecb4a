from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from pixellm.model.vision import VisionTower, feature_shapes, resize_position_table

VIT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 8,
}


def vision_config(model_type: str, **changes: Any) -> Any:
    families: dict[str, dict[str, Any]] = {
        "clip_vision_model": VIT,
        "siglip_vision_model": VIT,
        "dinov2": {**VIT, "mlp_ratio": 2},
        "dinov2_with_registers": {**VIT, "mlp_ratio": 2, "num_register_tokens": 3},
        "mobilenet_v2": {"depth_multiplier": 0.25, "finegrained_output": False},
        "convnext": {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1]},
    }
    values = {**families[model_type], "image_size": 32, **changes}
    return AutoConfig.for_model(model_type, **values)


def test_a_table_is_resized_between_its_class_row_and_its_grid() -> None:
    # Along each side 0, 1 becomes 0, 1/4, 3/4, 1 (bilinear, cell centres).
    side = torch.tensor([0.0, 0.25, 0.75, 1.0])
    grid = (2 * side[:, None] + side[None, :]).reshape(16, 1)
    patches, row = torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([[9.0]])
    first = resize_position_table(torch.cat([row, patches]), (4, 4), mode="bilinear")
    torch.testing.assert_close(first, torch.cat([row, grid]))
    last = resize_position_table(
        torch.cat([patches, row]), (4, 4), layout="class_last", mode="bilinear"
    )
    torch.testing.assert_close(last, torch.cat([grid, row]))
    only = resize_position_table(patches, (4, 4), layout="grid_only", mode="bilinear")
    torch.testing.assert_close(only, grid)


def test_the_released_layout_reads_clips_own_order_off_by_one() -> None:
    table = torch.tensor([[9.0], [0.0], [1.0], [2.0], [3.0]])
    resized = resize_position_table(table, (1, 1), layout="class_last", mode="bilinear")
    # The class row counts as the first patch, the last patch as the class row.
    assert resized.flatten().tolist() == [(9 + 0 + 1 + 2) / 4, 3]


@pytest.mark.parametrize(("rows", "layout"), [(7, "class_first"), (5, "grid_only")])
def test_a_table_without_a_square_grid_is_refused(rows: int, layout: Any) -> None:
    with pytest.raises(ValueError, match=f"{rows} rows"):
        resize_position_table(torch.zeros(rows, 4), (2, 2), layout=layout)


@pytest.mark.parametrize("family", ["clip_vision_model", "siglip_vision_model", "dinov2"])
def test_pretrained_weights_move_to_another_resolution(family: str) -> None:
    torch.manual_seed(0)
    source = AutoModel.from_config(vision_config(family, image_size=16)).state_dict()
    tower = VisionTower(vision_config(family), [-1], mask_padding=False)
    tower.load_encoder(source)
    own = tower.encoder.state_dict()
    (table,) = [name for name in source if "position_embedding" in name]
    for name, value in source.items():
        assert name == table or torch.equal(own[name], value)
    small, large = source[table].flatten(0, -2), own[table].flatten(0, -2)
    num_class_rows = len(small) - 4
    assert len(large) == 16 + num_class_rows
    assert torch.equal(large[:num_class_rows], small[:num_class_rows])
    wanted = small[num_class_rows:].T.reshape(1, -1, 2, 2)
    resized = torch.nn.functional.interpolate(wanted, size=(4, 4), mode="bicubic")
    torch.testing.assert_close(large[num_class_rows:].T.reshape(resized.shape), resized)


def test_weights_of_another_encoder_are_refused() -> None:
    tower = VisionTower(vision_config("clip_vision_model"), [-1], mask_padding=False)
    state = AutoModel.from_config(vision_config("clip_vision_model")).state_dict()
    state.pop("post_layernorm.weight")
    with pytest.raises(RuntimeError, match="post_layernorm"):
        tower.load_encoder(state)


@pytest.mark.parametrize(
    ("family", "depths", "shapes"),
    [
        ("clip_vision_model", [-1, 0], [(16, 4, 4), (16, 4, 4)]),
        ("siglip_vision_model", [-1, 1], [(16, 4, 4), (16, 4, 4)]),
        ("dinov2_with_registers", [-1, 1], [(16, 4, 4), (16, 4, 4)]),
        ("convnext", [-1, 2], [(20, 1, 1), (12, 4, 4)]),
    ],
)
def test_every_encoder_gives_feature_maps(
    family: str, depths: list[int], shapes: list[tuple[int, int, int]]
) -> None:
    config = vision_config(family)
    assert feature_shapes(config, 32, depths) == shapes
    tower = VisionTower(config, depths, mask_padding=family != "convnext").eval()
    with torch.inference_mode():
        maps = tower(torch.zeros(2, 3, 32, 32), torch.ones(2, 32, 32, dtype=torch.bool))
    assert [tuple(m.shape) for m in maps] == [(2, *shape) for shape in shapes]


def test_patches_become_map_cells_row_by_row() -> None:
    torch.manual_seed(0)
    tower = VisionTower(vision_config("clip_vision_model"), [0], mask_padding=False).eval()
    pixels = torch.zeros(1, 3, 32, 32)
    pixels[:, :, 8:16, 24:32] = 5.0  # the patch in the second row, last column
    with torch.inference_mode():
        difference = (tower(pixels)[0] - tower(torch.zeros_like(pixels))[0]).abs().sum(1)[0]
    assert difference.nonzero().tolist() == [[1, 3]]


@pytest.mark.parametrize(
    "family", ["clip_vision_model", "siglip_vision_model", "dinov2", "dinov2_with_registers"]
)
@torch.inference_mode()
def test_what_lies_in_the_padding_does_not_change_visible_patches(family: str) -> None:
    torch.manual_seed(0)
    config = vision_config(family)
    masked = VisionTower(config, [-1, 1], mask_padding=True).eval()
    pixels = torch.randn(1, 3, 32, 32)
    other = pixels.clone()
    other[:, :, 16:] = 7.0
    mask = torch.zeros(1, 32, 32, dtype=torch.bool)
    mask[:, :16] = True
    for one, two in zip(masked(pixels, mask), masked(other, mask), strict=True):
        torch.testing.assert_close(one[:, :, :2], two[:, :, :2])
        assert not torch.allclose(one[:, :, 2:], two[:, :, 2:])
    unmasked = masked(pixels)[0][:, :, :2]
    assert not torch.allclose(unmasked, masked(other)[0][:, :, :2])


def test_a_vit_without_attention_masks_says_so() -> None:
    config = AutoConfig.for_model("swin", embed_dim=8, depths=[1], num_heads=[1], image_size=32)
    with pytest.raises(ValueError, match="set mask_padding to false"):
        VisionTower(config, [-1], mask_padding=True)


def test_frozen_batch_norms_keep_their_statistics_while_training() -> None:
    config = vision_config("mobilenet_v2")
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for frozen in (True, False):
        tower = VisionTower(config, [4], mask_padding=False, freeze_batch_norm=frozen).train()
        before = {k: v.clone() for k, v in tower.state_dict().items() if "running_mean" in k}
        tower(pixels)
        after = tower.state_dict()
        assert all(torch.equal(after[k], v) for k, v in before.items()) == frozen


@pytest.mark.parametrize("family", ["clip_vision_model", "siglip_vision_model", "dinov2"])
@pytest.mark.parametrize(("depths", "read"), [([-2, 1], 3), ([2, 0], 2), ([-1, 2], 4)])
def test_layers_behind_the_deepest_depth_cost_nothing_and_stay(
    family: str, depths: list[int], read: int
) -> None:
    torch.manual_seed(0)
    config = vision_config(family, num_hidden_layers=4)
    encoder = AutoModel.from_config(config).eval()
    tower = VisionTower(config, depths, mask_padding=False).eval()
    tower.encoder.load_state_dict(encoder.state_dict())
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        whole = encoder(pixels, output_hidden_states=True).hidden_states
        for name, weight in tower.encoder.named_parameters():
            numbers = [int(part) for part in name.split(".") if part.isdigit()]
            if numbers and numbers[0] >= read:
                weight.fill_(torch.nan)
        maps = tower(pixels)
    for depth, found in zip(depths, maps, strict=True):
        assert torch.equal(found.flatten(2).transpose(1, 2), whole[depth][:, -16:])
    assert tower.encoder.state_dict().keys() == encoder.state_dict().keys()
