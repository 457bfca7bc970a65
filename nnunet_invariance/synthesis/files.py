"""SyntheticPairs elements as NIfTI files: pairs in a folder, or a labelled data set in nnU-Net's raw layout."""

import dataclasses
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from nnunet_invariance.common.image_files import write_image
from nnunet_invariance.common.json_files import claim_folder, write_json
from nnunet_invariance.common.progress import Progress
from nnunet_invariance.errors import EnvironmentNotSetError, OptionError
from nnunet_invariance.synthesis.engine import SynthesisEngine, SyntheticPairs

ENDING = ".nii.gz"
RECORD = "synthesis.json"


@dataclass(frozen=True)
class Layout:
    """Paths of the files of an element: patterns of its labels and of the views that are written."""

    root: Path
    labels: str
    views: tuple[str, ...]

    def files(self, index: int) -> list[Path]:
        """Labels first, then the views."""
        return [self.root / part.format(f"synthetic_{index:06d}") for part in (self.labels, *self.views)]


def pairs_layout(out: Path) -> Layout:
    """``labels/``, ``view1/`` and ``view2/`` below ``out``."""
    return Layout(out, f"labels/{{}}{ENDING}", (f"view1/{{}}{ENDING}", f"view2/{{}}{ENDING}"))


def dataset_layout(name: str, dataset_id: int) -> Layout:
    """``nnUNet_raw/DatasetXXX_NAME``; one appearance per label map, so that no map is in two folds.

    Raises:
        OptionError: the id is not in 1..999 or is used by another data set, or the name has other characters.
        EnvironmentNotSetError: ``nnUNet_raw`` is not set or is not a folder.
    """
    if not 1 <= dataset_id <= 999 or not name.replace("_", "").isalnum():
        msg = f"Data set {dataset_id} named {name!r}: expected an id from 1 to 999 and a name of letters and digits."
        raise OptionError(f"{msg} For example: synthesize Shapes --as-dataset 950")
    raw = os.environ.get("nnUNet_raw", "")
    if not raw or not Path(raw).is_dir():
        msg = f"nnUNet_raw is {raw!r}; expected the folder of nnU-Net's raw data sets. Set it and make the folder."
        raise EnvironmentNotSetError(msg)
    root = Path(raw) / f"Dataset{dataset_id:03d}_{name}"
    taken = [path.name for path in Path(raw).glob(f"Dataset{dataset_id:03d}_*") if path != root]
    if taken:
        raise OptionError(f"Id {dataset_id} is taken by {taken[0]} in nnUNet_raw. Choose another id.")
    return Layout(root, f"labelsTr/{{}}{ENDING}", (f"imagesTr/{{}}_0000{ENDING}",))


def write_elements(engine: SynthesisEngine, layout: Layout, n: int) -> None:
    """Write elements 0 to ``n`` - 1; complete elements are skipped, so that a stopped run can be continued.

    Raises:
        OptionError: ``n`` is below 1.
        OutputError: a file cannot be written, or the folder has elements with other options, seed or templates.
    """
    if n < 1:
        raise OptionError(f"-n is {n}; expected at least 1.")
    _claim(layout.root, engine)
    missing = [index for index in range(n) if not all(file.is_file() for file in layout.files(index))]
    batch = 1 if engine.bank.flat.device.type == "cpu" else 4
    with Progress(total=n, initial=n - len(missing), desc="synthesis", unit="element") as progress:
        for start in range(0, len(missing), batch):
            indices = missing[start : start + batch]
            made = engine.batch(indices)
            for row, index in enumerate(indices):
                _write_element(made, row, layout.files(index))
                progress.update()


def write_dataset_json(layout: Layout, engine: SynthesisEngine) -> None:
    """``dataset.json`` of all elements in the folder; labels have numbers, because the engine does not name them."""
    most = engine.options.templates[1] + 2  # inside of the foreground, and its envelope
    labels = {"background": 0, **{f"shape_{label:02d}": label for label in range(1, most + 1)}}
    n = len(list((layout.root / "labelsTr").glob(f"*{ENDING}")))
    content = {"channel_names": {"0": "synthetic"}, "labels": labels, "numTraining": n, "file_ending": ENDING}
    write_json(layout.root / "dataset.json", content)


def _claim(root: Path, engine: SynthesisEngine) -> None:
    """Record the settings of the elements in the folder, or check that they are the same."""
    templates = hashlib.sha256(engine.bank.flat.cpu().numpy().tobytes()).hexdigest()
    record = {"seed": engine.seed, "templates_sha256": templates, "options": dataclasses.asdict(engine.options)}
    claim_folder(root / RECORD, record, "these elements")


def _write_element(made: SyntheticPairs, row: int, files: list[Path]) -> None:
    arrays = [made.labels, *made.views][: len(files)]
    # Labels last: if they exist, the element is complete.
    for array, file in reversed(list(zip(arrays, files, strict=True))):
        write_image(file, sitk.GetImageFromArray(_to_bytes(array[row, 0])))


def _to_bytes(x: Tensor) -> np.ndarray:
    if x.is_floating_point():
        x = (x * 255).round()
    return x.to(torch.uint8).cpu().numpy()
