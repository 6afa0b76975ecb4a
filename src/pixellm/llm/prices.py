"""What replies cost: a table of known models, in USD per million tokens."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from importlib import resources

from pixellm.llm.client import Reply, is_local


@dataclass(frozen=True, slots=True)
class Price:
    """USD per million tokens."""

    input: float
    output: float

    def of(self, reply: Reply, factor: float = 1.0) -> float:
        """What a reply cost in USD; ``factor`` 0.5 for the Batch API."""
        tokens = self.input * reply.input_tokens + self.output * reply.output_tokens
        return factor * tokens / 1e6


def read_price(text: str) -> Price | None:
    """``INPUT,OUTPUT`` in USD per million tokens, as typed; None for "", ValueError for others."""
    if not text:
        return None
    try:
        given, written = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"--price is INPUT,OUTPUT in USD, such as 0.15,0.6, not {text!r}."
        ) from None
    if not (0 <= given < math.inf and 0 <= written < math.inf):
        raise ValueError(f"A price is 0 USD or more per million tokens, not {text}.")
    return Price(given, written)


def price_of(model: str, base_url: str | None) -> Price:
    """The price of a model in ``prices.json``, ValueError without; local servers are free."""
    if base_url and is_local(base_url):
        return Price(0.0, 0.0)
    table = json.loads(resources.files("pixellm.llm").joinpath("prices.json").read_text("utf-8"))
    if model not in table["models"]:
        raise ValueError(
            f"The price of {model!r} is not known, so its cost can't be capped; give it as "
            "--price INPUT,OUTPUT in USD per million tokens (0,0 if it is free)."
        )
    return Price(*table["models"][model])
