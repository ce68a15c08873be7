import json
from collections import Counter, defaultdict

import av
import numpy as np
import pytest
from PIL import Image

from keyekit.data.world import FAMILIES, Scene, World
from keyekit.data.world.scene import COLORS

WRITTEN = ("arithmetic", "larger", "long_sum", "told_")
TEXT = [task for task in FAMILIES if task.startswith(WRITTEN)]
VISUAL = [task for task in FAMILIES if task not in TEXT and task != "captions"]


def _question(sample):
    return sample["messages"][0]["content"][-1]["text"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("world") / "all"
    counts = dict.fromkeys(FAMILIES, 3)
    world = World(str(root), seed=11, train=counts, heldout=counts, workers=1)
    calls = []
    files = world.build(progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (2 * 3 * len(FAMILIES), 2 * 3 * len(FAMILIES))
    return world, files


def _lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("task", list(FAMILIES))
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_every_sample_is_a_conversation_about_an_existing_file(built, task, split):
    world, files = built
    samples = _lines(files.path(task, split))
    assert samples == world.samples(task, split)
    assert len({sample["id"] for sample in samples}) == len(samples) >= 3
    for sample in samples:
        assert sample["task"] == ("caption" if task == "captions" else task)
        user, *turns, assistant = sample["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        assert [turn["role"] for turn in turns] == ["assistant", "tool"] * (task == "closer")
        assert assistant["content"] == [{"type": "text", "text": sample["answer"]}]
        assert 0 <= sample["meta"]["chance"] <= 1
        media = [part for part in user["content"] if part["type"] != "text"]
        assert len(media) == (task not in TEXT)
        for part in media:
            assert (files.root / part[part["type"]]).is_file()


def test_decoded_clips_show_the_objects_of_the_record(built):
    """Colour at the middle of each solid object, at each frame's own timestamp, after H.264."""
    checked = 0
    for task in ("attribute", "attribute_many", "count", "order", "temporal", "needle"):
        for sample in _lines(built[1].path(task, "train")):
            scene = Scene.from_record(sample["meta"]["scene"])
            path = built[1].root / sample["messages"][0]["content"][0]["video"]
            with av.open(str(path)) as container:
                frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
            assert [time for time, _ in frames] == scene.seconds()
            for second, pixels in frames:
                for thing in scene.objects:
                    if thing.shape == "ring":
                        continue
                    left, top, right, bottom = thing.box(second, scene.size)
                    seen = pixels[(top + bottom) // 2, (left + right) // 2].astype(int)
                    nearest = min(COLORS, key=lambda name: np.abs(seen - COLORS[name]).sum())
                    error = np.abs(seen - COLORS[thing.color]).max()
                    assert (nearest == thing.color and error < 45) == thing.is_visible(second), (task, second, seen)
                    checked += 1
    assert checked > 300


def test_a_decoded_image_shows_the_box_of_the_answer(built):
    for sample in _lines(built[1].path("box", "train")):
        scene = Scene.from_record(sample["meta"]["scene"])
        target = next(thing for thing in scene.objects if thing.phrase == sample["meta"]["subject"])
        pixels = np.asarray(Image.open(built[1].root / sample["messages"][0]["content"][0]["image"])).astype(int)
        ink = np.abs(pixels - COLORS[target.color]).max(axis=-1) < 20
        rows, columns = np.where(ink)
        corners = json.loads(sample["answer"].removeprefix("<|box_start|>").removesuffix("<|box_end|>"))[0]
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.abs(np.array(corners) * scene.size / 1000 - seen).max() <= 1.1


@pytest.mark.parametrize("task", ["attribute", "attribute_many", "count", "order", "needle"])
def test_text_alone_does_not_give_the_answer_away(task):
    """Majority predictors fitted on the train split and scored on the held-out split stay at chance."""
    world = World("unused", seed=2, train={task: 1600}, heldout={task: 800})
    train, heldout = world.samples(task, "train"), world.samples(task, "heldout")
    chance = heldout[0]["meta"]["chance"]

    def position(sample):
        return sample["meta"]["options"].index(sample["answer"]) if "options" in sample["meta"] else sample["answer"]

    def kind(sample):
        return (_question(sample).split("\n")[0].split(",")[0], sample["meta"].get("kind"))

    cues = {
        "position": (position, lambda sample: "all"),
        "position by wording": (position, kind),
        "answer by whole text": (lambda sample: sample["answer"], _question),
        "position by first option": (position, lambda sample: sample["meta"].get("options", [""])[0]),
        "position by last option": (position, lambda sample: sample["meta"].get("options", [""])[-1]),
    }
    for name, (target, cue) in cues.items():
        seen = defaultdict(Counter)
        for sample in train:
            seen[cue(sample)][target(sample)] += 1
        guesses = [(seen[cue(sample)].most_common(1) or [(None, 0)])[0][0] for sample in heldout]
        score = np.mean([guess == target(sample) for guess, sample in zip(guesses, heldout, strict=True)])
        assert score <= chance + 0.05, f"{name} scores {score:.3f} against a chance of {chance}"


@pytest.mark.parametrize("task", ["attribute", "attribute_many", "order", "needle"])
def test_a_popular_option_does_not_give_the_answer_away(task):
    """Choosing the option that is right most often among those where it is offered stays at chance."""
    world = World("unused", seed=4, train={task: 1200}, heldout={task: 800})
    right, offered = Counter(), Counter()
    for sample in world.samples(task, "train"):
        right[sample["answer"]] += 1
        offered.update(sample["meta"]["options"])
    heldout = world.samples(task, "heldout")
    hits = [
        max(sample["meta"]["options"], key=lambda option: right[option] / max(1, offered[option])) == sample["answer"]
        for sample in heldout
    ]
    assert np.mean(hits) <= heldout[0]["meta"]["chance"] + 0.05


def test_answers_are_balanced():
    world = World("unused", train={"count": 400, "attribute": 480, "order": 200}, heldout={})
    assert set(Counter(sample["answer"] for sample in world.samples("count", "train")).values()) == {100}
    positions = Counter(s["meta"]["options"].index(s["answer"]) for s in world.samples("attribute", "train"))
    assert set(positions.values()) == {240}
    mentions = Counter(s["meta"]["options"].index(s["answer"]) for s in world.samples("order", "train"))
    assert set(mentions.values()) == {200}


def test_splits_share_no_scene_and_no_sum():
    counts = dict.fromkeys(FAMILIES, 150)
    world = World("unused", train=counts, heldout=counts)

    def scenes(split):
        return {json.dumps(s["meta"]["scene"]) for task in VISUAL for s in world.samples(task, split)}

    def sums(split):
        return {_question(sample) for sample in world.samples("arithmetic", split)}

    assert len(scenes("train")) == 150 * len(VISUAL)
    assert not scenes("train") & scenes("heldout")
    assert not sums("train") & sums("heldout")


def test_the_same_arguments_give_the_same_bytes(built, tmp_path):
    world, files = built
    again = World(str(tmp_path), seed=11, train=world.counts["train"], heldout=world.counts["heldout"], workers=2)
    again.build(progress=lambda done, total: None)
    names = sorted(path.relative_to(files.root) for path in files.root.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert all((files.root / name).read_bytes() == (tmp_path / name).read_bytes() for name in names)
    other = World(str(tmp_path), seed=12, train={"count": 3}, heldout={})
    assert other.samples("count", "train") != world.samples("count", "train")


def _build(world):
    calls = []
    world.build(progress=lambda done, total: calls.append(done))
    return bool(calls)


def test_a_complete_world_is_kept_and_any_other_is_built_again(tmp_path):
    world = World(str(tmp_path), train={"count": 2}, heldout={"count": 1}, workers=1)
    assert _build(world)
    assert not _build(world)
    changed = World(str(tmp_path), train={"order": 2}, heldout={}, workers=1)
    assert not changed.is_built()
    assert _build(changed)
    assert not (tmp_path / "count.train.jsonl").exists()
    next((tmp_path / "clips" / "train").iterdir()).unlink()
    assert _build(changed)


def test_an_interrupted_build_is_detected_and_redone(tmp_path):
    world = World(str(tmp_path), train={"count": 60, "order": 2}, heldout={}, workers=1)

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        world.build(progress=interrupt)
    assert list((tmp_path / "clips" / "train").iterdir())
    assert not world.is_built()
    assert _build(world)
    assert world.is_built()
    assert not (tmp_path / ".unfinished").exists()


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "holiday.mp4").write_bytes(b"precious")
    with pytest.raises(ValueError, match="not a world"):
        World(str(tmp_path), train={"count": 1}, heldout={}).build()
    assert (tmp_path / "clips" / "holiday.mp4").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": {"counting": 3}}, "'counting'.*attribute"),
        ({"heldout": {"count": -1}}, "0 or more"),
        ({"frame_size": 57}, "even"),
        ({"seconds": 1.0}, "3 seconds"),
        ({"workers": 0}, "at least 1"),
    ],
)
def test_bad_arguments_say_what_is_allowed(arguments, message):
    with pytest.raises(ValueError, match=message):
        World("unused", **arguments)


def test_files_name_what_there_is(built):
    _, files = built
    with pytest.raises(ValueError, match="no task 'holiday'"):
        files.path("holiday", "train")
    texts = list(files.texts("heldout"))
    assert "Describe the image." in texts
    assert any(text.startswith("<|box_start|>") for text in texts)


def test_the_stage_follows_the_arguments(tmp_path):
    world = World(str(tmp_path), train={"count": 1}, heldout={}, frame_size=112, fps=8.0, seconds=3.0, workers=1)
    path = world.build(progress=lambda done, total: None).root / "clips" / "train" / "count-00000.mp4"
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 24
    assert (frames[0].width, frames[0].height) == (112, 112)
