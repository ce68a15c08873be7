"""A check finds what was planted, and nothing in clean data."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
from PIL import Image

from keyekit.cli.main import main
from keyekit.testing.tiny import tiny_record


def write_sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


def test_everything_that_was_planted_is_found(folder: Path, capsys) -> None:
    copy = np.asarray(Image.open(folder / "2.png").resize((140, 98)))
    for name, pixels in (("MMBench/known.jpg", copy), ("AI2D/other.jpg", copy[:, ::-1])):
        path = Path("benchmarks") / name
        path.parent.mkdir(parents=True)
        Image.fromarray(pixels).save(path, quality=90)
    (Path("benchmarks/AI2D") / "cut.png").write_bytes(b"nothing")
    write_sound(folder / "sound.mp4")
    with (folder / "pictures.jsonl").open("a") as file:
        file.write(json.dumps(tiny_record("sound", "what do you see?", "nothing", [("video", "sound.mp4")])) + "\n")
    words = ["data", "check", str(folder), "--benchmarks", "benchmarks", "--report", "out/report.jsonl"]
    assert main(words) == 1
    records = [json.loads(line) for line in Path("out/report.jsonl").read_text().splitlines()]
    shown = [(r["finding"], r.get("reason") or r.get("benchmark") or r.get("of"), r.get("sample")) for r in records]
    assert shown == [
        ("unusable", "missing_media", None),
        ("unusable", "bad_line", None),
        ("unusable", "empty_video", None),
        ("duplicate", "pictures.jsonl[1] i1", "pictures.jsonl[4] twin"),
        ("contaminated", "MMBench", "pictures.jsonl[2] i2"),
    ]
    assert "sound.mp4 has no video stream; it holds audio" in records[2]["message"]
    out = capsys.readouterr().out
    assert "7 of 10 entries can be used" in out
    assert "benchmark medium left out" in out


def test_embeddings_of_samples_and_benchmarks_are_compared(folder: Path, capsys) -> None:
    unit = np.eye(4, dtype=np.float32)
    for name in ("samples/deep", "benchmarks"):
        (Path("embeddings") / name).mkdir(parents=True)
    np.savez("embeddings/samples/deep/more.json.npz", images=unit[:1], texts=unit[:1], entries=np.array([0]))
    np.savez("embeddings/samples/pictures.jsonl.npz", images=unit[1:3], texts=unit[:2], entries=np.array([0, 3]))
    np.savez("embeddings/benchmarks/MMBench.npz", images=unit, texts=unit)
    words = ["data", "check", str(folder), "--embeddings", "embeddings", "--report", "report.jsonl"]
    assert main(words) == 1
    records = [json.loads(line) for line in Path("report.jsonl").read_text().splitlines()]
    found = [(record["benchmark"], record["sample"]) for record in records if record["finding"] == "contaminated"]
    assert found == [("MMBench", "deep/more.json[0] clip")]
    assert "samples to drop" in capsys.readouterr().out
    np.savez("embeddings/samples/nothing.npz", images=unit, texts=unit, entries=np.arange(4))
    assert main(words) == 2
    assert "there is no source 'nothing'" in capsys.readouterr().err


def test_clean_data_pass(folder: Path, capsys) -> None:
    assert main(["data", "check", str(folder / "deep")]) == 0
    assert "2 of 2 entries can be used" in capsys.readouterr().out


def test_what_no_pack_holds_cannot_be_used(folder: Path, capsys) -> None:
    recipe = str(Path(__file__).parents[4] / "recipes/tiny/temporal.yaml")
    assert main(["data", "check", str(folder / "deep"), "--like", recipe, "--data.pack_tokens=30"]) == 1
    out = capsys.readouterr().out
    assert "1 of 2 entries can be used" in out
    assert "too_long" in out


def test_mistakes_are_explained(folder: Path, capsys) -> None:
    assert main(["data", "check", str(folder), "--media-threshold", "1"]) == 2
    assert "threshold=1.0" in capsys.readouterr().err
    assert main(["data", "check", str(folder), "--benchmarks", "nowhere"]) == 2
    assert "no such folder of benchmarks" in capsys.readouterr().err
