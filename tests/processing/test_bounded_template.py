"""Chat templates are foreign programs: one that would not end, or fill the memory, is stopped."""

import sys
from typing import Any

import pytest
from jinja2 import TemplateError

from pixellm.engine import Engine
from pixellm.processing.bounded_template import MAX_TEXT, TemplateBoundsError, render_template
from pixellm.processing.processor import PixelLMProcessor

MESSAGES = [{"role": "user", "content": [{"type": "text", "text": "Where is the cup?"}]}]
HOSTILE = {
    "nested loops": "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    "a macro that calls itself twice": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}"
    "{% endif %}{% endmacro %}{{ m(60) }}",
    "a product of texts": "{{ 'a' * 9999 }}",
    "a power": "{{ 10 ** 9999 }}",
    "a large range": "{% for a in range(99999999) %}{% endfor %}",
    "a wide field": "{{ '%99999999d' % 1 }}",
    "a text that doubles": "{% set n = namespace(t='aaaaaaaa') %}{% for a in range(60) %}"
    "{% set n.t = n.t + n.t %}{% endfor %}",
    "a variable that doubles": "{% for a in range(2) %}{% set t = 'a' %}"
    + "{% set t = t ~ t %}" * 60
    + "{% endfor %}",
    "too long": "a" * (MAX_TEXT + 1),
}


@pytest.fixture(scope="module")
def processor(tiny_engine: Engine) -> PixelLMProcessor:
    return tiny_engine.processor


@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE)
def test_a_template_beyond_the_bounds_is_stopped(
    processor: PixelLMProcessor, template: str
) -> None:
    before = sys.gettrace()
    with pytest.raises(TemplateBoundsError):
        render_template(processor.tokenizer, MESSAGES, template, True)
    assert sys.gettrace() is before
    with pytest.raises(ValueError, match="chat template"):
        processor.apply_chat_template(MESSAGES, chat_template=template)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.role ~ ': ' ~ m.content[0].text }}{% endfor %}",
        "{% for m in messages %}{% generation %}{{ m.content[0].text }}{% endgeneration %}"
        "{% if loop.last %}{% break %}{% endif %}{% endfor %}",
        "{% set n = namespace(t='') %}{% for m in messages %}{% set n.t = n.t + m.role %}"
        "{% endfor %}{{ n.t }}{{ strftime_now('%d') | length }}",
    ],
)
def test_what_templates_usually_do_is_within_the_bounds(
    processor: PixelLMProcessor, template: str
) -> None:
    rendered = render_template(processor.tokenizer, MESSAGES, template, False)
    assert "cup" in rendered or "user" in rendered


def test_a_long_dialogue_is_within_the_bounds(processor: PixelLMProcessor) -> None:
    turn: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": "Where is the cup? " * 500}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Here. " * 500}]},
    ]
    rendered = render_template(processor.tokenizer, turn * 40, processor.chat_template, False)
    assert rendered.count("Where is the cup?") == 20_000


def test_a_template_that_is_none_is_told(processor: PixelLMProcessor) -> None:
    with pytest.raises(TemplateError):
        render_template(processor.tokenizer, MESSAGES, "{% for %}", True)
