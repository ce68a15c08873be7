"""The whole quickstart, a few steps long, and what it leaves behind."""

import contextlib
import io
import json
import re
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from keyekit.cli import chat, quickstart
from keyekit.cli.errors import CommandError
from keyekit.data.tokenizer import load_tokenizer

RECIPES = Path(__file__).parent.parent.parent.parent / "recipes"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Run the command on a world of a few clips; returns the folder that holds runs and data."""
    folder = tmp_path_factory.mktemp("quickstart")
    counts = {"attribute": 8, "attribute_many": 8, "count": 8, "order": 8, "captions": 96}
    world = {"root": str(folder / "world"), "train": counts, "heldout": counts, "workers": 1}
    data = {"world": {"class_path": "World", "init_args": world}, "cache": str(folder / "cache"), "workers": 1}
    for name, steps in (("quickstart/vision", 2), ("quickstart", 3)):
        kind = "ContrastiveDataModule" if "vision" in name else "ConversationDataModule"
        recipe = {
            "base": str(RECIPES / f"{name}.yaml"),
            "run": {"root": str(folder / "runs"), "name": Path(name).name},
            "data": {"class_path": kind, "init_args": data},
            "trainer": {"max_steps": steps, "accelerator": "cpu"},
        }
        (folder / f"{Path(name).name}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    options = ["--recipe", str(folder / "quickstart.yaml"), "--vision-recipe", str(folder / "vision.yaml")]
    swap = ["--model.network.decoder.attention=DSA", "--model.network.decoder.attention.topk=8"]
    swap += [
        "--model.network.decoder.attention.indexer_head_dim=32",
        "--model.network.decoder.attention.num_indexer_heads=2",
    ]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert quickstart.main([*options, *swap]) == 0
    (folder / "printed.txt").write_text(printed.getvalue())
    return folder


pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_summary_says_what_happened(finished: Path) -> None:
    summary = json.loads((finished / "runs/quickstart/1/summary.json").read_text())
    assert (summary["status"], summary["steps"], summary["recipe"]) == ("finished", 3, "quickstart")
    assert summary["final_loss"] > 0
    assert summary["tokens_per_second"] is None or summary["tokens_per_second"] >= 0
    metrics = summary["metrics"]
    for task in ("attribute", "attribute_many", "count", "order"):
        assert 0 <= metrics[f"{task}/accuracy"] <= 1
        assert {f"{task}/blind_accuracy", f"{task}/swapped_accuracy", f"{task}/chance"} <= metrics.keys()
    assert metrics["attribute/questions"] == 16
    assert metrics["mean/accuracy"] == pytest.approx(
        sum(metrics[f"{task}/accuracy"] for task in ("attribute", "count", "order")) / 3
    )


def test_the_selected_share_is_printed(finished: Path) -> None:
    printed = (finished / "printed.txt").read_text()
    share = re.search(r"share of the visible keys that sparse attention selected: (0\.\d+)", printed)
    assert share is not None
    assert 0.1 < float(share[1]) < 0.5  # 8 keys of samples of about 60 tokens
    assert "answers to held-out questions" in printed


def test_the_run_folder_is_complete(finished: Path) -> None:
    run = finished / "runs/quickstart/1"
    config = yaml.safe_load((run / "config.yaml").read_text())
    attention = config["model"]["init_args"]["network"]["init_args"]["decoder"]["init_args"]["attention"]
    assert attention["class_path"].endswith("DSA")
    assert attention["init_args"]["topk"] == 8
    assert list(run.glob("events.out.tfevents.*"))
    assert len(list((run / "previews").glob("count-*.png"))) == 4
    assert (run / "checkpoints/last.ckpt").is_file()
    assert len(load_tokenizer(run / "export")) > 256
    weights = load_file(run / "export/model.safetensors")
    assert "model.layers.0.self_attn.sa_indexer.q_proj.weight" in weights


def test_the_second_fit_starts_from_the_first(finished: Path) -> None:
    first = load_file(finished / "runs/vision/1/export/model.safetensors")
    second = load_file(finished / "runs/quickstart/1/export/model.safetensors")
    name = "visual.vision_model.embeddings.patch_embedding.weight"
    moved = (first[name] - second[name]).abs().max()
    assert 0 < moved < 1e-3  # three steps at a tenth of the rate, still in the warm-up


def test_chat_answers_about_a_clip(finished: Path, capsys: pytest.CaptureFixture) -> None:
    clip = next((finished / "world/clips/heldout").glob("count-*.mp4"))
    run = str(finished / "runs/quickstart/1")
    assert chat.main(["--run", run, "--video", str(clip), "--max-new-tokens", "5", "How many objects?"]) == 0
    shown, *said = capsys.readouterr().out.splitlines()
    assert shown.startswith(f"[looked at {clip.name}: 8 frames of 56x56 at 0.00, 0.50,")
    assert said
    with pytest.raises(CommandError, match=r"no video nowhere\.mp4"):
        chat.main(["--run", run, "--video", "nowhere.mp4", "what?"])
    with pytest.raises(CommandError, match="folder of a finished fit"):
        chat.main(["--run", str(finished), "what?"])
