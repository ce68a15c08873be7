"""Where scenes are set: picture size, length and frame rate, backgrounds, and objects that keep out of each other's way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from keyekit.data.world.draw import Draw
from keyekit.data.world.scene import Label, MovingObject, Scene, bounce

__all__ = ["Stage"]

_CANDIDATES = 32
_ATTEMPTS = 60
_GAP = 2.0  # pixels between objects: one pixel of the halved colour resolution of video


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The frame that all scenes of a world share.

    Args:
        size: Side of the square picture in pixels.
        fps: Frames per second of the clips.
        seconds: Length of the clips.

    Example:
        >>> stage = Stage(size=56, fps=4.0, seconds=4.0)
        >>> draw = Draw(0, "count", "train", 0)
        >>> len(stage.place(draw, [("red", "circle"), ("blue", "square")], diameter=(0.2, 0.28)))
        2
    """

    size: int = 56
    fps: float = 4.0
    seconds: float = 4.0

    def place(
        self,
        draw: Draw,
        looks: Sequence[tuple[str, str]],
        diameter: tuple[float, float],
        speed: tuple[float, float] = (0.05, 0.2),
    ) -> list[MovingObject]:
        """Put objects on paths that stay inside the picture and never touch during the clip.

        Args:
            draw: Random choices.
            looks: ``(color, shape)`` of each object.
            diameter: Smallest and largest side of an object as a share of the picture.
            speed: Slowest and fastest motion as a share of the picture per second; crowded scenes become slower.

        Raises:
            ValueError: If so many objects of this size do not fit.
        """
        for attempt in range(_ATTEMPTS):
            slowing = 1 - attempt / _ATTEMPTS
            placed = self._try_to_place(draw, looks, diameter, (speed[0] * slowing, speed[1] * slowing))
            if placed is not None:
                return placed
        raise ValueError(f"{len(looks)} objects of {diameter} of a {self.size} px picture do not fit beside each other")

    def _try_to_place(
        self, draw: Draw, looks: Sequence[tuple[str, str]], diameter: tuple[float, float], speed: tuple[float, float]
    ) -> list[MovingObject] | None:
        random = draw.random
        times = np.arange(max(1, round(self.seconds * self.fps))) / self.fps
        placed: list[MovingObject] = []
        paths: list[np.ndarray] = []
        for color, shape in looks:
            side = draw.whole(round(diameter[0] * self.size), round(diameter[1] * self.size))
            count = _CANDIDATES if placed else 1
            centers = random.uniform(side / 2, self.size - side / 2, (count, 2)).round(1)
            angles = random.uniform(0, 2 * np.pi, count)
            pace = random.uniform(*speed, count) * self.size
            velocities = (pace[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)).round(1) + 0.0  # no -0.0
            low, high = np.array(side / 2), np.array(self.size - side / 2)
            path = bounce(centers[:, None], velocities[:, None] * times[:, None], low, high)
            free = np.ones(count, dtype=bool)
            for other, track in zip(placed, paths, strict=True):
                gap = np.abs(path - track).max(axis=2)  # squares are apart if they are apart along one axis
                free &= (gap >= (side + other.diameter) / 2 + _GAP).all(axis=1)
            if not free.any():
                return None
            chosen = int(free.argmax())
            paths.append(path[chosen])
            placed.append(
                MovingObject(
                    color=color,
                    shape=shape,
                    diameter=side,
                    center=(float(centers[chosen, 0]), float(centers[chosen, 1])),
                    velocity=(float(velocities[chosen, 0]), float(velocities[chosen, 1])),
                )
            )
        return placed

    def clip(self, draw: Draw, objects: Sequence[MovingObject]) -> Scene:
        """A clip of these objects on a random background."""
        return replace(self.image(draw, objects), fps=self.fps, duration=self.seconds)

    def image(self, draw: Draw, objects: Sequence[MovingObject] = (), label: Label | None = None) -> Scene:
        """An image of these objects at second 0 on a random dark background."""
        level = draw.whole(10, 70)
        tint = [level + draw.whole(-6, 6) for _ in range(3)]
        slope = (draw.whole(-16, 16), draw.whole(-16, 16))
        return Scene(
            size=self.size,
            background=(tint[0], tint[1], tint[2]),
            slope=slope,
            objects=tuple(objects),
            label=label,
        )

    def grid(self, start: float, stop: float, step: float) -> list[float]:
        """Moments from ``start`` to ``stop`` seconds, both included, every ``step`` seconds."""
        return [round(start + index * step, 3) for index in range(int((stop - start) / step + 1e-6) + 1)]
