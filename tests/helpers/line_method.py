"""A pre-training method of one parameter, and its loop, for tests of the engine."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from nnunet_invariance.common.distributed import DistributedContext
from nnunet_invariance.common.options import number
from nnunet_invariance.pretraining.engine.loop import Loop
from nnunet_invariance.pretraining.engine.method import Method, StepOutput
from nnunet_invariance.pretraining.engine.options import LoopOptions, MethodOptions
from tests.helpers import small_checkpoints

ONE_RANK = DistributedContext(0, 1, torch.device("cpu"))


@dataclass(frozen=True)
class LineOptions(MethodOptions):
    """Options of :class:`Line`."""

    target: float = number(2.0, -10, 10, doc="Value that the weight learns.")


class Numbers(Dataset):
    """Item ``step`` is the batch x = step."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        return {"x": torch.tensor(float(step)), "keys": [f"case_{step}"]}


class Line(Method):
    """The loss (w - x)^2 for the x of the batch."""

    name = "line"
    citation = "Nobody, arXiv 0000.00000"
    options_class = LineOptions

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.options = LineOptions()
        self.network, self.teacher, self.heads = nn.Linear(1, 1, bias=False), None, nn.Identity()
        self.loss_weights = {"square": 1.0}
        self.updates: list[float] = []

    def dataset(self, steps: int, seed: int, rank: int) -> Dataset:
        return Numbers(steps)

    def make_views(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        return dict(batch)

    def forward(self, views: dict[str, Tensor], progress: float) -> StepOutput:
        square = (self.network.weight.sum() - views["x"]).square()
        return StepOutput({"square": square}, {}, {"x": views["x"]})

    def after_step(self, output: StepOutput, progress: float) -> None:
        self.updates.append(output.state["x"].item())


def make_loop(method: Method, folder: Path, **options: Any) -> Loop:
    """The loop of one process on the CPU."""
    settings = {"epochs": 1, "iterations": 10, "workers": 0, "lr": 0.1, "warmup": 0.0, **options}
    metadata = small_checkpoints.metadata(small_checkpoints.architecture(), method=method.name)
    return Loop(method, LoopOptions(**settings), ONE_RANK, folder, metadata)


class Bar:
    """A progress bar that shows nothing."""

    def update(self) -> None:
        pass

    def set_postfix(self, *_: Any, **__: Any) -> None:
        pass


def step(loop: Loop, *values: float) -> None:
    """One optimiser step on batches with these values of x."""
    loop._train_step([{"x": torch.tensor(float(x)), "keys": [f"case_{x:g}"]} for x in values], Bar())
