"""What a stage minimises: the weighted losses of one micro-batch, normalised globally.

Every loss is a sum over this micro-batch divided by a count over the whole optimizer step (all
micro-batches of all processes), so that adding up micro-batches equals one large batch; but for
"absent", whose targets are looked for in other images of their own micro-batch, and "region", a
mean over the instances of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from pixellm.training.auxiliary import IGNORED, empty_mask_loss_sum, find_absent
from pixellm.training.config import LossWeights
from pixellm.training.evidence_losses import choice_loss_sum, region_loss

LOSS_NAMES = tuple(LossWeights.model_fields)


@dataclass(frozen=True, slots=True)
class Normalisers:
    """What one optimizer step holds, over all its micro-batches and processes; at least 1 each.

    Attributes:
        label_tokens: tokens whose prediction is scored.
        pixels: pixels with a known patch class.
        shown: pixels that show an object whose box is known.
    """

    label_tokens: int
    targets: int
    pixels: int
    shown: int


def count_batch(batch: Mapping[str, Any]) -> Tensor:
    """(6,) int64 counts of a micro-batch.

    Label tokens with a predecessor, targets, pixels of known class and of known box; then turns
    and rows that the collator left out because they do not fit.
    """
    pixels, boxes = batch.get("patch_classes"), batch.get("patch_boxes")
    return torch.tensor(
        [
            int((batch["labels"][:, 1:] != -100).sum()),
            len(batch["target_rows"]),
            0 if pixels is None else int((pixels != IGNORED).sum()),
            0 if boxes is None else int((boxes[..., 0] >= 0).sum()),
            batch.get("num_dropped_turns", 0),
            batch.get("num_dropped_rows", 0),
        ]
    )


def normalisers_of(total: Tensor) -> Normalisers:
    """Normalisers of a step from the summed counts of its micro-batches."""
    return Normalisers(*(max(1, int(value)) for value in total))


class Objective(nn.Module):
    """The model together with its auxiliary heads, as one module whose forward gives the losses.

    One module, so that distributed wrappers see every parameter that trains.

    Args:
        model: PixelLM for conditional generation.
        heads: of the auxiliary losses, kept under "patch_class_head", "patch_box_head" and
            "feature_class_head".
        keep_decoder_busy: let the decoder take part, with weight 0, where a micro-batch has no
            target, as processes that share gradients must all compute the same ones.
    """

    def __init__(
        self,
        model: Any,
        heads: Mapping[str, nn.Module] = MappingProxyType({}),
        *,
        keep_decoder_busy: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.keep_decoder_busy = keep_decoder_busy
        language_model = getattr(model.model, "language_model", None)
        # Accelerate shards these one by one unless the launcher names others.
        self._no_split_modules = list(getattr(language_model, "_no_split_modules", None) or ())
        for name, head in heads.items():
            self.add_module(name, head)

    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        """All parameters; those of the model under the names of its checkpoints."""
        return {name.removeprefix("model."): value for name, value in self.named_parameters()}

    def forward(
        self, batch: Mapping[str, Tensor], weights: LossWeights, counts: Normalisers
    ) -> dict[str, Tensor]:
        """Losses of one micro-batch of the collator, on the model's device.

        ``counts`` are those of the whole optimizer step.

        Returns:
            Scalars by name: those of LOSS_NAMES that are computed, unweighted, and "total", the
            weighted sum to go backward from.
        """
        unused = {"patch_classes", "patch_boxes", "target_classes", "target_kinds"}
        unused |= {"object_shapes", "object_rows", "target_shapes"}
        if weights.mask == weights.dice == 0:
            unused |= {"target_masks", "target_sizes"}
            if weights.target_class == weights.absent == weights.choice == 0:
                unused.add("target_rows")
        inputs = {key: value for key, value in batch.items() if key not in unused}
        output = None
        if weights.encoder_only:
            losses: dict[str, Tensor] = {}
            inner = self.model.model
            maps = inner.vision_tower(inputs["pixel_values"], inputs["pixel_mask"])
            needed = weights.feature_class > 0 or weights.region > 0
            features = inner.decoder_features(maps) if needed else None
        else:
            output = self.model(
                **inputs, num_label_tokens=counts.label_tokens, num_targets=counts.targets
            )
            losses = {
                "text": output.text_loss,
                "mask": output.mask_loss,
                "dice": output.dice_loss,
            }
            maps, features = output.feature_maps, output.decoder_features
        losses |= self._cell_losses(maps, features, batch, weights, counts)
        if output is not None:
            losses |= self._target_losses(output, batch, weights, counts)
        # In one order on all processes, which add up their figures by position.
        losses = {name: losses[name] for name in LOSS_NAMES if losses.get(name) is not None}
        losses["total"] = torch.stack(
            [getattr(weights, name) * value for name, value in losses.items()]
        ).sum()
        if self.keep_decoder_busy and output is not None and output.target_embeddings is None:
            losses["total"] = losses["total"] + 0 * self._decode_nothing(output)
        return losses

    def _head(self, name: str) -> Any:
        head = getattr(self, f"{name}_head", None)
        if head is None:
            raise ValueError(f"A {name} loss needs data that names what its images show.")
        return head

    def _cell_losses(
        self,
        maps: list[Tensor],
        features: list[Tensor] | None,
        batch: Mapping[str, Tensor],
        weights: LossWeights,
        counts: Normalisers,
    ) -> dict[str, Tensor]:
        """Auxiliary losses of the cells of the encoder's and the decoder's maps, by weight."""
        losses = {}
        if weights.patch_class > 0:
            pixel_sum = self._head("patch_class")(maps[0], batch["patch_classes"])
            losses["patch_class"] = pixel_sum / counts.pixels
        if weights.patch_box > 0:
            losses["patch_box"] = self._head("patch_box")(maps[0], batch["patch_boxes"])
            losses["patch_box"] = losses["patch_box"] / counts.shown
        if weights.feature_class > 0:
            scales = (features or [])[: self.model.config.num_scales]
            pixel_sum = self._head("feature_class")(scales, batch["patch_classes"])
            losses["feature_class"] = pixel_sum / counts.pixels
        if weights.region > 0:
            losses["region"] = region_loss(self.model.model.pixel_decoder, features or [], batch)
        return losses

    def _target_losses(
        self,
        output: Any,
        batch: Mapping[str, Tensor],
        weights: LossWeights,
        counts: Normalisers,
    ) -> dict[str, Tensor]:
        """Auxiliary losses of targets that have a weight; 0 in a micro-batch without targets."""
        names = [
            name for name in ("target_class", "absent", "choice") if getattr(weights, name) > 0
        ]
        if not names or output.target_embeddings is None:
            return {name: output.hidden_states.new_zeros(()) for name in names}
        losses = {}
        if "target_class" in names:
            target_sum = self._head("feature_class").read_targets(
                output.target_embeddings, batch["target_classes"]
            )
            losses["target_class"] = target_sum / counts.targets
        if "absent" in names:
            losses["absent"] = self._absent_loss(output, batch) / counts.targets
        if "choice" in names:
            entries = output.decoder_features[-1]
            decoder = self.model.model.pixel_decoder
            losses["choice"] = (
                choice_loss_sum(decoder, output.target_embeddings, entries, batch) / counts.targets
            )
        return losses

    def _absent_loss(self, output: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Summed cross-entropy against empty masks, of targets that another image lacks."""
        classes = batch["patch_classes"]
        indices, rows = find_absent(batch["target_rows"], batch["target_classes"], classes)
        if not len(indices):
            return 0 * (self._decode_nothing(output) + output.target_embeddings.sum())
        embeddings = output.target_embeddings[indices]
        logits: Tensor = self.model.decode_masks(embeddings, output.decoder_features, rows)
        return empty_mask_loss_sum(logits, (classes[rows] != IGNORED).float())

    def _decode_nothing(self, output: Any) -> Tensor:
        """A scalar that depends on all of codebook, neck and decoder."""
        group = self.model.config.group_size
        states = output.hidden_states[:1, :1].expand(-1, group, -1)
        features = self.model.model.decoder_features(output.feature_maps)
        row = torch.zeros(1, dtype=torch.long, device=states.device)
        masks: Tensor = self.model.decode_masks(self.model.model.codebook(states), features, row)
        return masks.sum()
