"""Families of language models keep what is their own: heads, scales, caps, windows, positions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from conftest import square_sample, tiny_parts, tiny_texts
from measuring.family_configs import TEXT_FAMILIES
from pixellm.checkpoint.adapters import Adapters, attach_adapters, fold_adapters, merged_state
from pixellm.checkpoint.build import build_model
from pixellm.checkpoint.export import build_language_model
from pixellm.checkpoint.parts import LoraShape
from pixellm.data.collate import Collator
from pixellm.model.config import PixelLMConfig
from pixellm.model.modeling import PixelLMForConditionalGeneration
from pixellm.types import Sample


def build(family: str, **values: Any) -> Any:
    """An untrained model of a family, every weight moved from where families start it."""
    torch.manual_seed(0)
    parts = tiny_parts()
    parts["text"] = {"config": {"model_type": family, **TEXT_FAMILIES[family], **values}}
    model, processor = build_model(parts, tiny_texts())
    with torch.no_grad():
        for parameter in [*model.model.language_model.parameters(), *model.lm_head.parameters()]:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval(), processor


def plain_ids() -> Any:
    return torch.randint(20, 300, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", ["phi", "gptj", "granite", "cohere", "gemma2", "opt", "mixtral"])
@torch.no_grad()
def test_logits_on_text_are_those_of_the_familys_own_model(family: str) -> None:
    model, _ = build(family)
    own = build_language_model(model)
    assert torch.equal(model(plain_ids()).logits, own(plain_ids()).logits)


PACKED = ["mistral", "phi3", "qwen2", "gemma2", "gemma3_text", "gpt_neo", "bloom", "mamba", "olmo"]


@pytest.mark.parametrize("family", PACKED)
@torch.no_grad()
def test_a_dialogue_reads_the_same_packed_and_alone(family: str) -> None:
    model, processor = build(family)
    sample = square_sample()
    dialogues = [Sample(sample.image, sample.size, (turn,), turn.question) for turn in sample.turns]
    dialogues.append(sample)
    collate = Collator(processor, mask_size=16)
    packed, separate = collate([dialogues]), collate([[dialogue] for dialogue in dialogues])
    together, alone = (
        model(**{name: value for name, value in batch.items() if name != "sample_ids"})
        for batch in (packed, separate)
    )
    for number in range(len(dialogues)):
        here = packed["dialogue_ids"][0] == number + 1
        there = separate["dialogue_ids"][number] == 1
        torch.testing.assert_close(
            together.hidden_states[0, here], alone.hidden_states[number, there]
        )
        # Without dialogue ids the family's own mask is made: what is asked in one turn sees it.
        visible = separate["attention_mask"][number : number + 1].bool()
        length = int(visible.nonzero()[-1, 1]) + 1
        encoded, _ = model.model.encode_images(
            separate["pixel_values"][number : number + 1],
            separate["pixel_mask"][number : number + 1],
        )
        plain = model.model(
            separate["input_ids"][number : number + 1, :length], encoded.tokens, visible[:, :length]
        )
        torch.testing.assert_close(
            plain.last_hidden_state[0, there[:length]], alone.hidden_states[number, there]
        )


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3_text", "xglm", "phi"])
@torch.no_grad()
def test_token_rows_of_their_own_keep_the_familys_scale_and_bias(family: str) -> None:
    model, _ = build(family)
    before = model(plain_ids()).logits
    ids = tuple(range(20, 60))
    lora = LoraShape(rank=2, alpha=8.0, dropout=0.0, target_modules=("all-linear",))
    attach_adapters(model, Adapters(lora, ids))
    torch.testing.assert_close(model(plain_ids()).logits, before)
    table, head = model.get_input_embeddings(), model.lm_head
    for rows in {table.rows, head.rows}:
        rows.add_(torch.randn_like(rows), alpha=0.1)
    moved = model(plain_ids()).logits
    assert not torch.allclose(moved, before)
    state = merged_state(model)
    fold_adapters(model)
    torch.testing.assert_close(model(plain_ids()).logits, moved)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


SMALL_BERT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "bert", "is_decoder": True, **SMALL_BERT}, "weights between"),
        ({"model_type": "t5"}, "no causal language model"),
        ({"model_type": "opt", **TEXT_FAMILIES["opt"], "word_embed_proj_dim": 16}, "16 wide"),
    ],
)
def test_language_models_that_cannot_write_answers_are_refused(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        PixelLMForConditionalGeneration(PixelLMConfig(text_config=values))
