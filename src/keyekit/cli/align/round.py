"""One round of alignment: prompts, the model's own answers, their scores, and what can be learnt from them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from keyekit.cli.align.results import round_metrics, write_results
from keyekit.cli.answer_progress import AnswerProgress
from keyekit.cli.assistant import Assistant, assistant_of
from keyekit.data.errors import BadData, ErrorPolicy
from keyekit.data.sample import Sample
from keyekit.data.sources.jsonl import read_jsonl
from keyekit.data.template import structure_in
from keyekit.evaluation.answer_log import AnswerLog
from keyekit.models.sampling import Sampler
from keyekit.models.weights.digest import weights_digest
from keyekit.rewards.base import Reward, RewardOutcome
from keyekit.rollout.candidates import Candidate
from keyekit.rollout.engine import RolloutEngine, RolloutSpec
from keyekit.rollout.native import NativeEngine
from keyekit.rollout.trajectory import Prompt, Trajectory

__all__ = ["RESPONSES", "AlignmentRound"]

RESPONSES = "responses.jsonl"
"""Every answer with its score; what a round that was interrupted goes on from."""


class AlignmentRound:
    """Let a model answer prompts, score its answers, and make pairs and examples of the best and the worst.

    Keye-VL does so in rounds after reinforcement learning: scores are rules for repetition, instructions and form, and marks of
    larger models (8B sheet 5.7); the same answers serve rejection sampling (5.8). What a prompt is answered depends on the
    seed and on its own name, so a round that was interrupted ends like one that was not.

    Args:
        source: Folder of a run or of a checkpoint, or a preset: the model that answers.
        output: Folder for what comes of it.
        prompts: JSONL files of conversations; a last turn of the assistant is not shown.
        reward: What an answer is worth, such as a ``WeightedSum`` of rules and a judge.
        responses: Answers to each prompt; 1 measures only, and with ``temperature=0`` the likeliest answers.
        temperature: Of the answers.
        max_new_tokens: Longest answer in tokens.
        accept: Least value of an answer that is an example to follow.
        min_margin: Least difference in value between the answers of a pair.
        seed: Seed of the answers.
        limit: Ask only the first so many prompts.
        prompts_at_a_time: Prompts that are answered between two looks at the clock, and repeated after an interruption.
        repetition_window: Letters that have to come again for an answer to count as repeating in the summary.
        engine: Who draws the answers; the native engine by default.
        tokenizer: Folder of the tokenizer; needed with a preset.
        device: Where the model runs; ``auto`` takes a GPU if there is one.
        on_error: What a prompt does whose media cannot be read.

    Raises:
        ValueError: If a number is out of its range.
    """

    def __init__(
        self,
        source: str,
        output: str,
        prompts: list[str],
        reward: Reward,
        responses: int = 8,
        temperature: float = 1.0,
        max_new_tokens: int = 1024,
        accept: float = 0.0,
        min_margin: float = 0.0,
        seed: int = 0,
        limit: int | None = None,
        prompts_at_a_time: int = 64,
        repetition_window: int = 64,
        engine: Callable[[RolloutSpec], RolloutEngine] = NativeEngine,
        tokenizer: str | None = None,
        device: str = "auto",
        on_error: Literal["skip", "raise"] = "raise",
    ) -> None:
        numbers = {
            "responses": responses,
            "prompts_at_a_time": prompts_at_a_time,
            "repetition_window": repetition_window,
        }
        for name, number in (numbers | ({} if limit is None else {"limit": limit})).items():
            if number < 1:
                raise ValueError(f"{name}={number}: give at least 1")
        if responses > 1 and not temperature > 0:
            raise ValueError(
                f"temperature={temperature}: {responses} answers would all be the same, give a number above 0"
            )
        if min_margin < 0:
            raise ValueError(f"min_margin={min_margin}: a chosen answer is worth more than the rejected one, not less")
        self.source = source
        self.output = Path(output)
        self.prompts = tuple(prompts)
        self.reward = reward
        self.responses = responses
        self.temperature = temperature
        self.max_new_tokens = max_new_tokens
        self.accept = accept
        self.min_margin = min_margin
        self.seed = seed
        self.limit = limit
        self.prompts_at_a_time = prompts_at_a_time
        self.repetition_window = repetition_window
        self.engine = engine
        self.tokenizer = None if tokenizer is None else Path(tokenizer)
        self.device = device
        self.policy = ErrorPolicy(on_error)

    def run(self, described: str) -> dict[str, float]:
        """Carry the round out, or go on with it.

        Args:
            described: The settings as JSON; a round with others does not go on in the same folder.

        Returns:
            The means of the summary.

        Raises:
            LogError: If the folder holds a round with other settings, prompts or weights.
            ValueError: If two prompts have one name.
        """
        samples = self._samples()
        log = AnswerLog(self.output / RESPONSES, {**self._settings(described), "prompts": _names(samples)})
        chunks = [samples[at : at + self.prompts_at_a_time] for at in range(0, len(samples), self.prompts_at_a_time)]
        left = [chunk for chunk in chunks if not {sample.id for sample in chunk} <= log.records.keys()]
        if left:
            assistant = assistant_of(self.source, self.tokenizer)
            done, progress = len(samples) - sum(map(len, left)), AnswerProgress()
            for record in self._answer(assistant, left):
                log.append(record)
                done += 1
                progress(done * self.responses, len(samples) * self.responses)
        answered = [(sample, _candidates(log.records[sample.id])) for sample in samples if _is_known(log, sample)]
        counts = write_results(self.output, answered, self.accept, self.min_margin)
        metrics = round_metrics([candidates for _, candidates in answered], self.repetition_window) | counts
        summary = {"command": "align", "source": self.source, "metrics": metrics, "settings": json.loads(described)}
        (self.output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        _tell(metrics, self.output)
        return metrics

    def _samples(self) -> list[Sample]:
        found = [_asked(sample) for file in self.prompts for sample in read_jsonl(Path(file), self.policy)]
        chosen = found if self.limit is None else found[: self.limit]
        repeated = len(chosen) - len({sample.id for sample in chosen})
        if repeated:
            raise ValueError(
                f"{repeated} of {len(chosen)} prompts have the name of another: give each an id of its own"
            )
        return chosen

    def _settings(self, described: str) -> dict[str, Any]:
        folder = Path(self.source)
        weights = folder / "export" if (folder / "config.yaml").is_file() else folder
        ignored = ("output", "device", "accept", "min_margin", "repetition_window")  # what can change after the answers
        settings = {name: value for name, value in json.loads(described).items() if name not in ignored}
        return {"weights": weights_digest(weights) if weights.is_dir() else "", "settings": settings}

    def _answer(self, assistant: Assistant, chunks: Sequence[Sequence[Sample]]) -> Iterator[dict[str, Any]]:
        """A record for each prompt."""
        spec = RolloutSpec(
            assistant.network.to(_device(self.device)),
            assistant.stop_tokens,
            self.max_new_tokens,
            Sampler(temperature=self.temperature),
            encoder=assistant.encoder,
        )
        engine = self.engine(spec)
        for chunk in chunks:
            prompts: list[Prompt] = []
            for sample in chunk:
                try:
                    prompts.append(Prompt.of(sample, assistant.encoder))
                except BadData as error:
                    self.policy.handle(error)
                    yield {"id": sample.id, "unreadable": str(error), "responses": []}
            groups = engine.rollout(prompts, self.responses, self.seed)
            texts = [[assistant.decode(list(trajectory.answer)) for trajectory in group] for group in groups]
            judged = iter(
                self.reward.score(
                    [prompt.encoded.sample for prompt, group in zip(prompts, texts, strict=True) for _ in group],
                    [text for group in texts for text in group],
                )
            )
            for prompt, group, said in zip(prompts, groups, texts, strict=True):
                records = [_record(_candidate(t, text, next(judged))) for t, text in zip(group, said, strict=True)]
                yield {"id": prompt.name, "responses": records}


def _asked(sample: Sample) -> Sample:
    """The conversation up to where the model is to speak."""
    if sample.messages[-1].role == "assistant":
        return replace(sample, messages=sample.messages[:-1])
    return sample


def _candidate(trajectory: Trajectory, text: str, outcome: RewardOutcome) -> Candidate:
    return Candidate(
        text=text,
        value=outcome.value,
        sayable=structure_in(text) is None,
        whole=trajectory.end == "stop_token",
        parts=dict(outcome.parts),
        reason=outcome.reason,
        tokens=len(trajectory.tokens),
    )


def _record(candidate: Candidate) -> dict[str, Any]:
    return {**asdict(candidate), "value": candidate.value if candidate.is_known else None}


def _candidates(record: dict[str, Any]) -> list[Candidate]:
    responses = record["responses"]
    return [
        Candidate(**{**found, "value": math.nan if found["value"] is None else found["value"]}) for found in responses
    ]


def _is_known(log: AnswerLog, sample: Sample) -> bool:
    return bool(log.records[sample.id]["responses"])


def _names(samples: Sequence[Sample]) -> str:
    """A word for which prompts there are, and what they ask."""
    text = json.dumps([[sample.id, sample.question, sample.answer] for sample in samples])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _device(wanted: str) -> str:
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


def _tell(metrics: dict[str, float], output: Path) -> None:
    for name, value in metrics.items():
        print(f"{name:<28} {value:.4g}")
    print(f"pairs, examples and answers in {output}")
