"""The phases of the acceptance run: each measures one thing, alone in a process of its own, within a time limit."""

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

from benchmarks.gpu.context import Context


class Phase(NamedTuple):
    """One phase.

    Attributes:
        module: module of this package whose function ``run(context)`` returns the numbers.
        seconds: limit on a GPU.
        shows: what a good result shows.
    """

    module: str
    seconds: int
    shows: str

    def run(self, context: Context) -> dict[str, Any]:
        """Measure."""
        function: Callable[[Context], dict[str, Any]] = import_module(f"{__name__}.{self.module}").run
        return function(context)


#: In the order of a run; the most important ones come first, because the time of a lent device can end.
PHASES = {
    name: Phase(name, seconds, shows)
    for name, seconds, shows in (
        ("data", 45, "random cases are written, which the other phases read"),
        ("trainers", 60, "every trainer takes steps on the device, with finite losses"),
        ("training_step", 60, "cost of a step of our trainers against nnUNetTrainer's, without torch.compile"),
        ("compiled_step", 110, "the same with torch.compile, as nnU-Net trains on CUDA"),
        ("pretraining_step", 45, "cost of a pre-training step against its forward and backward pass"),
        ("synthesis", 25, "synthetic pairs per second"),
        ("augmentation", 20, "time and host waits of the augmentation on the device"),
        ("loading", 45, "share of the network in an iteration with real data loaders"),
        ("precision", 45, "training curves in float32, float16 and bfloat16 agree"),
        ("resume", 30, "a run that is interrupted and continued ends as an undisturbed one"),
        ("evaluation", 20, "the held-out evaluation of pre-training works in mixed precision"),
        ("prediction", 20, "prediction gives the labels that the CPU gives"),
        ("recovery", 20, "non-finite steps and short memory are survived"),
        ("contracts", 60, "losses, augmentation and methods pass their contract tests on the device"),
    )
}
