"""Models by name: what they are, where the hub has them, what they need and know.

A table and arithmetic. Knows no weights, no network and no cache; :mod:`pixellm.checkpoint.sources`
looks up what is here.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

CLIP_TOWER = "openai/clip-vit-large-patch14-336"
"""Hub id of the vision tower that the released models leave out."""

PRECISIONS = ("32 bit", "16 bit", "8 bit", "4 bit")

_BYTES = {"32 bit": 4.0, "16 bit": 2.0, "8 bit": 1.0, "4 bit": 0.5 + 2 / 32}
"""Of a rounded weight; 4 bits have a 16-bit scale for each 32 weights."""


@dataclass(frozen=True, slots=True)
class PublishedModel:
    """A model that goes by a name.

    Attributes:
        linear: those in the language model's linear layers, which 8 and 4 bits round.
        always_float32: those that keep 32 bits beside 16-bit ones.
        hub_id: where it is published; "" inside the package.
        tower: hub id of a vision tower that it needs beside its own files.
    """

    name: str
    parameters: int
    linear: int
    always_float32: int
    licence: str
    knows: str
    hub_id: str = ""
    folder: str = ""
    tower: str = ""

    def memory(self, precision: str) -> int:
        """Bytes of the weights alone in one of :data:`PRECISIONS`."""
        if precision == "32 bit":
            return self.parameters * 4
        rest = self.parameters - self.linear
        return round(2 * rest + 2 * self.always_float32 + _BYTES[precision] * self.linear)


def _linear_parameters(layers: int, width: int, inner: int) -> int:
    """Weights in the linear layers of a LLaMA: four projections of attention, three of the MLP."""
    return layers * (4 * width * width + 3 * width * inner)


_LLAMA = "LLaMA's terms (the code is Apache-2.0)"

PUBLISHED = (
    PublishedModel(
        "nano",
        6_506_126,
        4_587_520,
        0,
        "Apache-2.0",
        "photos of 80 everyday things, in English; for trying and testing",
    ),
    PublishedModel(
        "nano-scenes",
        7_685_306,
        3_932_160,
        0,
        "Apache-2.0",
        "drawn sticker scenes with 289 things, and nothing else",
    ),
    PublishedModel(
        "pixellm-7b",
        7_150_000_000,
        _linear_parameters(32, 4096, 11008),
        68_000_000,
        _LLAMA,
        "photos of whatever can be named, with reasoning; PixelLM-7B",
        "maverickrzw/PixelLM-7B",
        "hf_model",
        CLIP_TOWER,
    ),
    PublishedModel(
        "pixellm-13b",
        13_480_000_000,
        _linear_parameters(40, 5120, 13824),
        99_000_000,
        _LLAMA,
        "the same, with more of it; PixelLM-13B",
        "maverickrzw/PixelLM-13B",
        "hf_model",
        CLIP_TOWER,
    ),
)
"""Counts of the released models as `benchmarks/weights_memory.py` prints them."""


def find_published(name: str) -> PublishedModel | None:
    """The model of a name; None where there is none."""
    return next((model for model in PUBLISHED if model.name == name), None)


def is_hub_id(name: str) -> bool:
    """Whether a name is shaped like ``owner/name`` rather than like a path."""
    return name.count("/") == 1 and not name.startswith((".", "~", "/"))


def near_names(name: str) -> list[str]:
    """Names of models that a wrong one may mean, the nearest first; all where none is near."""
    names = [model.name for model in PUBLISHED]
    wanted = name.casefold().replace("_", "-").rpartition("/")[2]
    return difflib.get_close_matches(wanted, names, n=3, cutoff=0.5) or names


def readable_size(num_bytes: int) -> str:
    """Bytes in MB or GB (10^6, 10^9), as a table shows them."""
    if num_bytes < 1e9:
        return f"{num_bytes / 1e6:.0f} MB"
    return f"{num_bytes / 1e9:.1f} GB"
