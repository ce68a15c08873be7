from __future__ import annotations

import pytest
import torch

from keyekit.rollout.engine import RolloutSpec
from keyekit.rollout.native import NativeEngine
from keyekit.rollout.precision import LowerPrecision
from keyekit.testing.tiny import tiny_vision_language_model


def said(engine, prompts) -> list[tuple[int, ...]]:
    return [one.tokens for group in engine.rollout(prompts, 2, seed=3) for one in group]


def test_the_copy_answers_in_bfloat16_and_follows_the_weights(prompts) -> None:
    network = tiny_vision_language_model().eval()
    spec = RolloutSpec(network, (), 4)
    engine = LowerPrecision(spec)
    before = said(engine, prompts)
    assert {parameter.dtype for parameter in engine.copy.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    precise = NativeEngine(spec).rollout(prompts, 2, seed=3)
    rough = engine.rollout(prompts, 2, seed=3)
    assert precise[0][0].log_probabilities != rough[0][0].log_probabilities
    assert precise[0][0].log_probabilities[0] == pytest.approx(rough[0][0].log_probabilities[0], abs=0.1)
    with torch.no_grad():
        network.decoder.lm_head.weight.mul_(-1)
    assert said(engine, prompts) != before


def test_eight_bits_hold_less_than_sixteen(prompts) -> None:
    spec = RolloutSpec(tiny_vision_language_model().eval(), (), 4)
    (precise, *_), *_ = NativeEngine(spec).rollout(prompts, 1, seed=3)
    errors = []
    for dtype in ("bfloat16", "float8"):
        engine = LowerPrecision(spec, dtype)
        (rough, *_), *_ = engine.rollout(prompts, 1, seed=3)
        assert rough.log_probabilities[0] == pytest.approx(precise.log_probabilities[0], abs=0.2)
        pairs = zip(engine.copy.parameters(), spec.network.parameters(), strict=True)
        errors.append(max((copied - own).abs().max().item() for copied, own in pairs))
    assert 0 < 4 * errors[0] < errors[1]


def test_another_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="choose bfloat16, float16 or float8"):
        LowerPrecision(RolloutSpec(tiny_vision_language_model(), (), 4), dtype="int8")


class Told(NativeEngine):
    """Remembers what it was told, and answers no prompt with a picture."""

    def __init__(self, spec: RolloutSpec) -> None:
        super().__init__(spec)
        self.seen: list[float] = []

    def prepare(self) -> None:
        self.seen.append(self.spec.network.decoder.lm_head.weight.flatten()[0].item())

    def check(self, encoded) -> None:
        raise ValueError(f"{encoded.sample.id} cannot be answered")


def test_the_engine_over_the_copy_is_told_of_new_weights_and_asked_what_it_answers(prompts) -> None:
    network = tiny_vision_language_model().eval()
    engine = LowerPrecision(RolloutSpec(network, (), 4), engine=Told)
    for value in (1.0, 2.0):
        with torch.no_grad():
            network.decoder.lm_head.weight.fill_(value)
        engine.prepare()
    assert engine.engine.seen == [1.0, 2.0]
    with pytest.raises(ValueError, match="cannot be answered"):
        engine.check(prompts[0].encoded)
