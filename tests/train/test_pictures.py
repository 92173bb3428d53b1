"""What a person sees of a run: the progress bar and the curves."""

from __future__ import annotations

import io
import struct
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console

from seng.apps.train.curves import draw_curves
from seng.apps.train.metrics import CurvatureRecord, EndRecord, EpochRecord, StepRecord
from seng.apps.train.progress import ProgressBar, refresh_share

STEP = StepRecord(3, 25, 0.1234, 0.875, 0.1, 1.0, 1234.0)
EPOCH = EpochRecord(3, 30, 0.11, 0.9, 0.22, 0.9512, 1.2, 1200.0)


def test_progress_bar_shows_epoch_loss_accuracy_speed_and_time_left():
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    with ProgressBar(epochs=20, samples=100, console=console) as bar:
        bar.advanced(250)
        bar.logged(STEP)
    for words in ("epoch  3/20", "loss 0.1234", "accuracy 87.5%", "1,234 samples/s", "left"):
        assert words in screen.getvalue()


def test_progress_prints_a_line_an_epoch_even_into_a_file():
    screen = io.StringIO()
    with ProgressBar(epochs=20, samples=100, console=Console(file=screen, width=40)) as bar:
        bar.logged(STEP)
        bar.logged(EPOCH)
    line = "epoch  3/20  loss 0.1100  test loss 0.2200  test accuracy 95.12%  1,200 samples/s"
    assert line in screen.getvalue().splitlines()


def test_progress_shows_the_share_of_refreshes():
    parts = {"data": 0.1, "forward": 0.3, "backward": 0.4, "optimizer": 0.2, "refresh": 0.05}
    assert refresh_share(replace(STEP, parts=parts)) == 0.05
    assert refresh_share(STEP) is None
    screen = io.StringIO()
    with ProgressBar(20, 100, Console(file=screen, force_terminal=True, width=120)) as bar:
        bar.logged(replace(STEP, parts=parts))
    assert "1,234 samples/s  refresh 5%" in screen.getvalue()


def test_progress_leaves_out_accuracies_that_are_not_there():
    screen = io.StringIO()
    with ProgressBar(epochs=3, samples=100, console=Console(file=screen, width=100)) as bar:
        bar.logged(replace(STEP, accuracy=None))
        bar.logged(replace(EPOCH, train_accuracy=None, test_accuracy=None))
        bar.logged(EndRecord(3, 30, 1.0, "epochs"))
    assert "epoch 3/3  loss 0.1100  test loss 0.2200  1,200 samples/s" in screen.getvalue().splitlines()
    assert "accuracy" not in screen.getvalue()


def _size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    return struct.unpack(">II", head[16:24])


def test_curves_are_a_picture_that_depends_on_the_records(tmp_path: Path):
    draw_curves([asdict(STEP), asdict(EPOCH)], tmp_path / "a.png", "a run")
    draw_curves([asdict(STEP), asdict(EPOCH) | {"test_loss": 0.5}], tmp_path / "b.png", "a run")
    assert _size(tmp_path / "a.png") == (1200, 780)
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_curves_without_accuracy_are_the_loss_alone(tmp_path: Path):
    records = [asdict(replace(STEP, accuracy=None)), asdict(replace(EPOCH, train_accuracy=None, test_accuracy=None))]
    draw_curves(records, tmp_path / "loss.png", "a run")
    assert _size(tmp_path / "loss.png") == (1200, 420)


def test_curves_pass_over_records_of_other_kinds(tmp_path: Path):
    records = [asdict(STEP), asdict(EPOCH)]
    others = [asdict(CurvatureRecord(3, 25, 1.0, {})), asdict(EndRecord(3, 30, 1.0, "epochs"))]
    draw_curves(records, tmp_path / "a.png", "a run")
    draw_curves([*others, *records], tmp_path / "b.png", "a run")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_curves_of_a_run_without_records_are_empty_axes(tmp_path: Path):
    draw_curves([], tmp_path / "empty.png", "a run")
    assert _size(tmp_path / "empty.png") == (1200, 780)
