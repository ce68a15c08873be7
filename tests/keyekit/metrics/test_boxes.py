from __future__ import annotations

import pytest

from keyekit.metrics.boxes import box_iou, parse_box


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("<|box_start|>[[10, 20, 30, 40]]<|box_end|>", (10, 20, 30, 40)),
        ("[10,20,30,40]", (10, 20, 30, 40)),
        ("from (0.5 1.5) to (2 3.25)", (0.5, 1.5, 2, 3.25)),
        ("[[10, 20, 30]]", None),
        ("[[10, 20, 30, 40], [1, 2, 3, 4]]", None),
        ("[[30, 20, 10, 40]]", None),
        ("[[10, 20, 30, 20]]", None),
        ("nowhere", None),
        ("", None),
    ],
)
def test_only_one_whole_box_is_read(text, box):
    assert parse_box(text) == box


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((0, 0, 10, 10), (0, 0, 10, 10), 1.0),
        ((0, 0, 10, 10), (5, 5, 15, 15), 25 / 175),
        ((0, 0, 10, 10), (2, 2, 4, 4), 4 / 100),
        ((0, 0, 10, 10), (10, 0, 20, 10), 0.0),
        ((0, 0, 10, 10), (0, 20, 10, 30), 0.0),
        ((3, 3, 3, 5), (0, 0, 9, 9), 0.0),
        (None, (0, 0, 10, 10), 0.0),
        ((0, 0, 10, 10), None, 0.0),
    ],
)
def test_overlap_of_boxes(first, second, expected):
    assert box_iou(first, second) == pytest.approx(expected)
    assert box_iou(second, first) == pytest.approx(expected)


def test_overlap_agrees_with_torchvision():
    import torch
    from torchvision.ops import box_iou as reference

    corners = torch.rand(2, 20, 2).sort(dim=0).values  # [2, 20, 2]: upper left below lower right
    boxes = torch.cat([corners[0], corners[1]], dim=1)
    ours = [[box_iou(tuple(a), tuple(b)) for b in boxes.tolist()] for a in boxes.tolist()]
    torch.testing.assert_close(torch.tensor(ours), reference(boxes, boxes))
