"""pixellm: answers about images in which every object named carries its mask (PixelLM).

The public names are loaded on first use, so that ``import pixellm`` is quick. ``import
pixellm.auto`` makes the Auto classes of transformers know PixelLM. Imported before torch, this
package bounds how long torch's waiting threads spin; see :mod:`pixellm.threads`.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from pixellm.threads import bound_spinning

__version__ = "0.2.0"

_HOMES = {
    "load": "pixellm.engine",
    "Answer": "pixellm.answer",
    "Engine": "pixellm.engine",
    "example_image": "pixellm.image_files",
    "Prediction": "pixellm.types",
    "Request": "pixellm.types",
    "Sample": "pixellm.types",
    "Segment": "pixellm.types",
    "Target": "pixellm.types",
    "Turn": "pixellm.types",
    "MuseScorer": "pixellm.evaluation.metrics",
    "PixelLMConfig": "pixellm.model.config",
    "PixelLMModel": "pixellm.model.modeling",
    "PixelLMForConditionalGeneration": "pixellm.model.modeling",
    "PixelLMProcessor": "pixellm.processing.processor",
}
__all__ = [
    "Answer",
    "Engine",
    "MuseScorer",
    "PixelLMConfig",
    "PixelLMForConditionalGeneration",
    "PixelLMModel",
    "PixelLMProcessor",
    "Prediction",
    "Request",
    "Sample",
    "Segment",
    "Target",
    "Turn",
    "__version__",
    "example_image",
    "load",
]

if TYPE_CHECKING:
    from pixellm.answer import Answer
    from pixellm.engine import Engine, load
    from pixellm.evaluation.metrics import MuseScorer
    from pixellm.image_files import example_image
    from pixellm.model.config import PixelLMConfig
    from pixellm.model.modeling import PixelLMForConditionalGeneration, PixelLMModel
    from pixellm.processing.processor import PixelLMProcessor
    from pixellm.types import Prediction, Request, Sample, Segment, Target, Turn


def __getattr__(name: str) -> Any:
    """Import a public name from its home."""
    if name not in _HOMES:
        raise AttributeError(f"module 'pixellm' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)


_NOTES_ON_TORCHAO = {"torchao": "Failed to load", "torch.utils._pytree": "is an Enum subclass"}
"""Logger -> words of its notes that concern nobody here: kernels for other machines, and how
torchao registers its types. transformers imports torchao, where it is installed, for all models."""


def _without_notes(logger: str, words: str) -> None:
    logging.getLogger(logger).addFilter(lambda record: words not in str(record.msg))


for _logger, _words in _NOTES_ON_TORCHAO.items():
    _without_notes(_logger, _words)

bound_spinning()
