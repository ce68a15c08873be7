"""WebDataset shards: tar files in which the files of a sample stand together and share their name up to the first dot."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

from keyekit.data.conversations.base import ConversationFormat
from keyekit.data.errors import BadData
from keyekit.data.sources.base import Record, ShardedSource
from keyekit.data.sources.files import Stamp, read_range, stored_index
from keyekit.data.sources.unpacking import write_once

__all__ = ["WebDataset"]

_VERSION = 1
_IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
_VIDEOS = ("mp4", "webm", "mkv", "mov", "avi", "m4v", "flv")
_TEXTS = ("txt", "caption", "text")


class _Members(NamedTuple):
    """Of each sample its name and the place of its files: ``[name, [[ending, first byte, bytes], …]]``."""

    stamp: Stamp
    samples: list[tuple[str, list[tuple[str, int, int]]]]

    def __len__(self) -> int:
        return len(self.samples)


class WebDataset(ShardedSource):
    """Shards in the WebDataset layout, read at random through an index of each tar file that is kept beside it.

    What a sample holds becomes one JSON object: that of its ``.json`` file, if there is one, with ``text`` for a ``.txt`` file
    and ``image`` or ``video`` for a media file, unless the object has such a field. Media are written out once. A path inside
    the object whose last part is the name of a file of the sample means that file; if the sample has one file alone, ``image``
    and ``video`` mean it, whatever they say.

    Args:
        paths: Tar files, in this order; see :func:`~keyekit.data.sources.files.find_files` for patterns.
        format: How an entry is understood; the ``messages`` convention by default. Pictures with captions alone are
            :class:`~keyekit.data.conversations.ordered.Ordered`.
        unpacked: Folder for the media; by default ``unpacked`` beside each file.
    """

    def __init__(
        self, paths: str | list[str], format: ConversationFormat | None = None, unpacked: str | None = None
    ) -> None:
        super().__init__(paths, None, format)
        self.unpacked = unpacked

    def open(self, path: Path) -> _Members:
        """Where the files of each sample are.

        Raises:
            BadData: If it is no tar file, or is compressed, which leaves nothing to read at random.
        """
        stamp = Stamp.of(path)
        return _Members(stamp, json.loads(stored_index(path, _VERSION, lambda: json.dumps(_members(path)).encode())))

    def read(self, shard: _Members, path: Path, index: int) -> Record:
        """Read one sample; its media are written out."""
        name, files = shard.samples[index]
        place = f"{path}/{name}"
        folder = self._folder(path, shard.stamp) / name
        value: dict[str, Any] = {}
        media: dict[str, str] = {}
        for ending, start, size in files:
            kind = ending.rpartition(".")[2].lower()
            if kind in _IMAGES or kind in _VIDEOS:
                target = folder.with_name(f"{folder.name}.{ending}")
                if not target.exists():
                    write_once(target, read_range(path, shard.stamp, start, size))
                media[target.name] = str(target.absolute())
                value.setdefault("video" if kind in _VIDEOS else "image", str(target.absolute()))
                continue
            content = read_range(path, shard.stamp, start, size)
            if kind == "json":
                value = {**value, **_object(content, f"{place}.{ending}")}
            elif kind in _TEXTS:
                value.setdefault("text", _text(content, f"{place}.{ending}"))
        value.setdefault("id", name)
        value = _resolved(value, media)
        for field in ("image", "video"):
            if len(media) == 1 and isinstance(value.get(field), str):
                value[field] = next(iter(media.values()))
        return Record(value, place, folder.parent)

    def _folder(self, path: Path, stamp: Stamp) -> Path:
        """Of its own for each version of a shard."""
        name = hashlib.sha256(f"{path.absolute()} {stamp}".encode()).hexdigest()[:12]
        return (path.parent / "unpacked" if self.unpacked is None else Path(self.unpacked)) / f"{path.stem}-{name}"


def _members(path: Path) -> list[tuple[str, list[tuple[str, int, int]]]]:
    samples: dict[str, list[tuple[str, int, int]]] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                stem, _, ending = name.partition(".")
                if member.isfile() and stem and ending:
                    key = f"{folder}/{stem}" if folder else stem
                    samples.setdefault(key, []).append((ending, member.offset_data, member.size))
    except (tarfile.TarError, EOFError) as error:
        raise BadData("bad_file", f"{path}: not an uncompressed tar file: {error}") from error
    unsafe = next((key for key in samples if key.startswith("/") or ".." in Path(key).parts), None)
    if unsafe is not None:
        raise BadData("bad_file", f"{path}: the member {unsafe!r} points outside of the archive")
    return list(samples.items())


def _object(content: bytes, place: str) -> dict[str, Any]:
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise BadData("bad_line", f"{place}: not valid JSON: {error}") from error
    return value if isinstance(value, dict) else {"messages": value}


def _text(content: bytes, place: str) -> str:
    try:
        return content.decode("utf-8-sig").strip()
    except ValueError as error:
        raise BadData("bad_line", f"{place}: not UTF-8: {error}") from error


def _resolved(value: Any, media: dict[str, str]) -> Any:
    """The value with the names of media replaced by where they are now."""
    if isinstance(value, dict):
        return {name: _resolved(part, media) for name, part in value.items()}
    if isinstance(value, list):
        return [_resolved(part, media) for part in value]
    return media.get(Path(value).name, value) if isinstance(value, str) and len(value) < 256 else value
