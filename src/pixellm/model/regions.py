"""The pixel decoder over evidence: a target chooses among the instances found, and draws them.

Each entry of :mod:`pixellm.model.evidence` is drawn in a window around its box, whatever was asked;
the target's embeddings decide which entries belong to it, the one of the fine scale bends how they
are drawn. A target is the union of its entries. It stands in for
:class:`~pixellm.model.decoder.PixelDecoder` where an encoder gives evidence, and knows neither text
nor images. Windows as in Mask R-CNN (He et al., 2017).
Shape legend: M targets, B rows, K entries, C decoder width, U windows, S cells along a window's
side, P pairs of a target and a window, h w a grid, G its side.

A phrase may stand for one instance or several. Where the model tells which (``masks_per_thing``),
each instance is a mask of its own, with the intersection over union that it is expected to have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixellm.model.config import PixelLMConfig
from pixellm.model.evidence import BOX_CHANNELS, description_size
from pixellm.model.precision import FullPrecision

MARGIN = 0.15
"""A window reaches so much of the box's size beyond each of its sides."""

LEAST_SIDE = 0.03
"""A window's least side, as a share of the canvas."""

CHOSEN = 0.05
"""Entries that belong to a target with less probability leave no trace in its mask."""

SAME_MASK = 0.7
"""Two masks of a target that overlap more (intersection over union) are of one instance."""

MOST_ENTRIES = 24
"""Likeliest entries of a target that are drawn."""

NUM_SIGNS = 6
"""Numbers from which a mask's worth is told, see :meth:`RegionDecoder.signs`."""

_LEAST_MATCH = 1e-3
"""Probability that an entry is of a target's class after all."""

_OUTSIDE = -12.0
"""Logit of pixels outside of all windows."""


def windows_of(boxes: Tensor) -> Tensor:
    """Boxes (..., 4) with their margin, left, top, right and bottom in shares of the canvas."""
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    size = ((boxes[..., 2:] - boxes[..., :2]) * (1 + 2 * MARGIN)).clamp_min(LEAST_SIDE)
    return torch.cat([middle - size / 2, middle + size / 2], -1)


def _into_window(low: Tensor, high: Tensor, cells: int, grid: int) -> Tensor:
    """(U, cells, grid) weights that average a grid's cells into those of a window.

    Triangles as wide as a cell of the coarser of both, so that nothing is skipped.
    """
    step = (high - low)[:, None] * grid / cells
    place = torch.arange(cells, device=low.device) + 0.5
    middle = low[:, None] * grid + place * step
    there = torch.arange(grid, device=low.device) + 0.5
    distance = (there - middle[..., None]).abs()
    weights = (1 - distance / step.clamp_min(1)[..., None]).clamp_min(0)
    return weights / weights.sum(-1, keepdim=True).clamp_min(1e-6)


def _onto_canvas(low: Tensor, high: Tensor, cells: int, grid: int) -> tuple[Tensor, Tensor]:
    """(U, grid, cells) weights that spread a window over a grid, and (U, grid) what lies in it."""
    size = (high - low)[:, None]
    there = (torch.arange(grid, device=low.device) + 0.5) / grid
    place = (there - low[:, None]) / size * cells
    inside = ((place >= 0) & (place <= cells)).to(low.dtype)
    place = place.clamp(0.5, cells - 0.5)
    middle = torch.arange(cells, device=low.device) + 0.5
    width = (cells / (size * grid)).clamp_min(1)[..., None]
    weights = (1 - (place[..., None] - middle).abs() / width).clamp_min(0)
    return weights / weights.sum(-1, keepdim=True).clamp_min(1e-6), inside


def cut_windows(maps: Tensor, windows: Tensor, rows: Tensor, cells: int) -> Tensor:
    """Cut windows out of maps.

    Args:
        maps: (B, C, h, w).
        windows: (U, 4) in shares of the canvas.
        rows: (U,) the map of each window, ascending.
        cells: S.

    Returns:
        (U, C, S, S).
    """
    height, width = maps.shape[-2:]
    across = _into_window(windows[:, 0], windows[:, 2], cells, width)
    down = _into_window(windows[:, 1], windows[:, 3], cells, height)
    pieces, start = [], 0
    for row, count in zip(
        *(t.tolist() for t in rows.unique_consecutive(return_counts=True)), strict=True
    ):
        place = slice(start, start + count)
        narrow = torch.einsum("uxw,chw->uchx", across[place], maps[row])
        pieces.append(torch.einsum("uyh,uchx->ucyx", down[place], narrow))
        start += count
    return torch.cat(pieces) if pieces else maps.new_zeros(0, maps.shape[1], cells, cells)


def paste_windows(logits: Tensor, windows: Tensor, grid: int) -> Tensor:
    """(U, S, S) logits of windows to (U, G, G) over the canvas, low outside of the window."""
    cells = logits.shape[-1]
    across, in_columns = _onto_canvas(windows[:, 0], windows[:, 2], cells, grid)
    down, in_rows = _onto_canvas(windows[:, 1], windows[:, 3], cells, grid)
    spread = torch.einsum("uys,ust,uxt->uyx", down, logits, across)
    inside = in_rows[:, :, None] * in_columns[:, None, :]
    return spread * inside + _OUTSIDE * (1 - inside)


@dataclass(frozen=True)
class Instances:
    """The instances of targets, each with its mask; a target has one at least, if any was found.

    Attributes:
        targets: (P,) whose instance it is, ascending.
        places: (P,) which of the image's entries it is.
        logits: (P, G, G) in the canvas frame.
        scores: (P,) intersection over union with what is meant, as far as can be told.
    """

    targets: Tensor
    places: Tensor
    logits: Tensor
    scores: Tensor


class CellAttention(nn.Module):
    """Lets every cell of a window look at all of it: what looks alike is one instance.

    Keys and values are those of 2 x 2 cells together.
    """

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(1, size)
        self.query = nn.Conv2d(size, size, 1)
        self.key_value = nn.Conv2d(size, 2 * size, 1)
        self.out = nn.Conv2d(size, size, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """What is added to (U, c, S, S) maps."""
        normed = self.norm(maps)
        coarse = self.key_value(F.avg_pool2d(normed, 2))
        query, key, value = (
            one.flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3)
            for one in (self.query(normed), *coarse.chunk(2, 1))
        )
        seen = F.scaled_dot_product_attention(query, key, value)
        added: Tensor = self.out(seen.transpose(2, 3).flatten(1, 2).unflatten(2, maps.shape[-2:]))
        return added


class RegionLayers(nn.Module):
    """Draws what an entry found: convolutions over its window that know what they look for."""

    def __init__(self, config: PixelLMConfig, description: int) -> None:
        super().__init__()
        size = config.decoder_region_size
        self.cells = config.decoder_region_cells
        self.narrow = nn.Conv2d(config.decoder_size + 2, size, 1)
        self.about = nn.Linear(description, 2 * size)
        # Ever wider looks around: a window is one instance, and its edge depends on all of it.
        self.layers = nn.ModuleList(
            nn.Conv2d(size, size, 3, padding=reach, dilation=reach) for reach in (1, 2, 4, 1)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(4, size) for _ in self.layers)
        heads = config.decoder_region_attention
        self.attention = CellAttention(size, heads) if heads else None
        self.finer = nn.ConvTranspose2d(size, size // 2, 2, stride=2)
        self.has_detail = config.decoder_detail_depth is not None
        detail = config.decoder_detail_size if self.has_detail else 0
        if detail:
            self.detail_norm = nn.GroupNorm(1, detail)
        self.sharpen = nn.Conv2d(size // 2 + detail, size // 2, 3, padding=1)
        self.sharpen_norm = nn.GroupNorm(4, size // 2)
        self.readout = nn.Conv2d(size // 2, size // 2, 3, padding=1)

    def forward(self, cut: Tensor, detail: Tensor | None, descriptions: Tensor) -> Tensor:
        """Draw windows.

        Args:
            cut: (U, C, S, S) features.
            detail: (U, c', 2 S, 2 S) of the encoder's fine map, where it is read.
            descriptions: (U, D) what was found.

        Returns:
            (U, c, 2 S, 2 S) mask features.
        """
        line = torch.linspace(-1, 1, self.cells, device=cut.device, dtype=cut.dtype)
        y, x = torch.meshgrid(line, line, indexing="ij")
        place = torch.stack([x, y]).expand(len(cut), -1, -1, -1)
        scale, shift = self.about(descriptions)[..., None, None].chunk(2, 1)
        maps = self.narrow(torch.cat([cut, place], 1)) * (1 + scale) + shift
        for number, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True), start=1):
            maps = maps + F.silu(norm(layer(maps)))
            if self.attention is not None and number == len(self.layers) - 1:
                maps = maps + self.attention(maps)
        fine = F.silu(self.finer(maps))
        if detail is not None:
            fine = torch.cat([fine, self.detail_norm(detail)], 1)
        fine = F.silu(self.sharpen_norm(self.sharpen(fine)))
        features: Tensor = F.silu(self.readout(fine))
        return features


def _readout(config: PixelLMConfig, outputs: int) -> nn.Sequential:
    """Layers that read numbers from a target's whole embedding, all scales of it."""
    size, width = config.decoder_size, config.num_scales * config.decoder_size
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, size), nn.GELU(), nn.Linear(size, outputs)
    )


class RegionDecoder(FullPrecision):
    """Target embeddings, features and packed evidence in, mask logits out."""

    def __init__(self, config: PixelLMConfig) -> None:
        super().__init__()
        vision: Any = config.vision_config
        size, about = config.decoder_size, description_size(vision.num_classes, vision.state_size)
        inner = config.decoder_region_size
        self.num_scales = config.num_scales
        self.num_classes: int = vision.num_classes
        self.cells = config.decoder_region_cells
        self.output_factor = 2**config.decoder_output_upsampling
        self.query = nn.Sequential(nn.LayerNorm(size), nn.Linear(size, size))
        self.key = nn.Sequential(
            nn.Linear(about, 2 * size), nn.GELU(), nn.Linear(2 * size, size), nn.LayerNorm(size)
        )
        self.tells_one = config.masks_per_thing
        self.kind = _readout(config, self.num_classes)
        # Two numbers where all of a kind and one of several are told apart, in this order.
        self.choice_scale = nn.Parameter(torch.full([1 + self.tells_one], 1.0))
        self.choice_bias = nn.Parameter(torch.full([1 + self.tells_one], 2.0))
        self.choice_match = nn.Parameter(torch.tensor(1.0))
        # Set when a trained model is calibrated: masks stay as they are, their scores do not.
        self.sureness = nn.Parameter(torch.tensor(1.0))
        if self.tells_one:
            self.lone = _readout(config, 1)
            self.worth = nn.Linear(NUM_SIGNS, 1)
        self.regions = RegionLayers(config, about)
        self.draw = nn.Linear(inner // 2, 1)
        self.bend = nn.Parameter(torch.zeros(inner // 2, size))  # at first all draw alike

    def forward(self, target_embeddings: Tensor, features: list[Tensor], rows: Tensor) -> Tensor:
        """Decode every target of a batch.

        Args:
            target_embeddings: (M, 2, C), coarse scale first.
            features: see :meth:`pixellm.model.modeling.PixelLMModel.decoder_features`.
            rows: (M,) which row's features a target reads.

        Returns:
            (M, h, w) mask logits in the canvas frame.
        """
        choice = self.choose(target_embeddings, features[-1].to(self.dtype), rows)
        targets, places = self._likely(choice)
        pasted = self._draw(target_embeddings, features, rows[targets], targets, places)
        return _unite(choice[targets, places], pasted, targets, len(rows)) * self.sureness

    def instances(
        self, target_embeddings: Tensor, features: list[Tensor], rows: Tensor
    ) -> Instances:
        """Instances of each target, for models with ``masks_per_thing``; see :meth:`forward`."""
        entries = features[-1].to(self.dtype)
        choice = self.choose(target_embeddings, entries, rows)
        targets, places = self._shown(choice, self.is_one(target_embeddings) > 0)
        logits = self._draw(target_embeddings, features, rows[targets], targets, places)
        shown = entries[rows[targets], places]
        kinds = self.kinds(target_embeddings).float().softmax(-1)[targets]
        match = (kinds * self.class_scores(shown).float()).sum(1)
        signs = self.signs(choice[targets, places], match, shown, logits)
        scores = self.worth(signs)[:, 0].sigmoid()
        kept = _distinct(logits, scores, targets)
        return Instances(targets[kept], places[kept], logits[kept], scores[kept])

    def is_one(self, target_embeddings: Tensor) -> Tensor:
        """Logits (M,) that a target is one instance, told from others of its kind."""
        logits: Tensor = self.lone(target_embeddings.flatten(1).to(self.dtype))[:, 0]
        return logits

    def signs(self, choice: Tensor, match: Tensor, entries: Tensor, logits: Tensor) -> Tensor:
        """What a mask's worth is told from: (P, 6).

        How likely the entry is chosen (as a logit, and above even odds), how sure the encoder is of
        its class, how sure the mask is of its pixels, how large it is, and how likely the entry is
        of the target's class.

        Args:
            choice: (P,) logits that the entry belongs to the target.
            match: (P,) probability that it is of the target's class.
            entries: (P, 5 + D).
            logits: (P, G, G).
        """
        shown = logits > 0
        area = shown.flatten(1).float().mean(1)
        count = shown.flatten(1).sum(1).clamp_min(1)
        sure = (logits.sigmoid() * shown).flatten(1).sum(1) / count
        strength = self.class_scores(entries).amax(-1)
        chosen = choice.clamp(-8, 8)
        parts = [
            chosen,
            chosen.clamp_min(0),
            strength.clamp(0.01, 0.99).logit(),
            sure.clamp(0.5, 0.995).logit(),
            area.clamp_min(1e-5).log() / 4,
            match.clamp(0.003, 0.99).logit(),
        ]
        return torch.stack(parts, 1)

    def _draw(
        self,
        target_embeddings: Tensor,
        features: list[Tensor],
        rows: Tensor,
        targets: Tensor,
        places: Tensor,
    ) -> Tensor:
        """Logits (P, G, G) of pairs: entries at ``places`` of ``rows`` as the targets bend them."""
        entries = features[-1].to(self.dtype)
        grid = features[self.num_scales - 1].shape[-1] * self.output_factor
        flat = rows * entries.shape[1] + places
        drawn, window_of = flat.unique(return_inverse=True)
        owner, place = drawn // entries.shape[1], drawn % entries.shape[1]
        windows, maps = self.window_features(features, entries[owner, place], owner)
        own = (target_embeddings[:, -1].to(self.dtype) @ self.bend.T)[targets]
        logits = self.draw(maps.flatten(2).transpose(1, 2))[..., 0][window_of]
        logits = logits + torch.einsum("pc,pcs->ps", own, maps.flatten(2)[window_of])
        side = maps.shape[-1]
        return paste_windows(logits.unflatten(1, (side, side)), windows[window_of], grid)

    def choose(self, target_embeddings: Tensor, entries: Tensor, rows: Tensor) -> Tensor:
        """Logits (M, K) that an entry belongs to a target; very low where there is none.

        Args:
            target_embeddings: (M, L, C).
            entries: (B, K, 5 + D).
            rows: (M,) whose entries a target chooses among.
        """
        choice = self.choose_among_all(target_embeddings, entries)
        return choice[torch.arange(len(rows), device=rows.device), rows]

    def choose_among_all(self, target_embeddings: Tensor, entries: Tensor) -> Tensor:
        """The same (M, B, K) among the entries of all rows.

        An entry belongs to a target by its class, as far as the target's is known, and by all else
        that the target says about it; the more so where it is one of several that is meant.
        """
        keys = self.key(entries[..., BOX_CHANNELS:])
        queries = self.query(target_embeddings[:, 0].to(self.dtype))
        pointed = torch.einsum("mc,bkc->mbk", queries, keys) * keys.shape[-1] ** -0.5
        kinds = self.kinds(target_embeddings).float().softmax(-1)
        match = torch.einsum("mc,bkc->mbk", kinds, self.class_scores(entries).float())
        scale, bias = self.choice_scale[:1], self.choice_bias[:1]
        if self.tells_one:
            one = self.is_one(target_embeddings).detach().float().sigmoid()
            scale = scale.lerp(self.choice_scale[1:], one)
            bias = bias.lerp(self.choice_bias[1:], one)
        logits = pointed * scale[:, None, None] + (match + _LEAST_MATCH).log() * self.choice_match
        logits = logits + bias[:, None, None]
        return logits.masked_fill(entries[..., BOX_CHANNELS - 1] == 0, _OUTSIDE)

    def kinds(self, target_embeddings: Tensor) -> Tensor:
        """Logits (M, c) of the class that a target is of."""
        logits: Tensor = self.kind(target_embeddings.flatten(1).to(self.dtype))
        return logits

    def class_scores(self, entries: Tensor) -> Tensor:
        """(B, K, c) probability that an entry is of each class."""
        return entries[..., BOX_CHANNELS : BOX_CHANNELS + self.num_classes]

    def window_features(
        self, features: Sequence[Tensor], entries: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Draw entries (U, 5 + D) of (U,) ascending rows.

        Returns:
            Their windows (U, 4) and mask features (U, c, 2 S, 2 S).
        """
        windows = windows_of(entries[:, :4])
        cut = cut_windows(features[self.num_scales - 1], windows, rows, self.cells)
        detail = None
        if self.regions.has_detail:
            fine = features[self.num_scales].to(self.dtype)
            detail = cut_windows(fine, windows, rows, 2 * self.cells)
        return windows, self.regions(cut, detail, entries[:, BOX_CHANNELS:])

    def draw_entries(
        self, features: Sequence[Tensor], entries: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Windows (U, 4) and mask logits (U, 2 S, 2 S) of entries, whatever is asked for."""
        windows, maps = self.window_features(features, entries, rows)
        return windows, self.draw(maps.permute(0, 2, 3, 1))[..., 0]

    def draw_blank(self, count: int) -> Tensor:
        """Mask features of so many windows of nothing, to measure what drawing takes."""
        layers = self.regions
        like, cells = self.bend, self.cells
        cut = like.new_zeros(count, layers.narrow.in_channels - 2, cells, cells)
        channels = layers.sharpen.in_channels - layers.finer.out_channels
        detail = like.new_zeros(count, channels, 2 * cells, 2 * cells) if channels else None
        drawn: Tensor = layers(cut, detail, like.new_zeros(count, layers.about.in_features))
        return drawn

    @staticmethod
    def _likely(choice: Tensor) -> tuple[Tensor, Tensor]:
        """Targets (P,) and entries (P,) of the pairs worth drawing, by target."""
        count = min(MOST_ENTRIES, choice.shape[1])
        least = choice.detach().topk(count, dim=1).values[:, -1:]
        likely = (choice.detach().sigmoid() > CHOSEN) & (choice.detach() >= least)
        targets, places = likely.nonzero(as_tuple=True)
        return targets, places

    @staticmethod
    def _shown(choice: Tensor, is_one: Tensor) -> tuple[Tensor, Tensor]:
        """Targets (P,) and entries (P,): a target's likeliest, and what else it rather means."""
        order = torch.arange(choice.shape[1], device=choice.device)
        is_best = order == choice.argmax(1)[:, None]
        count = min(MOST_ENTRIES, choice.shape[1])
        least = choice.topk(count, dim=1).values[:, -1:]
        meant = (choice > 0) & (choice >= least) & ~is_one[:, None]
        targets, places = ((meant | is_best) & (choice > _OUTSIDE)).nonzero(as_tuple=True)
        return targets, places


def _distinct(logits: Tensor, scores: Tensor, targets: Tensor) -> Tensor:
    """Which pairs (K,) are left without those of which a target has a better one already.

    Args:
        logits: (P, G, G) of the pairs.
        scores: (P,) what they are worth.
        targets: (P,) ascending.
    """
    kept = torch.ones_like(targets, dtype=torch.bool)
    start = 0
    for count in targets.unique_consecutive(return_counts=True)[1].tolist():
        if count > 1:
            own = slice(start, start + count)
            shown = (logits[own] > 0).flatten(1).float()
            common = shown @ shown.T
            area = common.diagonal()
            overlap = common / (area[:, None] + area - common).clamp_min(1)
            order = scores[own].argsort(descending=True, stable=True)
            repeated = (overlap > SAME_MASK)[order][:, order].triu(diagonal=1)
            left = torch.ones_like(order, dtype=torch.bool)
            for place in range(count):
                left &= ~(repeated[place] & left[place])
            kept[own] = torch.zeros_like(left).scatter(0, order, left)
        start += count
    return kept.nonzero()[:, 0]


def _unite(choice: Tensor, pasted: Tensor, targets: Tensor, count: int) -> Tensor:
    """Logits (M, G, G) that any of a target's entries covers a pixel.

    Args:
        choice: (P,) logits that the entry belongs to the target.
        pasted: (P, G, G) logits of the entry's mask.
        targets: (P,) the target of each pair.
        count: M.
    """
    shown = choice.float().sigmoid()[:, None, None] * pasted.float().sigmoid()
    missed = torch.log1p(-shown.clamp(max=1 - 1e-6))
    total = missed.new_full((count, *pasted.shape[1:]), -1e-5)
    total = total.index_add(0, targets, missed)
    return torch.log(-torch.expm1(total)) - total
