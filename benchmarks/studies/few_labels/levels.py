"""Does the Dice of a class depend on how far its intensities are from those of the labelled cases?

    python -m benchmarks.studies.few_labels.levels WORK/comparison/Dataset911_ACDC_1 --out FILE.csv

The level of a class in an image is the mean of its z-scored intensities in the first channel. For every arm, draw and
class, the table has Spearman's rank correlation over the test cases between the Dice and the distance of the level of
the test case from the mean level of the labelled cases. It trains nothing.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import SimpleITK as sitk
from scipy.stats import spearmanr

from benchmarks.common import write_file
from benchmarks.tables import markdown
from nnunet_invariance.common.json_files import read_json
from nnunet_invariance.errors import ComparisonError, InvarianceError


def main() -> int:
    """Print the table, and write it as CSV; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("comparison", type=Path, help="folder of a finished comparison of few_labels")
    parser.add_argument("--out", type=Path, help="CSV file; printed only by default")
    args = parser.parse_args()
    try:
        frame = pd.DataFrame(rows(args.comparison.resolve()))
    except InvarianceError as error:
        print(error, file=sys.stderr)
        return 2
    print(markdown(list(frame), frame.to_numpy().astype(str).tolist()))
    if args.out:
        write_file(args.out, frame.to_csv(index=False).encode())
    return 0


def rows(folder: Path) -> Iterable[dict[str, str]]:
    """One row for each arm, draw and class.

    Raises:
        ComparisonError: the folder has no scores.
    """
    if not (folder / "scores.csv").is_file():
        raise ComparisonError(f"{folder} has no scores.csv. Name the folder of a comparison that has finished cells.")
    record = read_json(folder / "comparison.json")["comparison"]
    raw = folder.parents[1] / "nnUNet_raw" / record["dataset"]
    described = read_json(raw / "dataset.json")
    scores = pd.read_csv(folder / "scores.csv")
    of_test = {case: levels(raw, "Ts", case, described) for case in sorted(scores.case.unique())}
    for subset in record["subsets"]:
        of_train = [levels(raw, "Tr", case, described) for case in subset["train"]]
        for (arm, label), cells in scores[scores.draw == subset["draw"]].groupby(["arm", "label"], sort=False):
            near = np.nanmean([one[label] for one in of_train])
            distance = [abs(of_test[case][label] - near) for case in cells.case]
            found = spearmanr(distance, cells.dice, nan_policy="omit")
            yield {
                "arm": str(arm),
                "draw": str(subset["draw"]),
                "class": str(label),
                "Dice": f"{cells.dice.mean():.3f}",
                "correlation": f"{found.statistic:.2f}",
                "p": f"{found.pvalue:.2g}",
                "cases": str(len(cells)),
            }


def levels(raw: Path, kind: str, case: str, described: dict[str, Any]) -> dict[str, float]:
    """Mean z-scored intensity of every class of a case; NaN for a class that it does not have."""
    ending = described["file_ending"]
    image, labels = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        for path in (raw / f"images{kind}" / f"{case}_0000{ending}", raw / f"labels{kind}" / f"{case}{ending}")
    )
    z = (image - image.mean()) / image.std()
    classes = {name: value for name, value in described["labels"].items() if isinstance(value, int) and value}
    return {
        name: float(z[labels == value].mean()) if (labels == value).any() else np.nan for name, value in classes.items()
    }


if __name__ == "__main__":
    sys.exit(main())
