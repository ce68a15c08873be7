"""What every rollout engine has to fulfil."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from keyekit.batch import IGNORED_LABEL
from keyekit.data.encode import EncodedSample
from keyekit.data.sample import Sample
from keyekit.models.sampling import Sampler
from keyekit.models.vision_language import VisionLanguageModel
from keyekit.nn.rope.positions import multimodal_positions
from keyekit.objectives.token_log_probs import token_log_probs
from keyekit.registry import constructor_parameters
from keyekit.rollout.engine import RolloutEngine, RolloutSpec
from keyekit.rollout.experience import ScoredResponse, pack_responses
from keyekit.rollout.trajectory import Prompt, Trajectory
from keyekit.testing.conformance.construction import make
from keyekit.testing.rollout_server import served
from keyekit.testing.tiny import tiny_vision_language_model

__all__ = ["CHECKS"]

CHECKS = (
    "check_prompts_get_their_responses_in_order",
    "check_responses_end_where_they_have_to",
    "check_probabilities_are_those_of_the_model",
    "check_seeds_decide_what_is_drawn",
    "check_weights_are_those_of_the_moment",
)
"""Functions of this module that make up the suite."""

_STOP = (1, 2, 3, 7, 11, 19, 23, 40)
_LENGTHS = (4, 9, 6)
_MOST = 6


def check_prompts_get_their_responses_in_order(cls: type[RolloutEngine]) -> None:
    """Every prompt has as many responses as were asked for; nothing asked is nothing said."""
    prompts = _prompts()
    with _engine(cls, _spec()) as engine:
        groups = engine.rollout(prompts, 2, seed=0)
        assert [len(group) for group in groups] == [2] * len(prompts), "some prompts lack responses"
        for prompt, group in zip(prompts, groups, strict=True):
            assert all(response.prompt is prompt for response in group), "a response belongs to another prompt"
        assert engine.rollout([], 2, seed=0) == [], "without prompts there are no responses"


def check_responses_end_where_they_have_to(cls: type[RolloutEngine]) -> None:
    """A stop token is the last token, and no response is longer than allowed."""
    with _engine(cls, _spec()) as engine:
        responses = _flat(engine.rollout(_prompts(), 4, seed=0))
    for response in responses:
        said = response.tokens
        assert 1 <= len(said) <= _MOST, f"a response has {len(said)} tokens, 1 to {_MOST} are allowed"
        assert not set(said[:-1]) & set(_STOP), "a response goes on after a stop token"
        stopped = said[-1] in _STOP
        assert (response.end == "stop_token") == stopped, f"a response ends by {response.end} with token {said[-1]}"
        assert stopped or response.end != "length" or len(said) == _MOST, "a response is cut off too early"


def check_probabilities_are_those_of_the_model(cls: type[RolloutEngine]) -> None:
    """The log-probability of every token is what the training pass finds for it."""
    spec = _spec()
    with _engine(cls, spec) as engine:
        responses = _flat(engine.rollout(_prompts(), 2, seed=1))
    pack = pack_responses([ScoredResponse(response, 0.0, 0.0, {}) for response in responses], 14, replay=False)
    with torch.no_grad():
        hidden = spec.network(pack).hidden
        found = token_log_probs(hidden, spec.network.decoder.lm_head.weight, pack.labels, pack.num_targets).values
    expected = torch.tensor([value for response in responses for value in response.log_probabilities])
    room = 1e-3 if cls.precise else 0.1
    torch.testing.assert_close(found[pack.mask], expected, atol=room, rtol=room, msg=_DIFFERENT)
    torch.testing.assert_close(pack.old_log_probs[pack.mask], expected, atol=1e-3, rtol=1e-3, msg=_DIFFERENT)


_DIFFERENT = "log-probabilities differ from those of the training pass at temperature 1"


def check_seeds_decide_what_is_drawn(cls: type[RolloutEngine]) -> None:
    """The same seed draws the same, another one something else, and responses of a group differ."""
    prompts = _prompts()
    with _engine(cls, _spec()) as engine:
        first, again, other = (_tokens(engine.rollout(prompts, 4, seed)) for seed in (3, 3, 4))
    assert first == again, "the same seed drew something else"
    assert first != other, "another seed drew the same"
    assert all(len(set(first[4 * place : 4 * place + 4])) > 1 for place in range(len(prompts))), (
        "a group says one thing"
    )


def check_weights_are_those_of_the_moment(cls: type[RolloutEngine]) -> None:
    """A step of training between two calls changes what is said."""
    spec, prompts = _spec(Sampler()), _prompts()
    with _engine(cls, spec) as engine:
        before = _tokens(engine.rollout(prompts, 1, seed=0))
        with torch.no_grad():
            spec.network.decoder.lm_head.weight.neg_()
        after = _tokens(engine.rollout(prompts, 1, seed=0))
    with _engine(cls, spec) as another:
        fresh = _tokens(another.rollout(prompts, 1, seed=0))
    assert after != before, "the engine still answers with the weights of before"
    assert after == fresh, "an engine that saw a step of training answers differently from a new one"


@contextmanager
def _engine(cls: type[RolloutEngine], spec: RolloutSpec) -> Iterator[RolloutEngine]:
    """The engine; one that asks a server gets a small one, which has to be told when weights change."""
    if not {"urls", "model", "weights"} <= constructor_parameters(cls).keys():
        yield make(cls, spec)
        return
    with served(spec.network) as server, tempfile.TemporaryDirectory() as folder:
        yield make(cls, spec, urls=[server.url], model="policy", weights=str(Path(folder) / "weights"))


def _spec(sampler: Sampler | None = None) -> RolloutSpec:
    return RolloutSpec(_network(), _STOP, _MOST, sampler or Sampler(temperature=1.0))


def _network() -> VisionLanguageModel:
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    network = tiny_vision_language_model().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    torch.random.set_rng_state(state)
    return network


def _prompts() -> list[Prompt]:
    return [_prompt(number, length) for number, length in enumerate(_LENGTHS)]


def _prompt(number: int, length: int) -> Prompt:
    encoded = EncodedSample(
        tokens=torch.randint(4, 64, (length,), generator=torch.Generator().manual_seed(number)),
        labels=torch.full((length,), IGNORED_LABEL),
        positions=multimodal_positions(length, ()),
        spans=(),
        sample=Sample(id=f"prompt {number}", task="any", messages=()),
        keys=(),
        media=(),
    )
    return Prompt(encoded=encoded, pictures=[])


def _flat(groups: list[list[Trajectory]]) -> list[Trajectory]:
    return [response for group in groups for response in group]


def _tokens(groups: list[list[Any]]) -> list[tuple[int, ...]]:
    return [response.tokens for response in _flat(groups)]
