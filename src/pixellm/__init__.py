"""pixellm: answers about pictures in which every object named carries its mask (PixelLM).

The public names are loaded on first use, so that ``import pixellm`` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "load": "pixellm.engine",
    "Engine": "pixellm.engine",
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
__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from pixellm.engine import Engine, load
    from pixellm.evaluation.metrics import MuseScorer
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
