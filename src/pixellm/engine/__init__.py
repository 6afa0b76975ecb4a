"""The engine: images and questions in, Predictions out.

``engine`` answers requests, ``images`` encodes each image once, ``answers`` builds prompts and
turns answers into text and masks, ``loading`` finds models and devices; ``jobs`` puts many
questions into one file. Names are loaded on first use, since jobs and dialogues need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pixellm.engine.chat import ChatSession
    from pixellm.engine.engine import MAX_NEW_TOKENS, Engine
    from pixellm.engine.loading import load, model_dtype, pick_device, pick_dtype
    from pixellm.engine.sampling import AnswerOptions

_HOMES = {
    "MAX_NEW_TOKENS": "pixellm.engine.engine",
    "AnswerOptions": "pixellm.engine.sampling",
    "ChatSession": "pixellm.engine.chat",
    "Engine": "pixellm.engine.engine",
    "load": "pixellm.engine.loading",
    "model_dtype": "pixellm.engine.loading",
    "pick_device": "pixellm.engine.loading",
    "pick_dtype": "pixellm.engine.loading",
}

__all__ = [
    "MAX_NEW_TOKENS",
    "AnswerOptions",
    "ChatSession",
    "Engine",
    "load",
    "model_dtype",
    "pick_device",
    "pick_dtype",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home."""
    if name not in _HOMES:
        raise AttributeError(f"module 'pixellm.engine' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
