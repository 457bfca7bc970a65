"""Event files of TensorBoard, read with its own reader."""

import sys

import pytest

from nnunet_invariance.common.tensorboard import FOLDER, CurveWriter, require_tensorboard
from nnunet_invariance.errors import MissingPackageError


def read(folder, name):
    """Step and value of every point that TensorBoard shows."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = event_accumulator.EventAccumulator(str(folder / FOLDER))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_a_continued_run_replaces_the_steps_after_its_checkpoint(tmp_path):
    pytest.importorskip("tensorboard")
    for steps, value in (((2, 4, 6), 1.0), ((4, 6, 8), 2.0)):
        writer = CurveWriter(tmp_path)
        for step in steps:
            writer.write({"loss": value * step, "lr": 0.5}, step)
        writer.close()
    assert read(tmp_path, "loss") == [(2, 2.0), (4, 8.0), (6, 12.0), (8, 16.0)]
    assert [step for step, _ in read(tmp_path, "lr")] == [2, 4, 6, 8]


def test_a_missing_package_is_named_with_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingPackageError, match=r"--tensorboard needs the package tensorboard.*pip install"):
        require_tensorboard("--tensorboard")
