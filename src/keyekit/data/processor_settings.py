"""How media and conversations are processed, as the ``preprocessor_config.json`` of an export."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from keyekit.data.processing.geometry import PatchGeometry
from keyekit.data.reader import MediaReader, SecondResize
from keyekit.data.template import ChatTemplate
from keyekit.registry import build, constructor_parameters

__all__ = ["SETTINGS_FILE", "is_own_settings", "parts_of_settings", "processor_settings"]

SETTINGS_FILE = "preprocessor_config.json"
"""Name of the file in a checkpoint folder."""

_OWN = "keyekit"
_NO_MODEL = ("max_source_pixels", "video_reader", "time_limit")
"""Settings that belong to the machine that reads, and say nothing about the model."""


def processor_settings(reader: MediaReader, template: ChatTemplate) -> dict[str, Any]:
    """Everything that decides what a model sees, as JSON values.

    The keys that Hugging Face processors know stand at the top, all of ours below ``keyekit``.
    """
    limits = asdict(replace(reader, frame_sampler=None, video_reader=None))
    for name in ("frame_sampler", *_NO_MODEL):
        del limits[name]
    return {
        "patch_size": reader.geometry.patch_size,
        "merge_size": reader.geometry.merge_size,
        "temporal_patch_size": 1,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "min_pixels": reader.min_image_tokens * reader.geometry.token_pixels,
        "max_pixels": reader.max_image_tokens * reader.geometry.token_pixels,
        _OWN: {
            "reader": limits,
            "frame_sampler": None if reader.frame_sampler is None else _described(reader.frame_sampler),
            "video_layout": _described(template.video_layout),
            "template": {
                "system": template.system,
                "mode": template.mode.value,
                "add_vision_id": template.add_vision_id,
            },
        },
    }


def is_own_settings(settings: dict[str, Any]) -> bool:
    """Whether a ``preprocessor_config.json`` is one that a run of ours exported."""
    return _OWN in settings or {"frame_tokens", "video_layout"} <= settings.keys()


def parts_of_settings(settings: dict[str, Any]) -> tuple[MediaReader, ChatTemplate]:
    """The reader and the template that were exported.

    Frame sampler and layout are found by their names in the catalogue, so that a file can name no code of its own.

    Raises:
        ValueError: If a part is not in the catalogue, or settings are impossible.
        TypeError: If an argument is not known.
    """
    own = settings[_OWN] if _OWN in settings else _own_of_first_exports(settings)
    limits = dict(own["reader"])
    limits.setdefault("resizing", "exact")  # exports that do not say so were made before there was another way
    if limits.get("second_resize") is not None:
        limits["second_resize"] = SecondResize(**limits["second_resize"])
    if "geometry" in limits:
        limits["geometry"] = PatchGeometry(**limits["geometry"])
    reader = MediaReader(frame_sampler=_built("frame_sampler", own["frame_sampler"]), **limits)
    return reader, ChatTemplate(_built("video_layout", own["video_layout"]), **own["template"])


def _own_of_first_exports(settings: dict[str, Any]) -> dict[str, Any]:
    """The first exports had fewer settings, side by side; what they do not say had one value."""
    image, frame = settings["image_tokens"], settings["frame_tokens"]
    return {
        "reader": {
            "min_image_tokens": image[0],
            "max_image_tokens": image[1],
            "min_frame_tokens": frame[0],
            "max_frame_tokens": frame[1],
        },
        "frame_sampler": settings.get("frame_sampler"),
        "video_layout": {"name": settings["video_layout"]},
        "template": {},
    }


def _described(part: Any) -> dict[str, Any]:
    arguments = {name: getattr(part, name) for name in constructor_parameters(type(part)) if hasattr(part, name)}
    return {"name": type(part).__name__, **arguments}


def _built(family: str, described: dict[str, Any] | None) -> Any:
    if described is None:
        return None
    arguments = dict(described)
    return build(family, arguments.pop("name"), **arguments)
