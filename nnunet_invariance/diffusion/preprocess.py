"""Preprocessing of views by nnU-Net's own steps, in the grid of its preprocessed cases."""

import json
import os
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from acvl_utils.cropping_and_padding.bounding_boxes import bounding_box_to_slice
from nnunetv2.preprocessing.cropping.cropping import create_nonzero_mask
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, infer_dataset_class

from nnunet_invariance.augmentation.stored_views import INDEX, INDEX_FORM, view_key, views_folder
from nnunet_invariance.common.atomic import atomic_write, atomic_write_path
from nnunet_invariance.common.json_files import read_json
from nnunet_invariance.common.progress import Progress
from nnunet_invariance.diffusion.slices import open_slices
from nnunet_invariance.diffusion.views import FOLDER
from nnunet_invariance.diffusion.volumes import RawDataset, open_raw_dataset
from nnunet_invariance.errors import NotPreprocessedError, ShapeError, StyleFolderError
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset, open_planned_dataset
from nnunet_invariance.nnunet.preprocessing_fingerprint import preprocessing_fingerprint
from nnunet_invariance.plans.zscore import ct_remedy


def preprocess_views(root: Path, plans_name: str = "nnUNetPlans", configuration: str = "3d_fullres") -> Path:
    """Preprocess all views below ``root/views``; unchanged views are kept.

    Returns the folder beside nnU-Net's own, which contains ``<case>__<view>.b2nd`` and ``views.json``.

    Raises:
        StyleFolderError: there are no views, the plans use CT normalisation, or the folder has another preprocessing.
        NotPreprocessedError: a case has not been preprocessed.
        ShapeError: a preprocessed view does not have the shape of its case.
    """
    slices = open_slices(root)
    raw = open_raw_dataset(slices.dataset)
    planned = open_planned_dataset(slices.dataset, configuration, plans_name)
    schemes = planned.configuration.normalization_schemes
    if remedy := ct_remedy(schemes, planned.name, plans_name, configuration):
        raise StyleFolderError(f"Views of other styles cannot be preprocessed with {remedy}")
    files = {
        (name, view.parent.name): view
        for name in slices.names
        for view in sorted((root / FOLDER).glob(f"*/{name}{raw.ending}"))
    }
    if not files:
        raise StyleFolderError(f"{root / FOLDER} contains no views. Run first: nnunet-invariance style generate {root}")
    if not planned.folder.is_dir():
        msg = f"{planned.folder} does not exist. "
        raise NotPreprocessedError(f"{msg}Run nnUNetv2_preprocess -d {planned.name} -c {configuration} first.")
    target = views_folder(planned.folder)
    index = _open_index(target, preprocessing_fingerprint(planned.plans, planned.configuration))
    for (name, view), file in Progress(files.items(), desc="preprocessing views", unit="view"):
        stat = file.stat()
        made_of = [stat.st_size, stat.st_mtime_ns]
        path = target / f"{view_key(name, view)}.b2nd"
        if index["views"].get(name, {}).get(view) == made_of and path.is_file():
            continue
        _write(path, preprocess_view(file, name, raw, planned), planned)
        index["views"].setdefault(name, {})[view] = made_of
        atomic_write(target / INDEX, lambda f: f.write(json.dumps(index, indent=1).encode()))
    return target


def _open_index(target: Path, preprocessing: str) -> dict[str, Any]:
    path = target / INDEX
    if not path.is_file():
        return {"format": 1, "preprocessing": preprocessing, "views": {}}
    index = read_json(path, form=INDEX_FORM)
    if index["preprocessing"] != preprocessing:
        msg = f"{path}: the views there were preprocessed in another way. "
        raise StyleFolderError(f"{msg}Move {target} away; the plans changed since it was filled.")
    return index


def preprocess_view(file: Path, name: str, raw: RawDataset, planned: PlannedDataset) -> np.ndarray:
    """Preprocess one view to (1, *spatial) float32: transpose and crop as its case, normalise, resample.

    The crop box is that of the case, because a generated background is not zero.

    Raises:
        NotPreprocessedError: the case was not preprocessed.
        ShapeError: the view does not have the shape of its case.
    """
    if not any((planned.folder / f"{name}{ending}").is_file() for ending in (".b2nd", ".npz")):
        raise NotPreprocessedError(f"{planned.folder} contains no case {name}. Preprocess the data set first.")
    cases = infer_dataset_class(str(planned.folder))(str(planned.folder), [name])
    image, _, _, properties = cases.load_case(name)
    reader = planned.plans.image_reader_writer_class()
    volumes = [reader.read_images([str(path)])[0] for path in (file, raw.cases[name][0])]
    order = [0, *(axis + 1 for axis in planned.plans.transpose_forward)]
    view, source = (volume.astype(np.float32).transpose(order) for volume in volumes)
    _check_shape(file, view.shape[1:], tuple(properties["shape_before_cropping"]), "before cropping")
    box = bounding_box_to_slice(properties["bbox_used_for_cropping"])
    outside = np.where(create_nonzero_mask(source)[box], 0, -1)[None]
    manager = planned.configuration
    worker = manager.preprocessor_class(verbose=False)
    intensities = planned.plans.foreground_intensity_properties_per_channel
    cropped = (slice(None), *box)
    view = worker._normalize(view[cropped], outside, manager, intensities)
    spacing = [properties["spacing"][axis] for axis in planned.plans.transpose_forward]
    wanted = manager.spacing if len(manager.spacing) == len(spacing) else [spacing[0], *manager.spacing]
    view = np.asarray(manager.resampling_fn_data(view, image.shape[1:], spacing, wanted), dtype=np.float32)
    _check_shape(file, view.shape, tuple(image.shape), "after preprocessing")
    return view


def _check_shape(file: Path, found: tuple[int, ...], expected: tuple[int, ...], when: str) -> None:
    if tuple(found) != tuple(int(n) for n in expected):
        msg = f"{file} has shape {tuple(found)} {when}; expected {tuple(expected)}, that of its case. "
        raise ShapeError(f"{msg}The raw data changed since it was preprocessed, or the view was made of other data.")


def _write(path: Path, view: np.ndarray, planned: PlannedDataset) -> None:
    """Write as nnU-Net writes its cases, with chunks that fit the patch."""
    blocks, chunks = comp_blosc2_params(view.shape, planned.patch_size, view.itemsize)
    packed = {"clevel": 5, "codec": blosc2.Codec.LZ4HC}

    def write(temporary: Path) -> None:
        temporary.unlink(missing_ok=True)  # of a run that was killed; blosc2 does not replace
        blosc2.asarray(np.ascontiguousarray(view), urlpath=str(temporary), chunks=chunks, blocks=blocks, cparams=packed)

    os.makedirs(path.parent, exist_ok=True)
    atomic_write_path(path, write)
