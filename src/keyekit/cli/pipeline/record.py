"""What is known of a stage that was begun: out of what it was made, which of its processes are done, how long they took."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from keyekit.cli.errors import CommandError
from keyekit.cli.pipeline.description import Stage
from keyekit.recipes import expand, scalars

__all__ = ["Record", "fingerprint", "read_json", "set_aside"]

_FILE = "stage.json"


@dataclass(kw_only=True)
class Record:
    """``stage.json`` in a stage's folder.

    Args:
        recipe: :func:`fingerprint` of the stage when it began.
        parents: Identities of the stages that it needed, by name.
        identity: Of this making of the stage; what is made again has another.
        done: Seconds of each process that is finished, by its name.
        seconds: Of all its processes, those that were cut too.
    """

    recipe: str
    parents: dict[str, str] = field(default_factory=dict)
    identity: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    done: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """The record of a folder, or ``None`` if the stage was never begun.

        Raises:
            CommandError: If it is damaged.
        """
        content = read_json(folder / _FILE)
        try:
            return None if content is None else cls(**content)
        except TypeError as error:
            raise CommandError(f"{folder / _FILE} is no record of a stage ({error}): move {folder} away") from None

    def write(self, folder: Path) -> None:
        """Keep it; readers see the old file or the new one."""
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{_FILE}.{os.getpid()}.partial"
        with partial.open("w", encoding="utf-8") as file:
            json.dump(asdict(self), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(folder / _FILE)

    def changes(self, recipe: str, parents: Mapping[str, str]) -> str | None:
        """Why the stage is no longer what its file describes, or ``None``."""
        if self.recipe != recipe:
            return "its recipe or its options are others"
        renewed = [name for name, identity in parents.items() if self.parents.get(name, identity) != identity]
        return f"{' and '.join(renewed)} was made again since" if renewed else None


def fingerprint(stage: Stage) -> str:
    """A word for what a stage does; comments and the order of options do not matter to it."""
    recipe = [] if stage.recipe is None else expand(stage.recipe)
    content = {
        "kind": stage.kind,
        "parents": stage.parents,
        "options": stage.options,
        "merge": stage.merge_options,
        **({"reference": True} if stage.reference else {}),
        "recipe": [[list(s.path), s.text] for file in recipe for s in scalars(file) if not s.is_key],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def set_aside(folder: Path) -> Path:
    """Move a stage's folder to the first free ``<folder>.old-1``, ``.old-2`` and so on, and return it."""
    number = 1
    while (target := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    folder.rename(target)
    return target


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file, or ``None`` if there is no file.

    Raises:
        CommandError: If it is no JSON object.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CommandError(f"{path} is not JSON ({error}): move {path.parent} away") from None
    if not isinstance(content, dict):
        raise CommandError(f"{path} holds no object: move {path.parent} away")
    return content
