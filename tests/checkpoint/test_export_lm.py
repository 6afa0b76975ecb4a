from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import TINY_QUESTION, tiny_parts, tiny_texts
from pixellm.checkpoint.build import build_model
from pixellm.checkpoint.export import export_language_model
from pixellm.checkpoint.io import load_model_and_processor, save_model


@pytest.fixture(scope="module")
def exported(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_language_model(tiny_model_dir, tmp_path_factory.mktemp("lm") / "model")


def test_plain_transformers_gives_the_same_logits_for_text(
    tiny_model_dir: Path, exported: Path
) -> None:
    model, processor = load_model_and_processor(tiny_model_dir)
    plain = AutoModelForCausalLM.from_pretrained(exported)
    tokenizer = AutoTokenizer.from_pretrained(exported)
    ids = tokenizer("There is a red square.", return_tensors="pt")["input_ids"]
    assert ids.tolist() == [processor.tokenizer("There is a red square.")["input_ids"]]
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, model(ids).logits)


def test_its_chat_template_writes_dialogues_without_an_image(exported: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(exported)
    messages = [{"role": "user", "content": TINY_QUESTION}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == f"<user>{TINY_QUESTION}<assistant>"


def test_free_generation_never_writes_a_codebook_token(
    tiny_model_dir: Path, exported: Path
) -> None:
    config = load_model_and_processor(tiny_model_dir)[0].config
    plain = AutoModelForCausalLM.from_pretrained(exported)
    tokenizer = AutoTokenizer.from_pretrained(exported)
    inputs = tokenizer("<user>Which squares are there?<assistant>", return_tensors="pt")
    inputs.pop("token_type_ids", None)
    written = plain.generate(**inputs, max_new_tokens=20)[0, inputs["input_ids"].shape[1] :]
    assert len(written)
    assert not {config.image_token_id, *config.codebook_token_ids} & set(written.tolist())


def test_an_untied_head_moves_too(tmp_path: Path) -> None:
    parts = tiny_parts(text={"config": {**tiny_parts()["text"]["config"]}})
    parts["text"]["config"]["tie_word_embeddings"] = False
    torch.manual_seed(0)
    model, processor = build_model(parts, tiny_texts())
    save_model(tmp_path / "model", model, processor)
    plain = AutoModelForCausalLM.from_pretrained(
        export_language_model(tmp_path / "model", tmp_path / "lm")
    )
    assert torch.equal(plain.lm_head.weight, model.lm_head.weight)
    assert not torch.equal(plain.lm_head.weight, plain.get_input_embeddings().weight)
