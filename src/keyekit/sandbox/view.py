"""The files that a confined program sees: an interpreter, the system's libraries and one temporary folder."""

from __future__ import annotations

import os
import stat
import sys

from keyekit.sandbox.kernel import bind, enter_root, make_mounts_private, mount, protect

__all__ = ["PACKAGES", "TEMPORARY", "enter_view"]

TEMPORARY = "/tmp"
"""The one folder that can be written to."""

PACKAGES = "/packages"
"""Where packages that a run asks for are found."""

_LIBRARIES = ("/usr/lib", "/usr/lib64", "/lib", "/lib64")
_LINKER_CACHE = "/etc/ld.so.cache"
_INSTALLED = ("site-packages", "dist-packages")
"""What the interpreter's own installation holds beyond the standard library; it is hidden."""

_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
_MOST_FILES = 4096
_ANY_FOLDER = os.path.dirname(os.path.abspath(__file__))
"""The new root is mounted over this folder: which one does not matter, nobody else sees that."""


def enter_view(python: str, prefix: str, packages: dict[str, str], disk: int, user: int) -> None:
    """Build the view in this process's mount namespace and make it the root of everything.

    Args:
        python: Path of the interpreter, links resolved.
        prefix: Where its standard library is found: ``lib`` below it.
        packages: Paths of importable packages and modules by the name that they get in :data:`PACKAGES`.
        disk: Bytes that fit into the temporary folder.
        user: Who owns the temporary folder.

    Raises:
        OSError: If the kernel refuses.
    """
    make_mounts_private()
    root = _ANY_FOLDER
    places = {path: path for path in (*_LIBRARIES, f"{prefix}/lib", python, _LINKER_CACHE)}
    places |= {f"{PACKAGES}/{name}": path for name, path in packages.items()}
    sources = {
        place: os.open(path, os.O_PATH | os.O_NOFOLLOW) for place, path in places.items() if os.path.lexists(path)
    }
    devices = {path: os.open(path, os.O_PATH) for path in _DEVICES}
    mount("tmpfs", root, "mode=0755,size=1m,nr_inodes=4096", programs=True)
    for place, descriptor in sources.items():
        _show(descriptor, place, root)
    for folder in (TEMPORARY, "/proc", PACKAGES):
        os.makedirs(root + folder, exist_ok=True)
    for device in devices:
        _make_file(root + device)
    protect(root)
    for device, descriptor in devices.items():
        bind(f"/proc/self/fd/{descriptor}", root + device)
        protect(root + device, devices=True, programs=False)
    for folder in _installed(root, prefix):
        mount("tmpfs", folder, "mode=0755,size=4k,nr_inodes=1")
        protect(folder)
    options = f"mode=0700,uid={user},gid={user},size={disk},nr_inodes={_MOST_FILES}"
    mount("tmpfs", root + TEMPORARY, options)
    mount("proc", root + "/proc", "subset=pid,hidepid=invisible")
    protect(root + "/proc", programs=False)
    for descriptor in (*sources.values(), *devices.values()):
        os.close(descriptor)
    enter_root(root)


def _installed(root: str, prefix: str) -> list[str]:
    """Folders of installed packages within the view."""
    folders = [root + "/usr/lib/python3", root + f"{prefix}/lib/python{sys.version_info[0]}.{sys.version_info[1]}"]
    return [f"{folder}/{name}" for folder in folders for name in _INSTALLED if os.path.isdir(f"{folder}/{name}")]


def _show(descriptor: int, place: str, root: str) -> None:
    """Show an opened file, folder or link at a place below the root, unless a folder above shows it already."""
    target, source = root + place, f"/proc/self/fd/{descriptor}"
    if os.path.lexists(target):
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISLNK(mode):
        os.symlink(os.readlink("", dir_fd=descriptor), target)
        return
    if stat.S_ISDIR(mode):
        os.mkdir(target)
    else:
        _make_file(target)
    bind(source, target)


def _make_file(path: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))
