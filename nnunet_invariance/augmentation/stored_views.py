"""Stored views beside nnU-Net's preprocessed cases, which its own data loader samples as if they were cases."""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset

from nnunet_invariance.common.json_files import read_json
from nnunet_invariance.common.json_forms import Objects
from nnunet_invariance.errors import StyleFolderError

SUFFIX = "_styleviews"
INDEX = "views.json"


def views_folder(preprocessed: Path) -> Path:
    """Folder of the views of preprocessed cases: beside theirs, because nnU-Net reads every file in it."""
    return preprocessed.with_name(preprocessed.name + SUFFIX)


def view_key(case: str, view: str) -> str:
    """Name of a view's file, and of the view in a batch."""
    return f"{case}__{view}"


#: Form of the index of a folder of views.
INDEX_FORM = {"preprocessing": str, "views": Objects(dict)}


def read_index(folder: Path, preprocessing: str) -> dict[str, list[str]]:
    """Read the names of the views of each case.

    Args:
        preprocessing: preprocessing fingerprint of the training plans.

    Raises:
        StyleFolderError: there are no views, files are missing, or they have another preprocessing.
    """
    path = folder / INDEX
    if not path.is_file():
        msg = f"{folder} contains no {INDEX}, but 'views_probability' is not 0. "
        raise StyleFolderError(f"{msg}Make the views first: nnunet-invariance style preprocess FOLDER")
    index = read_json(path, form=INDEX_FORM)
    if index["preprocessing"] != preprocessing:
        raise StyleFolderError(
            f"{path}: the views were preprocessed in another way (hash {index['preprocessing'][:12]}, these plans have "
            f"{preprocessing[:12]}). Move {folder} away and run style preprocess with the plans that you train with."
        )
    missing = [
        key for case, views in index["views"].items() for view in views
        if not (folder / f"{(key := view_key(case, view))}.b2nd").is_file()
    ]  # fmt: skip
    if missing:
        raise StyleFolderError(f"{folder} lacks {len(missing)} views: {', '.join(missing[:3])}. Run style preprocess.")
    return {case: list(views) for case, views in index["views"].items()}


class WithView:
    """A case and one of its views as one image (2C, *spatial) that is read lazily by indexing."""

    def __init__(self, image: Any, view: Any) -> None:
        self.parts = (image, view)
        self.shape = (2 * image.shape[0], *image.shape[1:])
        self.dtype = np.dtype(np.float32)

    def __getitem__(self, index: Any) -> np.ndarray:
        """Read a crop; ``index`` covers all channels, because nnU-Net crops only spatial axes."""
        return np.concatenate([np.asarray(part[index], dtype=self.dtype) for part in self.parts])


class DatasetWithViews:
    """nnU-Net's data set of preprocessed cases, with their views as further identifiers.

    nnU-Net's loader samples identifiers uniformly. Identifiers are repeated here so that each case keeps its
    probability, and one of its views, chosen uniformly, replaces it with the given probability. Cases without views
    are not replaced.

    Args:
        cases: the data set.
        folder: folder of the views. views: names of the views of each case.
        probability: in [0, 1]; approximated by a fraction with a denominator of at most 100.
    """

    def __init__(
        self, cases: nnUNetBaseDataset, folder: Path, views: Mapping[str, Sequence[str]], probability: float
    ) -> None:
        self.cases = cases
        self.folder = folder
        self.of_view = {view_key(case, view): case for case in cases.identifiers for view in views.get(case, ())}
        self.identifiers = np.array(_repeated(cases.identifiers, views, Fraction(probability).limit_denominator(100)))

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict]:
        """Load as nnU-Net does; the image of a view is (2C, *spatial), with the channels of the case first."""
        identifier = str(identifier)
        case = self.of_view.get(identifier, identifier)
        image, *rest = self.cases.load_case(case)
        if case == identifier:
            return image, *rest
        path = self.folder / f"{identifier}.b2nd"
        view = blosc2.open(urlpath=str(path), mode="r", dparams={"nthreads": 1})
        if tuple(view.shape) != tuple(image.shape):
            msg = f"{path} has shape {tuple(view.shape)}, its case {tuple(image.shape)}; expected the same. "
            raise StyleFolderError(f"{msg}Move it away and run style preprocess.")
        return WithView(image, view), *rest


def _repeated(cases: Sequence[str], views: Mapping[str, Sequence[str]], share: Fraction) -> list[str]:
    """Repeat identifiers so that uniform sampling has the probabilities of :class:`DatasetWithViews`."""
    common = math.lcm(*(len(views[case]) for case in cases if views.get(case)))
    own, others = common * (share.denominator - share.numerator), common * share.numerator
    result = []
    for case in cases:
        names = views.get(case, ())
        result += [case] * (own if names else own + others)
        for view in names:
            result += [view_key(case, view)] * (others // len(names))
    return result
