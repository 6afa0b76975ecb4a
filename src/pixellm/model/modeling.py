"""PixelLM as transformers classes: encode images, run the language model, decode masks.

Source: PixelLM, section 3. Shape legend: B rows, T tokens, D text width, S image tokens, C decoder
width, L scales, N tokens per scale, M targets, H W the canvas, h w a grid.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPast

from pixellm.model.attention import positions_from_mask, unpack_dialogues
from pixellm.model.codebook import SegmentationCodebook
from pixellm.model.config import PixelLMConfig
from pixellm.model.decoder import PixelDecoder
from pixellm.model.evidence import Evidence, familiarity, find_evidence, pack, rename
from pixellm.model.language import build_language_parts, reading_rules
from pixellm.model.losses import text_loss_sum
from pixellm.model.outputs import EncodedImages, PixelLMOutput
from pixellm.model.precision import final_norm, keep_in_full_precision
from pixellm.model.projection import FeatureProjector, ImageProjector
from pixellm.model.regions import Instances, RegionDecoder
from pixellm.model.supervision import Targets, find_targets, mask_losses
from pixellm.model.vision import VisionTower, feature_shapes

_TOLERATED_ARGUMENTS = frozenset(
    [
        "cache_position",
        "logits_to_keep",
        "original_sizes",
        "resized_sizes",
    ]
)
"""What transformers' ``generate`` and the processor's batches hold beside forward's own."""


class PixelLMPreTrainedModel(PreTrainedModel):
    """What every PixelLM class shares with transformers."""

    config_class = PixelLMConfig
    config: PixelLMConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = "cache"
    _supports_sdpa = True
    _supports_flash_attn = True

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise what is PixelLM's own; the parts of transformers know their own rules."""
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.xavier_uniform_(module.weight) if module.weight.ndim == 2 else (
                nn.init.kaiming_uniform_(module.weight, a=5**0.5)
            )
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _vision_channels(config: PixelLMConfig) -> list[int]:
    """Channels of each scale's features; found once and then kept in the configuration."""
    names = [str(depth) for depth in config.vision_depths]
    if not config.vision_channels.keys() >= set(names):
        shapes = feature_shapes(config.vision_config, config.image_size, config.vision_depths)
        config.vision_channels = {n: shape[0] for n, shape in zip(names, shapes, strict=True)}
    return [config.vision_channels[name] for name in names]


class PixelLMModel(PixelLMPreTrainedModel):
    """Everything but the language model's head: towers, projections, codebook, decoder."""

    def __init__(self, config: PixelLMConfig, language_model: nn.Module | None = None) -> None:
        """Build all parts, fresh.

        Args:
            config: of the whole.
            language_model: layers that were built already, as those of a model with its head are.
        """
        super().__init__(config)
        channels = _vision_channels(config)
        self.vision_tower = VisionTower(
            config.vision_config,
            config.read_depths,
            mask_padding=config.mask_padding,
            freeze_batch_norm=config.freeze_batch_norm,
        )
        self.image_projector = ImageProjector(config, channels[0])
        # In float32 even where all is created in half precision, as from_pretrained does.
        self.feature_projector = FeatureProjector(config, channels).float()
        if language_model is None:
            language_model = build_language_parts(config.text_config).layers
        self.language_model: Any = language_model
        self.reading = reading_rules(language_model, config.text_config)
        if (norm := final_norm(self.language_model)) is not None:
            keep_in_full_precision(norm)
        self.codebook = SegmentationCodebook(config).float()
        decoder: type[nn.Module] = RegionDecoder if config.evidence_tokens else PixelDecoder
        self.pixel_decoder = decoder(config).float()
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The language model's token table, codebook rows included."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token table."""
        self.language_model.set_input_embeddings(value)

    def encode_images(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        class_order: Tensor | None = None,
    ) -> tuple[EncodedImages, list[Tensor]]:
        """Encode (B, 3, H, W) canvases with their (B, H, W) bool masks, once per image.

        ``class_order`` (B, c) gives what is found other names, see
        :func:`pixellm.model.evidence.rename`.

        Returns:
            The encoded images and the encoder's raw feature maps, those of the scales first.
        """
        maps = self.vision_tower(pixel_values, pixel_mask)
        features = self.decoder_features(maps, class_order)
        entries = features[-1] if self.config.evidence_tokens else None
        seen = maps[0]
        if class_order is not None:
            own = torch.arange(class_order.shape[1], device=class_order.device)
            seen = seen * (class_order == own).all(1)[:, None, None, None]
        tokens = self.image_projector(seen, entries)
        return EncodedImages(tokens, features), maps

    def decoder_features(
        self, maps: list[Tensor], class_order: Tensor | None = None
    ) -> list[Tensor]:
        """What the decoder reads of the encoder's maps.

        Returns:
            Per scale (B, C, h_l, w_l); behind them, where the encoder tells what is there, the
            encoder's map of fine detail, if it is read, and the entries (B, K, 5 + D) of
            :func:`pixellm.model.evidence.pack`.
        """
        config = self.config
        features: list[Tensor] = self.feature_projector(maps[: config.num_scales])
        if config.evidence_tokens:
            features += maps[config.num_scales + len(config.evidence_depths) :]
            found = self.find_evidence(maps)
            features.append(pack(found if class_order is None else rename(found, class_order)))
        return features

    def find_evidence(self, maps: list[Tensor]) -> Evidence:
        """What the encoder found, of its raw maps; for models with ``evidence_depths``."""
        config = self.config
        first = config.num_scales
        cells = maps[first : first + len(config.evidence_depths)]
        return find_evidence(cells, config.vision_config.num_classes, config.evidence_tokens)

    def familiarity(self, encoded: EncodedImages) -> Tensor | None:
        """(B,) how likely images show anything known; None where the encoder can't tell."""
        if not self.config.evidence_tokens:
            return None
        return familiarity(encoded.features[-1], self.config.vision_config.num_classes)

    def embed(self, input_ids: Tensor, image_tokens: Tensor | None) -> Tensor:
        """Token embeddings (B, T, D), image placeholders filled by one scatter.

        Args:
            input_ids: (B, T).
            image_tokens: (B, S, D), one image per row; None where none is placed.
        """
        placed = input_ids == self.config.image_token_id
        # The placeholder may lie behind the table's last row, as in converted released models.
        embeddings = self.get_input_embeddings()(input_ids.masked_fill(placed, 0))
        if image_tokens is None:
            return embeddings
        wanted, found = image_tokens.shape[1], placed.sum(1).tolist()
        if found != [wanted] * len(image_tokens):
            raise ValueError(
                f"The rows of text hold {found} image placeholders, but {len(image_tokens)} "
                f"images give {wanted} image tokens each; build inputs with the model's own "
                "processor."
            )
        return embeddings.masked_scatter(placed[..., None], image_tokens.to(embeddings.dtype))

    def forward(
        self,
        input_ids: Tensor,
        image_tokens: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        dialogue_ids: Tensor | None = None,
        cache: Any = None,
        use_cache: bool | None = None,
        **wanted: bool | None,
    ) -> Any:
        """Run the language model over (B, T) ids; returns its output, states after the norm.

        ``wanted`` are ``output_hidden_states`` and ``output_attentions``.
        """
        embeddings = self.embed(input_ids, image_tokens)
        if attention_mask is None and cache is None:
            attention_mask = torch.ones_like(input_ids)
        if position_ids is None and attention_mask is not None:
            position_ids = positions_from_mask(attention_mask, input_ids.shape[1])
        if dialogue_ids is not None and attention_mask is not None and position_ids is not None:
            if not self.reading.packs:
                return self._read_unpacked(embeddings, attention_mask, position_ids, dialogue_ids)
            attention_mask = self.reading.packed_masks(  # type: ignore[assignment]
                attention_mask, position_ids, dialogue_ids, embeddings.dtype
            )
        named = {"position_ids": position_ids, "use_cache": use_cache, "cache": cache}
        return self.language_model(
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            **self.reading.select(named),
            **{name: value for name, value in wanted.items() if value is not None},
        )

    def _read_unpacked(
        self,
        embeddings: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        dialogue_ids: Tensor,
    ) -> BaseModelOutputWithPast:
        """Read packed dialogues in rows of their own, for families that take no prepared mask."""
        unpacked = unpack_dialogues(dialogue_ids)
        named = {"position_ids": unpacked.spread(position_ids), "use_cache": False}
        states = self.language_model(
            inputs_embeds=unpacked.spread(embeddings),
            attention_mask=unpacked.spread(attention_mask) * unpacked.is_filled,
            **self.reading.select(named),
        ).last_hidden_state
        return BaseModelOutputWithPast(unpacked.gather(states, embeddings))


class PixelLMForConditionalGeneration(PixelLMPreTrainedModel, GenerationMixin):
    """PixelLM with its language-model head, losses and mask decoding."""

    def __init__(self, config: PixelLMConfig) -> None:
        super().__init__(config)
        # Built as the family builds it, head and all, and taken apart: weights keep their names.
        config.text_config.tie_word_embeddings = config.tie_word_embeddings
        parts = build_language_parts(config.text_config)
        self.model = PixelLMModel(config, parts.layers)
        self.lm_head: nn.Linear = parts.head
        self._family_logits = parts.logits
        # Families differ in the name of their token table, which the head may be tied to.
        table = self.get_input_embeddings()
        name = next(name for name, module in self.named_modules() if module is table)
        self._tied_weights_keys = {"lm_head.weight": f"{name}.weight"}
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token table."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token table."""
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Replace the head."""
        self.lm_head = value

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """Logits (..., V) of states (..., D) after the final norm, as the family makes them."""
        logits = self._family_logits(self.lm_head, hidden_states.flatten(0, -2))
        return logits.unflatten(0, hidden_states.shape[:-1])

    def target_embeddings(self, hidden_states: Tensor, rows: Tensor, starts: Tensor) -> Tensor:
        """Fused embeddings (M, L, C) of the groups that start at ``starts`` (M,) of ``rows``."""
        states = self.model.codebook.gather_states(hidden_states, rows, starts)
        return self.model.codebook(states)

    def decode_instances(
        self, target_embeddings: Tensor, features: list[Tensor], rows: Tensor
    ) -> Instances:
        """The instances that M targets stand for, where the model tells them apart."""
        decoder: Any = self.model.pixel_decoder
        found: Instances = decoder.instances(target_embeddings, features, rows)
        return found

    def decode_masks(
        self, target_embeddings: Tensor, features: list[Tensor], rows: Tensor, chunk: int = 256
    ) -> Tensor:
        """Mask logits (M, h, w) of M targets, ``chunk`` at a time to bound memory."""
        pieces = [
            self.model.pixel_decoder(t, features, r)
            for t, r in zip(target_embeddings.split(chunk), rows.split(chunk), strict=True)
        ]
        return torch.cat(pieces)

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        dialogue_ids: Tensor | None = None,
        labels: Tensor | None = None,
        target_masks: Tensor | None = None,
        target_sizes: Tensor | None = None,
        target_rows: Tensor | None = None,
        target_answers: Tensor | None = None,
        num_label_tokens: Tensor | int | None = None,
        num_targets: Tensor | int | None = None,
        cache: Any = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        class_order: Tensor | None = None,
        **kwargs: Any,
    ) -> PixelLMOutput | tuple[Any, ...]:
        """Run the model; with labels, compute the losses of the paper's section 3.

        Args:
            input_ids: (B, T) ids, one image's placeholders per row.
            pixel_values: (B, 3, H, W) canvases; None in steps after the first.
            pixel_mask: (B, H, W) bool, false in the canvas's padding.
            attention_mask: (B, T), zero at padding and at image tokens in the canvas's padding.
            position_ids: (B, T); computed from the mask where None.
            dialogue_ids: (B, T), see :func:`packed_attention_mask`.
            labels: (B, T) ids to predict, -100 elsewhere, not shifted.
            target_masks: (N,) uint8 packed targets over the images without padding, in the order of
                the groups, see :func:`pixellm.model.pixel_masks.pack_masks`; None decodes no masks.
            target_sizes: (M, 2) height and width of each mask; masks are compared at this size.
            target_rows: (M,) row of each target; None computes nothing of targets.
            target_answers: (M,) id of the answer that each target belongs to.
            num_label_tokens: divisor of the text loss; this batch's count where None.
            num_targets: divisor of the mask losses; this batch's count where None.
            cache: what was kept of earlier tokens.
            use_cache: return a cache.
            output_hidden_states: return the language model's states at all depths.
            output_attentions: return its attention, where its implementation ("eager") has it.
            return_dict: False returns the output's values as a tuple, without those that are None.
            class_order: (B, c), see :func:`pixellm.model.evidence.rename`.
            **kwargs: only what transformers' generation and the processor add.

        Raises:
            TypeError: an unknown argument.
            ValueError: codebook groups and target masks differ in number.
        """
        if unknown := kwargs.keys() - _TOLERATED_ARGUMENTS:
            raise TypeError(f"Unknown arguments: {sorted(unknown)}.")
        encoded, maps = None, None
        if pixel_values is not None:
            encoded, maps = self.model.encode_images(pixel_values, pixel_mask, class_order)
        image_tokens = None if encoded is None else encoded.tokens
        text = (attention_mask, position_ids, dialogue_ids, cache, use_cache)
        outputs = self.model(
            input_ids,
            image_tokens,
            *text,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        hidden = outputs.last_hidden_state
        result = PixelLMOutput(
            hidden_states=hidden, feature_maps=maps, cache=getattr(outputs, "cache", None)
        )
        if labels is None:
            result.logits = self.compute_logits(hidden[:, -kwargs.get("logits_to_keep", 0) :])
        else:
            masks = (target_masks, target_sizes)
            counts = (num_label_tokens, num_targets)
            targets = Targets(labels, *masks, target_rows, target_answers, *counts)
            self._add_losses(result, input_ids, encoded, pixel_mask, targets)
        if output_hidden_states:
            result.hidden_states = outputs.hidden_states
        result.attentions = outputs.attentions if output_attentions else None
        # Made anew, for a tuple has the order of the fields, not that in which they were filled.
        return result if return_dict is not False else PixelLMOutput(**result).to_tuple()

    def _add_losses(
        self,
        result: PixelLMOutput,
        input_ids: Tensor,
        encoded: EncodedImages | None,
        pixel_mask: Tensor | None,
        targets: Targets,
    ) -> None:
        """Text loss over labelled positions only, mask losses over all groups in one call."""
        config, hidden = self.config, result.hidden_states
        assert isinstance(hidden, Tensor)
        labels = targets.labels[:, 1:]
        labelled = labels != -100
        count = targets.num_label_tokens
        count = count if count is not None else labelled.sum().clamp_min(1)
        logits = self.compute_logits(hidden[:, :-1][labelled])
        result.text_loss = text_loss_sum(logits, labels[labelled]) / count
        result.mask_loss = result.dice_loss = result.text_loss.new_zeros(())
        result.decoder_features = None if encoded is None else encoded.features
        if targets.rows is not None and encoded is not None:
            rows, starts = find_targets(input_ids, targets, config.codebook_token_ids)
            if len(rows):
                embeddings = self.target_embeddings(hidden, rows, starts)
                result.target_embeddings = embeddings
                if targets.masks is not None:
                    logits = self.decode_masks(embeddings, encoded.features, rows)
                    result.mask_logits = logits
                    frame = (pixel_mask, config.image_size)
                    losses = mask_losses(logits, targets, *frame, config.target_refinement_alpha)
                    count = len(rows) if targets.num_targets is None else targets.num_targets
                    result.mask_loss, result.dice_loss = (loss.sum() / count for loss in losses)
        result.loss = (
            config.text_loss_weight * result.text_loss
            + config.mask_loss_weight * result.mask_loss
            + config.dice_loss_weight * result.dice_loss
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        cache: Any = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        original_sizes: Tensor | None = None,
        resized_sizes: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Inputs of one step of transformers' ``generate``: images go in at the first only.

        The images' sizes are for whoever restores masks; the network does without them.
        """
        seen = cache.get_seq_length() if cache is not None else 0
        inputs = {
            "input_ids": input_ids[:, seen:],
            "cache": cache,
            "attention_mask": attention_mask,
            "use_cache": kwargs.get("use_cache"),
            "output_hidden_states": kwargs.get("output_hidden_states"),
            "output_attentions": kwargs.get("output_attentions"),
        }
        if seen == 0:
            inputs.update(pixel_values=pixel_values, pixel_mask=pixel_mask)
        return inputs


AutoModel.register(PixelLMConfig, PixelLMModel, exist_ok=True)
AutoModelForImageTextToText.register(PixelLMConfig, PixelLMForConditionalGeneration, exist_ok=True)
