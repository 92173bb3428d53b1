"""Pictures from files: what is cut out, what the bytes are, and what is said of files that are no pictures."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from seng.apps.train.data.decode import AREA, NUMBERS, RATIO, middle_cut, random_cut, read_picture
from seng.apps.train.data.draws import uniforms
from seng.apps.train.errors import DataError

from .image_files import picture

GREYS = 0.5  # of 255, on average: each resizing rounds; the sizes make sure that none moves the picture
DRAFT_GREYS = (
    4.0  # of 255, on average: a picture halved by its decoder and one halved by resizing differ in fine detail
)
CMYK_GREYS = 5.0  # of 255, on average: a JPEG of other colours rounds elsewhere
SIDES = st.integers(1, 600)


def _numbers(index: int) -> torch.Tensor:
    return uniforms(torch.tensor([index]), 0, NUMBERS)[0]


def _save(folder: Path, image: Image.Image, name: str = "a.JPEG", **options) -> str:
    image.save(folder / name, **options)
    return str(folder / name)


@given(width=SIDES, height=SIDES, index=st.integers(0, 10_000))
def test_random_cut_lies_within_the_picture(width: int, height: int, index: int):
    cut = random_cut(width, height, _numbers(index))
    assert 0 <= cut.left < cut.right <= width
    assert 0 <= cut.upper < cut.lower <= height


def test_random_cuts_cover_areas_shapes_and_places_evenly():
    cuts = [random_cut(1000, 800, _numbers(index)) for index in range(4000)]
    sides = np.array([(cut.right - cut.left, cut.lower - cut.upper) for cut in cuts])
    areas, ratios = sides.prod(1) / 800_000, sides[:, 0] / sides[:, 1]
    assert AREA[0] - 0.01 < areas.min() < 0.1  # whole pixels may leave the bounds by a little
    assert 0.9 < areas.max() <= 1
    assert RATIO[0] - 0.01 < ratios.min() < 0.77
    assert 1.3 < ratios.max() < RATIO[1] + 0.01
    small = areas < 0.5  # of these every one fits, whatever its shape
    assert abs(np.mean(areas[small]) - (AREA[0] + 0.5) / 2) < 0.02
    assert abs(np.log(ratios[small]).mean()) < 0.02
    centres = np.array([((cut.left + cut.right) / 2000, (cut.upper + cut.lower) / 1600) for cut in cuts])
    assert np.abs(centres.mean(0) - 0.5).max() < 0.02
    assert abs(np.mean([cut.mirrored for cut in cuts]) - 0.5) < 0.04  # five deviations


@pytest.mark.parametrize(("width", "height", "box"), [(1000, 10, (494, 0, 507, 10)), (10, 1000, (0, 494, 10, 507))])
def test_random_cut_of_a_strip_is_its_middle(width: int, height: int, box: tuple[int, ...]):
    cut = random_cut(width, height, torch.full((NUMBERS,), 0.99, dtype=torch.float64))
    assert np.abs(np.subtract((cut.left, cut.upper, cut.right, cut.lower), box)).max() <= 1


@pytest.mark.parametrize("size", [(300, 200), (250, 500), (256, 256), (96, 120)])
def test_the_middle_is_the_middle_of_the_picture_resized(tmp_path: Path, size: tuple[int, int]):
    image = picture(1, 2, size)
    path = _save(tmp_path, image, "a.png")
    factor = 256 / min(size)
    resized = image.resize((round(size[0] * factor), round(size[1] * factor)), Image.Resampling.BILINEAR)
    left, upper = (resized.width - 224) // 2, (resized.height - 224) // 2
    expected = np.asarray(resized.crop((left, upper, left + 224, upper + 224)))
    found = read_picture(path, 224, None)
    assert found.shape == (224, 224, 3)
    assert np.abs(found.astype(float) - expected).mean() < GREYS


def test_a_jpeg_decoded_at_half_its_size_shows_the_same(tmp_path: Path):
    image = picture(2, 3, (803, 601))  # odd sides: the decoder rounds them up
    large, whole = _save(tmp_path, image, quality=95), _save(tmp_path, image, "a.png")
    for numbers in (None, *map(_numbers, range(5))):
        found, expected = (read_picture(path, 32, numbers).astype(float) for path in (large, whole))
        assert np.abs(found - expected).mean() < DRAFT_GREYS


def test_a_random_part_is_cut_resized_and_mirrored_as_drawn(tmp_path: Path):
    image = picture(0, 1, (120, 100))
    path = _save(tmp_path, image, "a.png")
    mirrored = 0
    for index in range(8):
        cut = random_cut(120, 100, _numbers(index))
        box = (cut.left, cut.upper, cut.right, cut.lower)
        expected = np.asarray(image.resize((40, 40), Image.Resampling.BILINEAR, box=box))
        assert np.array_equal(read_picture(path, 40, _numbers(index)), expected[:, ::-1] if cut.mirrored else expected)
        mirrored += cut.mirrored
    assert 0 < mirrored < 8


FORMATS = [
    ("RGB", "JPEG"),
    ("L", "JPEG"),
    ("CMYK", "JPEG"),
    ("RGB", "PNG"),
    ("L", "PNG"),
    ("RGBA", "PNG"),
    ("P", "PNG"),
    ("LA", "PNG"),
    ("1", "PNG"),
]


@pytest.mark.parametrize(("mode", "form"), FORMATS)
def test_every_kind_of_picture_becomes_rgb(tmp_path: Path, mode: str, form: str):
    image = picture(0, 0, mode=mode)
    path = _save(tmp_path, image, format=form)  # named .JPEG, as one PNG of ImageNet is
    found = read_picture(path, 32, None)
    assert found.shape == (32, 32, 3)
    assert found.dtype == np.uint8
    if mode in ("L", "LA", "1"):
        assert (found == found[:, :, :1]).all()
    if mode == "CMYK":
        assert np.abs(found.astype(float) - read_picture(_save(tmp_path, picture(0, 0)), 32, None)).mean() < CMYK_GREYS


GREY = np.add.outer(np.arange(64), 3 * np.arange(64)).astype(np.uint8)  # levels 0 to 252
FINE = GREY.astype(np.uint16) << 8 | GREY[::-1, ::-1]  # of 16 bits, with the same upper eight
KINDS = {
    "16 bits": (Image.fromarray(FINE), "png", {}),
    "16 bits of TIFF": (Image.fromarray(FINE), "tiff", {}),
    "16 bits, large end first": (Image.frombytes("I;16B", (64, 64), FINE.astype(">u2").tobytes()), "tiff", {}),
    "16 bits of PGM": (Image.fromarray(FINE.astype(np.int32)), "pgm", {}),
    "16 bits, transparent": (Image.fromarray(FINE), "png", {"transparency": 5}),
    "whole numbers": (Image.fromarray(GREY.astype(np.int32)), "tiff", {}),
    "real numbers": (Image.fromarray(GREY.astype(np.float32)), "tiff", {}),
    "8 bits": (Image.fromarray(GREY), "png", {}),
    "8 bits, transparent": (Image.fromarray(GREY), "png", {"transparency": 5}),
    "LA": (Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(GREY[::-1])]), "png", {}),
    "RGB": (Image.fromarray(GREY).convert("RGB"), "png", {}),
    "RGB, transparent": (Image.fromarray(GREY).convert("RGB"), "png", {"transparency": (1, 1, 1)}),
    "RGBA": (Image.merge("RGBA", [Image.fromarray(x) for x in (GREY, GREY, GREY, GREY[::-1])]), "png", {}),
    "palette": (Image.fromarray(GREY).convert("P"), "png", {}),
    "palette, transparent": (Image.fromarray(GREY).convert("P"), "png", {"transparency": bytes(range(256))}),
    "one palette entry transparent": (Image.fromarray(GREY).convert("P"), "png", {"transparency": 7}),
    "WebP": (Image.fromarray(GREY).convert("RGBA"), "webp", {"lossless": True}),
    "BMP": (Image.fromarray(GREY), "bmp", {}),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("image", "ending", "options"), KINDS.values(), ids=KINDS.keys())
def test_levels_are_those_of_the_picture_in_8_bits(tmp_path: Path, image: Image.Image, ending: str, options):
    found = read_picture(_save(tmp_path, image, f"a.{ending}", **options), 56, None)
    wanted = read_picture(_save(tmp_path, Image.fromarray(GREY), "b.png"), 56, None)
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("levels", [FINE.astype(np.int32), -GREY.astype(np.int32), FINE / 2**16, GREY + np.nan])
def test_levels_of_no_known_range_are_refused(tmp_path: Path, levels: np.ndarray):
    kept = levels if levels.dtype == np.int32 else levels.astype(np.float32)
    with pytest.raises(DataError, match=r"a.tiff cannot be read: .*levels from .* in mode [IF], of which 0 to 255 is"):
        read_picture(_save(tmp_path, Image.fromarray(kept), "a.tiff"), 56, None)


def test_one_bit_is_black_or_white(tmp_path: Path):
    found = read_picture(_save(tmp_path, Image.fromarray(GREY > 99), "a.png"), 56, None)  # 56 of the middle's 56
    assert set(np.unique(found)) == {0, 255}


def _jpeg() -> bytes:
    raw = io.BytesIO()
    picture(0, 0).save(raw, "JPEG")
    return raw.getvalue()


JPEG = _jpeg()


@pytest.mark.parametrize("content", [b"", b"no picture at all", JPEG[:3], JPEG[: len(JPEG) // 2]])
def test_read_picture_names_a_file_that_is_no_whole_picture(tmp_path: Path, content: bytes):
    path = tmp_path / "n01_7.JPEG"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"n01_7.JPEG cannot be read: expected a whole picture.*Fetch it again, or rem"):
        read_picture(str(path), 32, None)


def test_read_picture_names_a_file_that_is_gone(tmp_path: Path):
    with pytest.raises(DataError, match=r"gone.JPEG cannot be read.*FileNotFoundError"):
        read_picture(str(tmp_path / "gone.JPEG"), 32, None)


def test_read_picture_refuses_pictures_beyond_all_size(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"a.JPEG cannot be read.*DecompressionBombError"):
        read_picture(_save(tmp_path, picture(0, 0)), 32, None)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)  # of which Pillow itself only warns
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(DataError, match="80 x 60 pixels are more than"):
        read_picture(_save(tmp_path, picture(0, 0)), 32, None)


@given(changes=st.dictionaries(st.integers(0, len(JPEG) - 1), st.integers(0, 255), max_size=4), cut=st.integers(0, 50))
@settings(deadline=None)  # a busy machine, nothing else
def test_read_picture_of_damaged_bytes_is_a_picture_or_an_error(changes: dict[int, int], cut: int):
    content = bytearray(JPEG)
    for place, value in changes.items():
        content[place] = value
    with TemporaryDirectory() as folder, suppress(DataError):
        path = Path(folder, "a.JPEG")
        path.write_bytes(content[: len(content) - cut])
        assert read_picture(str(path), 16, None).shape == (16, 16, 3)


@given(width=SIDES, height=SIDES)
def test_the_middle_is_a_square_with_seven_eighths_of_the_shorter_side(width: int, height: int):
    cut = middle_cut(width, height)
    assert cut.right - cut.left == pytest.approx(0.875 * min(width, height))
    assert cut.lower - cut.upper == pytest.approx(cut.right - cut.left)
    assert cut.left + cut.right == pytest.approx(width)
    assert cut.upper + cut.lower == pytest.approx(height)
