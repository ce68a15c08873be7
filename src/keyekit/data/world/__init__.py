"""A seeded world of real media files and of questions about them whose answers are known."""

from keyekit.data.world.families import FAMILIES
from keyekit.data.world.scene import Scene
from keyekit.data.world.world import World, WorldFiles

__all__ = ["FAMILIES", "Scene", "World", "WorldFiles"]
