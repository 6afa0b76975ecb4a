"""Free answers whose predictions keep their mask logits, for the released protocol.

The engine gives masks and throws the logits away, as nothing after it should see them; the score
of the release is computed from them. Answers are written greedily, as the engine writes them. It
knows the model and nothing of scores.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from pixellm.engine import Engine
from pixellm.engine.answers import passes_threshold
from pixellm.engine.batch import GeneratedAnswer, generate_answers
from pixellm.evaluation.forced import decode_logits, encode_pictures, score_of_masks
from pixellm.evaluation.records import MASK_LOGITS
from pixellm.processing.phrases import phrase_before
from pixellm.processing.prompts import dialogue_messages
from pixellm.types import Prediction, Request, Segment


class LogitPredictor:
    """A predictor whose answers carry (P, H, W) logits under ``info[MASK_LOGITS]``.

    Args:
        engine: holds the model, the processor and the length of answers.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        eos = engine.model.generation_config.eos_token_id
        eos = engine.processor.tokenizer.eos_token_id if eos is None else eos
        self._eos_ids = frozenset(eos if isinstance(eos, list | tuple) else [eos])

    def predict_batch(self, requests: Sequence[Request]) -> list[Prediction]:
        """Answer every request, in order.

        Raises:
            ValueError: a question is longer than the model's context.
        """
        started = time.perf_counter()
        model, processor = self.engine.model, self.engine.processor
        conversations = [dialogue_messages(r.history, processor.word_question(r)) for r in requests]
        batch = processor.encode_batch(conversations, [r.image for r in requests])
        with torch.inference_mode():
            encoded = encode_pictures(self.engine, batch)
            ids, mask = (batch[k].to(model.device) for k in ("input_ids", "attention_mask"))
            answers = generate_answers(
                model,
                ids,
                mask,
                encoded,
                eos_ids=self._eos_ids,
                max_new_tokens=self._longest_answer(ids.shape[1]),
                forbidden_ids=(model.config.image_token_id,),
            )
            nothing = torch.zeros(0, model.config.group_size, model.config.text_config.hidden_size)
            states = [
                torch.stack(a.group_states) if a.group_states else nothing.to(encoded.tokens)
                for a in answers
            ]
            logits = decode_logits(self.engine, states, encoded, batch)
        seconds = (time.perf_counter() - started) / len(requests)
        sizes = [(int(h), int(w)) for h, w in batch["original_sizes"].tolist()]
        return [
            self._to_prediction(*row, seconds)
            for row in zip(requests, answers, logits, sizes, strict=True)
        ]

    def _longest_answer(self, prompt: int) -> int:
        config = self.engine.model.config
        context = getattr(config.text_config, "max_position_embeddings", None) or sys.maxsize
        if context - prompt < 1 + config.group_size:
            raise ValueError(
                f"A question takes {prompt} tokens with its picture and history; the model's "
                f"context holds {context}."
            )
        return min(self.engine.max_new_tokens, context - prompt)

    def _to_prediction(
        self,
        request: Request,
        answer: GeneratedAnswer,
        logits: Tensor,
        size: tuple[int, int],
        seconds: float,
    ) -> Prediction:
        written = [i for i in answer.ids if i not in self._eos_ids]
        decoded = self.engine.processor.codec.decode_answer(written)
        starts = (0, *decoded.ends)
        segments, shown = [], []
        for place, (start, end, score) in enumerate(
            zip(starts, decoded.ends, score_of_masks(logits), strict=False)
        ):
            if passes_threshold(score, self.engine.min_mask_score):  # as the engine does
                span = phrase_before(decoded.text, end, start)
                label = decoded.text[span[0] : span[1]]
                segments.append(Segment(label, (logits[place] > 0).numpy(), score, span))
                shown.append(place)
        info = {
            "num_tokens": len(answer.ids),
            "seconds": seconds,
            "marked_answer": self.engine.processor.codec.mark_answer(decoded),
            MASK_LOGITS: logits[shown].numpy(),
        }
        return Prediction(decoded.text, tuple(segments), request.question, size, info)
