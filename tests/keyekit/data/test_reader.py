"""Reading media at their final size: limits, options, what shows through, the second resizing."""

import dataclasses
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from keyekit.data.budget_search import BudgetSearch
from keyekit.data.deadline import Deadline
from keyekit.data.errors import BadData
from keyekit.data.processing.geometry import PatchGeometry
from keyekit.data.processors import processor_of
from keyekit.data.reader import MediaReader, SecondResize
from keyekit.data.sample import ContentItem, parse_sample
from keyekit.data.sampling import UniformFps, VideoFacts
from keyekit.data.slow_fast import SlowFast
from keyekit.data.video.pyav import PyAV
from keyekit.data.video.torchcodec import TorchCodec
from keyekit.data.world.files import write_video
from keyekit.testing.tiny import tiny_record as record

READER = MediaReader(frame_sampler=UniformFps(max_frames=8), min_frame_tokens=4, max_frame_tokens=4)


def clip(media, name: str = "clip0.mp4", **options) -> ContentItem:
    return ContentItem(kind="video", path=media / name, options=options)


@pytest.mark.parametrize(
    ("size", "utilities", "processor", "tokens"),
    [  # Keye-VL 8B sheet 2.1, test vectors: (height, width), the same after each resizing, tokens after each
        ((28, 28), (56, 56), (56, 56), (4, 4)),
        ((28, 140), (28, 140), (28, 140), (5, 5)),
        ((384, 384), (392, 392), (392, 392), (196, 196)),
        ((480, 640), (476, 644), (476, 644), (391, 391)),
        ((1080, 1920), (1092, 1932), (728, 1316), (2691, 1222)),
        ((3192, 4004), (3192, 4004), (868, 1120), (16302, 1240)),
    ],
)
def test_images_of_the_preview(tmp_path, size, utilities, processor, tokens) -> None:
    rows, columns = np.mgrid[: size[0], : size[1]]
    pixels = np.stack([rows % 256, columns % 256, (rows + columns) % 256], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.bmp")
    item = ContentItem(kind="image", path=tmp_path / "image.bmp")
    reader = processor_of("keye_vl_8b").reader
    once = Image.fromarray(pixels).resize(utilities[::-1])  # PIL's default filter
    twice = once if processor == utilities else once.resize(processor[::-1])
    for second, expected, count in ((None, once, tokens[0]), (reader.second_resize, twice, tokens[1])):
        found = dataclasses.replace(reader, second_resize=second).read(item).pixels
        np.testing.assert_array_equal(found[0], np.asarray(expected))
        assert reader.geometry.tokens(*found.shape[1:3]) == count


@pytest.mark.parametrize("release", ["keye_vl_1_5_8b", "keye_vl_2_30b_a3b"])
def test_later_images_are_resized_once_up_to_20480_tokens(tmp_path, release: str) -> None:
    reader = processor_of(release).reader
    assert (reader.min_image_tokens, reader.max_image_tokens, reader.second_resize) == (4, 20480, None)
    Image.fromarray(np.zeros((1080, 1920, 3), np.uint8)).save(tmp_path / "image.png")
    assert reader.read(ContentItem(kind="image", path=tmp_path / "image.png")).pixels.shape == (1, 1092, 1932, 3)


def test_what_shows_through(tmp_path) -> None:
    clear = Image.new("RGBA", (56, 56), (200, 10, 10, 0))
    clear.save(tmp_path / "rgba.png")
    clear.convert("LA").save(tmp_path / "grey.png")
    grey = clear.convert("L").getpixel((0, 0))
    white = [255, 255, 255]
    for transparency, expected in (
        ("white", (white, white)),
        ("white_rgba", (white, [grey] * 3)),
        ("drop", ([200, 10, 10], [grey] * 3)),
    ):
        reader = MediaReader(transparency=transparency)
        for name, colour in zip(("rgba.png", "grey.png"), expected, strict=True):
            frames = reader.read(ContentItem(kind="image", path=tmp_path / name))
            assert frames.pixels[0, 9, 9].tolist() == colour, (transparency, name)


@pytest.mark.parametrize(("num_frames", "tokens", "total"), [(32, 720, 23_040), (300, 180, 54_000), (768, 120, 92_160)])
def test_many_frames_share_a_budget(num_frames: int, tokens: int, total: int) -> None:
    # Keye-VL 8B sheet 2.2 item 4: a source of 720x1280 under a budget of 28,800 tokens, exceeded up to twice
    limits = MediaReader(max_video_tokens=28_800).limits({})
    video = VideoFacts(num_frames=num_frames, fps=2.0, height=720, width=1280)
    plan = UniformFps().plan(video, limits, lambda indices: iter(()))
    assert len(plan.indices) == num_frames
    assert plan.tokens() == num_frames * tokens == total
    kept = UniformFps(budget_factor=1.0).plan(video, limits, lambda indices: iter(()))
    assert kept.tokens() <= max(28_800, 134 * num_frames)  # no frame is cut below 1.05 times 128 tokens


def test_the_key_follows_file_settings_and_options(media, tmp_path) -> None:
    keys = {READER.key(clip(media)), READER.key(clip(media, "clip1.mp4")), READER.key(clip(media, fps=1.0))}
    variants = [
        {"max_frame_tokens": 9},
        {"frame_sampler": UniformFps(max_frames=4)},
        {"frame_sampler": SlowFast()},
        {"frame_sampler": SlowFast(keep_budget=True)},
        {"frame_sampler": BudgetSearch()},
        {"frame_sampler": BudgetSearch(adaptive="code")},
        {"times": "index"},
        {"frame_interpolation": "bilinear"},
        {"transparency": "drop"},
        {"second_resize": SecondResize()},
        {"second_resize": SecondResize(frames=False)},
        {"geometry": PatchGeometry(patch_size=16)},
        {"share_video_budget": True},
        {"resizing": "exact"},
        {"video_reader": TorchCodec()},
    ]
    keys |= {dataclasses.replace(READER, **variant).key(clip(media)) for variant in variants}
    assert len(keys) == 3 + len(variants)
    for same in ({"max_source_pixels": 10**7}, {"time_limit": 5.0}, {"video_reader": PyAV(threads=2)}):
        assert dataclasses.replace(READER, **same).key(clip(media)) == READER.key(clip(media))
    copy = tmp_path / "c.mp4"
    copy.write_bytes((media / "clip0.mp4").read_bytes())
    before = READER.key(ContentItem(kind="video", path=copy))
    copy.write_bytes((media / "clip1.mp4").read_bytes())
    assert READER.key(ContentItem(kind="video", path=copy)) != before


def test_samples_may_set_their_own_limits(media) -> None:
    reader = MediaReader(min_image_tokens=4, max_image_tokens=64)
    wide = ContentItem(kind="image", path=media / "wide.png", options={"max_pixels": 4 * 784})
    assert reader.read(wide).pixels.shape == (1, 28, 56, 3)
    assert reader.read(dataclasses.replace(wide, options={})).pixels.shape == (1, 56, 84, 3)
    with pytest.raises(BadData, match="unknown image option zoom"):
        reader.read(dataclasses.replace(wide, options={"zoom": 2}))
    with pytest.raises(BadData, match="unknown video option zoom"):
        reader.read(clip(media, zoom=2))
    small = MediaReader().read(clip(media, max_pixels=4 * 784))  # below the reader's own minimum
    assert small.pixels.shape == (8, 56, 56, 3)
    tight = MediaReader(frame_sampler=BudgetSearch(), min_frame_tokens=4)
    assert tight.read(clip(media, video_total_pixels=5 * 4 * 784)).pixels.shape[0] == 5
    with pytest.raises(BadData, match="min_pixels <= max_pixels"):
        reader.read(clip(media, min_pixels=8 * 784, max_pixels=4 * 784))


def test_slow_and_fast_frames_are_never_below_their_minimum() -> None:
    # Keye-VL 8B sheet 3.2 item 7: min_pixels is clamped up to 48 tokens
    limits = processor_of("keye_vl_1_5_8b").reader.limits({"min_pixels": 1})
    assert limits.min_pixels == 48 * 784
    assert processor_of("keye_vl_8b").reader.limits({"min_pixels": 784}).min_pixels == 784


def test_a_sample_cannot_ask_for_a_picture_larger_than_the_limit(media) -> None:
    wide = ContentItem(kind="image", path=media / "wide.png", options={"min_pixels": 10**13})
    with pytest.raises(BadData, match="lower min_pixels"):
        MediaReader().read(wide)
    with pytest.raises(BadData, match="lower min_pixels"):
        MediaReader().read(clip(media, min_pixels=10**9, max_pixels=10**9))


def test_videos_of_a_sample_may_share_a_budget(media) -> None:
    # Keye-VL-2.0 sheet 6.2: multiple videos, budget split equally
    two = parse_sample(
        record("a", "x", "y", [("video", "clip0.mp4"), ("image", "wide.png"), ("video", "clip1.mp4")]), "f:1", media
    )
    reader = MediaReader(
        frame_sampler=BudgetSearch(), min_frame_tokens=4, max_video_tokens=4 * 8, share_video_budget=True
    )
    items = reader.items(two)
    assert [len(reader.read(item).pixels) for item in items] == [4, 1, 4]
    assert reader.key(items[0]) != reader.key(two.media[0])
    assert [len(reader.read(item).pixels) for item in two.media] == [8, 1, 8]
    assert dataclasses.replace(reader, share_video_budget=False).items(two) == two.media
    one = parse_sample(record("a", "x", "y", [("video", "clip0.mp4")]), "f:1", media)
    assert reader.items(one) == one.media


def test_the_second_resizing_applies_to_frames_if_wanted(media) -> None:
    reader = MediaReader(min_frame_tokens=9, max_frame_tokens=9)
    assert reader.read(clip(media)).pixels.shape == (8, 84, 84, 3)
    for frames, side in ((True, 56), (False, 84)):
        second = SecondResize(min_pixels=784, max_pixels=4 * 784, frames=frames)
        found = dataclasses.replace(reader, second_resize=second).read(clip(media))
        assert found.pixels.shape == (8, side, side, 3)
        assert found.timestamps == reader.read(clip(media)).timestamps
    with pytest.raises(ValueError, match="min_pixels <= max_pixels"):
        SecondResize(min_pixels=10, max_pixels=1)


def test_a_plan_says_what_would_be_read(media) -> None:
    for reader in (READER, processor_of("keye_vl_1_5_8b").reader, processor_of("keye_vl_2_30b_a3b").reader):
        plan, frames = reader.plan(clip(media, fps=1.0)), reader.read(clip(media, fps=1.0))
        assert plan.timestamps(4.0) == frames.timestamps
        assert (plan.fast, plan.fps) == (frames.fast, frames.fps)
        sizes = [run.shape[1:3] for run in frames.runs for _ in run]
        assert [plan.size_of(place) for place in range(len(plan.indices))] == sizes
        assert f"{len(plan.indices)} " in plan.reason
    with pytest.raises(BadData, match="unknown video option zoom"):
        READER.plan(clip(media, zoom=2))
    with pytest.raises(BadData, match="there is no video"):
        READER.plan(clip(media, "none.mp4"))
    with pytest.raises(TypeError, match="kind 'image'"):
        READER.plan(ContentItem(kind="image", path=media / "wide.png"))


def test_other_patches_give_other_sizes(media) -> None:
    reader = MediaReader(geometry=PatchGeometry(patch_size=16), min_image_tokens=1)
    wide = ContentItem(kind="image", path=media / "wide.png")
    assert reader.read(wide).pixels.shape == (1, 64, 96, 3)


def test_slow_and_fast_frames_of_a_real_clip(tmp_path) -> None:
    frames = np.full((16, 280, 280, 3), 255, np.uint8)
    frames[6:12] = (60, 0, 0)
    write_video(tmp_path / "cuts.mp4", frames, fps=4.0)
    reader = dataclasses.replace(processor_of("keye_vl_1_5_8b").reader, max_video_tokens=300)
    found = reader.read(ContentItem(kind="video", path=tmp_path / "cuts.mp4"))
    # 300 tokens hold 6 frames of 48: frames 0, 3, 6, 9, 12, 15
    assert found.timestamps == (0.0, 0.75, 1.5, 2.25, 3.0, 3.75)
    assert found.fast == (False, True, False, True, False, True)
    assert [run.shape[1:3] for run in found.runs] == [(196, 196), (168, 168)] * 3
    assert found.runs[2][0, 80, 80, 0] < 90 < found.runs[4][0, 80, 80, 0]


@pytest.mark.parametrize("sampler", [BudgetSearch(), SlowFast(), UniformFps()])
@pytest.mark.parametrize("times", ["container", "index"])
def test_every_policy_takes_a_cut(media, sampler, times) -> None:
    """Sixteen frames at four a second: those from 1 to 2.5 seconds are frames 4 to 10."""
    reader = MediaReader(frame_sampler=sampler, min_frame_tokens=4, max_frame_tokens=4, times=times)
    cut = clip(media, video_start=1.0, video_end=2.5, fps=4.0)
    frames, plan = reader.read(cut), reader.plan(cut)
    assert {4, 10} <= set(plan.indices) <= set(range(4, 11))
    assert frames.timestamps == plan.seconds == tuple(index / 4 for index in plan.indices)
    found = [run[place, 40, 40].mean() for run in frames.runs for place in range(len(run))]
    np.testing.assert_allclose(found, np.linspace(20, 220, 16)[list(plan.indices)], atol=6)
    with pytest.raises(BadData, match="no frame lies between") as caught:
        reader.read(clip(media, video_start=9.0))
    assert caught.value.reason == "bad_media"


def test_a_video_may_be_a_list_of_images(media) -> None:
    images = [str(media / name) for name in ("wide.png", "clear.png", "wide.png", "clear.png")]
    item = ContentItem(kind="video", path=tuple(images), options={"fps": 4.0})
    frames = READER.read(item)
    assert frames.timestamps == (0.0, 0.25, 0.5, 0.75)
    assert [run[0, 5, 5].tolist() for run in (frames.pixels[:1], frames.pixels[1:2])] == [[200, 10, 10], [255] * 3]
    assert READER.read(ContentItem(kind="video", path=tuple(images))).timestamps == ()
    assert READER.key(item) != READER.key(dataclasses.replace(item, path=tuple(images[:2])))


def test_uneven_frames_are_chosen_by_their_time(tmp_path) -> None:
    """Frames at 0, 0.1 … 0.9 s, then one a second up to 9: by the clock the slow part is most of the video."""
    times = [100 * n for n in range(10)] + [1000 * n for n in range(1, 10)]
    with av.open(str(tmp_path / "uneven.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = 56, 56, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for level, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((56, 56, 3), 10 * level, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    item = ContentItem(kind="video", path=tmp_path / "uneven.mp4", options={"nframes": 10})
    by_clock, counted = (dataclasses.replace(READER, times=times).read(item) for times in ("container", "index"))
    assert sum(second >= 1 for second in by_clock.timestamps) >= 7
    with PyAV().open(item.path, 2**20, Deadline(None, "")) as video:
        rate = video.facts.fps
    wanted = np.array(READER.frame_sampler.adapted({"nframes": 10}).select(19, rate)) / rate
    nearest = [min(times, key=lambda time: (abs(time / 1000 - second), time)) / 1000 for second in wanted]
    np.testing.assert_allclose(by_clock.timestamps, nearest, atol=1e-3)
    levels = [round(float(picture.mean()) / 10) for picture in counted.pixels]
    np.testing.assert_allclose(levels, np.linspace(0, 18, 10).round(), atol=1)
    for second, picture in zip(by_clock.timestamps, by_clock.pixels, strict=True):
        assert abs(picture.mean() / 10 - times.index(round(second * 1000))) < 1
