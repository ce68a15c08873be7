"""The engine against a real server that runs our network: the tokens are the native engine's, over both protocols."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch

from keyekit.data.cache import MediaCache
from keyekit.data.encode import SampleEncoder
from keyekit.data.frames_file import MediaShape
from keyekit.data.reader import MediaReader
from keyekit.data.sample import ContentItem, Message, Sample, parse_sample
from keyekit.data.sampling import UniformFps
from keyekit.data.template import ChatTemplate, MediaGrid, TimeAxis, TimestampedFrames
from keyekit.data.world.world import World
from keyekit.models.sampling import Sampler
from keyekit.nn.rope.positions import multimodal_positions
from keyekit.rewards.json_client import EndpointRefused
from keyekit.rewards.lost_samples import JudgeUnavailable
from keyekit.rollout.engine import RolloutEngine, RolloutSpec
from keyekit.rollout.environments import Environment, Reply
from keyekit.rollout.native import NativeEngine
from keyekit.rollout.openai_engine import OpenAIEngine, WeightsNotTaken
from keyekit.rollout.server_protocols import PromptDiffers
from keyekit.rollout.trajectory import Prompt
from keyekit.rollout.turns import TurnEngine
from keyekit.testing.distributed import run_distributed
from keyekit.testing.rollout_server import RolloutServer, _picture, served
from keyekit.testing.tiny import tiny_vision_language_model

GREEDY = Sampler()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = tiny_vision_language_model().eval()
    network.decoder.embed_tokens = torch.nn.Embedding(400, 32)
    network.decoder.lm_head = torch.nn.Linear(32, 400, bias=False)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network


@pytest.fixture
def server(model, tokenizer, encoder):
    with served(model, tokenizer, encoder.template) as server:
        yield server


@pytest.fixture
def both(encoder, pictured, prompt_maker) -> list[Prompt]:
    """A prompt of text alone and one with a picture."""
    return [prompt_maker("text", 9), Prompt.of(pictured, encoder)]


def engine(spec: RolloutSpec, server, tmp_path, **settings) -> OpenAIEngine:
    settings = {"pause": 0.01, "seconds": 20.0, "tries": 3} | settings
    return OpenAIEngine(spec, [server.url], "policy", str(tmp_path / "weights"), **settings)


def tokens(groups) -> list[list[tuple[int, ...]]]:
    return [[response.tokens for response in group] for group in groups]


@pytest.mark.parametrize("protocol", ["openai", "sglang"])
def test_greedy_responses_are_those_of_the_native_engine_before_and_after_a_step(
    model, server, encoder, both, tmp_path, protocol
) -> None:
    spec = RolloutSpec(model, range(1, 40, 3), 8, GREEDY, encoder=encoder)
    ours, theirs = NativeEngine(spec), engine(spec, server, tmp_path, protocol=protocol)
    first = ours.rollout(both, 1, seed=0)
    found = theirs.rollout(both, 1, seed=0)
    assert tokens(found) == tokens(first)
    for (one,), (other,) in zip(first, found, strict=True):
        assert other.end == one.end
        assert other.log_probabilities == pytest.approx(one.log_probabilities, abs=1e-4)
        assert other.sampling_log_probabilities == one.sampling_log_probabilities

    weight = model.decoder.lm_head.weight
    with torch.no_grad():
        weight.neg_()
    try:
        second = ours.rollout(both, 1, seed=0)
        assert tokens(second) != tokens(first)
        assert tokens(theirs.rollout(both, 1, seed=0)) == tokens(second)
        reloads = [path for path, _ in server.calls if "rpc" in path or "update" in path]
        theirs.rollout(both, 1, seed=1)
        assert [path for path, _ in server.calls if "rpc" in path or "update" in path] == reloads  # nothing had changed
    finally:
        with torch.no_grad():
            weight.neg_()


def test_ids_go_out_and_come_back_and_pictures_are_addresses(model, server, encoder, both, tmp_path) -> None:
    spec = RolloutSpec(model, [1], 4, encoder=encoder)
    engine(spec, server, tmp_path).rollout(both, 2, seed=0)
    asked = [body for path, body in server.calls if path == "/v1/completions"]
    assert [body["prompt"] for body in asked] == [both[0].encoded.tokens.tolist()] * 2
    assert len({body["seed"] for body in asked}) == 2
    chats = [body for path, body in server.calls if path == "/v1/chat/completions"]
    parts = [part["type"] for part in chats[0]["messages"][0]["content"]]
    assert parts == ["image_url", "text"]
    assert chats[0]["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")


class Shows(Environment):
    """Shows a picture after the first turn."""

    def __init__(self, image: bytes) -> None:
        self.image = image

    def reply(self, episode):
        return None if len(episode.turns) > 1 else Reply(kind="tool", text="seen", images=(self.image,), reason="shown")


class First(RolloutEngine):
    """Another engine, whose first responses a script speaks."""

    def __init__(self, script: RolloutEngine, engine: RolloutEngine) -> None:
        self.engines = [script, engine]

    def rollout(self, prompts, responses, seed):
        return self.engines.pop(0).rollout(prompts, responses, seed)


@pytest.mark.parametrize("protocol", ["openai", "sglang"])
def test_a_later_turn_with_a_picture_of_its_own(model, server, encoder, both, speaking, tmp_path, protocol) -> None:
    spec = RolloutSpec(model, [0], 4, GREEDY, encoder=encoder)
    shows = Shows((tmp_path / "picture.png").read_bytes())
    script = speaking(encoder, lambda name, number: "one<|im_end|>")
    found = []
    for second in (NativeEngine(spec), engine(spec, server, tmp_path, protocol=protocol)):
        found += TurnEngine(spec, First(script, second), shows).rollout(both[1:], 1, seed=0)[0]
    assert found[0].tokens == found[1].tokens
    assert [len(t.turns) for t in found] == [2, 2]


def test_a_server_that_reads_another_prompt_stops_the_run_or_costs_a_later_turn(
    model, tokenizer, encoder, both, speaking, tmp_path
) -> None:
    spec = RolloutSpec(model, [0], 4, GREEDY, encoder=encoder)
    with served(model, tokenizer, ChatTemplate(system="Be brief.")) as server:
        with pytest.raises(PromptDiffers, match=r"other tokens from place \d+ on: .*default system turn"):
            engine(spec, server, tmp_path).rollout(both, 1, seed=0)
        script = speaking(encoder, lambda name, number: "one<|im_end|>")
        shows = Shows((tmp_path / "picture.png").read_bytes())
        two = First(script, engine(spec, server, tmp_path))
        assert TurnEngine(spec, two, shows).rollout(both[1:], 1, seed=0) == [[]]


def test_trouble_that_passes_costs_nothing_and_trouble_that_stays_costs_responses(
    model, server, encoder, both, tmp_path
) -> None:
    spec = RolloutSpec(model, [1], 4, encoder=encoder)
    calm = engine(spec, server, tmp_path, max_lost_share=1.0)
    calm.rollout(both[:1], 1, seed=0)
    server.trouble += [503, 500]
    assert [len(group) for group in calm.rollout(both[:1], 2, seed=0)] == [2]
    calm.client.tries = 1
    server.trouble += [503]
    assert [len(group) for group in calm.rollout(both[:1], 2, seed=0)] == [1]
    server.trouble += [400]
    with pytest.raises(EndpointRefused, match="400: in trouble"):
        calm.rollout(both[:1], 1, seed=0)
    strict = engine(spec, server, tmp_path, tries=1)
    strict.rollout(both[:1], 1, seed=0)
    server.trouble += [503] * 40
    with pytest.raises(JudgeUnavailable, match="gave a response too seldom"):
        strict.rollout(both[:1], 40, seed=0)


def test_a_server_that_does_not_take_the_weights_stops_the_run(model, server, encoder, both, tmp_path) -> None:
    spec = RolloutSpec(model, [1], 4, encoder=encoder)
    server.trouble += [404]
    with pytest.raises(WeightsNotTaken, match="VLLM_SERVER_DEV_MODE"):
        engine(spec, server, tmp_path).rollout(both[:1], 1, seed=0)
    server.trouble += [503] * 3
    with pytest.raises(WeightsNotTaken, match="did not read the weights"):
        engine(spec, server, tmp_path).rollout(both[:1], 1, seed=0)


def test_calls_of_another_server_can_be_named(model, server, encoder, both, tmp_path) -> None:
    spec = RolloutSpec(model, [1], 4, encoder=encoder)
    calls = [{"/update_weights_from_disk": {"model_path": "{folder}"}}]
    engine(spec, server, tmp_path, reload=calls).rollout(both[:1], 1, seed=0)
    assert server.calls[0] == ("/update_weights_from_disk", {"model_path": str(tmp_path / "weights")})
    assert (tmp_path / "weights" / "model.safetensors").is_file()


def test_what_cannot_work_is_refused(model, encoder, server, tmp_path) -> None:
    with pytest.raises(ValueError, match="set replay to false"):
        engine(RolloutSpec(model, [1], 4, record=True), server, tmp_path)
    with pytest.raises(ValueError, match="log_probabilities=processed"):
        engine(RolloutSpec(model, [1], 4, Sampler(temperature=0.7)), server, tmp_path)
    with pytest.raises(ValueError, match="choose openai or sglang"):
        engine(RolloutSpec(model, [1], 4), server, tmp_path, protocol="grpc")
    hot = engine(RolloutSpec(model, [1], 4, Sampler(temperature=0.7)), server, tmp_path, log_probabilities="processed")
    assert hot.log_probabilities == "processed"


def test_ranks_read_weights_together_once_a_round(model, server, encoder, both, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("keyekit.rollout.openai_engine._several_ranks", lambda: True)
    monkeypatch.setattr("keyekit.rollout.openai_engine._of_all_ranks", lambda own: [own])
    shared = engine(RolloutSpec(model, [1], 4, encoder=encoder), server, tmp_path)
    with pytest.raises(RuntimeError, match=r"call prepare\(\) on all of them"):
        shared.rollout(both[:1], 1, seed=0)
    turns = TurnEngine(RolloutSpec(model, [1], 4, encoder=encoder), shared, Shows(b""))
    turns.prepare()
    assert [len(group) for group in turns.rollout(both[:1], 2, seed=0)] == [2]


def told(rank: int, world_size: int, folder: Path, machines: int, host: str) -> int:
    """How often this rank's own server was told to read weights, once it saw that they had changed."""
    os.environ["LOCAL_RANK"] = str(rank // machines)
    torch.manual_seed(0)
    network = tiny_vision_language_model().eval()
    with served(network) as server:
        url = server.url.replace("127.0.0.1", host)
        OpenAIEngine(RolloutSpec(network, [1], 4), [url], "policy", str(folder), pause=0.01, tries=2).prepare()
        return sum("rpc" in path for path, _ in server.calls)


def test_every_machine_has_its_own_servers_read_the_weights_and_one_rank_those_that_all_share(tmp_path) -> None:
    one, two = run_distributed(told, 2, tmp_path / "two", 2, "127.0.0.1")
    assert one == two > 0
    assert run_distributed(told, 2, tmp_path / "one", 1, "127.0.0.1") == [one, 0]
    assert run_distributed(told, 2, tmp_path / "shared", 2, "0.0.0.0") == [one, 0]  # no loopback: others may use it


class VideoServer(RolloutServer):
    """Reads the frames of a video between commas, and their times beside them, as vLLM reads them for Keye-VL."""

    def _completion(self, body):
        self.times = body.get("mm_processor_kwargs", {})
        return super()._completion(body)

    def _chat(self, messages):
        ((turn,),) = ([message] for message in messages)
        video, text = turn["content"]
        head, _, rest = video["video_url"]["url"].partition("base64,")
        assert head == "data:video/jpeg;"
        self.frames = np.stack([_picture(f"base64,{frame}") for frame in rest.split(",")])
        self.shape = MediaShape(
            len(self.frames), *self.frames.shape[1:3], self._seconds(), self.times.get("fps", [0.0])[0]
        )
        content = (ContentItem(kind="video"), ContentItem(kind="text", text=text["text"]))
        self.sample = Sample(id="chat", task="", messages=(Message(role="user", content=content),))
        rendered = self._rendered()
        return rendered.tokens, [self.frames]

    def _seconds(self):
        (times,) = self.times.get("timestamps", [()])
        return tuple(times)

    def _rendered(self):
        rows, columns = self._grid(self.frames[0])
        grid = MediaGrid(
            rows=rows, columns=columns, frames=self.shape.frames, timestamps=self.shape.timestamps, fps=self.shape.fps
        )
        return self.template.render(self.sample, [grid], self.tokenizer, with_answer=False)

    def _prompt(self, tokens, pictures):
        first = super()._prompt(list(tokens[:1]), [])
        rendered = self._rendered()
        assert list(tokens) == rendered.tokens
        spans = tuple(rendered.spans)
        encoded = replace(
            first.encoded,
            tokens=torch.tensor(tokens),
            labels=torch.full((len(tokens),), -100),
            positions=multimodal_positions(len(tokens), spans),
            spans=spans,
            keys=("",),
            media=(self.shape,),
        )
        return Prompt(encoded=encoded, pictures=pictures)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Sample:
    """A question about a clip of four seconds."""
    root = tmp_path_factory.mktemp("world")
    world = World(root=str(root), train={"count": 1}, heldout={}, workers=1)
    world.build(lambda done, whole: None)
    return parse_sample(world.samples("count", "train")[0], "f:1", root)


@pytest.fixture(params=["timestamps", "axis"])
def filmed(request, tokenizer, tmp_path) -> SampleEncoder:
    """An encoder that shows four frames of a clip, in either layout."""
    layout = {"timestamps": TimestampedFrames(), "axis": TimeAxis()}[request.param]
    reader = MediaReader(
        frame_sampler=UniformFps(fps=1.0, min_frames=4, max_frames=4), min_frame_tokens=4, max_frame_tokens=4
    )
    return SampleEncoder(tokenizer, ChatTemplate(layout), MediaCache(tmp_path / "clips", reader))


@pytest.fixture
def cinema(model, tokenizer, filmed) -> Iterator[VideoServer]:
    """A server that is sent videos."""
    server = VideoServer(model, tokenizer, filmed.template)
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_video_is_sent_as_its_frames_with_their_times(model, cinema, filmed, clip, tmp_path) -> None:
    spec = RolloutSpec(model, range(1, 40, 3), 6, GREEDY, encoder=filmed)
    prompt = Prompt.of(clip, filmed)
    (shape,) = prompt.encoded.media
    theirs = engine(spec, cinema, tmp_path, time_axis=True, extra={"mm_processor_kwargs": {"do_resize": False}})
    found = theirs.rollout([prompt], 1, seed=0)
    assert tokens(found) == tokens(NativeEngine(spec).rollout([prompt], 1, seed=0))
    assert np.array_equal(cinema.frames, prompt.pictures[0])
    axis = isinstance(filmed.template.video_layout, TimeAxis)
    times = {"fps": [shape.fps]} if axis else {"timestamps": [list(shape.timestamps)]}
    assert cinema.times == {**times, "do_resize": False}


@pytest.mark.parametrize("filmed", ["timestamps"], indirect=True)
def test_a_server_that_leaves_the_times_of_frames_out_stops_the_run(
    model, cinema, filmed, clip, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(VideoServer, "_seconds", lambda server: ())
    monkeypatch.setattr(
        VideoServer, "_prompt", lambda server, tokens, pictures: RolloutServer._prompt(server, [1, 2], [])
    )
    spec = RolloutSpec(model, [0], 4, GREEDY, encoder=filmed)
    with pytest.raises(PromptDiffers, match="other tokens from place"):
        engine(spec, cinema, tmp_path).rollout([Prompt.of(clip, filmed)], 1, seed=0)


def test_a_video_that_cannot_be_sent_as_it_is_seen_is_refused(model, filmed, clip, server, tmp_path) -> None:
    encoded = Prompt.of(clip, filmed).encoded
    spec = RolloutSpec(model, [1], 4, encoder=filmed)
    with pytest.raises(
        ValueError, match="SGLang takes videos apart by itself: set protocol to openai, or use NativeEngine"
    ):
        engine(spec, server, tmp_path, protocol="sglang").check(encoded)
    small = replace(encoded, media=(encoded.media[0]._replace(fast=(False, True, True, True)),))
    with pytest.raises(ValueError, match="frames of one size"):
        engine(spec, server, tmp_path, time_axis=True).check(small)
    if isinstance(filmed.template.video_layout, TimeAxis):
        with pytest.raises(ValueError, match="set time_axis to true if the servers place frames"):
            engine(spec, server, tmp_path).rollout([Prompt.of(clip, filmed)], 1, seed=0)
        still = replace(encoded, media=(encoded.media[0]._replace(fps=0.0),))
        with pytest.raises(ValueError, match="no form for TimeAxis at 0 frames a second"):
            engine(spec, server, tmp_path, time_axis=True).check(still)
