"""Tells transformers' Auto classes about PixelLM's processors; see ``pixellm.__init__``."""

from __future__ import annotations


def register_image_processor() -> None:
    """``AutoImageProcessor`` finds the image processor."""
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    from pixellm.model.config import PixelLMConfig
    from pixellm.processing.image import PixelLMImageProcessor

    AutoImageProcessor.register(
        PixelLMConfig, slow_image_processor_class=PixelLMImageProcessor, exist_ok=True
    )


def register_processor() -> None:
    """``AutoProcessor`` finds the processor."""
    from transformers.models.auto.processing_auto import AutoProcessor

    from pixellm.model.config import PixelLMConfig
    from pixellm.processing.processor import PixelLMProcessor

    AutoProcessor.register(PixelLMConfig, PixelLMProcessor, exist_ok=True)
