"""Steps with broken values or too little memory."""

import os
from typing import Any

import torch

from benchmarks.gpu.context import Context
from benchmarks.gpu.data import make_trainer, one_batch, started, use_folders


def run(context: Context) -> dict[str, Any]:
    """Whether a broken step changes nothing, the next one trains, and short memory halves the second view."""
    use_folders(context)
    os.environ["nnUNet_compile"] = "f"
    options = {"seed": 0, "aux_ramp": 0.0, "num_positions": 8}
    trainer = started(make_trainer(context, "AliceTrainer_scratch", 1, context.size.small, **options))
    batch = one_batch(trainer)
    trainer.train_step(batch)
    weights = [parameter.detach().clone() for parameter in trainer.plain_network.parameters()]
    broken = {**batch, "data": torch.full_like(batch["data"], torch.nan)}
    trainer.train_step(broken)
    kept = all(map(torch.equal, weights, trainer.plain_network.parameters()))
    forward = trainer.second_pass

    def short_of_memory(x: torch.Tensor) -> Any:
        if len(x) > 1:
            raise torch.OutOfMemoryError
        return forward(x)

    trainer.second_pass = short_of_memory
    losses = trainer.train_step(batch)
    trained = not all(map(torch.equal, weights, trainer.plain_network.parameters()))
    return {
        "broken_step_changes_nothing": kept,
        "next_step_trains": trained,
        "samples_of_second_view": trainer.second_samples,
        "losses": {name: float(loss) for name, loss in losses.items()},
        "all_passed": kept and trained and trainer.second_samples == 1,
    }
