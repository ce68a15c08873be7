"""``keyekit doctor``: versions, devices, and what each optional part would use on this machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator, Sequence

from keyekit.registry import PartError, load_target, parts

__all__ = ["main"]

_PACKAGES = (
    "keyekit",
    "torch",
    "torchvision",
    "triton",
    "lightning",
    "jsonargparse",
    "torchmetrics",
    "transformers",
    "tokenizers",
    "timm",
    "safetensors",
    "av",
    "tensorboard",
)


def main(arguments: Sequence[str]) -> int:
    """Print the report; 1 if something that a first run needs is missing."""
    if any(word in ("-h", "--help") for word in arguments):
        print("usage: keyekit doctor\n\nPrints versions, devices and what each optional part would use.")
        return 0
    healthy = True
    for title, lines in (("versions", _versions()), ("devices", _devices()), ("parts", _parts())):
        print(title)
        for ok, name, text in lines:
            healthy = healthy and ok
            print(f"  {'' if ok else 'PROBLEM: '}{name:<14} {text}")
    print("ready for a first run: make quickstart" if healthy else "see the problems above")
    return 0 if healthy else 1


Line = tuple[bool, str, str]


def _versions() -> Iterator[Line]:
    yield sys.version_info >= (3, 11), "python", f"{platform.python_version()} ({sys.executable})"
    for name in _PACKAGES:
        try:
            yield True, name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            optional = name == "triton" and platform.system() != "Linux"
            yield optional, name, "not installed"


def _devices() -> Iterator[Line]:
    import torch

    yield True, "cpu", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"
    if not torch.cuda.is_available():
        yield True, "cuda", "none; recipes run on the CPU"
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        memory = f"{device.total_memory / 2**30:.0f} GiB"
        yield True, f"cuda:{index}", f"{device.name}, {memory}, capability {device.major}.{device.minor}"


def _parts() -> Iterator[Line]:
    import av
    import torch

    codecs = [name for name in ("libx264", "libopenh264") if name in av.codecs_available]
    encoder = f"H.264 encoder {codecs[0]}" if codecs else "without an H.264 encoder: the world cannot be written"
    yield bool(codecs), "video", f"PyAV {av.__version__}, {encoder}"
    backend = "PyTorch reference" + (" on CUDA" if torch.cuda.is_available() else " on the CPU")
    yield True, "dense", "torch scaled_dot_product_attention"
    yield True, "dsa", backend
    foreign = [part for part in parts() if part.origin != "keyekit"]
    if not foreign:
        yield True, "plug-ins", "none installed"
    for part in foreign:
        try:
            load_target(part)
        except PartError as error:
            yield False, part.name, str(error)
        else:
            yield True, part.name, f"{part.family} of {part.origin}, {part.class_path}"
