"""Names of views, conversion of slices back to volumes, and counts of rejected slices."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from nnunetv2.preprocessing.cropping.cropping import create_nonzero_mask
from torch import Tensor

from nnunet_invariance.common.json_files import read_json
from nnunet_invariance.common.wording import counted
from nnunet_invariance.diffusion.slices import SlicedCase
from nnunet_invariance.errors import OptionError

logger = logging.getLogger(__name__)

FOLDER = "views"
RECORD = "view.json"


def view_names(prompts: Sequence[str], styles: Sequence[str]) -> dict[str, str]:
    """All combinations of prompts and styles: folder name of the view to its text.

    Raises:
        OptionError: there is no style, or two views have the same name.
    """
    pairs = [(prompt, style) for prompt in prompts for style in styles]
    names = [
        re.sub(r"[^A-Za-z0-9]+", "-", style if len(prompts) == 1 else f"{p}-{style}").strip("-") for p, style in pairs
    ]
    double = [name for name in names if names.count(name) > 1 or not name]
    if not pairs or double:
        problem = f"two or more views would be named {double[0]!r}" if double else "no style is given"
        raise OptionError(f"--styles: {problem}. Give different words, for example --styles T1MRI T2MRI X-ray")
    return dict(zip(names, (f"{prompt} {style}" for prompt, style in pairs), strict=True))


def count_file(root: Path, view: str, name: str) -> Path:
    """File with the counts of one volume; it exists when the volume is complete."""
    return root / FOLDER / view / f"{name}.json"


def put_back(squares: Tensor, case: SlicedCase, source: np.ndarray) -> np.ndarray:
    """Convert squares (D, R, R) in [0, 1] to a volume (z, y, x) in the grid and intensities of the source.

    The volume is 0 where the source is empty.
    """
    stack = case.geometry.from_square(squares).numpy()
    low, high = case.window
    volume = np.moveaxis(stack * (high - low) + low, 0, case.axis)
    return np.where(create_nonzero_mask(source[None]), volume, 0).astype(np.float32)


#: Form of the file with the counts of one volume.
COUNTS_FORM = {"slices": int, "rejected": int, "written": bool}


def count_slices(root: Path, view: str, names: Sequence[str]) -> dict[str, int]:
    """Count and log the slices, the rejected slices and the omitted volumes of a view."""
    files = [file for name in names if (file := count_file(root, view, name)).is_file()]
    counts = [read_json(file, form=COUNTS_FORM) for file in files]
    total = {
        "slices": sum(count["slices"] for count in counts),
        "rejected": sum(count["rejected"] for count in counts),
        "volumes": sum(count["written"] for count in counts),
        "left_out": sum(not count["written"] for count in counts),
    }
    logger.info(
        "%s: %d of %d slices rejected, %s, %d left out",
        view,
        total["rejected"],
        total["slices"],
        counted(total["volumes"], "volume"),
        total["left_out"],
    )
    return total
