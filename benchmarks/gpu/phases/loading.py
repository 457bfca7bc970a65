"""Iterations with real data loaders, against steps on a batch that is loaded already."""

import os
import time
from typing import Any

from benchmarks.gpu.context import Context
from benchmarks.gpu.data import make_trainer, one_batch, started, use_folders

#: Augmentation and number of workers; None stands for all workers of the run.
CASES = {"nnunet, all workers": ("nnunet", None), "device, 2 workers": ("device", 2)}


def run(context: Context) -> dict[str, Any]:
    """Seconds of an iteration and of a bare step, and their quotient, the network's share."""
    use_folders(context)
    os.environ["nnUNet_compile"] = "f"
    result: dict[str, Any] = {}
    for name, (augmentation, workers) in CASES.items():
        bare = started(make_trainer(context, "BaselineTrainer", augmentation="nnunet"))
        batch = one_batch(bare)
        bare.train_step(batch)
        step = context.seconds(lambda bare=bare, batch=batch: bare.train_step(batch), context.size.steps)
        os.environ["nnUNet_n_proc_DA"] = str(min(workers or context.size.workers, context.size.workers))
        trainer = started(make_trainer(context, "BaselineTrainer", augmentation=augmentation))
        loaders = trainer.get_dataloaders()
        for _ in range(context.size.steps):  # the queues of the loaders are full at the start
            trainer.train_step(next(loaders[0]))
        start, waited = time.perf_counter(), 0.0
        for _ in range(context.size.steps):
            asked = time.perf_counter()
            loaded = next(loaders[0])
            waited += time.perf_counter() - asked
            trainer.train_step(loaded)
        context.synchronise()
        iteration = (time.perf_counter() - start) / context.size.steps
        for loader in loaders:
            if hasattr(loader, "_finish"):
                loader._finish()
        result[name] = {
            "step": step,
            "iteration": iteration,
            "iteration_over_step": iteration / step,
            "network_share": step / iteration,
            "seconds_waited_for_data": waited / context.size.steps,
        }
    return {"cases": result, "best_network_share": max(numbers["network_share"] for numbers in result.values())}
