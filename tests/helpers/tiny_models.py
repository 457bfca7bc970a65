"""An untrained model folder of the tiny data set, as nnU-Net writes it."""

from pathlib import Path

import pytest
import torch

from tests.helpers.tiny_trainers import make_trainer

#: Arguments of nnU-Net's predictor.
CPU = {"device": torch.device("cpu"), "use_mirroring": False, "allow_tqdm": False}


def write_model(tiny, results: Path) -> Path:
    """Write a model of one fold with random weights; returns its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_results", str(results))
        trainer = make_trainer(tiny, "BaselineTrainer_1epoch", seed=3)
        trainer.on_train_start()
        trainer.save_checkpoint(f"{trainer.output_folder}/checkpoint_final.pth")
    return Path(trainer.output_folder_base)
