"""Where the time of an answer goes: encoding, reading the prompt, writing, masks.

Watches a model's parts from outside, so that the engine under it runs as ever.
"""

from __future__ import annotations

import time
from typing import Any, Self

from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils.hooks import RemovableHandle

from measuring.machine import wait_for
from pixellm.model.llama_steps import LlamaSteps
from pixellm.model.modeling import PixelLMForConditionalGeneration

PHASES = ("encode", "prefill", "decode", "masks")


class PhaseClock:
    """Adds up the seconds of a model's parts while the context is open.

    ``encode`` is the vision tower and the projection into the language model, ``prefill`` every
    pass of that over more ids than a codebook group has, ``decode`` the others and the head,
    ``masks`` the projection into the decoder, the codebook and the pixel decoder, without the
    resizing of masks.

    Attributes:
        seconds: by the name of the phase.
        steps: passes of the language model that count as ``decode``.
    """

    def __init__(self, model: PixelLMForConditionalGeneration) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.steps = 0
        self._model = model
        self._started: dict[nn.Module, float] = {}
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        parts = self._model.model
        watched = {
            "encode": (parts.vision_tower, parts.image_projector),
            "text": (parts.language_model,),
            "decode": (self._model.lm_head,),
            "masks": (parts.feature_projector, parts.codebook, parts.pixel_decoder),
        }
        for phase, modules in watched.items():
            for module in modules:
                self._watch(module, phase)
        self._watch_steps()
        return self

    def __exit__(self, *raised: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _watch(self, module: nn.Module, phase: str) -> None:
        device = self._model.device

        def start(module: nn.Module, inputs: Any) -> None:
            wait_for(device)
            self._started[module] = time.perf_counter()

        def stop(module: nn.Module, inputs: Any, options: dict[str, Any], output: Any) -> None:
            wait_for(device)
            seconds = time.perf_counter() - self._started.pop(module)
            name = self._text_phase(options) if phase == "text" else phase
            self.seconds[name] += seconds

        self._hooks.append(module.register_forward_pre_hook(start))
        self._hooks.append(module.register_forward_hook(stop, with_kwargs=True))

    def _watch_steps(self) -> None:
        """Time steps that go past the family's own layers, whichever module makes them."""

        def start(module: nn.Module, inputs: Any) -> None:
            if isinstance(module, LlamaSteps):
                self._started[module] = time.perf_counter()

        def stop(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(module, LlamaSteps):
                self.seconds["decode"] += time.perf_counter() - self._started.pop(module)
                self.steps += 1

        self._hooks.append(register_module_forward_pre_hook(start))
        self._hooks.append(register_module_forward_hook(stop))

    def _text_phase(self, options: dict[str, Any]) -> str:
        if options["inputs_embeds"].shape[1] > self._model.config.group_size:
            return "prefill"
        self.steps += 1
        return "decode"
