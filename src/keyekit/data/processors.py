"""The processing of the released models: which pictures and which tokens each of them sees."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from keyekit.data.budget_search import BudgetSearch
from keyekit.data.processing.geometry import PatchGeometry
from keyekit.data.processor_settings import SETTINGS_FILE, is_own_settings, parts_of_settings
from keyekit.data.reader import MediaReader, SecondResize
from keyekit.data.sampling import FrameSampler, UniformFps
from keyekit.data.slow_fast import SlowFast
from keyekit.data.template import DEFAULT_SYSTEM, ChatTemplate, TimeAxis, TimestampedFrames
from keyekit.registry import closest

__all__ = ["MODEL_TYPES", "Processor", "processor_for_folder", "processor_of", "processors"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Processor:
    """What turns conversations with media into what a model sees.

    Args:
        name: The release, or where the settings come from.
        reader: How media are sampled and sized.
        template: How conversations become tokens.
    """

    name: str
    reader: MediaReader
    template: ChatTemplate

    @property
    def frame_sampler(self) -> FrameSampler:
        """Which frames of a video are read, and how its budget is spent."""
        return self.reader.frame_sampler or UniformFps()


def _keye_vl_8b() -> Processor:
    """Keye-VL 8B sheet 2.1 to 2.4: one size for all frames, time on an axis, images resized twice.

    The paper has no second resizing and 24,576 tokens for a video (sheet 9): ``second_resize=None, max_video_tokens=24_576``.
    """
    reader = MediaReader(
        frame_sampler=UniformFps(fps=2.0, min_frames=4, max_frames=768, budget_factor=2.0),
        min_image_tokens=4,
        max_image_tokens=16384,
        min_frame_tokens=128,
        max_frame_tokens=768,
        max_video_tokens=115_200,
        transparency="white_rgba",
        frame_interpolation="bicubic",
        times="index",
        resizing="exact",
        second_resize=SecondResize(),
    )
    return Processor(
        name="keye_vl_8b", reader=reader, template=ChatTemplate(TimeAxis(tolerance=0.0), system=DEFAULT_SYSTEM)
    )


def _keye_vl_1_5_8b() -> Processor:
    """Keye-VL 8B sheet 3.2 and 3.3: slow and fast frames, each after its time.

    The paper has a threshold of 0.95 and 75,000 tokens for a video (sheet 9).
    """
    reader = MediaReader(
        frame_sampler=SlowFast(fps=2.0, min_frame_similarity=0.9, fast_ratio=0.3),
        min_image_tokens=4,
        max_image_tokens=20480,
        min_frame_tokens=48,
        max_frame_tokens=768,
        max_video_tokens=65_536,
        transparency="drop",
        frame_interpolation="bilinear",
        times="index",
        resizing="exact",
    )
    return Processor(
        name="keye_vl_1_5_8b", reader=reader, template=ChatTemplate(TimestampedFrames(), system=DEFAULT_SYSTEM)
    )


def _keye_vl_2_30b_a3b() -> Processor:
    """Keye-VL-2.0 sheet 6 and 7.2: one size for all frames by a search; timestamp format and filter as in 1.5 (sheet 15)."""
    reader = MediaReader(
        frame_sampler=BudgetSearch(fps=2.0, min_frames=2),
        min_image_tokens=4,
        max_image_tokens=20480,
        min_frame_tokens=64,
        max_frame_tokens=256,
        max_video_tokens=184_320,
        share_video_budget=True,
        transparency="drop",
        frame_interpolation="bilinear",
        times="index",
        resizing="exact",
    )
    return Processor(
        name="keye_vl_2_30b_a3b", reader=reader, template=ChatTemplate(TimestampedFrames(), system=DEFAULT_SYSTEM)
    )


_RELEASES: dict[str, Callable[[], Processor]] = {
    "keye_vl_8b": _keye_vl_8b,
    "keye_vl_1_5_8b": _keye_vl_1_5_8b,
    "keye_vl_2_30b_a3b": _keye_vl_2_30b_a3b,
}

MODEL_TYPES: dict[str, str] = {
    "Keye": "keye_vl_8b",
    "KeyeVL1_5": "keye_vl_1_5_8b",
    "KeyeVL2": "keye_vl_2_30b_a3b",
}
"""Which release has which ``model_type`` in its ``config.json`` (Keye-VL 8B sheet 1.2, Keye-VL-2.0 sheet 2.1)."""


def processors() -> tuple[str, ...]:
    """Names of the releases."""
    return tuple(_RELEASES)


def processor_of(name: str) -> Processor:
    """The processing of a release, as its code does it; paper values that differ are arguments of the parts.

    Args:
        name: One of :func:`processors`.

    Raises:
        ValueError: If there is no such release.

    Example:
        >>> processor_of("keye_vl_2_30b_a3b").reader.max_frame_tokens
        256
    """
    if name not in _RELEASES:
        raise ValueError(f"there is no processor {name!r}{closest(name, _RELEASES)}; there are {', '.join(_RELEASES)}")
    return _RELEASES[name]()


def processor_for_folder(folder: Path | str) -> Processor:
    """The processing that a checkpoint folder asks for.

    A folder that a run of ours exported has all settings in its ``preprocessor_config.json``. Any other is known by the
    ``model_type`` of its ``config.json``; if its ``preprocessor_config.json`` has limits, they are those of the second resizing
    of images (``do_resize: false`` turns it off).

    Args:
        folder: The checkpoint.

    Raises:
        FileNotFoundError: If there is no such folder, or it holds neither file.
        ValueError: If a file cannot be read, or asks for something that no Keye-VL does.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such checkpoint folder", str(folder))
    settings = _read(folder / SETTINGS_FILE)
    if settings is not None and is_own_settings(settings):
        try:
            reader, template = parts_of_settings(settings)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{folder / SETTINGS_FILE} cannot be used: {error}") from error
        return Processor(name=str(folder), reader=reader, template=template)
    config = _read(folder / "config.json")
    if config is None:
        raise FileNotFoundError(
            errno.ENOENT,
            f"neither config.json nor a {SETTINGS_FILE} of keyekit says how this checkpoint processes media",
            str(folder),
        )
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        raise ValueError(
            f"{folder / 'config.json'} has the model_type {model_type!r}; processing is known for {', '.join(MODEL_TYPES)}"
        )
    processor = processor_of(MODEL_TYPES[model_type])
    return processor if settings is None else _limited(processor, settings, folder / SETTINGS_FILE)


def _limited(processor: Processor, settings: dict[str, Any], path: Path) -> Processor:
    """A release with the limits of a ``preprocessor_config.json``, whose other settings must be those of every Keye-VL."""
    geometry = PatchGeometry()
    expected = {
        "patch_size": geometry.patch_size,
        "merge_size": geometry.merge_size,
        "temporal_patch_size": 1,  # Keye-VL 8B sheet 2.1 item 4
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    for name, value in expected.items():
        if settings.get(name, value) != value:
            raise ValueError(f"{path} has {name}={settings[name]}; every Keye-VL has {value}")
    reader = processor.reader
    if not settings.get("do_resize", True):
        return replace(processor, reader=replace(reader, second_resize=None))
    size = settings.get("size") or {}
    low = settings.get("min_pixels", size.get("min_pixels", size.get("shortest_edge")))
    high = settings.get("max_pixels", size.get("max_pixels", size.get("longest_edge")))
    if low is None and high is None:
        return processor
    base = reader.second_resize or SecondResize(frames=False)
    try:
        second = replace(
            base,
            min_pixels=base.min_pixels if low is None else int(low),
            max_pixels=base.max_pixels if high is None else int(high),
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} has the limits min_pixels={low} and max_pixels={high}: {error}") from error
    return replace(processor, reader=replace(reader, second_resize=second))


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON object, or ``None`` if there is no such file."""
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON
        raise ValueError(f"{path} is no readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds {type(value).__name__}, it should hold a JSON object")
    return value
