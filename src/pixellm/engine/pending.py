"""From a request to a prompt: what the language model is to answer, and what came of it.

Knows the processor and the model's limits; nothing of how answers are written.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

from pixellm.engine.batch import GeneratedAnswer
from pixellm.engine.images import PreparedImage
from pixellm.engine.row import Prompt
from pixellm.engine.sampling import AnswerOptions
from pixellm.model.config import PixelLMConfig
from pixellm.processing.processor import PixelLMProcessor
from pixellm.processing.prompts import EncodedDialogue, dialogue_messages
from pixellm.types import Request


@dataclass(eq=False)
class PendingAnswer:
    """A request on its way.

    Attributes:
        request: as asked.
        picture: its picture, encoded.
        prompt: what the language model reads.
        answer: as far as it is written.
        started: when work on it began, by ``time.perf_counter``.
    """

    request: Request
    picture: PreparedImage
    prompt: Prompt
    answer: GeneratedAnswer = field(default_factory=GeneratedAnswer)
    started: float = field(default_factory=time.perf_counter)


class PromptBuilder:
    """Builds prompts for one model.

    Args:
        config: the model's.
        processor: the model's own.
    """

    def __init__(self, config: PixelLMConfig, processor: PixelLMProcessor) -> None:
        self.processor = processor
        self.group_size = config.group_size
        # None or absent where the language model's positions have no end.
        limit = getattr(config.text_config, "max_position_embeddings", None)
        self.context = sys.maxsize if limit is None else limit

    def encode(self, request: Request) -> EncodedDialogue:
        """Prompt ids.

        Raises:
            ValueError: an empty question, or one that leaves no room for an answer.
        """
        if not request.question.strip():
            raise ValueError("The question is empty; ask something about the picture.")
        encoded = self.processor.codec.encode(
            dialogue_messages(request.history, self.processor.word_question(request)),
            add_generation_prompt=True,
        )
        if self.context - len(encoded.ids) < 1 + self.group_size:
            raise ValueError(
                f"The question takes {len(encoded.ids)} tokens with its picture and history; the "
                f"model's context holds {self.context}. Ask something shorter."
            )
        return encoded

    def begin(
        self,
        request: Request,
        encoded: EncodedDialogue,
        picture: PreparedImage,
        options: AnswerOptions,
        limit: int,
    ) -> PendingAnswer:
        """Begin an answer of at most ``limit`` tokens, where the options say nothing else."""
        wanted = options.max_new_tokens or limit
        before = encoded.prefix - len(picture.visible)
        prompt = Prompt(
            ids=encoded.ids,
            max_new_tokens=min(wanted, self.context - len(encoded.ids)),
            image_tokens=picture.encoded.tokens[0],
            visible=(True,) * before + picture.visible,
            prefix=encoded.prefix,
            key=picture.key,
            # Who asks with a history, or about a picture prepared before, may ask again.
            keep=bool(request.history) or isinstance(request.image, PreparedImage),
            options=options,
        )
        return PendingAnswer(request, picture, prompt)
