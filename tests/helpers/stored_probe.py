"""The result of a probe without running it, and its page."""

from pathlib import Path

import numpy as np

from nnunet_invariance.common.pictures import panels, png
from nnunet_invariance.probing.protocol import ALL_MAPS, ProbeOptions, ProbeResult, ProbeScores
from nnunet_invariance.probing.report import write_report

STAGES = ("encoder_0", "encoder_1", "encoder_2", "decoder_1", "decoder_0")
CLASSES = ("left ventricle of the heart", "right ventricle of the heart", "myocardium", "<aorta>")


def probe_result(dice: dict[str, tuple[float, float]]) -> ProbeResult:
    """Networks by name, with their mean Dice with one and with five labelled cases; "random ..." are random."""
    offsets = np.linspace(-0.05, 0.05, 2 * 3 * len(CLASSES)).reshape(2, 3, len(CLASSES))  # draws, cases, classes
    scores = []
    for name, values in dice.items():
        tables = {(k, m): mean + offsets for k, mean in zip((1, 5), values, strict=True) for m in (ALL_MAPS, *STAGES)}
        scores.append(ProbeScores(name, name.startswith("random"), tables, [0.6, 0.7]))
    test, train = tuple(f"case_{i}" for i in range(3)), tuple(f"case_{i}" for i in range(3, 8))
    options = ProbeOptions(draws=2, test_cases=3, random_networks=2)
    return ProbeResult(tuple(scores), CLASSES, STAGES, test, train, ("case_1",), options)


def write_probe(folder: Path, result: ProbeResult, warnings: tuple[str, ...] = ()) -> Path:
    """Write everything that the command writes; the picture of the features is empty."""
    features = png(panels(1, 2 + len(result.scores))[0])
    return write_report(result, folder, "Linear probe: Dataset001_Heart, 3d_fullres, nnUNetPlans", features, warnings)
