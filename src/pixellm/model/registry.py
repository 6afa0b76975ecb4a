"""Tells transformers' Auto classes about PixelLM's configuration and models.

Called once each, when transformers' own Auto modules are imported; see ``pixellm.__init__``.
"""

from __future__ import annotations


def register_config() -> None:
    """``AutoConfig`` reads ``model_type: pixellm``."""
    from transformers.models.auto.configuration_auto import AutoConfig

    from pixellm.model.config import PixelLMConfig

    AutoConfig.register(PixelLMConfig.model_type, PixelLMConfig, exist_ok=True)


def register_models() -> None:
    """``AutoModel`` and ``AutoModelForImageTextToText`` build PixelLM."""
    from transformers.models.auto.modeling_auto import AutoModel, AutoModelForImageTextToText

    from pixellm.model.config import PixelLMConfig
    from pixellm.model.modeling import PixelLMForConditionalGeneration, PixelLMModel

    AutoModel.register(PixelLMConfig, PixelLMModel, exist_ok=True)
    AutoModelForImageTextToText.register(
        PixelLMConfig, PixelLMForConditionalGeneration, exist_ok=True
    )
