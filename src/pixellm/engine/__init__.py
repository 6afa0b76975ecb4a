"""The engine: images and questions in, Predictions out.

``engine`` answers requests, ``images`` encodes each image once, ``answers`` builds prompts and
turns answers into text and masks, ``loading`` finds models and devices. The package knows models
and processors; it knows no files but images, no terminal and no network.
"""

from pixellm.engine.chat import ChatSession
from pixellm.engine.engine import MAX_NEW_TOKENS, Engine
from pixellm.engine.loading import load, model_dtype, pick_device, pick_dtype
from pixellm.engine.sampling import AnswerOptions

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
