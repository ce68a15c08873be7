"""Settings in an export: everything comes back."""

import json

import pytest

from keyekit.data.processing.geometry import PatchGeometry
from keyekit.data.processor_settings import is_own_settings, parts_of_settings, processor_settings
from keyekit.data.processors import processor_of, processors
from keyekit.data.reader import MediaReader, SecondResize
from keyekit.data.sampling import UniformFps
from keyekit.data.slow_fast import SlowFast
from keyekit.data.template import ChatTemplate, TimeAxis

ODD = (
    MediaReader(
        frame_sampler=SlowFast(fps=1.5, max_frames=7, keep_budget=True),
        min_image_tokens=5,
        times="index",
        second_resize=SecondResize(frames=False),
        geometry=PatchGeometry(patch_size=16),
    ),
    ChatTemplate(TimeAxis(tolerance=0.0), system="be short", mode="no_think", add_vision_id=True),
)
GIVEN = [ODD, (MediaReader(), ChatTemplate())]
GIVEN += [(processor_of(name).reader, processor_of(name).template) for name in processors()]


@pytest.mark.parametrize(("reader", "template"), GIVEN)
def test_settings_come_back_through_json(reader: MediaReader, template: ChatTemplate) -> None:
    settings = json.loads(json.dumps(processor_settings(reader, template)))
    assert is_own_settings(settings)
    found = parts_of_settings(settings)
    assert processor_settings(*found) == processor_settings(reader, template)
    for ours, theirs in (
        (found[0].frame_sampler, reader.frame_sampler),
        (found[1].video_layout, template.video_layout),
    ):
        assert type(ours) is type(theirs)
        assert ours is None or vars(ours) == vars(theirs)
    assert (found[1].system, found[1].mode, found[1].add_vision_id) == (
        template.system,
        template.mode,
        template.add_vision_id,
    )


def test_standard_keys_stand_at_the_top() -> None:
    settings = processor_settings(*ODD)
    assert (settings["patch_size"], settings["merge_size"], settings["min_pixels"]) == (16, 2, 5 * 32 * 32)
    assert not is_own_settings({name: value for name, value in settings.items() if name != "keyekit"})


def test_the_first_exports_are_still_read() -> None:
    settings = {
        "patch_size": 14,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "image_tokens": [4, 4],
        "frame_tokens": [4, 9],
        "frame_sampler": {"name": "UniformFps", "fps": 2.0, "min_frames": 8, "max_frames": 8},
        "video_layout": "TimeAxis",
    }
    assert is_own_settings(settings)
    reader, template = parts_of_settings(settings)
    assert (reader.max_image_tokens, reader.min_frame_tokens, reader.max_frame_tokens) == (4, 4, 9)
    assert isinstance(reader.frame_sampler, UniformFps)
    assert reader.frame_sampler.max_frames == 8
    assert isinstance(template.video_layout, TimeAxis)
    assert template.system is None


def test_unknown_arguments_are_refused() -> None:
    settings = processor_settings(*ODD)
    settings["keyekit"]["reader"]["sharpness"] = 3
    with pytest.raises(TypeError, match="sharpness"):
        parts_of_settings(settings)
