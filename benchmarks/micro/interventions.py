"""Cost of each intervention: seconds per batch, compared with a training step of nnUNetTrainer on the same batch.

    python -m benchmarks.micro.interventions DATASET CONFIGURATION [-p PLANS] [-device cpu] [--rounds 10] \
        --out benchmarks/results/interventions.json

The data set must be preprocessed. The interventions and the step take turns within one run; the ratio is computed per
round, and the median and range of the ratios are published. The time of an intervention includes the sampling of its
parameters and the normalisation to the mean and standard deviation of the patch. It does not include the pass through
the network that the fusion of SLAug needs for its gradient. The clock is that of aux_cost.py.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from tqdm import trange

from benchmarks.common import environment, publish, rounds_parser
from benchmarks.micro.aux_cost import STOCK, clock, make_trainer, summary
from nnunet_invariance.augmentation.interventions import INTERVENTIONS
from nnunet_invariance.augmentation.interventions.base import Domain, Intervention, coarse_axes, match_statistics


def styled(
    intervention: Intervention, trainer: nnUNetTrainer, batch: dict[str, Any], generator: torch.Generator
) -> Callable[[], Any]:
    """Apply the intervention to the images of a batch on the trainer's device."""
    image = batch["data"].to(trainer.device)
    target = batch["target"]
    labels = (target[0] if isinstance(target, list) else target).to(trainer.device).long()
    coarse = coarse_axes(trainer.configuration_manager.spacing)
    domain = Domain(tuple(image.shape), int(labels.max()) + 1, coarse)
    return lambda: match_statistics(intervention.apply(image, labels, intervention.sample(domain, generator)), image)


def measure(arguments: argparse.Namespace) -> tuple[dict[str, Any], list[int]]:
    """Seconds per intervention and per step, and the shape of the batch."""
    trainer, draw = make_trainer(STOCK, arguments)
    batch, generator = draw(), torch.Generator().manual_seed(0)
    work = {STOCK: lambda: trainer.train_step(batch)}
    work.update({name: styled(each(), trainer, batch, generator) for name, each in INTERVENTIONS.items()})
    for run in work.values():
        run()  # compilation, momentum buffers, caches
    seconds: dict[str, list[float]] = {name: [] for name in work}
    order = list(work)
    for _ in trange(arguments.rounds, desc="rounds"):
        order.append(order.pop(0))  # so that no variant is always first
        for name in order:
            start = clock(trainer.device)
            work[name]()
            seconds[name].append(clock(trainer.device) - start)
    return summary(seconds), list(batch["data"].shape)


def main() -> None:
    """Measure, print and write the result."""
    arguments = rounds_parser(__doc__).parse_args()
    described = environment(arguments.device, arguments.threads)
    os.environ["nnUNet_n_proc_DA"] = "0"
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as results:
        os.environ["nnUNet_results"] = results
        times, shape = measure(arguments)
    result = {
        "input": {name: getattr(arguments, name) for name in ("dataset", "configuration", "plans", "rounds")}
        | {"batch": shape},
        "seconds": {name: time["median"] for name, time in times.items()},
        "share_of_a_step": {name: time["ratio"] for name, time in times.items() if name != STOCK},
        "cuda": "measured above" if arguments.device == "cuda" else "not measured",
    }
    publish("interventions", described, result, arguments.out)


if __name__ == "__main__":
    main()
