"""Calls of an image tool in a model's text: code, or one of three operations (Keye-VL 8B sheet 2.5, 5.4)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["BadCall", "ImageCall", "find_call"]

_CALL = re.compile(r"<code>(?P<code>.*?)</code>|<tool_call>(?P<operation>.*?)</tool_call>", re.DOTALL)
_FENCE = re.compile(r"\s*```(?:python|py)?[^\S\n]*\n(.*?)```\s*", re.DOTALL)
_SCALE = 1000
"""Boxes are given in thousandths of the picture, as grounding answers are (2.0 sheet 10.4)."""

_ARGUMENTS = {"crop": ("box",), "rotate": ("degrees",), "contrast": ("factor",)}


class BadCall(ValueError):
    """A call that cannot be understood; the message is made for the model."""


@dataclass(frozen=True, slots=True)
class ImageCall:
    """What the model asks for.

    Args:
        operation: ``code``, ``crop``, ``rotate`` or ``contrast``.
        code: Python source of ``code``.
        image: Number of the picture that an operation is for, from 0.
        arguments: ``box`` of a crop: left, top, right, bottom in thousandths; ``degrees`` counter-clockwise of a rotation;
            ``factor`` of a contrast, where 1 changes nothing.
    """

    operation: str
    code: str = ""
    image: int = 0
    arguments: Mapping[str, Any] = field(default_factory=dict)


def find_call(text: str) -> ImageCall | None:
    """The last call in a text, ``None`` if there is none.

    Code is fenced Python within ``<code>``, as Thyme has it (8B sheet 2.5, 5.6). An operation is a JSON object within
    ``<tool_call>``: ``{"name": "crop", "arguments": {"image": 0, "box": [250, 250, 750, 750]}}``.

    Raises:
        BadCall: If the call cannot be understood.

    Example:
        >>> find_call('I look closer. <tool_call>{"name": "rotate", "arguments": {"degrees": 90}}</tool_call>')
        ImageCall(operation='rotate', code='', image=0, arguments={'degrees': 90.0})
    """
    calls = list(_CALL.finditer(text))
    if not calls:
        return None
    found = calls[-1]
    if found["code"] is not None:
        fenced = _FENCE.fullmatch(found["code"])
        return ImageCall("code", code=fenced[1] if fenced else found["code"].strip() + "\n")
    return _operation(found["operation"])


def _operation(text: str) -> ImageCall:
    try:
        call = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadCall(f"a call is a JSON object, this cannot be read: {error}") from error
    name = call.get("name") if isinstance(call, dict) else None
    if not isinstance(name, str) or name not in _ARGUMENTS:
        raise BadCall(f"'name' must be one of {', '.join(_ARGUMENTS)}, got {name!r}")
    given = call.get("arguments", {})
    if not isinstance(given, dict):
        raise BadCall(f"'arguments' must be an object, got {given!r}")
    unknown = sorted(set(given) - {"image", *_ARGUMENTS[name]})
    missing = sorted(set(_ARGUMENTS[name]) - set(given))
    if unknown or missing:
        wanted = ", ".join(("image", *_ARGUMENTS[name]))
        raise BadCall(f"{name} takes {wanted}; missing: {missing or 'nothing'}, unknown: {unknown or 'nothing'}")
    image = given.get("image", 0)
    if not isinstance(image, int) or isinstance(image, bool) or image < 0:
        raise BadCall(f"'image' is the number of a picture from 0, got {image!r}")
    return ImageCall(name, image=image, arguments={key: _READ[key](given[key]) for key in _ARGUMENTS[name]})


def _number(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise BadCall(f"a finite number was expected, got {value!r}")
    return float(value)


def _box(value: Any) -> list[float]:
    """A box clipped to the picture, as Thyme's sandbox does (8B sheet 5.6)."""
    if not isinstance(value, list) or len(value) != 4:
        raise BadCall(f"'box' is [left, top, right, bottom] in thousandths of the picture, got {value!r}")
    left, top, right, bottom = (min(max(_number(edge), 0.0), float(_SCALE)) for edge in value)
    if left >= right or top >= bottom:
        raise BadCall(
            f"'box' {value} holds nothing of the picture: need left < right and top < bottom within 0 to 1000"
        )
    return [edge / _SCALE for edge in (left, top, right, bottom)]


def _factor(value: Any) -> float:
    factor = _number(value)
    if factor < 0:
        raise BadCall(f"'factor' is at least 0, got {value!r}")
    return factor


_READ = {"box": _box, "degrees": _number, "factor": _factor}
