"""Scenes whose questions never have several targets: what training without multi-target data sees.

For comparisons. Images, wording and everything else are those of
:class:`~pixellm.scenes.dataset.ScenesDataset`.
"""

from __future__ import annotations

from typing import Any

from pixellm.scenes.dataset import ScenesDataset
from pixellm.scenes.scene import Scene
from pixellm.types import Turn

_SPARE = 3
"""So many times more dialogues are composed than kept: most scenes then lose none."""


class SingleTargetScenes(ScenesDataset):
    """Drawn scenes with dialogues in which every answer has one target or none.

    Args:
        dialogues_per_image: dialogues about each image, at most.
        **options: the other arguments of the scenes data set, by name.
    """

    def __init__(self, dialogues_per_image: int = 2, **options: Any) -> None:
        super().__init__(dialogues_per_image=_SPARE * dialogues_per_image, **options)
        self.num_kept = dialogues_per_image

    def _compose(self, index: int, attempt: int, scene: Scene) -> list[tuple[Turn, ...]]:
        dialogues = super()._compose(index, attempt, scene)
        single = [turns for turns in dialogues if all(len(turn.targets) <= 1 for turn in turns)]
        return single[: self.num_kept]
