"""The neck: what a finer scale takes from a coarser one, and where."""

import torch
from torch.nn import functional as F

from pixellm.model.config import PixelLMConfig
from pixellm.model.projection import FeatureProjector

SIZE = 8


def features(*, top_down: bool, coarse_scale: float = 1.0) -> list[torch.Tensor]:
    torch.manual_seed(0)
    config = PixelLMConfig(decoder_size=SIZE, decoder_heads=2, neck_top_down=top_down)
    neck = FeatureProjector(config, [5, 3]).eval()
    coarse, fine = torch.randn(1, 5, 2, 2), torch.randn(1, 3, 4, 4)
    with torch.no_grad():
        neck.necks[0][3].weight *= coarse_scale
        return neck([coarse, fine])


def test_without_top_down_the_fine_scale_knows_nothing_of_the_coarse_one() -> None:
    plain, louder = (features(top_down=False, coarse_scale=scale)[1] for scale in (1.0, 3.0))
    assert torch.equal(plain, louder)


def test_the_coarser_scale_goes_through_the_mixing_not_only_onto_its_result() -> None:
    quiet, loud = (features(top_down=True, coarse_scale=scale) for scale in (1.0, 3.0))
    added = F.interpolate(loud[0] - quiet[0], size=(4, 4), mode="bilinear")
    change = loud[1] - quiet[1]
    assert change.abs().max() > 0.1
    assert not torch.allclose(change, added, atol=1e-2)
