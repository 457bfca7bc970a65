"""The training step with torch.compile, and what compilation makes of PUIR's network."""

from typing import Any

import torch

from benchmarks.gpu.context import Context
from benchmarks.gpu.data import make_trainer, one_batch, started
from benchmarks.gpu.phases import training_step


def run(context: Context) -> dict[str, Any]:
    """As ``training_step``; on a CPU nnU-Net does not compile. Also the graphs and breaks of PUIR's step."""
    result = training_step.run(context, compiled=True)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    options = {"seed": 0, "prior": 4, "weight_equivariance": 0.0, "modality_dropout": 0.0}
    trainer = started(make_trainer(context, "PUIRTrainer_scratch", 2, context.size.small, **options))
    batch = one_batch(trainer)
    for _ in range(3):
        trainer.train_step(batch)
    graphs = {"unique_graphs": counters["stats"]["unique_graphs"], "breaks": sum(counters["graph_break"].values())}
    return {**result, "puir": graphs}
