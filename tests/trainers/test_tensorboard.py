"""TensorBoard among the loggers of nnU-Net."""

import pytest
from nnunetv2.training.logging.nnunet_logger import MetaLogger

from nnunet_invariance.common.tensorboard import CurveWriter
from nnunet_invariance.trainers.tensorboard import VARIABLE, add_tensorboard


@pytest.mark.parametrize(("value", "rank", "written"), [("1", 0, True), ("1", 1, False), ("0", 0, False)])
def test_the_first_rank_writes_what_nnunet_logs_if_the_variable_is_set(value, rank, written, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    found = []
    monkeypatch.setattr(CurveWriter, "write", lambda self, values, step: found.append((self.folder, values, step)))
    monkeypatch.setenv(VARIABLE, value)
    logger = MetaLogger(str(tmp_path), False)
    add_tensorboard(logger, tmp_path, rank)
    logger.log("mean_fg_dice", 0.5, 0)
    logger.log("dice_per_class_or_region", [0.25, 0.75], 0)
    logger.log("epoch_start_timestamps", 1e9, 0)
    logger.update_config({"fold": 0})
    logger.log_summary("final_val/foreground_dice", 0.5)
    names = {name: number for folder, values, step in found for name, number in values.items()}
    expected = {"mean_fg_dice": 0.5, "ema_fg_dice": 0.5}
    expected |= {"dice_per_class_or_region/class_1": 0.25, "dice_per_class_or_region/class_2": 0.75}
    assert names == (expected if written else {})
    assert all(folder == tmp_path / "tensorboard" and step == 0 for folder, _, step in found)
