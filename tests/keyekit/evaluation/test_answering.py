"""The toolkit's own network as the one who answers, on real clips."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from keyekit.data.cache import MediaCache
from keyekit.data.encode import SampleEncoder
from keyekit.data.processors import processor_of
from keyekit.data.sample import Sample
from keyekit.data.tokenizer import SpecialTokens, train_tokenizer
from keyekit.evaluation.answering import NetworkAnswerer
from keyekit.evaluation.benchmark import question, video
from keyekit.models.presets import PRESETS
from keyekit.models.sampling import Sampler
from keyekit.testing.benchmark_folders import write_clip


@pytest.fixture(scope="module")
def answerer(tmp_path_factory: pytest.TempPathFactory) -> NetworkAnswerer:
    folder = tmp_path_factory.mktemp("answering")
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["system user assistant what is seen"], folder / "tokenizer", 300)
    processor = processor_of("keye_vl_1_5_8b")
    special = SpecialTokens.of(tokenizer)
    return NetworkAnswerer(
        network=PRESETS["keye_vl_1_5_8b_tiny"].build().eval(),
        encoder=SampleEncoder(tokenizer, processor.template, MediaCache(folder / "cache", processor.reader)),
        decode=tokenizer.decode,
        stop_tokens=(special.im_end, special.endoftext),
        max_new_tokens=4,
        identity="random",
    )


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    folder = tmp_path_factory.mktemp("clips")
    for colour in ("red", "blue"):
        write_clip(folder / f"{colour}.mp4", colour, seconds=1.0)
    (folder / "broken.mp4").write_bytes(b"no video")
    names = ["red", "broken", "blue", "missing", "red"]
    return [
        Sample(
            id=f"q{place}",
            task="t",
            messages=question(f"what is seen {'again ' * place}", [video(folder / f"{name}.mp4", max_frames=4)]),
        )
        for place, name in enumerate(names)
    ]


def test_every_question_gets_one_answer_or_the_reason_why_not(answerer, samples):
    answers = {answer.sample.id: answer for answer in answerer.answers(samples)}
    assert set(answers) == {sample.id for sample in samples}
    reasons = {name: answer.error.reason for name, answer in answers.items() if answer.error is not None}
    assert reasons == {"q1": "broken_media", "q3": "missing_media"}
    assert all(1 <= answers[name].tokens <= 4 and answers[name].finish_reason for name in ("q0", "q2", "q4"))


def test_media_are_decoded_ahead_of_the_questions(answerer, samples, tmp_path, monkeypatch):
    alone = said(answerer, samples)
    encoder = answerer.encoder
    cache = MediaCache(tmp_path, encoder.cache.reader, max_bytes=2**30)
    ahead = replace(answerer, decode_workers=1, encoder=SampleEncoder(encoder.tokenizer, encoder.template, cache))
    good = [sample for sample in samples if sample.id in ("q0", "q2", "q4")]
    with monkeypatch.context() as patch:
        patch.setattr(MediaCache, "_decode_and_store", None)  # in this process nothing is decoded
        assert said(ahead, good) == {name: text for name, text in alone.items() if text}
    assert said(ahead, samples) == alone


def said(answerer: NetworkAnswerer, samples: list[Sample]) -> dict[str, str]:
    return {answer.sample.id: answer.text for answer in answerer.answers(samples)}


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_an_answer_does_not_depend_on_the_other_questions(answerer, samples, temperature):
    answerer = replace(answerer, sampler=Sampler(temperature=temperature, seed=3))
    together = said(answerer, samples)
    assert said(replace(answerer, batch_tokens=1), samples) == together
    assert said(answerer, samples[2:]) == {name: text for name, text in together.items() if name not in ("q0", "q1")}
    if temperature:
        assert said(replace(answerer, sampler=Sampler(temperature=temperature, seed=4)), samples) != together


def test_settings_hold_what_decides_an_answer(answerer):
    settings = answerer.settings()
    assert settings["weights"] == "random"
    assert settings["sampler"]["temperature"] == 0
    assert replace(answerer, batch_tokens=1).settings() == settings
    assert replace(answerer, max_new_tokens=5).settings() != settings


def test_no_question_no_answer(answerer):
    assert list(answerer.answers([])) == []
