"""Images and dialogues to model inputs: the processor of PixelLM.

A real transformers processor (``AutoProcessor``, ``save_pretrained``, ``apply_chat_template``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoProcessor, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from pixellm.model.config import PixelLMConfig
from pixellm.processing.image import PixelLMImageProcessor
from pixellm.processing.prompts import EncodedDialogue, Message, PromptCodec
from pixellm.types import Request, Turn


def visible_image_tokens(
    resized: tuple[int, int], canvas: int, grid: tuple[int, int]
) -> NDArray[np.bool_]:
    """Which image tokens lie on the image rather than on the canvas's padding.

    (grid height * grid width,) bool, row by row, for an image of ``resized`` (height, width) on a
    square canvas, in pixels: nearest resize of the pixel mask.
    """
    rows = np.arange(grid[0]) * canvas // grid[0] < resized[0]
    columns = np.arange(grid[1]) * canvas // grid[1] < resized[1]
    return (rows[:, None] & columns[None, :]).ravel()


def pad_sequences(sequences: Sequence[Sequence[int]], fill: int, side: str) -> Tensor:
    """Stack integer sequences to (B, T) long, filled on ``side`` ("left" or "right")."""
    length = max(map(len, sequences))
    rows = [
        [fill] * (length - len(s)) + list(s)
        if side == "left"
        else list(s) + [fill] * (length - len(s))
        for s in sequences
    ]
    return torch.tensor(rows, dtype=torch.long)


@dataclass(frozen=True)
class BatchOptions:
    """How prompts become a batch, in the words of transformers.

    Attributes:
        padding: True or "longest" makes all rows as long as the longest; False refuses rows of
            unequal length.
        padding_side: "left" for generation, "right" for training.
        truncation: False; prompts are never cut.
        add_special_tokens: False; the chat template writes all control tokens.
        return_tensors: "pt"; batches are torch tensors.
    """

    padding: bool | str = True
    padding_side: str = "left"
    truncation: bool = False
    add_special_tokens: bool = False
    return_tensors: str = "pt"

    def __post_init__(self) -> None:
        rules = {
            f"padding is {self.padding!r}; rows are padded to the longest (True) or not at all "
            "(False).": self.padding in (True, False, "longest"),
            f"padding_side is {self.padding_side!r}; it must be left or right.": (
                self.padding_side in ("left", "right")
            ),
            "Prompts are never cut: leave out truncation and shorten the text.": (
                not self.truncation
            ),
            "The chat template writes all control tokens: leave out add_special_tokens.": (
                not self.add_special_tokens
            ),
            f"Batches are torch tensors: return_tensors must be 'pt', not "
            f"{self.return_tensors!r}.": self.return_tensors == "pt",
        }
        for message, holds in rules.items():
            if not holds:
                raise ValueError(message)

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> BatchOptions:
        """Options by name; those that are None count as not given."""
        if unknown := values.keys() - {field.name for field in fields(cls)}:
            raise TypeError(f"Unknown arguments: {sorted(unknown)}.")
        return cls(**{name: value for name, value in values.items() if value is not None})


class PixelLMProcessor(ProcessorMixin):
    """Joins the image processor, the tokenizer and the codebook.

    Args:
        image_processor: resizes, pads and normalises images.
        tokenizer: a fast tokenizer that knows the control tokens.
        chat_template: Jinja template of a dialogue; the tokenizer's own where None.
        image_token: text of the image placeholder.
        codebook_tokens: text of the codebook's tokens, in order.
        llm_grid: (height, width) of the language model's image grid.
        evidence_tokens: image tokens behind those of the grid, for instances found in the image.
        reasoning_suffix: sentence that the model was trained to read behind a reasoning question,
            which does not ask for masks itself; "" where it was trained on bare questions.
    """

    def __init__(
        self,
        image_processor: PixelLMImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
        image_token: str = "<image>",
        codebook_tokens: Sequence[str] = (),
        llm_grid: Sequence[int] = (16, 16),
        evidence_tokens: int = 0,
        reasoning_suffix: str = "",
        **kwargs: Any,
    ) -> None:
        template = chat_template or tokenizer.chat_template
        if template is None:
            raise ValueError("The tokenizer carries no chat template; pass chat_template.")
        super().__init__(image_processor, tokenizer, chat_template=template, **kwargs)
        self.image_token = image_token
        self.codebook_tokens = list(codebook_tokens)
        self.llm_grid = list(llm_grid)
        self.evidence_tokens = evidence_tokens
        num_image_tokens = llm_grid[0] * llm_grid[1] + evidence_tokens
        self.reasoning_suffix = reasoning_suffix
        self.codec = PromptCodec(
            tokenizer, template, image_token, self.codebook_tokens, num_image_tokens
        )

    @classmethod
    def for_model(
        cls,
        config: PixelLMConfig,
        images: PixelLMImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str,
        **options: Any,
    ) -> Self:
        """The processor of a model; ``options`` are other arguments of the class.

        ``images`` says how its images are resized and normalised, and takes on the canvas's side;
        ``tokenizer`` knows the ids that the configuration names.
        """
        images.image_size = config.image_size
        return cls(
            images,
            tokenizer,
            chat_template,
            codebook_tokens=tokenizer.convert_ids_to_tokens(config.codebook_token_ids),
            llm_grid=config.llm_grid,
            evidence_tokens=config.evidence_tokens,
            **options,
        )

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """What ``processor_config.json`` holds; the codec is rebuilt from it."""
        values = super().to_dict(**kwargs)
        values.pop("codec", None)
        return values

    def __call__(
        self, images: Any = None, text: str | Sequence[str] | None = None, **options: Any
    ) -> BatchFeature:
        """Build a batch from rendered prompts, as transformers pipelines do.

        ``text`` is a rendered chat template: control tokens in it count. For text that people
        type use :meth:`apply_chat_template` with ``tokenize=True``, or :meth:`encode_batch`.

        Args:
            images: one image per prompt; None for text alone.
            text: one rendered prompt or several.
            **options: of :class:`BatchOptions`.

        Raises:
            TypeError: an unknown argument.
            ValueError: an option that this processor can't follow, or images and prompts that
                do not belong together.
        """
        chosen = BatchOptions.parse(options)
        prompts = [text] if isinstance(text, str) else list(text or ())
        dialogues = [self.codec.encode_rendered(prompt) for prompt in prompts]
        features = None if images is None else self.image_processor(images)
        return self._batch(dialogues, features, chosen)

    def apply_chat_template(
        self,
        conversation: list[Any],
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        continue_final_message: bool = False,
        processor_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Render one conversation or several, or turn them into model inputs.

        With ``tokenize=True`` images are taken from the image parts (``{"type": "image",
        "image": PIL | array | path}``, also "path" or "url" with a local path) and text that
        people typed can never become a control token.

        Args:
            conversation: messages, or several lists of messages.
            chat_template: of a rendered text; the processor's own where None.
            add_generation_prompt: end where the answer begins.
            tokenize: make ids; text otherwise.
            return_dict: with ``tokenize``, the whole batch rather than its ids.
            continue_final_message: False; answers are written from their beginning.
            processor_kwargs: more ``options``.
            **options: of :class:`BatchOptions`, with ``tokenize``.

        Returns:
            Text; with ``tokenize``, (B, T) ids, or the whole batch with ``return_dict``.

        Raises:
            TypeError: an unknown argument.
            ValueError: an option that this processor can't follow, or another template than the
                processor's with ``tokenize``.
        """
        options = {**(processor_kwargs or {}), **options}
        BatchOptions.parse(options)
        if continue_final_message:
            raise ValueError(
                "Answers are written from their beginning: leave out continue_final_message."
            )
        if return_dict and not tokenize:
            raise ValueError("A text is no batch: return_dict needs tokenize=True.")
        batched = bool(conversation) and isinstance(conversation[0], (list, tuple))
        conversations = list(conversation) if batched else [conversation]
        if not tokenize:
            rendered = [
                self.codec.render(
                    messages,
                    chat_template=chat_template,
                    add_generation_prompt=add_generation_prompt,
                )
                for messages in conversations
            ]
            return rendered if batched else rendered[0]
        if chat_template not in (None, self.chat_template):
            raise ValueError("Inputs are built with the processor's own chat template only.")
        images = [image for messages in conversations for image in self._images(messages)]
        batch = self.encode_batch(conversations, images, add_generation_prompt, **options)
        return batch if return_dict else batch["input_ids"]

    def encode_batch(
        self,
        conversations: Sequence[Sequence[Message]],
        images: Sequence[Any] = (),
        add_generation_prompt: bool = True,
        **options: Any,
    ) -> BatchFeature:
        """Model inputs for several conversations, each about its image.

        Args:
            conversations: messages of each row.
            images: one image per row, or none at all.
            add_generation_prompt: end each row where the answer begins.
            **options: of :class:`BatchOptions`.

        Returns:
            input_ids and attention_mask (B, T), and with images pixel_values
            (B, 3, S, S), pixel_mask (B, S, S), original_sizes and resized_sizes (B, 2).
        """
        dialogues = [
            self.codec.encode(messages, add_generation_prompt=add_generation_prompt)
            for messages in conversations
        ]
        features = self.image_processor(list(images)) if images else None
        return self._batch(dialogues, features, BatchOptions.parse(options))

    def word_question(self, asked: Turn | Request) -> str:
        """A question as the model is to read it: with its suffix, where the question takes one."""
        if asked.takes_suffix and self.reasoning_suffix:
            return f"{asked.question} {self.reasoning_suffix}"
        return asked.question

    def image_token_mask(self, resized: Sequence[int]) -> NDArray[np.bool_]:
        """Which image tokens of an image of ``resized`` (height, width) are not padding."""
        cells = visible_image_tokens(
            (int(resized[0]), int(resized[1])),
            self.image_processor.image_size,
            (self.llm_grid[0], self.llm_grid[1]),
        )
        return np.concatenate([cells, np.ones(self.evidence_tokens, dtype=np.bool_)])

    def _batch(
        self,
        dialogues: Sequence[EncodedDialogue],
        features: BatchFeature | None,
        options: BatchOptions,
    ) -> BatchFeature:
        """Pad rows and mask padding, in the text and among the image tokens."""
        lengths = {len(dialogue.ids) for dialogue in dialogues}
        if len(lengths) > 1 and not options.padding:
            raise ValueError(
                f"Rows of {min(lengths)} to {max(lengths)} ids make a batch only with padding=True."
            )
        masks = [[1] * len(d.ids) for d in dialogues]
        sizes = () if features is None else features["resized_sizes"]
        placed = sum(dialogue.prefix > 0 for dialogue in dialogues)
        if placed != len(sizes) or (len(sizes) and placed != len(dialogues)):
            raise ValueError(
                f"{len(dialogues)} dialogues place {placed} images, but {len(sizes)} are given; "
                "each dialogue needs its own, or none has any."
            )
        if features is not None:
            for dialogue, mask, size in zip(dialogues, masks, sizes, strict=True):
                shown = self.image_token_mask(size.tolist())
                mask[dialogue.prefix - len(shown) : dialogue.prefix] = shown.astype(int).tolist()
        pad, side = self.tokenizer.pad_token_id, options.padding_side
        data: dict[str, Any] = {
            "input_ids": pad_sequences([d.ids for d in dialogues], pad, side),
            "attention_mask": pad_sequences(masks, 0, side),
        }
        return BatchFeature({**data, **(features or {})}, tensor_type=options.return_tensors)

    @staticmethod
    def _images(messages: Sequence[Message]) -> list[Any]:
        """The images of a conversation's image parts."""
        parts = [p for m in messages if not isinstance(m["content"], str) for p in m["content"]]
        found = []
        for part in parts:
            if part.get("type") == "image":
                source = next((part[k] for k in ("image", "path", "url") if k in part), None)
                if source is None:
                    raise ValueError('An image part needs its image under "image" or "path".')
                found.append(source)
        return found


AutoProcessor.register(PixelLMConfig, PixelLMProcessor, exist_ok=True)
