"""The shape of a YOLOX encoder, as a transformers configuration.

Apart from the encoder, so that a PixelLM's configuration can be read without any network.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

_LARGEST_SHARE = 2


class YoloxConfig(PreTrainedConfig):
    """Shape of a :class:`YoloxModel`.

    Attributes:
        base_channels: width of the stem; every stage doubles it.
        base_depth: bottlenecks of the first stage; the two next have three times as many.
        head_channels: width of the detection head.
        num_classes: classes that the head tells apart.
        pixel_offset: added to what comes in, so that the padding, 0, becomes the grey that the
            detector was trained with.
        image_size: side of the usual canvas in pixels.
        extra_sizes: sizes, as shares of the canvas above 0 and up to 2, at which the detector
            reads it once more: instances that fill a large canvas are found better on a smaller
            one, of the size that the detector was trained at.
        class_names: what the classes are called, where that is known.
    """

    model_type = "yolox"

    base_channels: int = 16
    base_depth: int = 1
    head_channels: int = 64
    num_classes: int = 80
    pixel_offset: float = 114.0
    image_size: int = 416
    extra_sizes: list[float] = field(default_factory=list)
    class_names: list[str] = field(default_factory=list)

    def __post_init__(self, **kwargs: Any) -> None:
        """Refuse sizes that no canvas can have."""
        self.extra_sizes = list(self.extra_sizes or ())
        super().__post_init__(**kwargs)
        for share in self.extra_sizes:
            if not (isinstance(share, int | float) and 0 < share <= _LARGEST_SHARE):
                raise ValueError(
                    f"extra_sizes holds {share!r}; its entries are shares of the canvas, above 0 "
                    f"and at most {_LARGEST_SHARE}."
                )

    @property
    def state_size(self) -> int:
        """Channels that an evidence map has beside classes and boxes, see :class:`YoloxHead`."""
        return 2 * self.head_channels


AutoConfig.register(YoloxConfig.model_type, YoloxConfig, exist_ok=True)
