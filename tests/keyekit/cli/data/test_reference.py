"""The command asks the weights that a recipe starts from about all of its pairs, and the fit takes what it wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from keyekit.cli.data import reference
from keyekit.cli.errors import CommandError
from keyekit.cli.lightning import run
from keyekit.models.weights import save_weights
from keyekit.testing.tiny import tiny_record

pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = Path(__file__).parents[4]
RECIPE = f"""\
base: {ROOT}/recipes/_base/run.yaml
model:
  class_path: PreferenceOptimization
  init_args:
    network: {ROOT}/recipes/_base/models/keye_vl_8b_tiny.yaml
    init_from: start
    learning_rate: 1.0e-3
data:
  class_path: ConversationDataModule
  init_args:
    train: [pairs.jsonl]
    heldout_pairs: [heldout.jsonl]
    vocab_size: 300
    cache: cache
    workers: 1
    pack_tokens: 400
trainer:
  accelerator: cpu
  max_steps: 3
  logger: false
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    for name, numbers in (("pairs", range(9)), ("heldout", range(9, 12))):
        records = [tiny_record(f"p{n}", f"how many {n}", "two") | {"meta": {"rejected": "two two"}} for n in numbers]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    from keyekit.models.presets import PRESETS

    save_weights(PRESETS["keye_vl_8b_tiny"].build(), tmp_path / "start")
    Path("r.yaml").write_text(RECIPE)
    return "r.yaml"


def test_the_fit_takes_what_the_command_wrote(recipe, capsys):
    assert reference.main([recipe]) == 0
    told = capsys.readouterr().out
    assert "9 pairs in pairs.reference.jsonl" in told
    assert "3 pairs in heldout.reference.jsonl" in told
    assert "in another pack: bit-equal" in told
    assert not Path("runs").exists()
    names = "[pairs.reference.jsonl, heldout.reference.jsonl]"
    fit = run("fit", [recipe, "--trainer.callbacks=null", f"--model.reference_files={names}", "--run.folder=runs/a"])
    live = run("fit", [recipe, "--trainer.callbacks=null", "--run.folder=runs/b"])
    losses = [cli.trainer.callback_metrics["train/loss"] for cli in (fit, live)]
    assert losses[0] == losses[1]


def test_what_has_no_pairs_or_no_weights_is_said(recipe):
    with pytest.raises(CommandError, match=r"give its folder, --model\.init_from"):
        reference.main([recipe, "--model.init_from=null"])
    with pytest.raises(CommandError, match="learns from no pairs"):
        reference.main(
            [recipe, "--model=LanguageModeling", f"--model.network={ROOT}/recipes/_base/models/keye_vl_8b_tiny.yaml"]
        )
    assert reference.main([]) == 2
    assert reference.main(["--help"]) == 0
