"""The recipe of five modes trains: every mode is in its packs, what tools show is not learnt, and the loss of each falls."""

from __future__ import annotations

import json
from pathlib import Path

import lightning
import pytest
import yaml

from keyekit.batch import IGNORED_LABEL
from keyekit.cli.expand import expand_recipe
from keyekit.cli.lightning import KeyeCLI, run

RECIPE = Path(__file__).parent.parent.parent / "recipes" / "tiny" / "modes.yaml"


class Packs(lightning.Callback):
    """Keeps losses, tasks and what is learnt as text."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.learnt: dict[str, list[str]] = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.losses.append(outputs["loss"].item())
        tokenizer = trainer.datamodule.tokenizer
        for sample in batch.samples:
            labels = batch.labels[sample.start : sample.stop]
            text = tokenizer.decode(labels[labels != IGNORED_LABEL])
            self.learnt.setdefault(sample.task, []).append(text)


@pytest.mark.filterwarnings("ignore")
def test_all_modes_are_learnt_together(tmp_path, monkeypatch) -> None:
    packs = Packs()
    monkeypatch.setattr(KeyeCLI, "before_fit", lambda cli: cli.trainer.callbacks.append(packs), raising=False)
    counts = yaml.safe_load(expand_recipe([str(RECIPE)]))["data"]["init_args"]["world"]["init_args"]
    words = [f"--data.world.{split}={json.dumps(dict.fromkeys(counts[split], 24))}" for split in ("train", "heldout")]
    words += [f"--data.world.root={tmp_path / 'world'}", f"--data.cache={tmp_path / 'cache'}", "--data.world.workers=1"]
    words += ["--trainer.max_steps=24", "--model.schedule.warmup_steps=4", "--run.test=false"]
    run("fit", [str(RECIPE), *words, "--trainer.accelerator=cpu", f"--run.root={tmp_path / 'runs'}"])
    assert sum(packs.losses[-4:]) < 0.8 * sum(packs.losses[:4])
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
