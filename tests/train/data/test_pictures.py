"""Pictures as bytes: variations compared with a loop over single pictures, and what they depend on."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from seng.apps.train.data.pictures import PictureSplit, Scale, StoredPictures, shifted_and_mirrored

SCALE = Scale((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
ROUNDING = 2e-6  # float32: a few units in the last place of numbers up to 3


def _pictures(count: int, height: int = 32, width: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(1, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def _one_by_one(pictures: Tensor, random: Tensor, margin: int) -> Tensor:
    results = []
    for picture, (top, left, mirror) in zip(pictures, random.tolist(), strict=True):
        _, height, width = picture.shape
        padded = torch.zeros(3, height + 2 * margin, width + 2 * margin, dtype=torch.uint8)
        padded[:, margin : margin + height, margin : margin + width] = picture
        row, column = int(top * (2 * margin + 1)), int(left * (2 * margin + 1))
        cut = padded[:, row : row + height, column : column + width]
        results.append(cut.flip(2) if mirror >= 0.5 else cut)
    return torch.stack(results)


@given(count=st.integers(1, 9), height=st.integers(1, 9), width=st.integers(1, 9), margin=st.integers(0, 4))
def test_shifted_and_mirrored_equals_a_loop_over_single_pictures(count, height, width, margin):
    pictures = _pictures(count, height, width)
    random = torch.rand(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(height * width))
    assert torch.equal(shifted_and_mirrored(pictures, random, margin), _one_by_one(pictures, random, margin))


def test_shifts_and_mirrors_all_occur_about_equally_often():
    generator = torch.Generator().manual_seed(0)
    spot = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    spot[0, 0, 4, 4] = 1
    random = torch.rand(16_200, 3, dtype=torch.float64, generator=generator)
    seen = shifted_and_mirrored(spot.expand(16_200, 1, 9, 9), random).sum((0, 1))
    assert seen.sum() == 16_200  # the spot is never shifted out
    assert seen.min() > 200 - 5 * 200**0.5
    assert seen.max() < 200 + 5 * 200**0.5


def test_scale_takes_means_and_deviations_out_of_each_channel():
    pixels = _pictures(5)
    mean, deviation = (torch.tensor(part, dtype=torch.float64).view(3, 1, 1) for part in (SCALE.mean, SCALE.deviation))
    expected = (pixels.double() / 255 - mean) / deviation
    torch.testing.assert_close(SCALE(pixels).double(), expected, rtol=ROUNDING, atol=ROUNDING)
    rows_last = pixels.to(memory_format=torch.channels_last)
    assert torch.equal(SCALE(rows_last), SCALE(pixels))
    assert SCALE(rows_last).is_contiguous()


def test_a_variation_depends_on_draw_and_sample_only():
    split = StoredPictures(_pictures(40), torch.arange(40), SCALE, augment=True)
    every, _ = split.batch(torch.arange(40), draw=3)
    some = torch.tensor([17, 2, 30])
    again, targets = split.batch(some, draw=3)
    assert torch.equal(again, every[some])
    assert targets.tolist() == [17, 2, 30]
    assert not torch.equal(split.batch(some, draw=4)[0], again)


def test_pictures_are_not_varied_unless_asked():
    split = StoredPictures(_pictures(4), torch.arange(4), SCALE)
    assert torch.equal(split.pixels(torch.arange(4), draw=9)[0], _pictures(4))


def test_a_batch_is_its_pixels_scaled():
    split = StoredPictures(_pictures(8), torch.arange(8), SCALE, augment=True)
    assert isinstance(split, PictureSplit)
    pixels, _ = split.pixels(torch.arange(8), draw=2)
    assert pixels.dtype == torch.uint8
    assert torch.equal(split.scaled(pixels), split.batch(torch.arange(8), draw=2)[0])
