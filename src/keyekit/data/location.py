"""Where media lie: files, http(s) addresses, and whatever fsspec can open."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import unquote, urlsplit
from urllib.request import urlopen

from keyekit.data.deadline import Deadline
from keyekit.data.errors import BadData

__all__ = ["Location", "identity", "located", "opened_image", "opened_video"]

Location = Path | str
"""A path, or the address of a medium: ``https://…`` or one that fsspec knows, such as ``s3://bucket/clip.mp4``."""

_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:(//|:)")  # at least two letters: a drive is no scheme
_CHUNK = 2**20


def located(value: str, folder: Path) -> Location:
    """What a manifest says as a location: addresses as they are, paths relative to a folder.

    Example:
        >>> located("clips/a.mp4", Path("data")), located("s3://bucket/a.mp4", Path("data"))
        (PosixPath('data/clips/a.mp4'), 's3://bucket/a.mp4')
    """
    if value.startswith("file://"):
        return folder / unquote(urlsplit(value).path)
    return value if _SCHEME.match(value) else folder / value


def identity(location: Location) -> list[Any]:
    """What changes when a medium does: address, size and time of change, as far as they can be had without reading it."""
    remote = _remote(location)
    try:
        if remote is None:
            path = _path(location)
            status = path.stat()
            return [str(path.absolute()), status.st_size, status.st_mtime_ns]
        if not _is_http(remote):
            about = _filesystem(remote).info(remote)
            return [
                remote,
                about.get("size"),
                *(str(about.get(name)) for name in ("ETag", "mtime", "LastModified", "created")),
            ]
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return [str(location), "missing"]
    return [remote]


@contextmanager
def opened_video(location: Location, deadline: Deadline) -> Iterator[Any]:
    """What FFmpeg reads a video from: a path, an address that it fetches piece by piece, or a file of fsspec.

    Raises:
        BadData: ``missing_media``.
    """
    remote = _remote(location)
    if remote is None:
        yield str(_checked(_path(location), "video"))
    elif _is_http(remote):
        yield remote
    else:
        with _opened(remote, "video") as file:
            yield _Timed(file, deadline)


@contextmanager
def opened_image(location: Location, deadline: Deadline) -> Iterator[Any]:
    """A file or a path that Pillow reads an image from.

    Raises:
        BadData: ``missing_media``.
    """
    remote = _remote(location)
    if remote is None:
        yield _checked(_path(location), "image")
    elif _is_http(remote):
        yield _fetched(remote, deadline)
    else:
        with _opened(remote, "image") as file:
            yield _Timed(file, deadline)


def _remote(location: Location) -> str | None:
    """The address, unless it is a path of this machine."""
    if isinstance(location, Path) or location.startswith("file://") or not _SCHEME.match(location):
        return None
    return location


def _path(location: Location) -> Path:
    if isinstance(location, str) and location.startswith("file://"):
        return Path(unquote(urlsplit(location).path))
    return Path(location)


def _is_http(address: str) -> bool:
    return address.lower().startswith(("http://", "https://"))


def _checked(path: Path, kind: str) -> Path:
    try:
        there = path.is_file()
    except (OSError, ValueError):  # a name that the system refuses, such as one that is too long
        there = False
    if not there:
        raise BadData("missing_media", f"there is no {kind} {path}")
    return path


def _filesystem(address: str) -> Any:
    try:
        import fsspec
    except ImportError as error:
        raise ImportError(f"fsspec opens {address}: pip install fsspec, and the package of its file system") from error
    return fsspec.core.url_to_fs(address)[0]


@contextmanager
def _opened(address: str, kind: str) -> Iterator[Any]:
    """A file of fsspec. An unknown scheme, or a file system without its package, is no fault of the sample and goes up."""
    system = _filesystem(address)
    try:
        file = system.open(address, "rb")
    except FileNotFoundError as error:
        raise BadData("missing_media", f"there is no {kind} {address}") from error
    with file:
        yield file


def _fetched(address: str, deadline: Deadline) -> io.BytesIO:
    """The whole file behind an address."""
    content = io.BytesIO()
    try:
        with urlopen(address, timeout=deadline.left) as response:  # _is_http: the scheme is http or https
            while piece := response.read(_CHUNK):
                content.write(piece)
                deadline.check()
    except TimeoutError as error:
        raise deadline.exceeded() from error
    except URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise deadline.exceeded() from error
        status = getattr(error, "code", None)
        reason = "missing_media" if status in (403, 404, 410) or status is None else "broken_media"
        raise BadData(reason, f"{address} cannot be fetched: {error}") from error
    content.seek(0)
    return content


class _Timed(io.RawIOBase):
    """A file that refuses to be read when the time is over."""

    def __init__(self, file: Any, deadline: Deadline) -> None:
        super().__init__()
        self._file = file
        self._deadline = deadline

    def read(self, size: int = -1) -> bytes:
        self._deadline.check()
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True
