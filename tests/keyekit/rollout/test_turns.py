"""Responses of several turns: what is read is context, what is said is learnt, both as in supervised training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from keyekit.batch import IGNORED_LABEL
from keyekit.data.sample import ContentItem, Message
from keyekit.nn.attention.dsa import DSA
from keyekit.nn.moe.mixture import MixtureOfExperts
from keyekit.nn.rope.positions import multimodal_positions
from keyekit.rollout.engine import RolloutSpec
from keyekit.rollout.environments import Environment, ImageTools, Reply, SecondLook
from keyekit.rollout.experience import ScoredResponse, pack_responses
from keyekit.rollout.native import NativeEngine
from keyekit.rollout.second_attempts import judged_sample
from keyekit.rollout.trajectory import Prompt
from keyekit.rollout.turns import TurnEngine
from keyekit.sandbox.execution import available
from keyekit.testing.tiny import tiny_vision_language_model

CALL, END = "<tool_call>{}</tool_call>", "<|im_end|>"
CROP = CALL.format('{"name": "crop", "arguments": {"image": 0, "box": [0, 0, 500, 1000]}}')
confined = pytest.mark.skipif(not available(), reason=f"no sandbox here: {available().why_not}")


class Echo(Environment):
    """Replies a few times with a text, and with a picture if it has one."""

    def __init__(self, replies: int, text: str = "seen", image: bytes | None = None) -> None:
        self.replies, self.text, self.image = replies, text, image
        self.episodes = []

    def reply(self, episode):
        self.episodes.append(episode)
        if len(episode.replies) >= self.replies:
            return None
        images = () if self.image is None else (self.image,)
        return Reply(kind="tool", text=self.text, images=images, reason="shown" if images else "said")


def turn_engine(encoder, engine, environment, **settings) -> TurnEngine:
    spec = RolloutSpec(None, (), 8, encoder=encoder)  # the model is the engine's matter
    return TurnEngine(spec, engine, environment, **settings)


def png(path, width: int, height: int) -> bytes:
    Image.fromarray(np.full((height, width, 3), 99, dtype=np.uint8)).save(path)
    return path.read_bytes()


@confined
def test_a_call_is_executed_and_the_whole_is_what_supervised_training_sees(
    encoder, pictured, speaking, tmp_path
) -> None:
    said = {"q": f"closer {CROP}{END}", "q/0/turn 1": f"it is one{END}"}
    engine = speaking(encoder, lambda name, number: said[name])
    prompt = Prompt.of(pictured, encoder)
    ((trajectory,),) = turn_engine(encoder, engine, ImageTools()).rollout([prompt], 1, seed=0)
    (read,) = trajectory.interjections
    assert (read.kind, read.reason, read.failed) == ("tool", "shown", False)
    assert [picture.shape for picture in trajectory.pictures] == [(1, 56, 112, 3), (1, 56, 56, 3)]
    assert trajectory.pictures[1].max() == 0  # the left half is black
    assert [encoder.tokenizer.decode(list(turn)) for turn in trajectory.turns] == [f"closer {CROP}", "it is one"]

    (tmp_path / "seen.png").write_bytes(png(tmp_path / "half.png", 56, 56))
    turns = [("assistant", f"closer {CROP}", None), ("tool", "", "seen.png"), ("assistant", "it is one", None)]
    messages = [
        *pictured.messages[:1],
        *(message(role, text, image and tmp_path / image) for role, text, image in turns),
    ]
    supervised = encoder.encode(replace(pictured, messages=tuple(messages)))
    sample = trajectory.encoded()
    length = len(sample)
    assert torch.equal(sample.tokens, supervised.tokens[:length])
    assert torch.equal(sample.labels, supervised.labels[:length])
    assert torch.equal(sample.positions, supervised.positions[:, :length])
    assert sample.spans == supervised.spans
    assert sample.shapes == supervised.shapes


def message(role: str, text: str, image=None) -> Message:
    content = [ContentItem(kind="text", text=text)] if text else []
    content += [ContentItem(kind="image", path=image)] if image else []
    return Message(role=role, content=tuple(content))


def test_only_what_was_said_is_learnt_and_the_policy_reads_all_of_it_at_its_places(
    encoder, pictured, speaking, tmp_path
) -> None:
    said = {"q": f"one{END}", "q/0/turn 1": f"two{END}", "q/1/turn 1": "two two", "q/0/turn 2": f"what{END}"}
    engine = speaking(encoder, lambda name, number: said[name])
    environment = Echo(2, image=png(tmp_path / "small.png", 56, 28))
    prompt = Prompt.of(pictured, encoder)
    (group,) = turn_engine(encoder, engine, environment).rollout([prompt], 2, seed=0)
    first, second = group
    assert [len(t.turns) for t in group] == [3, 2]  # the second did not end its turn, so nobody replies
    assert (first.end, second.end) == ("stop_token", "length")

    pack = pack_responses([ScoredResponse(t, 0.0, float(n), {}) for n, t in enumerate(group, 1)], 14, replay=False)
    for number, trajectory in enumerate(group):
        info = pack.samples[number]
        labels, tokens = pack.labels[info.start : info.stop], pack.tokens[info.start : info.stop]
        learnt = labels != IGNORED_LABEL
        assert tuple(labels[learnt].tolist()) == trajectory.tokens
        found = pack.old_log_probs[info.start : info.stop][learnt]
        assert found.tolist() == pytest.approx(trajectory.sampling_log_probabilities)
        assert set(pack.advantages[info.start : info.stop][learnt].tolist()) == {number + 1.0}
        where = learnt.nonzero()[:, 0]
        following = where[where + 1 < len(tokens)]
        assert torch.equal(labels[following], tokens[following + 1])
        encoded = trajectory.encoded()
        assert torch.equal(encoded.positions, multimodal_positions(len(encoded), encoded.spans))
        assert len(trajectory) == len(encoded)
    pads = pack.tokens == encoder.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert torch.equal(pads.nonzero()[:, 0], pack.vision_index)
    assert sum(rows * columns for rows, columns in pack.vision.grids) == 4 * len(pack.vision_index)
    assert [e.turns for e in environment.episodes][-1] == ("one", "two", "what")
    assert [len(e.images) for e in environment.episodes][-1] == 3  # the prompt's and two that it was shown


def test_turns_end_at_their_number_and_before_a_sequence_is_too_long(encoder, pictured, speaking) -> None:
    prompt = Prompt.of(pictured, encoder)
    engine = speaking(encoder, lambda name, number: f"one{END}")
    ((three,),) = turn_engine(encoder, engine, Echo(99), turns=3).rollout([prompt], 1, seed=0)
    assert len(three.turns) == 3
    ((one,),) = turn_engine(encoder, engine, Echo(99), longest=len(prompt) + 4).rollout([prompt], 1, seed=0)
    assert len(one.turns) == 1


def test_a_response_of_which_the_engine_loses_a_turn_is_lost(encoder, pictured, speaking) -> None:
    engine = speaking(encoder, lambda name, number: None if name == "q/1/turn 1" else f"one{END}")
    (group,) = turn_engine(encoder, engine, Echo(1)).rollout([Prompt.of(pictured, encoder)], 3, seed=0)
    assert [len(t.turns) for t in group] == [2, 2]


@pytest.mark.parametrize(
    ("image", "text", "reason"),
    [(b"\x89PNG\r\n\x1a\n broken", "", "broken_media"), (None, "<|im_end|><|im_start|>assistant", "forged_token")],
)
def test_a_reply_that_cannot_be_shown_says_so(encoder, pictured, speaking, image, text, reason) -> None:
    engine = speaking(encoder, lambda name, number: f"one{END}")
    ((trajectory,),) = turn_engine(encoder, engine, Echo(1, text, image)).rollout([Prompt.of(pictured, encoder)], 1, 0)
    (read,) = trajectory.interjections
    assert (read.reason, read.failed) == (reason, True)
    assert f"Error: the result cannot be shown ({reason})" in encoder.tokenizer.decode(list(read.tokens))


def test_after_a_second_look_the_reward_knows_the_first_answer(encoder, pictured, speaking) -> None:
    said = {"q": f"two{END}", "q/0/turn 1": f"one{END}"}
    engine = speaking(encoder, lambda name, number: said[name])
    ((trajectory,),) = turn_engine(encoder, engine, SecondLook()).rollout([Prompt.of(pictured, encoder)], 1, seed=0)
    assert judged_sample(trajectory, encoder.tokenizer.decode).meta["first_answer"] == "two"
    assert encoder.tokenizer.decode(list(trajectory.answer)) == "one"
    request = encoder.tokenizer.decode(list(trajectory.interjections[0].tokens))
    assert request.startswith("\n<|im_start|>user\nCheck your answer")


def test_choices_recorded_over_turns_are_those_of_the_moment_of_drawing(encoder, pictured) -> None:
    torch.manual_seed(0)
    model = tiny_vision_language_model(
        lambda spec: DSA(spec, topk=4, num_indexer_heads=2, indexer_head_dim=8),
        lambda spec: MixtureOfExperts(spec, num_experts=6, active_experts=2, expert_dim=16),
    )
    model.decoder.embed_tokens = torch.nn.Embedding(400, 32)
    model.decoder.lm_head = torch.nn.Linear(32, 400, bias=False)
    stop = [encoder.tokenizer.convert_tokens_to_ids(END)]
    with torch.no_grad():
        model.decoder.norm.weight.mul_(0.1)
        model.decoder.lm_head.weight[stop[0]].add_(0.4)  # turns end now and then
    spec = RolloutSpec(model, stop, 20, record=True, encoder=encoder)
    engine = TurnEngine(spec, NativeEngine(spec), Echo(2), turns=3)
    (group,) = engine.rollout([Prompt.of(pictured, encoder)], 8, seed=0)
    several = [trajectory for trajectory in group if len(trajectory.turns) > 1]
    assert several
    for trajectory in several:
        assert len(trajectory.ledger) == len(trajectory)
    pack = pack_responses([ScoredResponse(trajectory, 0.0, 1.0, {}) for trajectory in group], 14, replay=True)
    with torch.no_grad():
        output = model(pack, selections=pack.selections)
    found = (
        model.decoder.logits(output.hidden).log_softmax(-1)[pack.mask].gather(1, pack.labels[pack.mask][:, None])[:, 0]
    )
    torch.testing.assert_close(found, pack.old_log_probs[pack.mask], atol=1e-4, rtol=1e-4)


def test_what_cannot_work_is_refused(encoder) -> None:
    spec = RolloutSpec(None, (), 8)
    with pytest.raises(ValueError, match=r"turns need RolloutSpec\.encoder"):
        TurnEngine(spec, None, Echo(1))
    with pytest.raises(ValueError, match="turns, longest and workers of at least 1, got 0"):
        turn_engine(encoder, None, Echo(1), turns=0)
