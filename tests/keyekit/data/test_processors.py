"""Processing of the releases, and of checkpoint folders."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

from keyekit.data.budget_search import BudgetSearch
from keyekit.data.processor_settings import SETTINGS_FILE, processor_settings
from keyekit.data.processors import MODEL_TYPES, Processor, processor_for_folder, processor_of, processors
from keyekit.data.reader import MediaReader, SecondResize
from keyekit.data.sampling import UniformFps
from keyekit.data.slow_fast import SlowFast
from keyekit.data.template import ChatTemplate, TimeAxis, TimestampedFrames
from keyekit.registry import constructor_parameters

PIECES = Path(__file__).parent.parent.parent.parent / "recipes/_base/parts"

# What the Preview's repository ships (Keye-VL 8B sheet 2.1).
SHIPPED = {
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "max_pixels": 1003520,
    "merge_size": 2,
    "min_pixels": 3136,
    "patch_size": 14,
    "temporal_patch_size": 1,
}


def settings_of(reader: MediaReader, template: ChatTemplate) -> dict:
    return processor_settings(reader, template)


@pytest.fixture
def checkpoint(tmp_path):
    def write(model_type: str | None = "Keye", **settings) -> Path:
        if model_type is not None:
            (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        if settings:
            (tmp_path / SETTINGS_FILE).write_text(json.dumps(settings))
        return tmp_path

    return write


def test_releases() -> None:
    assert set(processors()) == set(MODEL_TYPES.values())
    kinds = {
        "keye_vl_8b": (UniformFps, TimeAxis),
        "keye_vl_1_5_8b": (SlowFast, TimestampedFrames),
        "keye_vl_2_30b_a3b": (BudgetSearch, TimestampedFrames),
    }
    for name, (sampler, layout) in kinds.items():
        processor = processor_of(name)
        assert isinstance(processor.frame_sampler, sampler)
        assert isinstance(processor.template.video_layout, layout)
        assert processor.template.system == "You are a helpful assistant."
    with pytest.raises(ValueError, match="did you mean 'keye_vl_8b'"):
        processor_of("keye_vl_8")


@pytest.mark.parametrize(
    ("name", "budgets"),
    [  # image tokens, frame tokens, tokens of a video: Keye-VL 8B sheet 2.1, 2.2 and 3.2, Keye-VL-2.0 sheet 6
        ("keye_vl_8b", (4, 16384, 128, 768, 115_200)),
        ("keye_vl_1_5_8b", (4, 20480, 48, 768, 65_536)),
        ("keye_vl_2_30b_a3b", (4, 20480, 64, 256, 184_320)),
    ],
)
def test_limits_in_tokens(name: str, budgets) -> None:
    reader = processor_of(name).reader
    found = (reader.min_image_tokens, reader.max_image_tokens, reader.min_frame_tokens, reader.max_frame_tokens)
    assert (*found, reader.max_video_tokens) == budgets


@pytest.mark.parametrize("name", processors())
def test_recipe_pieces_are_the_presets(name: str) -> None:
    parser = ArgumentParser()
    parser.add_argument("--reader", type=MediaReader)
    parser.add_argument("--template", type=ChatTemplate)
    pieces = {part: yaml.safe_load((PIECES / f"{part}_{name}.yaml").read_text()) for part in ("reader", "template")}
    built = parser.instantiate(parser.parse_object(pieces))
    expected = processor_of(name)
    assert settings_of(built.reader, built.template) == settings_of(expected.reader, expected.template)
    assert built.reader.max_source_pixels == expected.reader.max_source_pixels


@pytest.mark.parametrize("name", processors())
def test_recipe_pieces_leave_nothing_to_what_they_replace(name: str) -> None:
    """Merged over another reader, a piece has to name every setting that the other one may have had."""
    piece = yaml.safe_load((PIECES / f"reader_{name}.yaml").read_text())
    settings = {field.name for field in dataclasses.fields(MediaReader)}
    assert piece.keys() == settings - {"geometry", "max_source_pixels", "video_reader", "time_limit"}
    sampler = type(processor_of(name).frame_sampler)
    assert piece["frame_sampler"]["init_args"].keys() == constructor_parameters(sampler).keys() - {
        "video_start",
        "video_end",
    }


@pytest.mark.parametrize(("model_type", "name"), MODEL_TYPES.items())
def test_a_checkpoint_is_known_by_its_model_type(checkpoint, model_type: str, name: str) -> None:
    found = processor_for_folder(checkpoint(model_type))
    assert found.name == name
    assert settings_of(found.reader, found.template) == settings_of(
        processor_of(name).reader, processor_of(name).template
    )


def test_limits_of_the_shipped_processor(checkpoint) -> None:
    assert processor_for_folder(checkpoint(**SHIPPED)).reader.second_resize == SecondResize()
    raised = processor_for_folder(checkpoint(**SHIPPED | {"min_pixels": 102_400})).reader  # a hub revision, sheet 2.1
    assert raised.second_resize == SecondResize(min_pixels=102_400)
    sized = {"size": {"shortest_edge": 784, "longest_edge": 7840}}
    nested = {name: value for name, value in SHIPPED.items() if "pixels" not in name} | sized
    assert processor_for_folder(checkpoint(**nested)).reader.second_resize == SecondResize(
        min_pixels=784, max_pixels=7840
    )
    later = processor_for_folder(checkpoint("KeyeVL1_5", **SHIPPED)).reader
    assert later.second_resize == SecondResize(frames=False)


def test_do_resize_false_turns_the_second_resizing_off(checkpoint) -> None:
    assert processor_for_folder(checkpoint(**SHIPPED | {"do_resize": False})).reader.second_resize is None


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"patch_size": 16}, "patch_size=16; every Keye-VL has 14"),
        ({"temporal_patch_size": 2}, "temporal_patch_size=2; every Keye-VL has 1"),
        ({"image_mean": [0.48, 0.46, 0.41]}, "image_mean="),
        ({"min_pixels": 10, "max_pixels": 1}, "limits min_pixels=10 and max_pixels=1"),
        ({"max_pixels": "many"}, "limits min_pixels=3136 and max_pixels=many"),
    ],
)
def test_processing_of_another_kind_is_refused(checkpoint, changed, problem: str) -> None:
    with pytest.raises(ValueError, match=SETTINGS_FILE) as caught:
        processor_for_folder(checkpoint(**SHIPPED | changed))
    assert problem in str(caught.value)


def test_folders_that_say_nothing(checkpoint, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="no such checkpoint folder"):
        processor_for_folder(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="neither config"):
        processor_for_folder(tmp_path)
    with pytest.raises(ValueError, match="'qwen2_vl'; processing is known for Keye, KeyeVL1_5, KeyeVL2"):
        processor_for_folder(checkpoint("qwen2_vl"))


@pytest.mark.parametrize("content", ["{", "[1]", "\xff"])
def test_broken_files_are_named(checkpoint, content: str) -> None:
    folder = checkpoint("Keye")
    for name in ("config.json", SETTINGS_FILE):
        kept = (folder / name).read_bytes() if (folder / name).exists() else None
        (folder / name).write_bytes(content.encode("latin-1"))
        with pytest.raises(ValueError, match=name):
            processor_for_folder(folder)
        (folder / name).unlink() if kept is None else (folder / name).write_bytes(kept)


def test_an_export_of_ours_says_everything(checkpoint) -> None:
    processor = processor_of("keye_vl_2_30b_a3b")
    reader = dataclasses.replace(processor.reader, max_video_tokens=99, frame_sampler=BudgetSearch(adaptive="paper"))
    template = ChatTemplate(TimestampedFrames(seconds="{:.2f}s"), system=None, mode="think")
    folder = checkpoint("Keye", **processor_settings(reader, template))  # its own settings come before the model_type
    found = processor_for_folder(folder)
    assert isinstance(found, Processor)
    assert settings_of(found.reader, found.template) == settings_of(reader, template)
    assert isinstance(found.frame_sampler, BudgetSearch)
    assert found.frame_sampler.adaptive == "paper"


def test_a_broken_export_of_ours_is_named(checkpoint) -> None:
    settings = processor_settings(MediaReader(), ChatTemplate())
    settings["keyekit"]["video_layout"] = {"name": "TimeAxes"}
    with pytest.raises(ValueError, match=r"preprocessor_config.json cannot be used.*did you mean 'TimeAxis'"):
        processor_for_folder(checkpoint(None, **settings))
