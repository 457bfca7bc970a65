"""Time of a step of ``pretrain anatomix`` by precision and by the number of patches cut from each synthetic volume.

    python -m benchmarks.micro.cuts [-device cpu] [--features 8 16 32 64] [--patch 32] [--volume 96] \
        [--precisions fp32 bf16] --out benchmarks/results/cuts.json

A cycle of n cuts is n whole steps of the loop on the patches of one volume: one synthesis, n patches, n forward and
backward passes and n updates. All combinations take turns within one run; the ratio to the first one is computed per
round.
The clock is that of aux_cost.py: processor seconds, summed over the threads, on a CPU.
"""

import argparse
import itertools
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from tqdm import tqdm, trange

from benchmarks.common import environment, publish
from benchmarks.micro.aux_cost import clock
from nnunet_invariance.common.distributed import distributed_context
from nnunet_invariance.common.wording import counted
from nnunet_invariance.networks.planned import Architecture
from nnunet_invariance.networks.stock import plain_conv_unet
from nnunet_invariance.pretraining.data.synthetic_pairs import VOLUMES_IN_TURN
from nnunet_invariance.pretraining.engine.loop import Loop
from nnunet_invariance.pretraining.engine.method import Setup
from nnunet_invariance.pretraining.engine.options import LoopOptions
from nnunet_invariance.pretraining.methods.anatomix import Anatomix, AnatomixPretrainingOptions


class Cycle:
    """The steps of one number of cuts in one precision."""

    def __init__(self, cuts: int, arguments: argparse.Namespace, loop: Loop, method: Anatomix) -> None:
        self.loop, self.cuts = loop, cuts
        self.items: Dataset = method.dataset(2**20, seed=cuts, rank=0)
        self.turn, self.device = 0, torch.device(arguments.device)

    def seconds_per_step(self) -> float:
        """Of all patches of the next volume, which is synthesised in the first of these steps."""
        first = self.turn * VOLUMES_IN_TURN * self.cuts
        self.turn += 1
        start = clock(self.device)
        for cut in range(self.cuts):
            self.loop._train_step([self.items[first + cut * VOLUMES_IN_TURN]], tqdm(disable=True))
        return (clock(self.device) - start) / self.cuts


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Median seconds per step, and how many times the steps per second of the first form, for every form."""
    planned = Architecture.from_plans(plain_conv_unet(arguments.features), 1, 1)
    setup = Setup(planned, (arguments.patch,) * 3, (1.0, 1.0, 1.0), 2, False, ())
    with distributed_context(arguments.device) as ranks:
        cycles = {}
        for precision, cuts in itertools.product(arguments.precisions, arguments.cuts):
            torch.manual_seed(0)
            method = Anatomix(setup, AnatomixPretrainingOptions(volume=arguments.volume, cuts=cuts, held_out=0))
            loop = Loop(method, LoopOptions(precision=precision), ranks, folder, {})
            cycles[f"{counted(cuts, 'cut')}, {precision}"] = cycle = Cycle(cuts, arguments, loop, method)
            cycle.seconds_per_step()  # templates, caches
        seconds: dict[str, list[float]] = {form: [] for form in cycles}
        order = list(cycles)
        for _ in trange(arguments.rounds, desc="rounds"):
            order.append(order.pop(0))  # so that no form is always first
            for form in order:
                seconds[form].append(cycles[form].seconds_per_step())
    first = next(iter(seconds.values()))
    ratios = {form: [a / b for a, b in zip(first, values, strict=True)] for form, values in seconds.items()}
    return {
        form: {
            "seconds_per_step": statistics.median(seconds[form]),
            "times_the_steps_per_second": {
                "median": statistics.median(ratios[form]),
                "range": [min(ratios[form]), max(ratios[form])],
            },
        }
        for form in cycles
    }


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--features", type=int, nargs="+", default=[8, 16, 32, 64], help="channels of each stage")
    parser.add_argument("--patch", type=int, default=32)
    parser.add_argument("--volume", type=int, default=96)
    parser.add_argument("--cuts", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="the first one is the reference")
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file; printed only by default")
    arguments = parser.parse_args()
    described = environment(arguments.device, arguments.threads)
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments, Path(folder))
    names = ("features", "patch", "volume", "rounds")
    publish("cuts", described, {name: getattr(arguments, name) for name in names} | {"forms": result}, arguments.out)


if __name__ == "__main__":
    main()
