"""Models to time without downloading any, and answers of a chosen length and number of targets.

A random model says nothing sensible, and how long it talks is chance. So its answers are
scripted: it computes every step as ever, and the script's token is taken instead of the one that it
chose.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoConfig

from pixellm.checkpoint.build import TEMPLATES, train_tokenizer
from pixellm.engine import Engine
from pixellm.engine.batch import AnswerLoop, Chooser, choose_by_options
from pixellm.engine.row import Row
from pixellm.model.config import PixelLMConfig
from pixellm.model.modeling import PixelLMForConditionalGeneration
from pixellm.processing.image import PixelLMImageProcessor
from pixellm.processing.processor import PixelLMProcessor
from pixellm.processing.templates import codebook_token_names
from pixellm.types import Request

QUESTION = "What in this image could be used to cut the rope, and where does it lie?"

_VISION = {
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 12}
    | {"num_attention_heads": 2, "patch_size": 14},
    "110m": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
    | {"num_attention_heads": 12, "patch_size": 16},
    "7b": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
    | {"num_attention_heads": 16, "patch_size": 14},
}
_VISION["13b"] = _VISION["7b"]
_TEXT = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    | {"num_attention_heads": 4, "vocab_size": 1008},
    "110m": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12}
    | {"num_attention_heads": 12, "tie_word_embeddings": True},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
    | {"num_attention_heads": 32},
    "13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40}
    | {"num_attention_heads": 40},
}
SIZES = tuple(_TEXT)
"""Random models: tiny is as small as the parity data's; 110m has a language model of 110 million
parameters and a tower of CLIP-B's size; 7b and 13b are those of the paper."""


def random_config(size: str) -> PixelLMConfig:
    """The paper's architecture at 448 x 448 pixels with 256 image tokens, in one of the sizes.

    Raises:
        ValueError: another size.
    """
    if size not in SIZES:
        raise ValueError(f"There is no size {size!r}; try {', '.join(SIZES)}.")
    text = {"vocab_size": 32007, "max_position_embeddings": 4096} | _TEXT[size]
    width = _TEXT[size]["hidden_size"]
    vocab_size = text["vocab_size"]
    group = range(vocab_size - 6, vocab_size)
    return PixelLMConfig(
        vision_config=AutoConfig.for_model("clip_vision_model", image_size=448, **_VISION[size]),
        text_config=AutoConfig.for_model("llama", **text),
        image_token_id=vocab_size - 7,
        codebook_token_ids=list(group),
        llm_projector_size=2 * width,
        shared_projector=True,
        decoder_projector_sizes=[2 * width, width],
    )


def random_processor(config: PixelLMConfig) -> PixelLMProcessor:
    """A processor for a random model: a small tokenizer, the paper's template and image size."""
    names = codebook_token_names(config.group_size)
    control = ["<im_start>", "<im_end>", "<image>", *names]
    tokenizer = train_tokenizer([QUESTION] * 4, 400, control)
    config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    config.codebook_token_ids = tokenizer.convert_tokens_to_ids(names)
    config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    return PixelLMProcessor(
        PixelLMImageProcessor(image_size=config.image_size),
        tokenizer,
        chat_template=TEMPLATES["vicuna"],
        codebook_tokens=names,
        llm_grid=config.llm_grid,
    )


def random_model(
    size: str, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> tuple[PixelLMForConditionalGeneration, PixelLMProcessor]:
    """A model with random weights, made on the device it will run on."""
    config = random_config(size)
    processor = random_processor(config)
    torch.manual_seed(seed)
    with torch.device(device), _default_dtype(dtype):
        model = PixelLMForConditionalGeneration(config)
    model.generation_config.eos_token_id = config.eos_token_id
    return model.eval(), processor


def random_images(count: int, side: int = 448) -> list[NDArray[np.uint8]]:
    """Square (side, side, 3) images of noise, all different."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(count)]


def scripted_answer(
    model: PixelLMForConditionalGeneration,
    processor: PixelLMProcessor,
    length: int,
    targets: int,
) -> list[int]:
    """Ids of an answer of ``length`` tokens, codebook tokens and the end included.

    Targets are spread evenly behind words.

    Raises:
        ValueError: so many targets, each behind a word, do not fit.
    """
    group = list(model.config.codebook_token_ids)
    num_words = length - 1 - targets * len(group)
    if num_words < targets:
        raise ValueError(
            f"{targets} targets of {len(group)} tokens do not fit into {length} tokens."
        )
    vocabulary = processor.tokenizer(QUESTION, add_special_tokens=False)["input_ids"]
    words = list(islice(cycle(vocabulary), num_words))
    ends = [num_words * (k + 1) // max(targets, 1) for k in range(targets)]
    ids: list[int] = []
    for number, word in enumerate(words, start=1):
        ids += [word, *(group if number in ends else ())]
    return [*ids, processor.tokenizer.eos_token_id]


class ScriptedEngine(Engine):
    """An engine whose every answer is the one in :attr:`script`, at the full cost of a choice.

    Attributes:
        script: ids of the answer.
        chosen: what it would have said in their place, of all answers one after the other.
    """

    script: Sequence[int] = ()
    chosen: Sequence[int] = ()

    @contextmanager
    def _loop(self, choose: Chooser = choose_by_options) -> Iterator[AnswerLoop]:
        def write_script(logits: Tensor, rows: Sequence[Row]) -> list[int]:
            self.chosen = [*self.chosen, *choose(logits, rows)]
            return [self.script[len(row.ids) - len(row.prompt.ids)] for row in rows]

        with super()._loop(write_script) as loop:
            yield loop


def requests_about(images: Sequence[Any]) -> list[Request]:
    """The same question about each image."""
    return [Request(image, QUESTION) for image in images]


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
