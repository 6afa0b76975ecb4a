import numpy as np

from pixellm.scenes.dataset import ScenesDataset
from pixellm.scenes.single_target import SingleTargetScenes


def test_no_answer_has_several_targets_and_the_images_are_those_of_scenes() -> None:
    options = {"split": "train", "seed": 3, "length": 6}
    single = SingleTargetScenes(dialogues_per_image=3, **options)
    usual = ScenesDataset(dialogues_per_image=9, **options)
    counts = []
    for index in range(6):
        dialogues = single[index]
        assert 1 <= len(dialogues) <= 3
        assert all(len(turn.targets) <= 1 for sample in dialogues for turn in sample.turns)
        counts.append(any(turn.targets for sample in dialogues for turn in sample.turns))
        same = np.array_equal(dialogues[0].image, usual[index][0].image)
        asked = [turn.question for sample in usual[index] for turn in sample.turns]
        assert same and dialogues[0].turns[0].question in asked
    assert any(counts)
    assert any(
        len(turn.targets) > 1 for i in range(6) for sample in usual[i] for turn in sample.turns
    )
