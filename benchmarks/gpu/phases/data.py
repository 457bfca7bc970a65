"""Write the data sets of a run."""

from typing import Any

from benchmarks.gpu.context import Context
from benchmarks.gpu.data import CASES, DATASETS, use_folders


def run(context: Context) -> dict[str, Any]:
    """Numbers of data sets and cases."""
    use_folders(context)
    return {"datasets": len(DATASETS), "cases_each": CASES, "voxels_per_axis": context.size.volume}
