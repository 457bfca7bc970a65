"""nnU-Net's sliding window with one of our trainers' networks, on the device and on the CPU."""

from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from benchmarks.gpu.context import Context
from benchmarks.gpu.data import make_trainer, started, use_folders


def run(context: Context) -> dict[str, Any]:
    """Share of the voxels with the same label, and seconds on the device."""
    use_folders(context)
    trainer = started(make_trainer(context, "AliceTrainer_scratch", 1, context.size.small, seed=0))
    trainer.set_deep_supervision_enabled(False)
    image = torch.randn(1, *(context.size.small * 3 // 2,) * 3)
    labels: dict[str, torch.Tensor] = {}
    for device in ("cpu", str(context.device)):
        predictor = nnUNetPredictor(use_mirroring=False, device=torch.device(device), allow_tqdm=False)
        network = trainer.plain_network.to(device).eval()
        predictor.manual_initialization(
            network, trainer.plans_manager, trainer.configuration_manager, [network.state_dict()],
            trainer.dataset_json, type(trainer).__name__, None,
        )  # fmt: skip

        def predict(predictor: nnUNetPredictor = predictor, device: str = device) -> None:
            labels[device] = predictor.predict_logits_from_preprocessed_data(image).argmax(0).cpu()

        seconds = context.seconds(predict, 1)
    same = (labels["cpu"] == labels[str(context.device)]).float().mean()
    return {"same_labels": float(same), "seconds": seconds}
