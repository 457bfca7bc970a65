"""Seconds of a training step by precision, memory format, optimiser and compilation, and agreement with float32.

    python -m benchmarks.micro.precision [-device cpu] [--rounds 10] [--compile] \
        --out benchmarks/results/precision.json

The network is a PlainConvUNet of four stages with 16 features in the first one; a batch has two patches of 32x56x40
voxels. A step is the forward pass, cross entropy and Dice in float32, the backward pass, and the optimiser.
Variants take turns within one run; the ratio is computed per round. The clock is that of aux_cost.py.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor, nn
from tqdm import trange

from benchmarks.common import environment, publish
from benchmarks.micro.aux_cost import clock
from nnunet_invariance.common.precision import Float32Loss, Precision

PATCH, FEATURES, STAGES, BATCH = (32, 56, 40), 16, 4, 2


class Variant(NamedTuple):
    """How a step computes."""

    precision: str
    channels_last: bool = False
    optimizer: str = "AdamW"
    fused: bool | None = None
    compile: bool = False


#: The first one is the reference of the ratios.
VARIANTS = {
    "fp32": Variant("fp32"),
    "fp32, channels last": Variant("fp32", channels_last=True),
    "bf16": Variant("bf16"),
    "bf16, channels last": Variant("bf16", channels_last=True),
    "bf16, fused AdamW": Variant("bf16", fused=True),
    "bf16, SGD": Variant("bf16", optimizer="SGD"),
    "bf16, fused SGD": Variant("bf16", optimizer="SGD", fused=True),
}
COMPILED = {"bf16, compiled": Variant("bf16", compile=True)}


class Training:
    """A network, its optimiser and one batch, the same for every variant."""

    def __init__(self, variant: Variant, device: torch.device) -> None:
        torch.manual_seed(0)
        self.precision = Precision.choose(variant.precision, device)
        memory_format = torch.channels_last_3d if variant.channels_last else torch.contiguous_format
        self.network = unet().to(device).to(memory_format=memory_format)
        self.image = torch.randn(BATCH, 1, *PATCH).to(device).to(memory_format=memory_format)
        self.target = torch.randint(3, (BATCH, 1, *PATCH)).to(device)
        dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": False}
        self.loss = Float32Loss(DC_and_CE_loss(dice, {}, dice_class=MemoryEfficientSoftDiceLoss))
        kind = getattr(torch.optim, variant.optimizer)
        options = {"momentum": 0.99, "nesterov": True} if variant.optimizer == "SGD" else {}
        self.optimizer = kind(self.network.parameters(), lr=1e-3, fused=variant.fused, **options)
        if variant.compile:
            self.network.compile()

    def gradient(self) -> tuple[Tensor, Tensor]:
        """The loss, and the gradient of all parameters as one vector."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.precision.autocast():
            logits = self.network(self.image)
        loss = self.loss(logits, self.target)
        loss.backward()
        return loss.detach(), torch.cat([p.grad.flatten() for p in self.network.parameters() if p.grad is not None])

    def step(self) -> None:
        """One training step."""
        self.gradient()
        self.optimizer.step()


def unet() -> nn.Module:
    """A U-Net as nnU-Net plans it."""
    features = [FEATURES * 2**stage for stage in range(STAGES)]
    return PlainConvUNet(
        1, STAGES, features, nn.Conv3d, 3, [1, 2, 2, 2], 2, 3, 2, conv_bias=True, norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True},
    )  # fmt: skip


def agreement(device: torch.device) -> dict[str, float]:
    """Loss and gradient of the first step in bfloat16 against those in float32."""
    (wide_loss, wide), (half_loss, half) = (Training(VARIANTS[name], device).gradient() for name in ("fp32", "bf16"))
    return {
        "relative_difference_of_the_loss": float((half_loss / wide_loss - 1).abs()),
        "cosine_of_the_gradients": float(nn.functional.cosine_similarity(half, wide, dim=0)),
        "ratio_of_the_norms_of_the_gradients": float(half.norm() / wide.norm()),
    }


def measure(variants: dict[str, Variant], device: torch.device, rounds: int, steps: int) -> dict[str, Any]:
    """Median seconds per step, and the median and range of the ratio to the first variant of the same round."""
    trainings = {name: Training(variant, device) for name, variant in variants.items()}
    for training in trainings.values():
        training.step()  # compilation, caches
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    order = list(variants)
    for _ in trange(rounds, desc="rounds"):
        order.append(order.pop(0))  # so that no variant is always first
        for name in order:
            start = clock(device)
            for _ in range(steps):
                trainings[name].step()
            seconds[name].append((clock(device) - start) / steps)
    reference = seconds[next(iter(variants))]
    ratios = {name: [a / b for a, b in zip(values, reference, strict=True)] for name, values in seconds.items()}
    return {
        name: {
            "median": statistics.median(seconds[name]),
            "ratio": {"median": statistics.median(ratios[name]), "range": [min(ratios[name]), max(ratios[name])]},
        }
        for name in variants
    }


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=2, help="per round and variant")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="also the compiled network")
    parser.add_argument("--out", type=Path, help="JSON file; printed only by default")
    arguments = parser.parse_args()
    described = environment(arguments.device, arguments.threads)
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    variants = {**VARIANTS, **(COMPILED if arguments.compile else {})}
    result = {
        "input": {"patch": PATCH, "features": FEATURES, "stages": STAGES, "batch": BATCH}
        | {"rounds": arguments.rounds, "steps": arguments.steps},
        "bf16_against_fp32": agreement(device),
        "seconds_per_step": measure(variants, device, arguments.rounds, arguments.steps),
    }
    publish("precision", described, result, arguments.out)


if __name__ == "__main__":
    main()
