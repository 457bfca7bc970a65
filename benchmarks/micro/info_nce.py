"""Tiled and dense multi-positive InfoNCE, forward and backward: seconds, added memory, and numerical difference.

    python -m benchmarks.micro.info_nce [-device cpu] [--rows 16384] [--features 256] [--rounds 3] [--threads 2] \
        [--out FILE]

Both forms compute the same loss on the same rows and labels. Memory is the growth of the peak of a new process per form
beyond the inputs: resident on a CPU, allocated on CUDA. Time is measured in one process in which the forms take turns,
after a warm-up round; the ratio is computed per round. Processor time is reported beside wall time, because other
processes disturb it less.
"""

import argparse
import multiprocessing
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import environment, publish
from nnunet_invariance.losses.info_nce import SupervisedInfoNCE

TEMPERATURE = 0.33
LABELS = 30  # about as many as in a label map of anatomix
MIB = 2**20


def dense(rows: Tensor, labels: Tensor) -> Tensor:
    """The loss with all logits at once."""
    z = F.normalize(rows[0], dim=1)
    s = z @ z.T / TEMPERATURE
    s = s.masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), -torch.inf)
    positive = (labels[0, :, None] == labels[0]).fill_diagonal_(False)
    attraction = torch.where(positive, s, 0).sum(1) / positive.sum(1)
    return (s.logsumexp(1) - attraction).mean()


FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"dense": dense, "tiled": SupervisedInfoNCE(TEMPERATURE)}


def inputs(arguments: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Clustered rows (1, N, C), like those of a network, and their labels (1, N)."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(LABELS, (arguments.rows,), generator=generator)
    centres = torch.randn(LABELS, arguments.features, generator=generator)
    rows = torch.randn(arguments.rows, arguments.features, generator=generator) + centres[labels]
    return rows[None].to(arguments.device).requires_grad_(), labels[None].to(arguments.device)


def step(form: str, rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss and its gradient."""
    loss = FORMS[form](rows, labels)
    return loss.detach(), torch.autograd.grad(loss, rows)[0]


def peak(arguments: argparse.Namespace) -> int:
    """Peak memory of this process in bytes."""
    if arguments.device == "cuda":
        return torch.cuda.max_memory_allocated()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if platform.system() == "Darwin" else resident * 1024


def measure_memory(form: str, arguments: argparse.Namespace) -> float:
    """MiB that a forward and backward pass add to the peak of this process, after the inputs exist and a warm-up."""
    torch.set_num_threads(arguments.threads)
    few = argparse.Namespace(**{**vars(arguments), "rows": 64})
    step(form, *inputs(few))  # warm-up: buffers and threads of the libraries
    given = inputs(arguments)
    before = peak(arguments)
    step(form, *given)
    return (peak(arguments) - before) / MIB


def measure_time(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds per form and round, the ratio, and the difference of loss and gradient."""
    given = inputs(arguments)
    results = {form: step(form, *given) for form in FORMS}
    (loss, gradient), (tiled_loss, tiled_gradient) = results["dense"], results["tiled"]
    seconds: dict[str, dict[str, list[float]]] = {form: {"wall": [], "processor": []} for form in FORMS}
    for turn in range(arguments.rounds):
        for form in list(FORMS)[:: 1 if turn % 2 else -1]:
            start = time.perf_counter(), time.process_time()
            step(form, *given)
            if arguments.device == "cuda":
                torch.cuda.synchronize()
            seconds[form]["wall"].append(time.perf_counter() - start[0])
            seconds[form]["processor"].append(time.process_time() - start[1])
    ratios = {
        clock: [t / d for t, d in zip(seconds["tiled"][clock], seconds["dense"][clock], strict=True)]
        for clock in ("wall", "processor")
    }
    return {
        "seconds": seconds,
        "ratio_tiled_to_dense": {clock: {"median": statistics.median(r), "all": r} for clock, r in ratios.items()},
        "relative_difference_of_losses": abs(tiled_loss - loss).item() / abs(loss).item(),
        "relative_difference_of_gradients": ((tiled_gradient - gradient).norm() / gradient.norm()).item(),
        "largest_difference_of_gradients_to_largest_gradient": (
            (tiled_gradient - gradient).abs().max() / gradient.abs().max()
        ).item(),
    }


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rows", type=int, default=16384)
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON file; printed only by default")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    described = environment(arguments.device, arguments.threads)
    context = multiprocessing.get_context("spawn")
    memory = {}
    for form in FORMS:
        with context.Pool(1) as pool:
            memory[form] = pool.apply(measure_memory, (form, arguments))
    result = {
        "input": {
            **{name: getattr(arguments, name) for name in ("rows", "features", "rounds")},
            "labels": LABELS,
            "dtype": "float32",
        },
        "added_memory_mib": memory,
        **measure_time(arguments),
    }
    publish("info_nce", described, result, arguments.out)


if __name__ == "__main__":
    main()
