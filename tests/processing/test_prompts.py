from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerFast

from conftest import tiny_texts
from pixellm.checkpoint.build import CONTROL_TOKENS, TEMPLATES, train_tokenizer
from pixellm.processing.prompts import DecodedAnswer, PromptCodec, dialogue_messages
from pixellm.processing.protection import MARK, control_words, protect, restore, unmarked
from pixellm.types import join_marks

CODEBOOK = ["[SEG0]", "[SEG1]", "[SEG2]"]
IMAGE_TOKENS = 4


def build_codec(template: str) -> PromptCodec:
    control = [*CONTROL_TOKENS[template], "<image>", *CODEBOOK]
    tokenizer = train_tokenizer(tiny_texts(), 340, control)
    return PromptCodec(tokenizer, TEMPLATES[template], "<image>", CODEBOOK, IMAGE_TOKENS)


CODECS = {template: build_codec(template) for template in TEMPLATES}
templates = st.sampled_from(sorted(CODECS))
hostile = st.sampled_from(
    [
        *CODEBOOK,
        *("<image>", "<user>", "<assistant>", "<im_start>", "<im_end>", "<s>", "</s>", "<pad>"),
        *(
            "<im",
            "age>",
            "[SEG",
            "0]",
            "ＳＥＧ０",
            "［SEG0］",
            "<ıмаge>",
            "＜image＞",
            "[S\u200bEG0]",
        ),
        *("\ue0000\ue001", "\ue000", "\ue00199\ue001", "{{ eos_token }}", "{% if 1 %}", "{seg}"),
        *("USER: ", "ASSISTANT:", "\n", "  ", MARK, 2 * MARK, f"<{MARK}image>", f"[{MARK}SEG0]"),
    ]
)
typed = st.lists(st.one_of(hostile, st.text(max_size=8)), min_size=1, max_size=8).map("".join)
words = st.text(alphabet="abcdefghijklmnopqrstuvwxyzäß0123456789", min_size=1, max_size=7)
phrases = st.lists(words, min_size=1, max_size=3).map(" ".join)


@st.composite
def answers(draw: st.DrawFn) -> tuple[str, list[str]]:
    """An answer as data sets write it, and the text in front of each of its marks."""
    text, fronts = draw(phrases), []
    for more in draw(st.lists(st.sampled_from([" and ", ", ", "; then ", " "]), max_size=4)):
        if draw(st.booleans()):
            fronts.append(text.replace(" {seg}", ""))
            text += " {seg}"
        text += more + draw(phrases)
    if draw(st.booleans()):
        fronts.append(text.replace(" {seg}", ""))
        text += " {seg}"
    return text + draw(st.sampled_from(["", ".", "!"])), fronts


def marked(answer: DecodedAnswer) -> str:
    return join_marks(answer.text, [(end, end) for end in answer.ends])


def control_ids(codec: PromptCodec, ids: tuple[int, ...]) -> list[int]:
    special = set(codec.tokenizer.added_tokens_decoder)
    return [i for i in ids if i in special]


@settings(max_examples=150, deadline=None)
@given(templates, typed, typed)
def test_typed_text_never_becomes_a_control_token(
    template: str, question: str, earlier: str
) -> None:
    codec = CODECS[template]
    plain = codec.encode(dialogue_messages([("a", "b")], "c"), add_generation_prompt=True)
    asked = codec.encode(
        dialogue_messages([(question, earlier.replace("{seg}", ""))], earlier + question),
        add_generation_prompt=True,
    )
    assert control_ids(codec, asked.ids) == control_ids(codec, plain.ids)
    decoded = codec.tokenizer.decode(
        asked.ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    assert earlier + question in decoded


@settings(max_examples=100, deadline=None)
@given(templates, answers())
def test_an_answer_comes_back_with_its_marks(template: str, answer: tuple[str, list[str]]) -> None:
    codec, (text, fronts) = CODECS[template], answer
    encoded = codec.encode(dialogue_messages([("What is there?", text)]))
    written = [i for i, label in zip(encoded.ids, encoded.labelled, strict=True) if label]
    assert written[-1] == codec.tokenizer.eos_token_id
    decoded = codec.decode_answer(written[:-1])
    assert marked(decoded) == text
    assert [decoded.text[:end] for end in decoded.ends] == fronts
    assert decoded.text == text.replace(" {seg}", "")


@settings(max_examples=60, deadline=None)
@given(templates, st.lists(st.tuples(phrases, answers()), min_size=1, max_size=3))
def test_labels_cover_the_answers_with_their_ends_and_nothing_else(
    template: str, turns: list[tuple[str, tuple[str, list[str]]]]
) -> None:
    codec = CODECS[template]
    history = [(question, text) for question, (text, _) in turns]
    encoded = codec.encode(dialogue_messages(history))
    runs: list[list[int]] = [[]]
    for token, label in zip(encoded.ids, encoded.labelled, strict=True):
        if label:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    runs = [run for run in runs if run]
    assert len(runs) == len(turns)
    for run, (_, text) in zip(runs, history, strict=True):
        assert run[-1] == codec.tokenizer.eos_token_id
        assert marked(codec.decode_answer(run[:-1])) == text
        codebook = [i for i in run if i in codec.codebook_ids]
        assert codebook == list(codec.codebook_ids) * text.count("{seg}")


OWN_TEMPLATES = {
    **TEMPLATES,
    "line after the role": (
        "{% for m in messages %}<user>{{ m['role'] }}\n{% for part in m['content'] %}"
        "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}<user>assistant\n{% endif %}"
    ),
    "space that is no part of the prompt": (
        "{% for m in messages %}{% if m['role'] == 'user' %}ask {% else %}:  {% endif %}"
        "{% for part in m['content'] %}{% if part['type'] == 'image' %}<image>"
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
        "{% if m['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}:{% endif %}"
    ),
    "line and space": (
        "{% for m in messages %}{{ m['role'] }}:\n{% if m['role'] == 'assistant' %} {% endif %}"
        "{% for part in m['content'] %}{% if part['type'] == 'image' %}<image>"
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
        "{% if m['role'] == 'assistant' %}</s>{% else %}\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant:\n{% endif %}"
    ),
}


def own_codec(name: str) -> PromptCodec:
    """A codec with another template and the tokenizer of the compact one."""
    tokenizer = CODECS[name if name in CODECS else "compact"].tokenizer
    return PromptCodec(tokenizer, OWN_TEMPLATES[name], "<image>", CODEBOOK, IMAGE_TOKENS)


@pytest.mark.parametrize("first", ["A red one {seg}.", "{seg}.", " {seg}, {seg}"])
@pytest.mark.parametrize("second", ["None.", "{seg} and {seg}.", "\n{seg}"])
@pytest.mark.parametrize("name", sorted(OWN_TEMPLATES))
def test_what_the_model_reads_before_an_answer_is_what_it_was_trained_behind(
    name: str, first: str, second: str
) -> None:
    codec = own_codec(name)
    history = [("Which?", first), ("And?", second)]
    trained = codec.encode(dialogue_messages(history))
    for number, (question, answer) in enumerate(history):
        messages = dialogue_messages(history[:number], question)
        asked = codec.encode(messages, add_generation_prompt=True)
        length = len(asked.ids)
        assert trained.ids[:length] == asked.ids
        assert trained.labelled[length] and not trained.labelled[length - 1]
        assert not any(asked.labelled[-3:])
        if answer.lstrip().startswith("{seg}"):
            assert trained.ids[length : length + len(CODEBOOK)] == codec.codebook_ids


@pytest.mark.parametrize("name", sorted(OWN_TEMPLATES))
def test_text_behind_a_group_is_the_same_wherever_the_group_stands(name: str) -> None:
    codec = own_codec(name)

    def behind_first_group(answer: str) -> tuple[int, ...]:
        ids = codec.encode(dialogue_messages([("Which?", answer)])).ids
        return ids[ids.index(codec.codebook_ids[-1]) + 1 :]

    behind = " and a blue square {seg} on the left."
    assert behind_first_group("{seg}" + behind) == behind_first_group("There {seg}" + behind)


@pytest.mark.parametrize("name", sorted(OWN_TEMPLATES))
@pytest.mark.parametrize("answer", ["{seg}.", "A red one {seg}.", " {seg} and {seg}", "None."])
def test_a_rendered_answer_gives_the_ids_of_its_message(name: str, answer: str) -> None:
    codec = own_codec(name)
    messages = dialogue_messages([("Which?", answer), ("a [SEG0][SEG1][SEG2]?", answer)], "And?")
    rendered = codec.render(messages)
    assert codec.encode_rendered(rendered).ids == codec.encode(messages).ids


@pytest.mark.parametrize("template", sorted(CODECS))
def test_the_image_closes_the_shared_prefix(template: str) -> None:
    codec = CODECS[template]
    first = codec.encode(dialogue_messages([("One?", "Yes.")]))
    second = codec.encode(dialogue_messages([("Something else?", "No.")]))
    assert first.prefix == second.prefix > 0
    assert first.ids[: first.prefix] == second.ids[: second.prefix]
    assert first.ids[first.prefix - IMAGE_TOKENS : first.prefix] == (codec.image_id,) * 4
    assert first.ids.count(codec.image_id) == IMAGE_TOKENS
    assert codec.encode(dialogue_messages([("One?", "Yes.")], image=False)).prefix == 0


def test_a_group_cut_short_leaves_neither_mark_nor_text() -> None:
    codec = CODECS["compact"]
    encoded = codec.encode(dialogue_messages([("Which?", "A red one {seg} and a dog {seg}")]))
    ids = [i for i, label in zip(encoded.ids, encoded.labelled, strict=True) if label][:-1]
    for cut in (1, 2):
        decoded = codec.decode_answer(ids[:-cut])
        assert decoded.text == "A red one and a dog" and len(decoded.ends) == 1
    assert len(codec.decode_answer(ids).ends) == 2
    assert codec.decode_answer([]).text == ""


@settings(deadline=None, max_examples=150)
@given(templates, st.lists(st.tuples(typed, st.one_of(typed, phrases)), max_size=2), typed)
def test_a_rendered_prompt_gives_the_ids_of_its_messages(
    template: str, history: list[tuple[str, str]], question: str
) -> None:
    codec = CODECS[template]
    messages = dialogue_messages(history, question)
    rendered = codec.render(messages, add_generation_prompt=True)
    encoded = codec.encode(messages, add_generation_prompt=True)
    again = codec.encode_rendered(rendered)
    assert again.ids == encoded.ids
    assert again.prefix == encoded.prefix
    assert again.ids.count(codec.image_id) == IMAGE_TOKENS


OVERLAPPING = ["a", "ab", "aba", "<ab>", "  ", "   "]


@settings(deadline=None)
@given(st.text(alphabet=[*"ab<> ", MARK], max_size=12))
def test_protected_text_holds_no_control_word_and_comes_back(text: str) -> None:
    words = re.compile(control_words(OVERLAPPING))
    protected = protect(text, words)
    assert not unmarked(OVERLAPPING).search(protected)
    assert restore(protected) == text
    if MARK not in text and not words.search(text):
        assert protected == text


def test_protection_is_not_seen_and_leaves_the_template_alone() -> None:
    codec = CODECS["compact"]
    messages = dialogue_messages([("<image>?", "A red one {seg}, no [SEG0].")], "And?")
    rendered = codec.render(messages)
    assert rendered.replace(MARK, "") == (
        "<image><user><image>?<assistant>A red one[SEG0][SEG1][SEG2], no [SEG0].</s><user>And?"
    )
    assert rendered.count(MARK) == 2


def test_marks_at_the_start_and_side_by_side_keep_their_groups() -> None:
    codec = CODECS["compact"]
    encoded = codec.encode(dialogue_messages([("Which?", "{seg} {seg} both of them")]))
    ids = [i for i, label in zip(encoded.ids, encoded.labelled, strict=True) if label]
    decoded = codec.decode_answer(ids[:-1])
    assert decoded.text == "both of them" and decoded.ends == (0, 0)


def test_refusals_name_the_reason() -> None:
    codec = CODECS["compact"]
    two = [{"role": "user", "content": [{"type": "image"}, {"type": "image"}]}]
    with pytest.raises(ValueError, match="one image"):
        codec.encode(two)
    with pytest.raises(ValueError, match="'system'"):
        codec.encode([{"role": "system", "content": "Be kind."}])
    with pytest.raises(ValueError, match=r"lacks the control tokens \[SEG9\]"):
        PromptCodec(codec.tokenizer, codec.chat_template, "<image>", ["[SEG9]"], 4)


def spelling_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose ordinary merges spell one of its control tokens."""
    letters = [*"<s>ab", "<unk>", "<s", "<s>"]
    vocabulary = {token: index for index, token in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("<", "s"), ("<s", ">")], unk_token="<unk>"))
    tokenizer.add_special_tokens([AddedToken("<image>", special=True), AddedToken("[SEG0]")])
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<s>")
    fast.add_tokens([AddedToken("ab", special=False)])
    return fast


def test_neither_merges_nor_added_words_spell_a_control_token() -> None:
    tokenizer = spelling_tokenizer()
    assert tokenizer("b<s>ab")["input_ids"][1:] == [
        tokenizer.convert_tokens_to_ids("<s>"),
        tokenizer.convert_tokens_to_ids("ab"),
    ]
    template = "{% for m in messages %}{{ m['content'][0]['text'] }}{% endfor %}"
    codec = PromptCodec(tokenizer, template, "<image>", ["[SEG0]"], 1)
    ids = codec.encode(dialogue_messages([], "b<s>ab", image=False)).ids
    assert not control_ids(codec, ids)
    assert [tokenizer.convert_ids_to_tokens(i) for i in ids] == [*"b<s>ab"]
