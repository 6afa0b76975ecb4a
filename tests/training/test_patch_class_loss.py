import torch
from torch.nn import functional as F

from pixellm.training.auxiliary import (
    FeatureClassHead,
    PatchBoxHead,
    PatchClassHead,
    count_cell_classes,
)


def test_counts_are_area_per_cell_without_ignored_pixels() -> None:
    classes = torch.tensor([[[0, 0, 1, 1], [0, 2, 1, -100], [2, 2, 0, 0], [2, 2, 0, 1]]])
    counts = count_cell_classes(classes, (2, 2), 3)
    expected = torch.tensor([[[3, 0, 1], [0, 3, 0]], [[0, 0, 4], [3, 1, 0]]]).float()
    assert torch.equal(counts[0], expected)


def test_grid_that_does_not_divide_the_map_still_counts_every_pixel() -> None:
    classes = torch.randint(0, 5, (2, 7, 10))
    assert count_cell_classes(classes, (3, 4), 5).sum() == 140


def test_loss_equals_pixelwise_cross_entropy_of_the_cells_prediction() -> None:
    torch.manual_seed(0)
    head = PatchClassHead(6, 4)
    features = torch.randn(2, 6, 3, 3)
    classes = torch.randint(0, 4, (2, 9, 9))
    classes[0, :2] = -100
    logits = head.classifier(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    dense = F.interpolate(logits, size=(9, 9), mode="nearest")
    expected = F.cross_entropy(dense, classes, ignore_index=-100, reduction="sum")
    torch.testing.assert_close(head(features, classes), expected)


def test_features_and_embeddings_are_read_with_the_same_weights() -> None:
    torch.manual_seed(0)
    head = FeatureClassHead(num_scales=2, size=8, num_classes=5)
    codes = [patch_head.classifier.weight.detach() * 200 for patch_head in head.patch_heads]
    classes = torch.tensor([[[1, 1], [3, -100]]])
    features = [code[[1, 1, 3, 0]].T.reshape(1, 8, 2, 2) for code in codes]
    targets = torch.tensor([3, 1, -100])
    embeddings = torch.stack([code[[3, 1, 0]] for code in codes], dim=1)
    assert head(features, classes).item() < 1e-3
    assert head.read_targets(embeddings, targets).item() < 1e-3
    assert head.read_targets(embeddings, torch.tensor([1, 3, -100])).item() > 1


def test_reaches_are_counted_in_cells_from_the_centre_of_each_pixels_cell() -> None:
    head = PatchBoxHead(2)
    torch.nn.init.zeros_(head.reader.weight)
    head.reader.bias.data = torch.tensor([0.5, 0.5, 1.5, 0.5])
    boxes = torch.full((1, 4, 8, 4), -1.0)
    boxes[0, :2, :4] = torch.tensor([0.0, 0.0, 0.5, 0.5])  # a box two cells wide and one high
    features = torch.zeros(1, 2, 2, 4)
    # In its left cell all is as read; the right one reaches 1.5 to the left and 0.5 to the right.
    assert head(features, boxes).item() == 4 * (1.0 + 1.0) / 4
    assert head(features, torch.full_like(boxes, -1.0)).item() == 0
