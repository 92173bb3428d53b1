"""ImageNet's folders: which files are found, their classes, and what is said of wrong folders."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from seng.apps.train import data
from seng.apps.train.config import DataConfig
from seng.apps.train.data import Dataset
from seng.apps.train.data.decode import read_picture
from seng.apps.train.data.image_folders import SCALE
from seng.apps.train.data.pictures import PictureSplit
from seng.apps.train.errors import ConfigError, DataError

from .image_files import CLASSES, picture, write_imagenet

SIZE = 32


def _config(folder: Path, augment: bool = False) -> DataConfig:
    return DataConfig("imagenet", str(folder), augment=augment, size=SIZE)


def _load(folder: Path, augment: bool = False) -> Dataset:
    return data.load_dataset(_config(folder, augment))


def test_imagenet_holds_every_picture_with_the_class_of_its_folder(tmp_path: Path):
    write_imagenet(tmp_path)
    dataset = _load(tmp_path)
    assert (len(dataset.train), len(dataset.test)) == (12, 6)
    for split, part, count in ((dataset.train, "train", 4), (dataset.test, "val", 2)):
        inputs, targets = split.batch(torch.arange(len(split)))
        assert targets.tolist() == [label for label in range(3) for _ in range(count)]
        paths = [tmp_path / part / name / f"{name}_{number}.JPEG" for name in CLASSES for number in range(count)]
        pixels = torch.stack([torch.tensor(read_picture(str(path), SIZE, None)) for path in paths])
        assert torch.equal(inputs, SCALE(pixels.permute(0, 3, 1, 2)))


def test_imagenet_gives_samples_in_the_order_asked(tmp_path: Path):
    write_imagenet(tmp_path)
    split = _load(tmp_path).train
    every, _ = split.batch(torch.arange(12))
    some, targets = split.batch(torch.tensor([9, 0, 5]))
    assert torch.equal(some, every[[9, 0, 5]])
    assert targets.tolist() == [2, 0, 1]


def test_imagenet_varies_training_pictures_by_draw_and_sample_only(tmp_path: Path):
    write_imagenet(tmp_path)
    dataset = _load(tmp_path, augment=True)
    every, _ = dataset.train.batch(torch.arange(12), draw=3)
    assert torch.equal(dataset.train.batch(torch.tensor([7, 2]), draw=3)[0], every[[7, 2]])
    assert not torch.equal(dataset.train.batch(torch.tensor([7, 2]), draw=4)[0], every[[7, 2]])
    plain = _load(tmp_path)
    assert torch.equal(dataset.test.batch(torch.arange(6), draw=3)[0], plain.test.batch(torch.arange(6))[0])


def test_imagenet_pictures_are_bytes_until_scaled(tmp_path: Path):
    write_imagenet(tmp_path)
    split = _load(tmp_path, augment=True).train
    assert isinstance(split, PictureSplit)
    pixels, _ = split.pixels(torch.arange(3), draw=1)
    assert pixels.dtype == torch.uint8
    assert torch.equal(split.scaled(pixels), split.batch(torch.arange(3), draw=1)[0])


def test_imagenet_passes_over_what_is_no_picture(tmp_path: Path):
    write_imagenet(tmp_path)
    place = tmp_path / "train" / CLASSES[0]
    (place / "notes.txt").write_text("no picture")
    (place / "._hidden.JPEG").write_text("no picture")
    (tmp_path / "train" / "list.txt").write_text("no class")
    (tmp_path / "train" / ".cache").mkdir()
    assert len(_load(tmp_path).train) == 12


def test_imagenet_looks_like_its_signature(tmp_path: Path):
    write_imagenet(tmp_path, train=1, val=1)
    known = data.signature(_config(tmp_path))
    assert _load(tmp_path).train.batch(torch.arange(2))[0].shape == (2, *known.shape)
    assert (known.shape, known.classes) == ((3, SIZE, SIZE), 1000)
    assert data.signature(DataConfig("imagenet")).shape == (3, 224, 224)


@pytest.mark.parametrize("below", ["", "imagenet", "ILSVRC/Data/CLS-LOC"])
def test_imagenet_is_found_below_the_named_folder(tmp_path: Path, below: str):
    write_imagenet(tmp_path / below, train=1, val=1)
    assert data.data_status(_config(tmp_path)) == f"found in {tmp_path / below}"
    assert len(_load(tmp_path).train) == 3


def test_imagenet_absent_says_what_is_wanted(tmp_path: Path):
    with pytest.raises(DataError, match=r"ImageNet is not here.*train/<class>/\*.JPEG and val/<class>/\*.JPEG"):
        _load(tmp_path)
    assert data.data_status(_config(tmp_path)).startswith("absent: ILSVRC2012 from https://image-net.org")


def _one_class_less(folder: Path) -> None:
    shutil.rmtree(folder / "val" / CLASSES[1])


def _a_class_emptied(folder: Path) -> None:
    for path in (folder / "train" / CLASSES[2]).iterdir():
        path.unlink()


def _validation_unsorted(folder: Path) -> None:
    shutil.rmtree(folder / "val")
    (folder / "val").mkdir()
    picture(0, 0).save(folder / "val" / "ILSVRC2012_val_00000001.JPEG")


def _too_many_classes(folder: Path) -> None:
    for part in ("train", "val"):
        for number in range(998):
            (folder / part / f"m{number:04d}").mkdir()


WRONG = [
    (_one_class_less, r"train and val differ: expected the same classes in both, got .*n02102040"),
    (_a_class_emptied, r"n03000684 is empty: expected pictures ending in .jpeg"),
    (_validation_unsorted, r"val has no class folders: .*Move its pictures into a folder for each class"),
    (_too_many_classes, r"wrong number of classes: expected 1 to 1000, got 1001"),
]


@pytest.mark.parametrize(("damage", "match"), WRONG)
def test_imagenet_names_the_wrong_folder(tmp_path: Path, damage, match: str):
    write_imagenet(tmp_path, train=1, val=1)
    damage(tmp_path)
    with pytest.raises(DataError, match=match):
        _load(tmp_path)


def test_imagenet_names_the_damaged_picture(tmp_path: Path):
    write_imagenet(tmp_path)
    path = tmp_path / "train" / CLASSES[1] / f"{CLASSES[1]}_2.JPEG"
    path.write_bytes(path.read_bytes()[:200])
    split = _load(tmp_path).train
    with pytest.raises(DataError, match=r"n02102040_2.JPEG cannot be read.*(?i:truncated)"):
        split.batch(torch.arange(12))


def test_imagenet_refuses_a_negative_size(tmp_path: Path):
    write_imagenet(tmp_path, train=1, val=1)
    with pytest.raises(ConfigError, match=r"size is out of range: expected 0 or more, got -1"):
        data.load_dataset(DataConfig("imagenet", str(tmp_path), size=-1))
