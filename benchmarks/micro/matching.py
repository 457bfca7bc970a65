"""Time to match 256 points between two volumes of 128^3 voxels in both directions, given both embeddings.

    python -m benchmarks.micro.matching [--out FILE] [--side 128] [--threads 2]

The embeddings are random unit vectors, because the time does not depend on their values. The result has wall time and
the processor time of all threads, every repeat and the medians.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from benchmarks.common import environment, publish
from nnunet_invariance.networks.matching import Embedding, make_embedding, match_points

FEATURES, POINTS, REPEATS = 128, 256, 7
FINE_CELL, COARSE_CELL = (2, 2, 2), (16, 16, 16)


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "matching.json")
    parser.add_argument("--side", type=int, default=128, help="voxels per axis, a multiple of 16")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    described = environment("cpu", args.threads)
    torch.set_num_threads(args.threads)
    generator = torch.Generator().manual_seed(0)
    source, target = (random_embedding(args.side, generator) for _ in range(2))
    points = torch.rand(POINTS, 3, generator=generator) * args.side
    match_points(source, target, points[:2])
    seconds, cpu = [], []
    for _ in range(REPEATS):
        started, worked = time.perf_counter(), time.process_time()
        match_points(source, target, points)
        seconds.append(round(time.perf_counter() - started, 4))
        cpu.append(round(time.process_time() - worked, 4))
    record = {
        "points": POINTS,
        "side": args.side,
        "features": FEATURES,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "median_cpu_seconds": statistics.median(cpu),
        "median_seconds": statistics.median(seconds),
    }
    publish("matching", described, record, args.out)


def random_embedding(side: int, generator: torch.Generator) -> Embedding:
    """Random unit vectors for every cell of a cube."""
    maps = [
        torch.nn.functional.normalize(torch.randn(FEATURES, *[side // c for c in cell], generator=generator), dim=0)
        for cell in (FINE_CELL, COARSE_CELL)
    ]
    return make_embedding(*maps, FINE_CELL, COARSE_CELL, (side,) * 3, (1.0,) * 3)


if __name__ == "__main__":
    main()
