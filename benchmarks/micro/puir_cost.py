"""Cost of PUIR's shared encoder: seconds per iteration with C channels, compared with the planned network.

    python -m benchmarks.micro.puir_cost [--channels 2 4] [--patch 64 64 64] [--network plain6] [--out FILE]

An iteration is a forward pass, cross-entropy, a backward pass and an SGD step on one batch of noise, without the
auxiliary losses of PUIRTrainer. Both networks take turns; the ratio is computed per round. The result also has an
estimate of the ratio, (C enc + dec) / (enc + dec), in nnU-Net's feature voxels. The clock is the processor time of this
process on a CPU.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import trange

from benchmarks.common import environment, publish
from benchmarks.micro.aux_cost import clock
from nnunet_invariance.networks.architectures.puir import PUIRNet
from nnunet_invariance.networks.planned import Architecture
from nnunet_invariance.pretraining.methods.anatomix_networks import NETWORK_PRESETS

CLASSES = 4


def networks(channels: int, arguments: argparse.Namespace) -> dict[str, nn.Module]:
    """The planned network and PUIR's network with the same stages."""
    planned = Architecture.from_plans(NETWORK_PRESETS[arguments.network].architecture, channels, CLASSES)
    torch.manual_seed(0)
    return {"stock": planned.build(), "puir": PUIRNet(planned, arguments.patch)}


def estimate(network: nn.Module, patch: list[int], channels: int) -> float:
    """Estimated ratio: feature voxels with C channels, divided by those of the stock network."""
    encoder = float(network.encoder.compute_conv_feature_map_size(patch))
    decoder = float(network.decoder.compute_conv_feature_map_size(patch))
    return (channels * encoder + decoder) / (encoder + decoder)


def measure(channels: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of both networks, and the median and range of the ratio per round."""
    device = torch.device(arguments.device)
    both = {name: network.to(device).train() for name, network in networks(channels, arguments).items()}
    optimizers = {name: torch.optim.SGD(network.parameters(), 1e-2, 0.99) for name, network in both.items()}
    image = torch.randn(arguments.batch, channels, *arguments.patch, device=device)
    target = torch.randint(CLASSES, (arguments.batch, *arguments.patch), device=device)
    seconds: dict[str, list[float]] = {name: [] for name in both}
    for number in trange(arguments.rounds + 1, desc=f"{channels} channels"):
        for name, network in both.items():
            start = clock(device)
            optimizers[name].zero_grad(set_to_none=True)
            nn.functional.cross_entropy(network(image), target).backward()
            optimizers[name].step()
            if number:  # the first round warms up
                seconds[name].append(clock(device) - start)
    ratios = [ours / stock for ours, stock in zip(seconds["puir"], seconds["stock"], strict=True)]
    return {
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "ratio": {"median": statistics.median(ratios), "range": [min(ratios), max(ratios)]},
        "estimate": estimate(both["puir"], arguments.patch, channels),
    }


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--patch", nargs=3, type=int, default=[64, 64, 64])
    parser.add_argument("--network", default="plain6", choices=("plain4", "plain6"), help="nnU-Net's, of 4 or 6 stages")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-device", default="cuda", choices=("cuda", "cpu", "mps"))
    parser.add_argument("--out", type=Path, help="JSON file; printed only by default")
    arguments = parser.parse_args()
    described = environment(arguments.device, arguments.threads)
    torch.set_num_threads(arguments.threads)
    given = {name: getattr(arguments, name) for name in ("patch", "network", "batch", "rounds")}
    result = {str(channels): measure(channels, arguments) for channels in arguments.channels}
    publish("puir_cost", described, {"input": given, "channels": result}, arguments.out)


if __name__ == "__main__":
    main()
