"""New models: from parts, or around the encoder and the language model of another one.

A part is either fresh from a configuration or pretrained from a directory or hub id. Around another
model everything that it learnt before it saw masks stays, and codebook and decoder start fresh in a
shape of their own, so that variants of these can be compared.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from pydantic import ValidationError
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from pixellm.checkpoint.comparing import insert_comparing_layer
from pixellm.checkpoint.encoder_weights import load_vision_weights
from pixellm.checkpoint.io import load_model_and_processor
from pixellm.checkpoint.parts import ModelParts
from pixellm.checkpoint.pretrained import from_pretrained, told_as
from pixellm.checkpoint.sources import embedded_models, resolve_source
from pixellm.model.config import PixelLMConfig
from pixellm.model.language import layers_name
from pixellm.model.modeling import PixelLMForConditionalGeneration
from pixellm.processing.image import PixelLMImageProcessor
from pixellm.processing.own_template import adopt_chat_template
from pixellm.processing.processor import PixelLMProcessor
from pixellm.processing.templates import COMPACT_TEMPLATE, VICUNA_TEMPLATE, codebook_token_names

TEMPLATES = {"vicuna": VICUNA_TEMPLATE, "compact": COMPACT_TEMPLATE}
CONTROL_TOKENS = {
    "vicuna": ["<im_start>", "<im_end>"],
    "compact": ["<user>", "<assistant>"],
    "own": [],
}

PRETRAINED_PARTS = (
    "model.vision_tower.",
    "model.language_model.",
    "model.image_projector.",
    "lm_head.",
)
"""Names that begin so keep their weights around another model; all other weights start fresh."""

_SETTINGS = inspect.signature(PixelLMConfig.__init__).parameters.keys() - {
    *("self", "kwargs", "image_token_id", "codebook_token_ids"),
    *PixelLMConfig.sub_configs,
}
"""What a recipe may set of a new model's configuration."""

_NEARLY_THE_SAME = 0.9
"""Likeness of two names from which one is taken for the other misspelt."""

_CONTROL_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")

_AROUND = {"initial_weights", "comparing_layer", "settings"}
"""What a recipe may say of a model around another one."""

BAD_SETTINGS = "No model can be built from the settings under model"
"""How a fault of a recipe's model begins."""


def read_parts(section: Mapping[str, Any]) -> ModelParts:
    """The parts that a recipe's section names; ValueError where it can't mean them."""
    try:
        parts = ModelParts.model_validate(dict(section))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"model.{where}: {first['msg']}.") from error
    extra = sorted(parts.model_fields_set - _AROUND)
    if parts.initial_weights is not None and extra:
        raise ValueError(
            f"model.initial_weights brings its own {', '.join(extra)}; give one or the other."
        )
    return parts


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
    parts = read_parts(section)
    around = parts.initial_weights is not None
    model, processor = _build_around(parts) if around else _build_from_parts(parts, texts)
    if parts.comparing_layer:
        insert_comparing_layer(model, processor.tokenizer)
    return model, processor


def _build_from_parts(
    parts: ModelParts, texts: Iterable[str]
) -> tuple[PixelLMForConditionalGeneration, PixelLMProcessor]:
    """A model of fresh and pretrained parts, and its processor."""
    settings = known_settings(parts.settings)
    names = codebook_token_names(PixelLMConfig(**settings).group_size)
    tokenizer = _build_tokenizer(parts, names, texts)
    own = parts.template == "own"
    template = adopt_chat_template(tokenizer) if own else TEMPLATES[parts.template]
    text = part_config(parts.text.source, parts.text.config, "text")
    vision = part_config(parts.vision.source, parts.vision.config, "vision")
    rows = text.vocab_size if parts.text.source else 0
    config = configure(text, vision, tokenizer, names, rows=rows, **settings)
    model = PixelLMForConditionalGeneration(config)
    _load_parts(model, parts, tokenizer)
    images = PixelLMImageProcessor(
        rescale_factor=parts.image.rescale_factor,
        image_mean=parts.image.mean,
        image_std=parts.image.std,
        resample=parts.image.resample,
    )
    return model, PixelLMProcessor.for_model(config, images, tokenizer, template)


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


def _build_tokenizer(
    parts: ModelParts, names: list[str], texts: Iterable[str]
) -> PreTrainedTokenizerBase:
    if parts.tokenizer.source is None:
        control = [*CONTROL_TOKENS[parts.template], "<image>", *names]
        return train_tokenizer(texts, parts.tokenizer.vocab_size, control)
    tokenizer = from_pretrained(AutoTokenizer, place_of(parts.tokenizer.source))
    add_control_tokens(tokenizer, parts.template, names)
    return tokenizer


def configure(
    text: Any,
    vision: Any,
    tokenizer: PreTrainedTokenizerBase,
    names: list[str],
    *,
    rows: int,
    **settings: Any,
) -> PixelLMConfig:
    """The configuration of a new model.

    Args:
        text: configuration of the language model; its vocabulary and control tokens become the
            tokenizer's.
        vision: configuration of the encoder; its image size becomes the canvas's.
        tokenizer: knows the image token and the codebook's.
        names: texts of the codebook's tokens.
        rows: that the token table has at least.
        **settings: other arguments of :class:`PixelLMConfig`.
    """
    if hasattr(vision, "image_size"):
        vision.image_size = settings.get("image_size", 448)
    text.vocab_size = max(rows, len(tokenizer))
    text.pad_token_id = tokenizer.pad_token_id
    text.bos_token_id, text.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    config = PixelLMConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        codebook_token_ids=tokenizer.convert_tokens_to_ids(names),
        **settings,
    )
    for name in _CONTROL_IDS:
        setattr(config, name, getattr(tokenizer, name))
    return config


def add_control_tokens(tokenizer: PreTrainedTokenizerBase, template: str, names: list[str]) -> None:
    """Add what a tokenizer lacks of a template's tokens, the image's and the codebook's."""
    known = {token.content for token in tokenizer.added_tokens_decoder.values()}
    control = [*CONTROL_TOKENS[template], "<image>", *names]
    tokenizer.add_tokens(
        [AddedToken(t, special=True, normalized=False) for t in control if t not in known]
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token


def part_config(
    source: str | None, values: dict[str, Any], part: str, *, is_fetched: bool = True
) -> Any:
    """Configuration of a part, from its values or its source.

    Args:
        source: directory or hub id; counts where there are no values.
        values: with its model_type.
        part: "vision" or "text".
        is_fetched: whether a hub may be asked for it.
    """
    if values:
        values = dict(values)
        try:
            family = values.pop("model_type")
            _check_spelling(AutoConfig.for_model(family), values, f"model.{part}.config")
            return AutoConfig.for_model(family, **values)
        except KeyError:
            raise ValueError(f"model.{part}.config needs a model_type.") from None
    if source is None:
        raise ValueError(f"model.{part} needs a source or a config.")
    config = from_pretrained(AutoConfig, place_of(source), local_files_only=not is_fetched)
    wanted = part == "vision" or isinstance(config, PixelLMConfig)
    return getattr(config, f"{part}_config", config) if wanted else config


def _check_spelling(defaults: Any, values: Mapping[str, Any], section: str) -> None:
    """Refuse what nearly is a name of a configuration; transformers keeps it and never reads it."""
    known = [*defaults.to_dict(), *defaults.attribute_map]
    for key in values:
        near = difflib.get_close_matches(key, known, 1, _NEARLY_THE_SAME)
        if near and near[0] != key and not hasattr(defaults, key):
            raise ValueError(
                f"{section} has {key}, which no {defaults.model_type} reads; is it {near[0]}?"
            )


def place_of(source: str) -> str:
    """The folder of a model that the package carries, or the source as it is."""
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
    """Let an instance found read like the words that name its class, before anything is learnt."""
    table = model.get_input_embeddings().get_parameter("weight")
    ids = [tokenizer(f" {name}", add_special_tokens=False)["input_ids"] for name in names]
    words = torch.stack([table[one].mean(0) for one in ids])
    model.model.image_projector.name_classes(words)


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
    """The language model of another PixelLM, codebook tokens included."""
    donor, _ = load_model_and_processor(source)
    try:
        model.model.language_model.load_state_dict(donor.model.language_model.state_dict())
        model.lm_head.load_state_dict(donor.lm_head.state_dict())
    except RuntimeError:
        raise ValueError(
            f"The language model of {source} does not fit; take its tokenizer too "
            "(model.tokenizer.source)."
        ) from None


def _build_around(
    parts: ModelParts,
) -> tuple[PixelLMForConditionalGeneration, PixelLMProcessor]:
    """A model with pretrained encoder and language model, the rest untrained.

    The tokenizer keeps its ids and gains the codebook tokens that it lacks. The rows of all
    codebook tokens start fresh, whether the source had them or not, so that no shape of the
    codebook has an advantage.
    """
    donor, processor = load_model_and_processor(str(parts.initial_weights))
    config = derive_config(donor.config, parts.settings)
    tokenizer, own = processor.tokenizer, processor.codebook_tokens
    # The source's own codebook tokens as far as they go, then new ones.
    names = [*own, *codebook_token_names(config.group_size)[len(own) :]][: config.group_size]
    tokenizer.add_tokens([AddedToken(n, special=True, normalized=False) for n in names])
    config.codebook_token_ids = tokenizer.convert_tokens_to_ids(names)
    config.text_config.vocab_size = max(config.text_config.vocab_size, len(tokenizer))
    model = PixelLMForConditionalGeneration(config)
    model.generation_config = donor.generation_config
    old_ids = donor.config.codebook_token_ids
    _copy_pretrained(model, donor, fresh_rows=sorted({*old_ids, *config.codebook_token_ids}))
    kept = {"image_token": processor.image_token, "reasoning_suffix": processor.reasoning_suffix}
    return model, PixelLMProcessor.for_model(
        config, processor.image_processor, tokenizer, processor.chat_template, **kept
    )


def derive_config(donor: PixelLMConfig, settings: Mapping[str, Any]) -> PixelLMConfig:
    """The configuration of a model with some settings changed and provisional codebook ids."""
    values = donor.to_dict()
    kept = {name: values[name] for name in (*_SETTINGS, *PixelLMConfig.sub_configs)}
    config = PixelLMConfig(
        **{**kept, **known_settings(settings)}, image_token_id=donor.image_token_id
    )
    for name in _CONTROL_IDS:
        setattr(config, name, getattr(donor, name, None))
    return config


def known_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's ``model.settings``; ValueError where a key is none of PixelLMConfig's."""
    if unknown := sorted(settings.keys() - _SETTINGS):
        raise ValueError(f"model.settings has no {', '.join(unknown)}; see PixelLMConfig.")
    return dict(settings)


@torch.no_grad()
def _copy_pretrained(
    model: PixelLMForConditionalGeneration,
    donor: PixelLMForConditionalGeneration,
    fresh_rows: list[int],
) -> None:
    """Copy encoder, language model, head and image projection; codebook rows stay fresh."""
    own, given = model.state_dict(), donor.state_dict()
    embeddings = model.get_input_embeddings()
    path = next(name for name, module in model.named_modules() if module is embeddings)
    tables = [f"{path}.weight", *(name for name in own if name.startswith("lm_head."))]
    wanted = [name for name in {**own, **given} if name.startswith(PRETRAINED_PARTS)]
    initial = {name: own[name][fresh_rows].clone() for name in tables}
    for name in wanted:
        source, target = given.get(name), own.get(name)
        if source is None or target is None or not _fits(source, target, name in tables):
            raise ValueError(
                f"model.settings changes {name}, which keeps its pretrained weights; change "
                "only what the codebook, the decoder and its projections are made of."
            )
        (target[: len(source)] if name in tables else target).copy_(source)
    for name in tables:
        own[name][fresh_rows] = initial[name]


def _fits(source: Tensor, target: Tensor, is_table: bool) -> bool:
    """Whether weights can move; a token table may have gained rows."""
    if is_table:
        return source.shape[1:] == target.shape[1:] and len(source) <= len(target)
    return source.shape == target.shape
