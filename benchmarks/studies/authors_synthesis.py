"""Our synthesis and the authors' code in one run: pairs per second, and the difference of the distributions.

    git clone https://github.com/neel-dey/anatomix AUTHORS && pip install monai
    python -m benchmarks.studies.authors_synthesis AUTHORS --out benchmarks/results/authors_synthesis.json

The authors' functions are imported from the folder AUTHORS, which is outside of this repository, and run unchanged
except for NIfTI files, which are kept in memory, so that the time excludes disk access and compression. Both
implementations use the same bank of procedural templates, and appearances are compared on the same label maps.
Processor seconds are summed over the cores.
"""

import argparse
import importlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.common import environment, publish
from nnunet_invariance.synthesis import corruptions, ensembles
from nnunet_invariance.synthesis.appearance import apply_appearance
from nnunet_invariance.synthesis.engine import SynthesisEngine
from nnunet_invariance.synthesis.options import SynthesisOptions
from nnunet_invariance.synthesis.randomness import element_generator

RANGES = {"means_range": (25, 255), "stds_range": (5, 20), "perl_scales": (4, 8, 16, 32)}
RANGES |= {"perl_max_std": 5.0, "perl_mult_factor": 0.02}


class Authors:
    """The authors' two scripts, with files kept in memory."""

    def __init__(self, folder: Path, engine: SynthesisEngine) -> None:
        sys.path.insert(0, str(folder / "synthetic-data-generation"))
        self.first = importlib.import_module("step1_generate_labels")
        self.second = importlib.import_module("step2_generate_views")
        self.side = engine.options.size[0]
        utils = importlib.import_module("datagen_utils")
        self.grid = torch.from_numpy(utils.generate_grid_unit((self.side,) * 3).astype(np.float32))
        self.names = [str(index) for index in range(len(engine.bank))]
        self.memory = {name: engine.bank.mask(int(name)).numpy().astype(np.uint8) for name in self.names}
        self.first.nib = self.second.nib = types.SimpleNamespace(
            Nifti1Image=lambda array, affine: array, load=self._load, save=self._save
        )

    def _load(self, name: str) -> types.SimpleNamespace:
        return types.SimpleNamespace(get_fdata=lambda: self.memory[name].astype(np.float64))

    def _save(self, array: np.ndarray, name: str) -> None:
        self.memory[os.path.basename(name)] = array

    def labels(self, seed: int) -> np.ndarray:
        """One label map of the authors' step 1."""
        before = set(self.memory)
        with redirect_stdout(StringIO()), tempfile.TemporaryDirectory() as place:
            self.first.generate_label_ensemble(self.names, self.grid, 0, 20, 40, place, self.side, seed)
        (name,) = set(self.memory) - before
        return self.memory.pop(name)

    def views(self, labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Two appearances of the authors' step 2, uint8."""
        self.memory["map"] = labels
        with redirect_stdout(StringIO()):
            self.second.process_volume("map", **RANGES, transforms=None, savedir="", seed=seed)
        return self.memory.pop("view1_map"), self.memory.pop("view2_map")


def timed(function: Callable[[], object]) -> tuple[object, dict[str, float]]:
    """The result of a call, and its wall and processor seconds."""
    start, busy = time.perf_counter(), time.process_time()
    result = function()
    return result, {"wall": time.perf_counter() - start, "processor": time.process_time() - busy}


def our_views(engine: SynthesisEngine, labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two of our appearances of a label map, rounded down to uint8 as the authors do."""
    map_ = torch.from_numpy(np.ascontiguousarray(labels)).to(torch.uint8)[None, None]
    made = []
    for view in engine.sample(element_generator(engine.seed, seed)).views:
        x = apply_appearance(map_, [view.appearance], engine.options.texture_weight)
        x = corruptions.apply_corruption(x, [view.corruption], engine.options)
        made.append((x[0, 0] * 255).to(torch.uint8).numpy())
    return made[0], made[1]


def our_labels(engine: SynthesisEngine, seed: int) -> np.ndarray:
    """One of our label maps."""
    drawn = engine.sample(element_generator(engine.seed, seed)).ensemble
    return ensembles.apply_ensemble(engine.bank, [drawn], engine.options)[0, 0].numpy()


def speed(authors: Authors, engine: SynthesisEngine, pairs: int) -> dict[str, object]:
    """Mean seconds per pair of both implementations, which alternate."""
    taken = {who: {what: [] for what in ("labels", "appearances")} for who in ("ours", "authors")}
    our_views(engine, our_labels(engine, 0), 0)  # warm-up of the libraries
    authors.views(authors.labels(0), 0)
    for seed in tqdm(range(1, pairs + 1), desc="speed"):
        ours, cost = timed(lambda seed=seed: our_labels(engine, seed))
        taken["ours"]["labels"].append(cost)
        taken["ours"]["appearances"].append(timed(lambda m=ours, seed=seed: our_views(engine, m, seed))[1])
        theirs, cost = timed(lambda seed=seed: authors.labels(seed))
        taken["authors"]["labels"].append(cost)
        taken["authors"]["appearances"].append(timed(lambda m=theirs, seed=seed: authors.views(m, seed))[1])
    clocks = ("wall", "processor")
    mean = {
        who: {what: {c: statistics.mean(t[c] for t in costs) for c in clocks} for what, costs in parts.items()}
        for who, parts in taken.items()
    }
    for parts in mean.values():
        parts["whole pair"] = {c: parts["labels"][c] + parts["appearances"][c] for c in clocks}
    times = {
        what: {c: round(mean["authors"][what][c] / mean["ours"][what][c], 2) for c in clocks} for what in mean["ours"]
    }
    rounded = {
        who: {what: {c: round(v, 4) for c, v in cost.items()} for what, cost in parts.items()}
        for who, parts in mean.items()
    }
    per_second = {who: {c: round(1 / parts["whole pair"][c], 3) for c in clocks} for who, parts in mean.items()}
    return {"pairs": pairs, "seconds": rounded, "pairs_per_second": per_second, "times_faster": times}


def profile(volumes: np.ndarray, rings: int = 12) -> np.ndarray:
    """Logarithmic power of each volume per ring of frequencies, (n, rings)."""
    side = volumes.shape[-1]
    frequency = np.sqrt(sum(f**2 for f in np.meshgrid(*[np.fft.fftfreq(side)] * 3, indexing="ij")))
    ring = np.digitize(frequency, np.linspace(0, 0.5 * np.sqrt(3) + 1e-6, rings + 1)).ravel() - 1
    weight = np.bincount(ring, minlength=rings)
    result = []
    for volume in volumes:
        power = np.abs(np.fft.fftn(volume - volume.mean())) ** 2
        result.append(np.log(np.bincount(ring, power.ravel(), rings) / weight + 1e-12))
    return np.stack(result)


def described(volumes: list[np.ndarray]) -> dict[str, object]:
    """Moments, histogram and power spectrum of appearances scaled to [0, 1]."""
    x = np.stack(volumes).astype(np.float32) / 255
    flat = x.reshape(len(x), -1)
    mean, std = flat.mean(1), flat.std(1)
    skew = (((flat - mean[:, None]) / std[:, None]) ** 3).mean(1)
    bins = np.histogram(flat, 20, (0, 1))[0] / flat.size
    spectrum = profile(x)
    moments = {name: [float(m.mean()), float(m.std())] for name, m in (("mean", mean), ("sd", std), ("skew", skew))}
    return {
        "moments": {name: [round(v, 4) for v in values] for name, values in moments.items()},
        "histogram": bins.round(4).tolist(),
        "log_power_quartiles": np.quantile(spectrum, (0.25, 0.5, 0.75), axis=0).round(3).tolist(),
    }


def largest_gaps(one: dict, other: dict) -> dict[str, float]:
    """The largest differences between two descriptions."""
    cumulated = [np.cumsum(d["histogram"]) for d in (one, other)]
    power = np.abs(np.subtract(one["log_power_quartiles"], other["log_power_quartiles"])).max(1)
    gaps = {f"{name}": abs(one["moments"][name][0] - other["moments"][name][0]) for name in one["moments"]}
    gaps |= {"cumulated_histogram": float(np.abs(cumulated[0] - cumulated[1]).max())}
    gaps |= {f"log_power_quartile_{q}": float(g) for q, g in enumerate(power, 1)}
    return {name: round(gap, 4) for name, gap in gaps.items()}


def of_maps(maps: list[np.ndarray]) -> dict[str, list[float]]:
    """Mean and s.d. over label maps: number of labels, share of label 0, share of faces between labels."""
    rows = []
    for labels in maps:
        faces = np.mean([(np.diff(labels.astype(np.int16), axis=axis) != 0).mean() for axis in range(3)])
        rows.append((len(np.unique(labels)), (labels == 0).mean(), faces))
    table = np.array(rows, float)
    names = ("labels", "share_of_label_0", "share_of_faces_between_labels")
    return {n: [round(float(c.mean()), 4), round(float(c.std()), 4)] for n, c in zip(names, table.T, strict=True)}


def distributions(authors: Authors, side: int, maps: int) -> dict[str, object]:
    """Compare label maps and appearances of both, and two halves of the authors' samples as a reference."""
    size = (side,) * 3
    clean, quirks = (SynthesisEngine(SynthesisOptions(size=size, official_quirks=q), seed=0) for q in (False, True))
    theirs = [authors.labels(10_000 + seed) for seed in tqdm(range(maps), desc="their maps")]
    label_maps = {
        "authors": of_maps(theirs),
        "ours": of_maps([our_labels(clean, seed) for seed in range(maps)]),
        "ours, official_quirks": of_maps([our_labels(quirks, seed) for seed in range(maps)]),
    }
    chains: dict[str, Callable] = {
        "authors": authors.views,
        "authors_again": lambda labels, seed: authors.views(labels, seed + 50_000),
        "ours": lambda labels, seed: our_views(clean, labels, seed),
    }
    told = {}
    for name, chain in chains.items():
        volumes = [v for seed, m in enumerate(tqdm(theirs, desc=name)) for v in chain(m, seed + 1)]
        told[name] = described(volumes)
    return {
        "side": side,
        "label_maps": maps,
        "volumes": 2 * maps,
        "of_label_maps_mean_and_sd": label_maps,
        "of_appearances": told,
        "gaps_ours_to_authors": largest_gaps(told["ours"], told["authors"]),
        "gaps_authors_to_authors_again": largest_gaps(told["authors_again"], told["authors"]),
    }


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("authors", type=Path, help="clone of the authors' repository")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=4, help="of the measurement of speed, at 128^3")
    parser.add_argument("--maps", type=int, default=64, help="label maps of the comparison of distributions")
    parser.add_argument("--side", type=int, default=64, help="of the comparison of distributions")
    parser.add_argument("--out", type=Path, help="JSON file; printed only by default")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    described = environment("cpu", arguments.threads)
    commit = subprocess.run(["git", "-C", arguments.authors, "rev-parse", "HEAD"], capture_output=True, text=True)
    result = {
        "authors_commit": commit.stdout.strip(),
        "monai": importlib.import_module("monai").__version__,
        "cuda": "not measured",
    }
    if arguments.pairs:
        engine = SynthesisEngine(SynthesisOptions())
        result["speed_at_128"] = speed(Authors(arguments.authors, engine), engine, arguments.pairs)
    if arguments.maps:
        size = (arguments.side,) * 3
        authors = Authors(arguments.authors, SynthesisEngine(SynthesisOptions(size=size)))
        result["distributions"] = distributions(authors, arguments.side, arguments.maps)
    publish("authors_synthesis", described, result, arguments.out)


if __name__ == "__main__":
    main()
