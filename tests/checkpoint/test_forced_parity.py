"""Given answers, labels and MUSE's questions are those of the released code, number by number.

Runs on every model that the released code was run on with the answers given;
``python benchmarks/released_differences.py`` makes a table of the differences.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from released_numbers import PARITY, convert_original, share_off, with_one_image_id
from safetensors.torch import load_file

from pixellm.checkpoint.io import load_model_and_processor
from pixellm.data.questions import NamedMasks, as_benchmark_asks, benchmark_turn, load_phrases
from pixellm.engine import Engine
from pixellm.engine.dialogues import answer_given
from pixellm.evaluation.evaluate import score_dialogue
from pixellm.evaluation.scores import Rules
from pixellm.masks import encode_mask
from pixellm.model.codebook import find_groups
from pixellm.model.losses import dice_loss, target_refinement_loss, text_loss_sum
from pixellm.model.pixel_masks import restore_masks
from pixellm.processing.prompts import dialogue_messages
from pixellm.types import SEG_MARK, Request, Sample, Target, Turn

FOLDERS = sorted(PARITY.glob("*_forced"))
TOLERANCE = 1e-4
"""Of the largest value of a tensor; of losses absolute."""

QUANTITIES = {
    "states": "states at the predicting positions, of the largest",
    "target_embeddings": "target embeddings, of the largest",
    "low_res_masks": "low-resolution mask logits, of the largest",
    "mask_logits": "mask logits at the image's size, of the largest",
    "mask_scores": "mask scores, of the largest",
}
"""What is measured -> what the table calls it."""

pytestmark = pytest.mark.skipif(not FOLDERS, reason=f"no parity data with given answers: {PARITY}")


class Golden:
    """What the released code gave for one model, and ours converted from its checkpoint."""

    def __init__(self, folder: Path, converted: Path) -> None:
        values = json.loads((folder / "golden.json").read_text())
        self.cases, self.muse = values["cases"], values["muse"]
        self.conversations = values["existing_conversations"]
        self.training = [c for batch in values["training"] for c in batch["conversations"]]
        self.loss_weights, self.image_id = values["loss_weights"], values["image_token_index"]
        self.tensors = load_file(folder / "golden.safetensors")
        self.model_folder = folder.parent / values["model"]
        self.first = json.loads((self.model_folder / "golden.json").read_text())["cases"]
        self.first_tensors = load_file(self.model_folder / "golden.safetensors")
        names = values["codebook"]
        size = names["scales"] * names["tokens_per_scale"]
        self.group = re.compile(r" ?" + " ".join(rf"\[SEG{i}\]" for i in range(size)))
        original = convert_original(self.model_folder, converted)
        self.model, self.processor = load_model_and_processor(original)
        self.engine = Engine(self.model, self.processor)

    def marked(self, answer: str) -> str:
        return self.group.sub(f" {SEG_MARK}", answer).lstrip()

    def image(self, case: dict) -> np.ndarray:
        return np.asarray(Image.open(self.model_folder / case["image"]).convert("RGB"))

    def sample(self, case: dict) -> Sample:
        """A case as evaluations see it: the targets are rectangles."""
        size = tuple(case["original_hw"])
        targets = []
        for x, y, width, height in case["gt_boxes"]:
            mask = np.zeros(size, dtype=bool)
            mask[y : y + height, x : x + width] = True
            targets.append(Target("object", encode_mask(mask)))
        turn = Turn(case["question"], self.marked(case["answer"]), tuple(targets))
        return Sample(self.image(case), size, (turn,), f"case-{case['case']}")

    def as_released(self, ids) -> list[int]:
        return with_one_image_id(ids, self.processor.codec.image_id, self.image_id)

    def encode(self, cases: list[dict]):
        messages = [dialogue_messages([(c["question"], self.marked(c["answer"]))]) for c in cases]
        images = [self.image(case) for case in cases]
        return self.processor.encode_batch(
            messages, images, add_generation_prompt=False, padding_side="right"
        )


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def golden(request, tmp_path_factory):
    return Golden(request.param, tmp_path_factory.mktemp("released") / "model")


def test_ids_and_predicting_positions_are_the_released_ones(golden):
    for case in golden.cases:
        ids = golden.encode([case])["input_ids"]
        assert golden.as_released(ids[0].tolist()) == case["conversation_ids"]
        codebook = torch.tensor(golden.model.config.codebook_token_ids)
        _, starts = find_groups(ids, codebook)
        positions = starts[:, None] - 1 + torch.arange(len(codebook))
        assert positions.tolist() == case["predicting_positions_expanded"]
        assert ids[0][positions].tolist() == case["predicting_ids"]


def test_prompts_end_where_given_answers_begin(golden):
    for case in golden.cases:
        codec = golden.processor.codec
        asked = codec.encode(dialogue_messages([], case["question"]), add_generation_prompt=True)
        assert golden.encode([case])["input_ids"][0][: len(asked.ids)].tolist() == [*asked.ids]


@torch.inference_mode()
def test_states_embeddings_and_small_masks_are_the_released_ones(golden, note_difference):
    """All cases in one padded batch, as evaluations run them."""
    model, batch = golden.model, golden.encode(golden.cases)
    encoded, _ = model.model.encode_images(batch["pixel_values"], batch["pixel_mask"])
    ids, attention = batch["input_ids"], batch["attention_mask"]
    hidden = model.model(ids, encoded.tokens, attention).last_hidden_state
    rows, starts = find_groups(ids, torch.tensor(model.config.codebook_token_ids))
    states = model.model.codebook.gather_states(hidden, rows, starts)
    embeddings = model.model.codebook(states)
    found = {
        "states": states,
        "target_embeddings": embeddings,
        "low_res_masks": model.decode_masks(embeddings, encoded.features, rows),
    }
    for name, values in found.items():
        distances = [
            share_off(values[rows == i], golden.tensors[f"case{i}.forced.{name}"])
            for i in range(len(golden.cases))
        ]
        note_difference("given", QUANTITIES[name], max(distances), TOLERANCE)
        assert max(distances) <= TOLERANCE


@pytest.fixture(scope="module")
def answered(golden):
    """Every case as ``pixellm eval --mode forced`` answers it, in batches of three."""
    samples = [golden.sample(case) for case in golden.cases]
    batches = (samples[i : i + 3] for i in range(0, len(samples), 3))
    return [one for batch in batches for one in answer_given(golden.engine, batch)]


def test_masks_and_scores_of_forced_evaluation_are_the_released_ones(
    golden, answered, note_difference
):
    distances = {"mask_logits": 0.0, "mask_scores": 0.0}
    for case, dialogue in zip(golden.cases, answered, strict=True):
        (prediction,) = dialogue.predictions
        logits = torch.from_numpy(prediction.info["logits"])
        scores = torch.tensor([segment.score for segment in prediction.segments])
        wanted = {
            name: golden.tensors[f"case{case['case']}.forced.{name}"]
            for name in ("mask_logits_sub4", "mask_scores")
        }
        far = share_off(logits[:, ::4, ::4], wanted["mask_logits_sub4"])
        distances["mask_logits"] = max(distances["mask_logits"], far)
        far = share_off(scores, wanted["mask_scores"])
        distances["mask_scores"] = max(distances["mask_scores"], far)
        areas = [int(segment.mask.sum()) for segment in prediction.segments]
        assert areas == case["mask_areas"]
    for name, far in distances.items():
        note_difference("given", QUANTITIES[name], far, TOLERANCE)
    assert max(distances.values()) <= TOLERANCE


def test_scores_of_forced_evaluation_are_those_of_the_released_validation(golden, answered):
    rules = Rules("slots", "forced", "strict")
    batches: dict[tuple, list[tuple[float, float]]] = {}
    for case, dialogue in zip(golden.cases, answered, strict=True):
        (record,) = score_dialogue(dialogue, 0, rules)
        assert all(match.prediction == match.truth for match in record.matches)
        matches = [(match.intersection, match.union) for match in record.matches]
        key = (case["batch_rows"], case["batch_giou"], case["batch_ciou"])
        batches.setdefault(key, []).extend(matches)
    for (_, giou, ciou), matches in batches.items():
        assert np.mean([a / b for a, b in matches]) == pytest.approx(giou, abs=1e-5)
        total = np.sum(matches, axis=0)
        assert total[0] / total[1] == pytest.approx(ciou, abs=1e-5)


def test_benchmarks_ask_in_the_released_words(golden):
    for case in golden.cases:
        if case["kind"] == "sentence":
            (sentence,) = case["expressions"]
            form = load_phrases("referring")["benchmark"]["sentence"]
            asked = form.format(sentence=sentence.strip())
        elif case["expressions"]:
            batch = [c for c in golden.cases if c["expressions"] == case["expressions"]]
            before = sum(c["num_groups"] for c in batch if c["batch_row"] < case["batch_row"])
            texts = case["expressions"][before : before + case["num_groups"]]
            things = [as_benchmark_asks(NamedMasks(text, ())) for text in texts]
            asked = benchmark_turn(things).question
        else:
            continue
        assert asked == case["question"]


def test_ids_and_labels_of_training_conversations_are_the_released_ones(golden):
    """Of one round and of several, beginning with a group and with words."""
    conversations = [
        ([first], first["conversation_ids"], wanted["labels"])
        for first, wanted in zip(golden.first, golden.conversations, strict=True)
    ]
    conversations += [(c["rounds"], c["conversation_ids"], c["labels"]) for c in golden.training]
    for rounds, ids, labels in conversations:
        history = [(one["question"], golden.marked(one["answer"])) for one in rounds]
        dialogue = golden.processor.codec.encode(dialogue_messages(history))
        assert golden.as_released(dialogue.ids) == ids
        pairs = zip(dialogue.ids, dialogue.labelled, strict=True)
        answered = [token for token, label in pairs if label]
        assert answered == [label for label in labels if label != -100]
        place = labels.index(answered[0])
        assert dialogue.labelled[place + len(dialogue.ids) - len(ids)]


@torch.inference_mode()
def test_losses_of_conversations_are_the_released_ones(golden, note_difference):
    model, weights, distances = golden.model, golden.loss_weights, []
    for case, (first, wanted) in enumerate(zip(golden.first, golden.conversations, strict=True)):
        batch = golden.encode([first])
        history = [(first["question"], golden.marked(first["answer"]))]
        dialogue = golden.processor.codec.encode(dialogue_messages(history))
        ids = batch["input_ids"]
        encoded, _ = model.model.encode_images(batch["pixel_values"], batch["pixel_mask"])
        hidden = model.model(ids, encoded.tokens, batch["attention_mask"]).last_hidden_state
        labelled = torch.tensor([dialogue.labelled])[:, 1:]
        text = text_loss_sum(model.lm_head(hidden[:, :-1][labelled]), ids[:, 1:][labelled])
        rows, starts = find_groups(ids, torch.tensor(model.config.codebook_token_ids))
        low = model.decode_masks(
            model.target_embeddings(hidden, rows, starts), encoded.features, rows
        )
        resized, original = (
            tuple(batch[f"{n}_sizes"][0].tolist()) for n in ("resized", "original")
        )
        logits = restore_masks(low, resized, original, model.config.image_size).flatten(1)
        truth = golden.first_tensors[f"case{case}.gt_masks"].flatten(1).float()
        alpha = model.config.target_refinement_alpha
        bce = target_refinement_loss(logits, truth, None, alpha).mean()
        dice = dice_loss(logits, truth).mean()
        found = {
            "ce_loss": weights["ce"] * float(text / labelled.sum()),
            "mask_bce_loss": weights["bce"] * float(bce),
            "mask_dice_loss": weights["dice"] * float(dice),
        }
        found["loss"] = sum(found.values())
        distances += [abs(value - wanted["losses"][name]) for name, value in found.items()]
    quantity = "loss of one conversation and its parts, absolute"
    note_difference("training", quantity, max(distances), TOLERANCE)
    assert max(distances) <= TOLERANCE


def test_muse_is_asked_with_the_released_suffix(golden):
    codec, suffixes = golden.processor.codec, set()
    own = golden.processor.reasoning_suffix
    try:
        for prompt in golden.muse["prompts"]:
            golden.processor.reasoning_suffix = prompt["suffix"].strip()
            suffixes.add(golden.processor.reasoning_suffix)
            request = Request(np.zeros((8, 8, 3), np.uint8), prompt["question"], (), True)
            worded = golden.processor.word_question(request)
            assert worded == prompt["question_with_suffix"]
            messages = dialogue_messages([], worded)
            encoded = codec.encode(messages, add_generation_prompt=True)
            assert golden.as_released(encoded.ids) == prompt["prompt_ids"]
            plain = replace(request, takes_suffix=False)
            assert golden.processor.word_question(plain) == prompt["question"]
    finally:
        golden.processor.reasoning_suffix = own
    assert own in suffixes
