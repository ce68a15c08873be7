"""What is in a picture and when: coloured shapes that move, a written label, and the timeline of events."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

__all__ = ["COLORS", "SHAPES", "Label", "MovingObject", "Scene", "bounce"]

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (225, 25, 30),
    "green": (25, 150, 45),
    "blue": (35, 70, 235),
    "yellow": (250, 220, 20),
    "orange": (250, 125, 10),
    "purple": (130, 30, 175),
    "cyan": (30, 215, 225),
    "pink": (255, 120, 200),
}
"""RGB of each named colour; far enough apart to survive the halved colour resolution of yuv420p video."""

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "cross", "ring", "diamond")
"""The names of the shapes that the renderer knows."""


def bounce(start: np.ndarray, travelled: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Fold straight motion back into ``[low, high]``, as a ball does between two walls.

    Args:
        start: Where the motion begins, in pixels.
        travelled: Signed distance travelled without walls, in pixels; broadcasts against ``start``.
        low: Lower wall in pixels.
        high: Upper wall in pixels.

    Returns:
        Positions in pixels, in the broadcast shape.

    Example:
        >>> bounce(np.array(8.0), np.array([0.0, 4.0]), np.array(0.0), np.array(10.0)).tolist()
        [8.0, 8.0]
    """
    room = np.maximum(high - low, 1e-6)
    folded = np.mod(start - low + travelled, 2 * room)
    return low + np.where(folded > room, 2 * room - folded, folded)


@dataclass(frozen=True, slots=True, kw_only=True)
class MovingObject:
    """A coloured shape on a straight path that bounces off the borders.

    Args:
        color: A name of :data:`COLORS`.
        shape: A name of :data:`SHAPES`.
        diameter: Side of its bounding square in pixels.
        center: ``(x, y)`` of its centre at second 0, in pixels.
        velocity: ``(x, y)`` in pixels per second.
        appears: First second at which it is visible.
        disappears: First second at which it is no longer visible.
    """

    color: str
    shape: str
    diameter: int
    center: tuple[float, float]
    velocity: tuple[float, float] = (0.0, 0.0)
    appears: float = 0.0
    disappears: float = float("inf")

    @property
    def phrase(self) -> str:
        """How questions call it, for example ``"red circle"``."""
        return f"{self.color} {self.shape}"

    def is_visible(self, second: float) -> bool:
        """Whether it can be seen at ``second``."""
        return self.appears <= second < self.disappears

    def box(self, second: float, size: int) -> tuple[int, int, int, int]:
        """Its bounding box at ``second`` as ``(left, top, right, bottom)`` pixels, the last two exclusive.

        Args:
            second: Time since the beginning.
            size: Side of the picture in pixels.
        """
        radius = np.array(self.diameter / 2)
        travelled = np.array(self.velocity) * second
        x, y = bounce(np.array(self.center), travelled, radius, size - radius)
        left, top = round(float(x - radius)), round(float(y - radius))
        return left, top, left + self.diameter, top + self.diameter


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """Text drawn with a font.

    Args:
        text: What is written.
        color: A name of :data:`COLORS`.
        height: Height of the font in pixels.
        center: ``(x, y)`` of the middle of the text in pixels.
    """

    text: str
    color: str
    height: int
    center: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Everything a clip or an image shows. A frame is the scene at one second.

    Args:
        size: Side of the square picture in pixels.
        fps: Frames per second.
        duration: Seconds; 0 for an image.
        background: RGB in the middle of the picture.
        slope: Change of brightness from the left to the right and from the top to the bottom border.
        objects: What moves, drawn in this order.
        label: Written text, drawn last.

    Example:
        >>> ball = MovingObject(color="red", shape="circle", diameter=20, center=(28, 28), appears=1.0)
        >>> scene = Scene(size=56, fps=4.0, duration=4.0, background=(30, 30, 30), objects=(ball,))
        >>> scene.num_frames, scene.events()[0]
        (16, {'second': 1.0, 'event': 'appears', 'object': 'red circle'})
    """

    size: int
    background: tuple[int, int, int]
    fps: float = 1.0
    duration: float = 0.0
    slope: tuple[int, int] = (0, 0)
    objects: tuple[MovingObject, ...] = ()
    label: Label | None = None

    @property
    def num_frames(self) -> int:
        """Number of frames; one for an image."""
        return max(1, round(self.duration * self.fps))

    def seconds(self) -> list[float]:
        """The time of each frame."""
        return [index / self.fps for index in range(self.num_frames)]

    def events(self) -> list[dict[str, Any]]:
        """What happens while the clip runs, in order: objects that appear after the start or vanish before the end."""
        events = []
        for thing in self.objects:
            if thing.appears > 0:
                events.append({"second": thing.appears, "event": "appears", "object": thing.phrase})
            if thing.disappears < self.duration:
                events.append({"second": thing.disappears, "event": "disappears", "object": thing.phrase})
        return sorted(events, key=lambda event: event["second"])

    def record(self) -> dict[str, Any]:
        """The scene as plain JSON values, with its events; :meth:`from_record` reads it back."""
        record: dict[str, Any] = {
            "size": self.size,
            "fps": self.fps,
            "duration": self.duration,
            "background": list(self.background),
            "slope": list(self.slope),
            "objects": [self._object_record(thing) for thing in self.objects],
        }
        if self.label is not None:
            record["label"] = {**asdict(self.label), "center": list(self.label.center)}
        if events := self.events():
            record["events"] = events
        return record

    def _object_record(self, thing: MovingObject) -> dict[str, Any]:
        record: dict[str, Any] = {
            "color": thing.color,
            "shape": thing.shape,
            "diameter": thing.diameter,
            "center": list(thing.center),
        }
        if self.duration > 0:
            record["velocity"] = list(thing.velocity)
            record["appears"] = thing.appears
            record["disappears"] = min(thing.disappears, self.duration)
        return record

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Scene:
        """Read a scene back from what :meth:`record` wrote (the ``scene`` of a sample's ``meta``)."""
        objects = []
        for values in record["objects"]:
            arguments: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
            objects.append(MovingObject(**arguments))
        label = record.get("label")
        return cls(
            size=record["size"],
            fps=record["fps"],
            duration=record["duration"],
            background=tuple(record["background"]),
            slope=tuple(record["slope"]),
            objects=tuple(objects),
            label=None if label is None else Label(**{**label, "center": tuple(label["center"])}),
        )
