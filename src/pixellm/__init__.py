"""pixellm: answers about images in which every object named carries its mask (PixelLM).

The public names are loaded on first use, so that ``import pixellm`` is quick. The Auto classes of
transformers learn of PixelLM as soon as both packages are imported, in either order.
"""

from __future__ import annotations

import gc
import importlib
import importlib.abc
import importlib.machinery
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "load": "pixellm.engine",
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
    with _garbage_kept():
        home = importlib.import_module(_HOMES[name])
    return getattr(home, name)


@contextmanager
def _garbage_kept() -> Iterator[None]:
    """Collect no garbage inside: imports leave little, and the search is an eighth of them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)


_AUTO_MODULES = {
    "transformers.models.auto.configuration_auto": "pixellm.model.config",
    "transformers.models.auto.modeling_auto": "pixellm.model.modeling",
    "transformers.models.auto.image_processing_auto": "pixellm.processing.image",
    "transformers.models.auto.processing_auto": "pixellm.processing.processor",
}
"""Module of transformers -> the module here that registers its classes with it when imported."""


class _RegisterAfterImport(importlib.abc.MetaPathFinder):
    """Lets transformers load its Auto modules as ever, then registers PixelLM with them.

    Importing transformers here instead would cost every ``pixellm --help`` a second.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find one of the Auto modules with the finders behind this one."""
        if fullname not in _AUTO_MODULES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            importlib.import_module(_AUTO_MODULES[fullname])

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


_NOTES_ON_TORCHAO = {"torchao": "Failed to load", "torch.utils._pytree": "is an Enum subclass"}
"""Logger -> words of its notes that concern nobody here: kernels for other machines, and how
torchao registers its types. transformers imports torchao, where it is installed, for all models."""


def _without_notes(logger: str, words: str) -> None:
    logging.getLogger(logger).addFilter(lambda record: words not in str(record.msg))


for _logger, _words in _NOTES_ON_TORCHAO.items():
    _without_notes(_logger, _words)

for _module, _home in _AUTO_MODULES.items():
    if _module in sys.modules:
        importlib.import_module(_home)
sys.meta_path.insert(0, _RegisterAfterImport())
