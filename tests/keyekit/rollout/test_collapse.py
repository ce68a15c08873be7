"""Where an answer begins to repeat itself, against a search letter by letter."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from keyekit.cli.lightning import RecipeReader, prepare
from keyekit.models.sampling import Sampler
from keyekit.rollout.collapse import CollapseDetector
from keyekit.rollout.engine import RolloutSpec


def by_hand(answer: list[int], detector: CollapseDetector) -> int:
    """The first token from which on a block before it is repeated long enough."""
    for start in range(1, len(answer)):
        for block in range(1, min(detector.longest_block, start) + 1):
            end = start
            while end < len(answer) and answer[end] == answer[end - block]:
                end += 1
            if end - start >= max(detector.tokens, detector.repeats * block):
                return start
    return -1


def test_it_finds_what_a_search_finds() -> None:
    source = random.Random(0)
    found = 0
    for _ in range(300):
        detector = CollapseDetector(
            longest_block=source.randint(1, 6), repeats=source.randint(1, 3), tokens=source.randint(1, 9)
        )
        answer = [source.randrange(4) for _ in range(source.randint(0, 12))]
        block = [source.randrange(4) for _ in range(source.randint(1, 5))]
        answer += block * source.randint(1, 6) + [source.randrange(4) for _ in range(source.randint(0, 6))]
        point = detector.point(answer)
        assert point == by_hand(answer, detector)
        assert detector.collapsed(answer) == (point >= 0)
        ends = [length for length in range(len(answer) + 1) if detector(answer[:length])]
        assert bool(ends) == (point >= 0)  # whoever asks after every token sees it as soon as it is there
        for length in ends:
            begin = detector.point(answer[:length])
            assert 0 <= begin <= length - detector.tokens
            assert detector.point(answer[: length - 1]) in (-1, begin)
        found += point >= 0
    assert 50 < found < 280


def test_a_list_or_a_long_text_is_no_collapse() -> None:
    detector = CollapseDetector()
    assert detector.point(list(range(500))) == -1
    assert detector.point([1, 2, 3] * 5) == -1  # too short
    assert detector.point(list(range(20)) + [7] * 40) == 21
    assert detector.point([]) == detector.point([1]) == -1


@pytest.mark.parametrize("name", ["longest_block", "repeats", "tokens"])
def test_numbers_are_positive(name) -> None:
    with pytest.raises(ValueError, match=f"{name}=0: give at least 1"):
        CollapseDetector(**{name: 0})


def test_asked_of_an_answer_it_looks_at_its_end() -> None:
    detector = CollapseDetector()
    collapsed = [*range(20), *[7, 8] * 30]
    assert detector(collapsed)
    assert not detector([*collapsed, 9])  # it went on with something else
    assert detector.collapsed([*collapsed, 9])
    assert not detector([])
    assert not detector([1])


@pytest.mark.filterwarnings("ignore")
def test_a_recipe_ends_responses_by_it(prompt_maker) -> None:
    recipe = Path(__file__).parent.parent.parent.parent / "recipes/tiny/rl/grpo.yaml"
    made = RecipeReader(
        "fit", prepare([str(recipe), "--model.engine.collapsed.init_args.tokens=24", "--trainer.callbacks=null"])
    )
    network = made.model.network
    torch.nn.init.zeros_(network.decoder.lm_head.weight)  # the likeliest word is the first one, for ever
    engine = made.model.engine(RolloutSpec(network, (), 100, Sampler()))
    assert engine.collapsed == CollapseDetector(tokens=24)
    ((response,),) = engine.rollout([prompt_maker("p", 5)], 1, seed=0)
    assert (response.end, len(response.tokens)) == ("repetition", 32)
