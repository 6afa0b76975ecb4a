"""Run a chat template, which is a program that somebody else wrote, within bounds.

transformers runs templates in Jinja's sandbox: they reach no file and no attribute of Python. They
may still run for years or fill the memory, so their steps and their texts are counted here.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import FrameType
from typing import Any

from jinja2 import Environment, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.utils import Namespace

from pixellm.processing.templates import COMPACT_TEMPLATE, VICUNA_TEMPLATE

MAX_STEPS = 100_000
"""Lines of the compiled template that one dialogue may take."""

MAX_TEXT = 64 * 1024
"""Characters that a template may hold, and that it may write beyond what the dialogue holds."""

MAX_NUMBER = 10_000
"""Largest number written in a template: nothing in a dialogue is counted to more."""

TEMPLATE_FAULTS = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What a template raises that is damaged, or does not fit a dialogue; it may be any program."""

_LONG_NUMBER = re.compile(r"\d{7,}")


class _GenerationTag(Extension):
    """transformers' own tag, ``{% generation %} ... {% endgeneration %}``, as what is inside it."""

    tags = {"generation"}  # noqa: RUF012 - as the base class has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class TemplateBoundsError(TemplateError):
    """A template goes beyond what dialogues need."""


def render_template(
    tokenizer: Any, messages: Sequence[Any], template: str, add_generation_prompt: bool
) -> str:
    """The text of a dialogue; ``tokenizer`` has the control tokens that the template may name.

    TemplateBoundsError where the template runs too long or writes too much, jinja2.TemplateError
    where it is none, or refuses the dialogue.
    """

    def render() -> str:
        return str(
            tokenizer.apply_chat_template(
                messages,
                chat_template=template,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
            )
        )

    if template in (COMPACT_TEMPLATE, VICUNA_TEMPLATE):
        return render()  # our own
    check_template(template)
    held = sum(len(str(message)) for message in messages)
    previous = sys.gettrace()
    sys.settrace(_counter(MAX_TEXT + 4 * held))
    try:
        return render()
    finally:
        sys.settrace(previous)


@lru_cache(maxsize=64)
def check_template(template: str) -> None:
    """Refuse what may fill the memory before a step is counted: products, powers, large numbers."""
    if len(template) > MAX_TEXT:
        raise TemplateBoundsError(f"is longer than {MAX_TEXT} characters")
    tree = Environment(extensions=[loopcontrols, _GenerationTag]).parse(template)
    for node in tree.find_all((nodes.Mul, nodes.Pow, nodes.Const)):
        if not isinstance(node, nodes.Const):
            raise TemplateBoundsError(f"multiplies, in line {node.lineno}")
        value = node.value
        if isinstance(value, int | float) and abs(value) > MAX_NUMBER:
            raise TemplateBoundsError(f"names the number {value}, in line {node.lineno}")
        if isinstance(value, str) and _LONG_NUMBER.search(value):
            raise TemplateBoundsError(f"holds a long number, in line {node.lineno}")


def _counter(max_text: int) -> Callable[[FrameType, str, Any], Any]:
    """A trace function that ends a template at its bounds."""
    steps = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename != "<template>":
            return None
        nonlocal steps
        steps += 1
        if steps > MAX_STEPS:
            raise TemplateBoundsError(f"takes more than {MAX_STEPS} steps")
        for value in frame.f_locals.values():
            if _length(value) > max_text:
                raise TemplateBoundsError(f"writes more than {max_text} characters")
        return trace

    return trace


def _length(value: Any) -> int:
    if isinstance(value, Namespace):
        return max((_length(one) for one in value._Namespace__attrs.values()), default=0)
    return len(value) if isinstance(value, str | list | tuple) else 0
