from __future__ import annotations

from typing import Any

import pytest
import torch

from pixellm.engine.sampling import AnswerOptions, Sampler, choose_ids

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, -torch.inf])


def draw(count: int, **options: Any) -> list[int]:
    sampler = Sampler(AnswerOptions(**options))
    return [choose_ids(LOGITS[None].clone(), [sampler])[0] for _ in range(count)]


def test_ids_are_drawn_as_often_as_they_are_likely() -> None:
    for temperature in (0.5, 1.0, 2.0):
        drawn = torch.tensor(draw(3000, temperature=temperature))
        found = torch.bincount(drawn, minlength=5) / 3000
        wanted = (LOGITS / temperature).softmax(-1)
        assert (found - wanted).abs().max() < 0.03
        assert found[4] == 0


@pytest.mark.parametrize(("top_p", "kept"), [(0.01, {0}), (0.7, {0, 1}), (0.9, {0, 1, 2})])
def test_top_p_keeps_the_fewest_likely_ids_that_reach_it(top_p: float, kept: set[int]) -> None:
    assert set(draw(300, temperature=1.0, top_p=top_p)) == kept


def test_no_temperature_takes_the_likeliest_and_a_tiny_one_does_not_overflow() -> None:
    assert set(draw(20)) == set(draw(20, temperature=1e-30)) == {0}


def test_a_row_draws_the_same_in_any_company() -> None:
    options = [AnswerOptions(temperature=1.0, seed=seed) for seed in (1, 2, 3)]
    alone = [draw(20, temperature=1.0, seed=seed) for seed in (1, 2, 3)]
    together = [Sampler(one) for one in options]
    greedy = Sampler(AnswerOptions())
    for step in range(20):
        company = [greedy, *together] if step % 2 else [*together, greedy]
        chosen = choose_ids(LOGITS.expand(4, -1).clone(), company)
        ids = chosen[1:] if step % 2 else chosen[:-1]
        assert ids == [row[step] for row in alone]
    assert len({tuple(row) for row in alone}) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnswerOptions(**options)
