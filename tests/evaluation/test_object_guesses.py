from __future__ import annotations

import numpy as np
import pytest
from hand_made_scenes import APPLE, CUP, PEAR, SIZE

from pixellm.evaluation.baselines import ObjectGuesser, guess_all, guess_largest
from pixellm.evaluation.metrics import score_masks
from pixellm.masks import decode_mask, encode_mask
from pixellm.types import Request, Sample, Target, Turn

BIG = Target("table", encode_mask(np.ones(SIZE, np.bool_)))


def sample(number: int, objects: tuple[Target, ...]) -> Sample:
    image = np.full((*SIZE, 3), number, np.uint8)
    return Sample(image, SIZE, (Turn("Which fruit?", "No."),), f"scene-{number}", objects)


def test_the_largest_object_is_shown_whatever_is_asked():
    samples = [sample(0, (APPLE, BIG, CUP)), sample(1, (PEAR, CUP))]
    guesser = ObjectGuesser(samples, guess_largest)
    requests = [Request(s.image, question) for s in samples for question in ("What?", "Where?")]
    answers = guesser.predict_batch(requests)
    assert [answer.text for answer in answers] == ["table.", "table.", "pear.", "pear."]
    assert [answer.question for answer in answers] == ["What?", "Where?", "What?", "Where?"]
    assert np.array_equal(answers[2].segments[0].mask, decode_mask(PEAR.mask))


def test_all_objects_are_named_found_and_paid_for():
    """Asked for 2 of 3 objects: 2 perfect matches and a spurious one."""
    one = sample(0, (APPLE, PEAR, CUP))
    answer = ObjectGuesser([one], guess_all).predict_batch([Request(one.image, "Which?")])[0]
    assert answer.text == "apple, pear, cup."
    assert [answer.text[a:b] for a, b in (s.span for s in answer.segments)] == [
        s.label for s in answer.segments
    ]
    shown = np.stack([segment.mask for segment in answer.segments])
    score = score_masks(shown, np.stack([decode_mask(fruit.mask) for fruit in (APPLE, PEAR)]))
    assert (score.iou_sum, score.num_matches, score.num_hits) == (2.0, 3, 2)


def test_images_and_objects_that_are_not_known_are_refused():
    guesser = ObjectGuesser([sample(0, (APPLE,))], guess_all)
    with pytest.raises(ValueError, match="not among the guesser's samples"):
        guesser.predict_batch([Request(sample(1, ()).image, "Which?")])
    with pytest.raises(ValueError, match="'scene-2' does not name the objects"):
        ObjectGuesser([sample(2, ())], guess_all)
