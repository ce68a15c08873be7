"""The recipe of five modes trains: all are in its packs, with pictures and clips, and the loss of each falls."""

from __future__ import annotations

import json
from pathlib import Path

import lightning
import pytest
import torch
import yaml

from keyekit.batch import IGNORED_LABEL, Batch, SampleInfo
from keyekit.cli.expand import expand_recipe
from keyekit.cli.lightning import KeyeCLI, run

RECIPE = Path(__file__).parent.parent.parent / "recipes" / "tiny" / "modes.yaml"


MODES = ("think", "no_think", "auto", "images", "video")
FRAMES = 8
"""Of a clip, as the recipe's reader takes them."""


class Packs(lightning.Callback):
    """Keeps the loss of every mode, what is learnt as text, and how many frames each medium has."""

    def __init__(self) -> None:
        self.losses: list[dict[str, tuple[float, int]]] = []
        self.learnt: dict[str, list[str]] = {}
        self.media: dict[str, set[tuple[int, ...]]] = {}
        self._batch: Batch | None = None

    def on_train_start(self, trainer, pl_module) -> None:
        pl_module.objective.register_forward_hook(self._measure)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self._batch = batch

    @torch.no_grad()
    def _measure(self, objective, arguments, output) -> None:
        batch, self._batch = self._batch, None  # the objective is called again below
        if batch is None:
            return
        hidden, weight, labels, _ = arguments
        found = {}
        for mode in MODES:
            own = torch.full_like(labels, IGNORED_LABEL)
            for sample in batch.samples:
                if mode_of(sample) == mode:
                    own[sample.start : sample.stop] = labels[sample.start : sample.stop]
            targets = int((own != IGNORED_LABEL).sum())
            found[mode] = (float(objective(hidden, weight, own, targets)) if targets else 0.0, targets)
        self.losses.append(found)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        tokenizer = trainer.datamodule.tokenizer
        frames = iter(batch.vision.frames if batch.vision is not None else ())
        for sample in batch.samples:
            labels = batch.labels[sample.start : sample.stop]
            text = tokenizer.decode(labels[labels != IGNORED_LABEL])
            self.learnt.setdefault(sample.task, []).append(text)
            self.media.setdefault(sample.task, set()).add(tuple(next(frames) for _ in sample.media))

    def mean(self, mode: str, steps: slice) -> float:
        """Mean loss of a token in some steps."""
        losses, targets = zip(*(found[mode] for found in self.losses[steps]), strict=True)
        return sum(losses) / sum(targets)


def mode_of(sample: SampleInfo) -> str:
    """The mode that a sample is for: what it shows decides, then how it is asked."""
    return {"closer": "images", "attribute": "video"}.get(sample.task) or sample.meta["mode"]


@pytest.mark.filterwarnings("ignore")
def test_all_modes_are_learnt_together(tmp_path, monkeypatch) -> None:
    packs = Packs()
    monkeypatch.setattr(KeyeCLI, "before_fit", lambda cli: cli.trainer.callbacks.append(packs), raising=False)
    counts = yaml.safe_load(expand_recipe([str(RECIPE)]))["data"]["init_args"]["world"]["init_args"]
    words = [f"--data.world.{split}={json.dumps(dict.fromkeys(counts[split], 24))}" for split in ("train", "heldout")]
    words += [f"--data.world.root={tmp_path / 'world'}", f"--data.cache={tmp_path / 'cache'}", "--data.world.workers=1"]
    words += ["--trainer.max_steps=24", "--model.schedule.warmup_steps=4", "--run.test=false"]
    run("fit", [str(RECIPE), *words, "--trainer.accelerator=cpu", f"--run.root={tmp_path / 'runs'}"])
    assert len(packs.losses) == 24
    for mode in MODES:
        assert packs.mean(mode, slice(-6, None)) < 0.8 * packs.mean(mode, slice(6)), mode
    # A picture and the part of it that the tool shows; a clip; nothing.
    assert packs.media["closer"] == {(1, 1)}
    assert packs.media["attribute"] == {(FRAMES,)}
    assert packs.media["long_sum_in_modes"] == packs.media["larger_in_modes"] == {()}
    said = packs.learnt
    assert said.keys() == counts["train"].keys()
    thinking = [text for text in said["long_sum_in_modes"] if text.startswith("<think>")]
    judged = [text for text in said["long_sum_in_modes"] if text.startswith("<analysis>")]
    plain = [text for text in said["long_sum_in_modes"] if text.removesuffix("<|im_end|>").isdigit()]
    assert min(map(len, (thinking, judged, plain))) > 0
    for text in said["closer"]:
        call, answer, rest = text.split("<|im_end|>")
        assert json.loads(call.removeprefix("<tool_call>").removesuffix("</tool_call>"))["name"] == "crop"
        assert answer.isalpha()
        assert rest == ""
    assert not any("<|video_pad|>" in text for text in said["attribute"])
