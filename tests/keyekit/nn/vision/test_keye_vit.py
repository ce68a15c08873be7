"""The native-resolution vision transformer."""

import pytest
import torch

from keyekit.nn.vision.keye_vit import KeyeViT


def tiny() -> KeyeViT:
    torch.manual_seed(0)
    return KeyeViT(dim=32, num_layers=2, num_heads=2, hidden_dim=48, image_size=56)


def test_parameter_count_of_the_released_tower() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in KeyeViT().parameters()) == 412_987_248  # Keye-VL 8B sheet 1.7, "ViT core"


def test_packed_equals_unpacked_with_gradients() -> None:
    vit = tiny()
    grids = [(4, 4), (2, 6), (4, 4), (2, 2)]
    patches = torch.randn(sum(r * c for r, c in grids), 3, 14, 14)
    weight = torch.randn(patches.shape[0], 32)
    packed = vit(patches, grids)
    packed_gradients = torch.autograd.grad((packed * weight).sum(), list(vit.parameters()))
    start, alone = 0, []
    for rows, columns in grids:
        alone.append(vit(patches[start : start + rows * columns], [(rows, columns)]))
        start += rows * columns
    unpacked = torch.cat(alone)
    torch.testing.assert_close(packed, unpacked, rtol=1e-4, atol=1e-5)
    for mine, other in zip(
        packed_gradients, torch.autograd.grad((unpacked * weight).sum(), list(vit.parameters())), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)


def test_position_matters() -> None:
    patches = torch.randn(1, 3, 14, 14).expand(4, -1, -1, -1)
    features = tiny()(patches, [(2, 2)])
    assert not torch.allclose(features[0], features[1])
    assert not torch.allclose(features[1], features[2])


def test_grids_must_hold_the_patches() -> None:
    with pytest.raises(ValueError, match="hold 4 patches but 5"):
        tiny()(torch.zeros(5, 3, 14, 14), [(2, 2)])


CLIPS = [(2, 4), (2, 4), (4, 2), (2, 2), (2, 2), (2, 2)]
FRAMES = (2, 1, 3)


def variant(**arguments) -> KeyeViT:
    torch.manual_seed(0)
    return KeyeViT(dim=32, num_layers=2, num_heads=2, hidden_dim=48, image_size=56, **arguments)


def pixels(grids: list[tuple[int, int]]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(sum(r * c for r, c in grids), 3, 14, 14, generator=generator)


def test_frames_of_a_video_see_each_other_and_media_do_not_when_asked() -> None:
    vit, patches = variant(attend="video").double(), pixels(CLIPS).double()
    changed = patches.clone()
    changed[8] += 1.0  # the second frame of the first video
    moved = (vit(patches, CLIPS, FRAMES) - vit(changed, CLIPS, FRAMES)).abs().amax(dim=1) > 0
    assert moved[:16].all()
    assert not moved[16:].any()


@pytest.mark.parametrize("frames", [None, FRAMES])
def test_frames_do_not_see_each_other_by_default(frames: tuple[int, ...] | None) -> None:
    vit, patches = variant().double(), pixels(CLIPS).double()
    changed = patches.clone()
    changed[8] += 1.0
    moved = (vit(patches, CLIPS, frames) - vit(changed, CLIPS, frames)).abs().amax(dim=1) > 0
    assert moved[8:16].all()
    assert not moved[:8].any()
    assert not moved[16:].any()


@pytest.mark.parametrize("attend", ["frame", "video"])
@pytest.mark.parametrize("chunk_patches", [1, 11, 20, 8192])
def test_chunked_equals_unchunked_with_gradients(attend: str, chunk_patches: int) -> None:
    # Keye-VL-2.0 sheet 16 check 4
    whole, chunked = variant(attend=attend), variant(attend=attend, chunk_patches=chunk_patches)
    patches = pixels(CLIPS)
    weight = torch.randn(patches.shape[0], 32)
    expected, features = whole(patches, CLIPS, FRAMES), chunked(patches, CLIPS, FRAMES)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    gradients = [
        torch.autograd.grad((out * weight).sum(), list(vit.parameters()))
        for out, vit in ((features, chunked), (expected, whole))
    ]
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)


def test_a_chunk_holds_about_chunk_patches(monkeypatch) -> None:
    vit, sizes = variant(chunk_patches=20), []
    encode = vit._encode
    monkeypatch.setattr(
        vit, "_encode", lambda patches, pieces: (sizes.append(len(patches)), encode(patches, pieces))[1]
    )
    vit(pixels([(2, 4)] * 5), [(2, 4)] * 5)
    assert sizes == [16, 16, 8]  # 20 / 8 frames a chunk, rounded down


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="choose 'frame'"):
        variant(attend="clip")
    with pytest.raises(ValueError, match="chunk_patches=0"):
        variant(chunk_patches=0)
    with pytest.raises(ValueError, match="add up to 5, but there are 6 grids"):
        variant(attend="video")(pixels(CLIPS), CLIPS, (2, 3))
    with pytest.raises(ValueError, match="2x4 patches, but interpolate=False"):
        variant(interpolate=False)(pixels(CLIPS), CLIPS)
