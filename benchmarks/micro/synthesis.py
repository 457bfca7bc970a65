"""Time of every step of the synthesis engine, and of a slow implementation of the same chain in the same run.

    python -m benchmarks.micro.synthesis --out benchmarks/results/synthesis.json

The authors' functions took 3.64 s for the appearances of one pair at 128^3 on two cores (without the label map). That
number is a constant that another run measured. Processor seconds are
summed over the cores; compare them if the machine has other work.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.common import environment, publish
from nnunet_invariance.pretraining.data.synthetic_pairs import balanced_positions
from nnunet_invariance.synthesis import corruptions, ensembles
from nnunet_invariance.synthesis.appearance import apply_appearance
from nnunet_invariance.synthesis.engine import SynthesisEngine
from nnunet_invariance.synthesis.options import SynthesisOptions
from nnunet_invariance.synthesis.randomness import element_generator
from tests.helpers import slow_synthesis as slow

AUTHORS_SECONDS_PER_PAIR = 3.64


def seconds(function: Callable[[], object], repeats: int, device: torch.device) -> dict[str, float]:
    """Median wall and processor seconds of ``repeats`` calls, including the work of the device."""
    wall, processor = [], []
    for _ in range(repeats):
        start, busy = time.perf_counter(), time.process_time()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        wall.append(time.perf_counter() - start)
        processor.append(time.process_time() - busy)
    return {"wall": round(statistics.median(wall), 4), "processor": round(statistics.median(processor), 4)}


def our_steps(engine: SynthesisEngine, repeats: int) -> dict[str, dict[str, float]]:
    """Seconds of every step on one element, with all probabilities set to 1."""
    device, size = engine.bank.flat.device, engine.options.size
    names = ("bias", "spike", "gamma", "smoothing", "ringing", "sharpening", "low_resolution")
    options = SynthesisOptions(
        size=size, foreground=1.0, envelope=1.0, **{f"{name}_probability": 1.0 for name in names}
    )
    generator = element_generator(0, 0)
    drawn = ensembles.sample_ensemble(len(engine.bank), options, generator)
    view = engine.sample(generator).views[0].appearance
    corruption = corruptions.sample_corruption(options, generator)
    painted = ensembles.paint(engine.bank, [drawn], size)
    x = apply_appearance(painted, [view], options.texture_weight)
    maps = [painted.flatten()[: math.prod(size) // 8**k] for k in range(6)]  # labels of six feature maps
    calls = {
        "positions": lambda: [balanced_positions(labels, 512, 0) for labels in maps],
        "paint": lambda: ensembles.paint(engine.bank, [drawn], size),
        "majority": lambda: ensembles.majority(painted, int(painted.max())),
        "foreground and envelope": lambda: ensembles.apply_foreground(painted, [drawn.foreground]),
        "appearance": lambda: apply_appearance(painted, [view], options.texture_weight),
        "bias": lambda: corruptions.bias_field(x, [corruption.bias]),
        "spike": lambda: corruptions.spike(x, [corruption.spike]),
        "gamma": lambda: corruptions.gamma(x, [corruption.gamma]),
        "smoothing": lambda: corruptions.smoothing(x, [corruption.smoothing]),
        "ringing": lambda: corruptions.ringing(x, [corruption.ringing]),
        "sharpening": lambda: corruptions.sharpening(x, [corruption.sharpening]),
        "low resolution": lambda: corruptions.low_resolution(x, [corruption.zoom]),
    }
    return {name: seconds(call, repeats, device) for name, call in tqdm(calls.items(), desc="steps")}


def our_pairs(engine: SynthesisEngine, n: int, batch: int) -> dict[str, object]:
    """Mean seconds of a random pair: the two appearances alone, and with the label map."""
    device = engine.bank.flat.device
    appearances, whole = [], []
    engine.batch(range(batch))  # warm-up of the device's libraries
    for start in tqdm(range(0, n, batch), desc="pairs"):
        indices = range(start, start + batch)
        whole.append(seconds(lambda indices=indices: engine.batch(indices), 1, device))
        elements = [engine.sample(element_generator(engine.seed, index)) for index in indices]
        labels = ensembles.apply_ensemble(engine.bank, [e.ensemble for e in elements], engine.options)

        def both(elements=elements, labels=labels) -> None:
            for which in (0, 1):
                views = [element.views[which] for element in elements]
                x = apply_appearance(labels, [view.appearance for view in views], engine.options.texture_weight)
                corruptions.apply_corruption(x, [view.corruption for view in views], engine.options)

        appearances.append(seconds(both, 1, device))

    def mean(taken: list[dict[str, float]]) -> dict[str, float]:
        return {clock: round(statistics.mean(t[clock] for t in taken) / batch, 4) for clock in ("wall", "processor")}

    per_pair = mean(whole)
    return {
        "pairs": len(whole) * batch,
        "appearances_seconds_per_pair": mean(appearances),
        "whole_seconds_per_pair": per_pair,
        "whole_pairs_per_wall_second": round(1 / per_pair["wall"], 3),
    }


def slow_pair(engine: SynthesisEngine) -> dict[str, dict[str, float]]:
    """Seconds of one pair with the slow implementation: painting, and two appearances."""
    cpu, rng = torch.device("cpu"), np.random.default_rng(0)
    drawn = engine.sample(element_generator(0, 0)).ensemble
    masks = [engine.bank.mask(int(t)).cpu().numpy() for t in drawn.templates]
    maps = drawn.matrices.double().numpy(), drawn.shifts.double().numpy()
    labels = ensembles.paint(engine.bank, [drawn], engine.options.size)[0, 0].cpu().numpy()

    def appearances() -> None:
        for _ in range(2):
            slow.corrupt(slow.appearance(labels, rng), rng)

    return {
        "paint": seconds(lambda: slow.paint(masks, *maps, engine.options.size), 1, cpu),
        "appearances": seconds(appearances, 1, cpu),
    }


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file; printed only by default")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    options = SynthesisOptions(size=(arguments.size,) * 3)
    engine = SynthesisEngine(options)
    described = environment("cpu", arguments.threads)
    result = {
        "size": arguments.size,
        "cpu": our_pairs(engine, arguments.pairs, 1),
        "cpu_seconds_of_each_step": our_steps(engine, arguments.repeats),
        "slow_implementation_seconds_per_pair": slow_pair(engine),
        "authors_seconds_per_pair_measured_elsewhere": AUTHORS_SECONDS_PER_PAIR,
        "cuda": "not measured",
    }
    if torch.cuda.is_available():
        on_gpu = SynthesisEngine(options, device="cuda")
        result["cuda"] = {"device": torch.cuda.get_device_name(), **our_pairs(on_gpu, 64, 8)}
        result["cuda_seconds_of_each_step"] = our_steps(on_gpu, arguments.repeats)
    publish("synthesis", described, result, arguments.out)


if __name__ == "__main__":
    main()
