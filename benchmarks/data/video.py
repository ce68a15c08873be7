"""Reading videos beside torchcodec and decord: ``python benchmarks/data/video.py --write docs/evidence/video.md``.

Makes its clips by repeating a short encoded piece, keeps them in ``.benchmarks/video/``, and measures in one run: two frames a
second of ten minutes, 64 frames of an hour, memory over the length, preprocessing beside transformers, two hours through the
policy of Keye-VL-2.0. ``--parts`` runs some of them; the page is written from the newest result of each.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import av
import numpy as np

from keyekit.data.deadline import Deadline
from keyekit.data.processors import processor_of
from keyekit.data.sample import ContentItem
from keyekit.data.sampling import UniformFps
from keyekit.data.video.pyav import PyAV
from keyekit.testing.memory import extra_memory

FOLDER = Path(".benchmarks/video")
SIZE = (336, 588)  # 252 tokens: a frame of Keye-VL-2.0 at its largest
MIB = 2**20


def piece(path: Path, seconds: int, size: tuple[int, int], fps: int, **options: str) -> Path:
    """Encode a texture that drifts, or take the one that is there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = size
        noise = np.random.default_rng(0).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
        texture = (
            av.VideoFrame.from_ndarray(noise, format="rgb24").reformat(width + 400, height + 400, "rgb24").to_ndarray()
        )
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=fps, options=options)
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            for number in range(seconds * fps):
                top, left = 2 * number % 400, 3 * number % 400
                view = np.ascontiguousarray(texture[top : top + height, left : left + width])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(view, format="rgb24")))
            container.mux(stream.encode())
    return path


def repeated(path: Path, source: Path, times: int) -> Path:
    """A piece several times over, its packets copied."""
    if not path.exists():
        with av.open(str(source)) as read, av.open(str(path), "w") as write:
            stream = read.streams.video[0]
            copy = write.add_stream_from_template(stream)
            assert stream.duration is not None
            for turn in range(times):
                read.seek(0)
                for packet in read.demux(stream):
                    if packet.size and packet.pts is not None and packet.dts is not None:
                        packet.pts, packet.dts = (
                            packet.pts + turn * stream.duration,
                            packet.dts + turn * stream.duration,
                        )
                        packet.stream = copy
                        write.mux(packet)
    return path


def hd(minutes: int) -> Path:
    """720p H.264 at 25 frames a second, B-frames, a keyframe every ten seconds."""
    options = {"preset": "veryfast", "g": "250", "sc_threshold": "0"}
    source = piece(FOLDER / "hd_piece.mp4", 20, (720, 1280), 25, **options)
    return repeated(FOLDER / f"hd_{minutes}.mp4", source, minutes * 3)


def small(minutes: int) -> Path:
    """360p at 25 frames a second, a keyframe every ten seconds."""
    options = {"preset": "veryfast", "g": "250", "sc_threshold": "0"}
    source = piece(FOLDER / "small_piece.mp4", 60, (360, 640), 25, **options)
    return repeated(FOLDER / f"small_{minutes}.mp4", source, minutes)


def two_hours() -> Path:
    """320x180 at four frames a second, a keyframe every ten seconds."""
    source = piece(FOLDER / "low_piece.mp4", 60, (180, 320), 4, preset="ultrafast", g="40")
    return repeated(FOLDER / "low_120.mp4", source, 120)


def ours(path: Path, wanted: list[int], threads: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    found = np.empty((len(wanted), *size, 3), np.uint8)
    with PyAV(threads=threads).open(path, 2**26, Deadline(None, str(path))) as video:
        for place, picture in enumerate(video.frames(wanted, [size] * len(wanted), "bilinear")):
            found[place] = picture
    return found


def all_decoded(path: Path, wanted: list[int], size: tuple[int, int]) -> np.ndarray:
    """Plain PyAV: every frame is decoded, wanted ones are converted."""
    kept, due = [], set(wanted)
    with av.open(str(path)) as container:
        container.streams.video[0].thread_count = 1
        for number, frame in enumerate(container.decode(video=0)):
            if number in due:
                kept.append(frame.reformat(width=size[1], height=size[0], format="rgb24").to_ndarray())
    return np.stack(kept)


def peers(threads: int) -> dict[str, Callable[[Path, list[int]], Any]]:
    """What is installed of torchcodec and decord, each resizing while it decodes."""
    found: dict[str, Callable[[Path, list[int]], Any]] = {}
    try:
        from torchcodec.decoders import VideoDecoder
        from torchvision.transforms import v2

        def torchcodec(mode: Any) -> Callable[[Path, list[int]], Any]:
            def read(path: Path, wanted: list[int]) -> Any:
                decoder = VideoDecoder(
                    str(path),
                    num_ffmpeg_threads=threads,
                    dimension_order="NHWC",
                    seek_mode=mode,
                    transforms=[v2.Resize(SIZE)],
                )
                return decoder.get_frames_at(wanted).data

            return read

        for mode in ("exact", "approximate"):
            torchcodec(mode)(hd(1), [0])
            found[f"torchcodec {version('torchcodec')}, {mode}"] = torchcodec(mode)
    except (ImportError, OSError, RuntimeError) as error:
        print(f"torchcodec cannot be used: {str(error).splitlines()[0]}")
    try:
        import decord

        def with_decord(path: Path, wanted: list[int]) -> Any:
            reader = decord.VideoReader(str(path), num_threads=threads, height=SIZE[0], width=SIZE[1])
            return reader.get_batch(wanted).asnumpy()

        found[f"decord {version('decord')}"] = with_decord
    except ImportError as error:
        print(f"decord cannot be used: {error}")
    return found


def timed(call: Callable[[], Any]) -> tuple[float, float]:
    """Seconds by the clock, and of the processor."""
    start, used = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start, time.process_time() - used


def throughput(options: argparse.Namespace) -> list[str]:
    path = hd(options.minutes)
    with PyAV().open(path, 2**26, Deadline(None, "")) as video:
        frames, fps = video.facts.num_frames, video.facts.fps
    wanted = UniformFps(fps=2.0, max_frames=10**6).select(frames, fps)
    calls: dict[str, Callable[[], Any]] = {"keyekit": lambda: ours(path, wanted, options.threads)}
    for name, peer in peers(options.threads).items():
        calls[name] = lambda peer=peer: peer(path, wanted)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(options.rounds):  # in turns: all readers see the same neighbours
        for name, call in calls.items():
            seconds[name].append(timed(call))
    best = min(median(run[0] for run in runs) for name, runs in seconds.items() if name != "keyekit")
    lines = [
        f"## Two frames a second of {options.minutes} minutes",
        "",
        f"720p H.264 with B-frames, 25 frames a second; {len(wanted)} frames resized to {SIZE[0]} × {SIZE[1]} on the way, "
        f"{options.threads} thread(s), median of {options.rounds} rounds in turns.",
        "",
        "| reader | seconds | processor seconds | frames/s | beside the best peer |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, runs in seconds.items():
        clock, used = median(run[0] for run in runs), median(run[1] for run in runs)
        lines.append(f"| {name} | {clock:.2f} | {used:.2f} | {len(wanted) / clock:.1f} | {best / clock:.2f} |")
    return lines


def sparse(options: argparse.Namespace) -> list[str]:
    path, size = small(60), (224, 420)
    with PyAV().open(path, 2**26, Deadline(None, "")) as video:
        wanted = np.linspace(0, video.facts.num_frames - 1, 64).round().astype(int).tolist()
    runs = [timed(lambda: ours(path, wanted, options.threads, size)) for _ in range(options.rounds)]
    jumped = ours(path, wanted, 1, (360, 640))
    straight, used = timed(lambda: all_decoded(path, wanted, size))
    equal = np.array_equal(jumped, all_decoded(path, wanted, (360, 640)))
    clock = median(run[0] for run in runs)
    return [
        "## 64 frames of an hour",
        "",
        "360p H.264 with B-frames, 25 frames a second, a keyframe every ten seconds.",
        "",
        "| way | seconds | processor seconds |",
        "| --- | ---: | ---: |",
        f"| keyekit, median of {options.rounds} | {clock:.2f} | {median(run[1] for run in runs):.2f} |",
        f"| PyAV, every frame decoded, once | {straight:.2f} | {used:.2f} |",
        "",
        f"{straight / clock:.1f} times faster; frames equal those of sequential decoding to the bit: {equal}.",
    ]


def memory(options: argparse.Namespace) -> list[str]:
    lines = [
        "## Memory over the length",
        "",
        "64 frames of 224 × 420 (17 MiB) from 360p clips: peak above the memory before.",
        "",
    ]
    lines += ["| minutes | MiB |", "| ---: | ---: |"]
    ours(small(1), [0], 1, (224, 420))
    for minutes in (1, 10, 60):
        path = small(minutes)
        wanted = np.linspace(0, minutes * 1500 - 1, 64).round().astype(int).tolist()
        lines.append(
            f"| {minutes} | {extra_memory(lambda path=path, wanted=wanted: ours(path, wanted, 1, (224, 420))) / MIB:.0f} |"
        )
    return lines


def preprocessing(options: argparse.Namespace) -> list[str]:
    import torch
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    from keyekit.data.processing.preprocess import picture_patches

    torch.set_num_threads(options.threads)
    with PyAV().open(hd(1), 2**26, Deadline(None, "")) as video:
        pictures = np.stack(list(video.frames(list(range(0, 320, 20)))))
    processor = Qwen2VLImageProcessor(
        patch_size=14,
        temporal_patch_size=1,
        merge_size=2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"shortest_edge": 64 * 784, "longest_edge": 256 * 784},
    )

    def theirs() -> torch.Tensor:
        return processor(images=list(pictures), return_tensors="pt")["pixel_values"]

    rows, columns = SIZE[0] // 28, SIZE[1] // 28
    merged = theirs().view(len(pictures), rows, columns, 2, 2, -1).transpose(2, 3).flatten(0, 4)
    apart = float((merged - picture_patches(pictures, *SIZE).flatten(1)).abs().max())
    runs = [(timed(lambda: picture_patches(pictures, *SIZE)), timed(theirs)) for _ in range(options.rounds + 1)][1:]
    mine, peer = median(run[0][0] for run in runs), median(run[1][0] for run in runs)
    return [
        "## Resize, normalise, cut into patches",
        "",
        f"16 frames of 720p to {SIZE[0]} × {SIZE[1]}, bicubic, {options.threads} thread(s), median of {options.rounds}.",
        "",
        "| who | milliseconds |",
        "| --- | ---: |",
        f"| keyekit `picture_patches` | {1e3 * mine:.0f} |",
        f"| transformers {version('transformers')} `Qwen2VLImageProcessor` | {1e3 * peer:.0f} |",
        "",
        f"{peer / mine:.2f} times faster; largest difference {apart:.1e}.",
    ]


def longest(options: argparse.Namespace) -> list[str]:
    reader = processor_of("keye_vl_2_30b_a3b").reader
    item = ContentItem(kind="video", path=two_hours())
    found: list[Any] = []
    clock, used = timed(lambda: found.append(reader.read(item)))
    frames = found.pop()
    count, height, width, _ = frames.pixels.shape
    output = frames.pixels.nbytes
    del frames
    extra = extra_memory(lambda: reader.read(item))
    return [
        "## Two hours through the policy of Keye-VL-2.0",
        "",
        "320 × 180, four frames a second.",
        "",
        "| frames | size | tokens each | seconds | processor seconds | pixels (MiB) | peak (MiB) |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: |",
        f"| {count} | {height} × {width} | {reader.geometry.tokens(height, width)} | {clock:.1f} | {used:.1f} "
        f"| {output / MIB:.0f} | {extra / MIB:.0f} |",
        "",
        f"In words of the plan: {reader.plan(item).reason}.",
    ]


PARTS = {part.__name__: part for part in (throughput, sparse, memory, preprocessing, longest)}


def with_peers_libraries() -> None:
    """Begin anew with FFmpeg's libraries of PyAV where torchcodec finds them, so that both decode with the same FFmpeg."""
    links = (FOLDER / "libraries").absolute()
    bundled = Path(av.__file__).parent.parent / "av.libs"
    if not bundled.is_dir() or str(links) in os.environ.get("LD_LIBRARY_PATH", ""):
        return
    links.mkdir(parents=True, exist_ok=True)
    for library in bundled.glob("lib*-*.so.*"):
        name, _, rest = library.name.partition("-")
        link = links / f"{name}.so.{rest.partition('.so.')[2].partition('.')[0]}"
        if not link.exists():
            link.symlink_to(library)
    os.environ["LD_LIBRARY_PATH"] = f"{links}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    os.execv(sys.executable, [sys.executable, *sys.argv])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="*", default=list(PARTS), help=f"what is measured anew, of {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=int, default=10, help="of the 720p clip")
    parser.add_argument("--note", default="", help="a sentence about the machine, such as what else it did")
    parser.add_argument("--write", type=Path, help="page to write")
    options = parser.parse_args()
    with_peers_libraries()
    kept = FOLDER / "results.json"
    results: dict[str, str] = json.loads(kept.read_text()) if kept.exists() else {}
    called = "python benchmarks/data/video.py"
    command = f"{called} --rounds {options.rounds} --threads {options.threads} --minutes {options.minutes}"
    for name in options.parts:
        start = time.perf_counter()
        lines = PARTS[name](options)
        took = f"`{command} --parts {name}`: {time.perf_counter() - start:.0f} s, with the clips that it had to make."
        results[name] = "\n".join([*lines, "", took, *([options.note] if options.note else [])])
        print(results[name], flush=True)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(results, indent=2))
    if options.write is not None:
        page = [
            "# Reading videos",
            "",
            "After this page you know what reading a video costs, in time and memory, beside other readers.",
            "",
        ]
        page += ["```console", "$ python benchmarks/data/video.py --write docs/evidence/video.md", "```", ""]
        page += [f"{results[name]}\n" for name in PARTS if name in results]
        packages = ", ".join(f"{name} {version(name)}" for name in ("av", "torch", "numpy", "pillow"))
        page += [f"{os.cpu_count()} cores, {platform.machine()}; {packages}; Python {platform.python_version()}."]
        options.write.write_text("\n".join(page) + "\n")


if __name__ == "__main__":
    main()
