"""The picture of what the network sees in the run's own data, a few times in a run."""

from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.common.precision import Precision
from nnunet_invariance.pretraining.engine.contract import check_result
from nnunet_invariance.pretraining.engine.method import Method
from nnunet_invariance.pretraining.engine.panels import draw_panels

#: The picture, and how often a run draws it at least.
SAMPLES, PICTURES = "samples.png", 10


def draws_in(epoch: int, epochs: int) -> bool:
    """Whether a run of ``epochs`` draws the picture after an epoch, counted from 1.

    >>> [epoch for epoch in range(1, 101) if draws_in(epoch, 100)]
    [1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100]
    """
    return epoch in (1, epochs) or epoch % max(1, epochs // PICTURES) == 0


def write_samples(method: Method, dataset: Dataset, folder: Path, epoch: int, precision: Precision) -> None:
    """Draw the first batch of the run as the method's network sees it into :data:`SAMPLES`, if it has a picture.

    The batch and its views are the same in every epoch. The method and the global generators are unchanged afterwards.

    Raises:
        MethodContractError: the method returned something else than a list of panels.
    """
    if type(method).picture is Method.picture:
        return
    device = next(method.network.parameters()).device
    batch = {name: value.to(device) for name, value in dataset[0].items() if isinstance(value, Tensor)}
    method.eval()
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad(), precision.autocast():
        columns = method.picture(method.make_views(batch, torch.Generator(device).manual_seed(0)))
    method.train()
    check_result(method, "picture", columns or None, list, "a list of at least one panel")
    content = draw_panels(columns, f"What the network sees in the first batch of the run, after epoch {epoch}")
    atomic_write(folder / SAMPLES, lambda file: file.write(content))
