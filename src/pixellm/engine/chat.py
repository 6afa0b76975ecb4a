"""A dialogue of several turns about one image.

Keeps the history and nothing else; the engine answers, and keeps what it has read of the dialogue.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pixellm.engine.images import PreparedImage
from pixellm.types import Prediction, Segment


@dataclass
class ChatSession:
    """Several turns about one image; answers in the history have ``{seg}`` marks."""

    engine: Any
    image: Any
    prepared: PreparedImage
    history: list[tuple[str, str]] = field(default_factory=list)
    last: Prediction | None = None

    def ask(self, question: str, **options: Any) -> Prediction:
        """Answer the next question, earlier turns kept in mind; options as ``Engine.predict``."""
        prediction: Prediction = self.engine.predict(
            self.prepared, question, self.history, **options
        )
        self._remember(prediction)
        return prediction

    def stream(self, question: str, **options: Any) -> Iterator[str | Segment | Prediction]:
        """As :meth:`ask`, piece by piece; see :meth:`pixellm.engine.Engine.stream`.

        The turn counts once its Prediction, the last item, was handed out.
        """
        for item in self.engine.stream(self.prepared, question, self.history, **options):
            if isinstance(item, Prediction):
                self._remember(item)
            yield item

    def _remember(self, prediction: Prediction) -> None:
        self.history.append((prediction.question, prediction.info["marked_text"]))
        self.last = prediction
