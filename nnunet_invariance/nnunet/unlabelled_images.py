"""Preprocess unlabelled scans from any folder with nnU-Net's preprocessor and the plans of a dataset."""

import hashlib
import logging
import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from nnunetv2.configuration import default_num_processes
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_invariance.common.image_files import check_image
from nnunet_invariance.common.json_files import read_json, write_json
from nnunet_invariance.common.progress import Progress
from nnunet_invariance.common.wording import counted
from nnunet_invariance.errors import DamagedFileError, ImagesFolderError, InvarianceError, WorkerError
from nnunet_invariance.nnunet.cases import SkippedCase
from nnunet_invariance.nnunet.grids import READ_BY_SIMPLEITK, check_same_grid
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset
from nnunet_invariance.nnunet.preprocessing_fingerprint import preprocessing_fingerprint

__all__ = ["PreprocessedImages", "find_scans", "preprocess_images"]

logger = logging.getLogger(__name__)

_CHANNEL = re.compile(r"_(\d{4})$")


def find_scans(folder: Path, dataset: PlannedDataset) -> dict[str, list[Path]]:
    """Group the images of a folder into scans, by names such as ``NAME_0000.nii.gz``, or one file per scan.

    Raises:
        ImagesFolderError: the folder is missing or contains no image, or a scan has the wrong number of channels.
    """
    endings, channels = dataset.plans.image_reader_writer_class.supported_file_endings, len(dataset.channel_names)
    if not folder.is_dir():
        raise ImagesFolderError(f"The images folder {folder} does not exist. Give an existing folder with --images.")
    scans: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        ending = next((e for e in endings if path.name.endswith(e)), None)
        if ending is not None and path.is_file():
            scans.setdefault(_CHANNEL.sub("", path.name[: -len(ending)]), []).append(path)
    if not scans:
        msg = f"The images folder {folder} contains no image ending in {', '.join(endings)}. "
        raise ImagesFolderError(f"{msg}Convert the scans, or give another folder.")
    counts = {name: len(paths) for name, paths in scans.items()}
    wrong = {name: n for name, n in counts.items() if n != channels}
    if wrong:
        name, n = next(iter(wrong.items()))
        msg = (
            f"Images folder {folder}: scan {name!r} has {counted(n, 'channel file')}, but the dataset has {channels} "
            f"({len(wrong)} of {len(counts)} scans differ). Name channels NAME_0000, NAME_0001, ... "
            "in the dataset's order, or move the other scans to another folder."
        )
        raise ImagesFolderError(msg)
    return scans


@dataclass(frozen=True)
class PreprocessedImages:
    """Preprocessed scans of one folder.

    >>> PreprocessedImages(Path("scans"), skipped=()).folder.name
    'scans'

    Attributes:
        folder: folder with the preprocessed scans.
        skipped: scans that could not be used, with the reasons.
    """

    folder: Path
    skipped: tuple[SkippedCase, ...]


def preprocess_scan(
    target: str, files: list[str], plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any]
) -> None:
    """Check and preprocess one scan to ``target``.b2nd, ``target``_seg.b2nd and ``target``.pkl.

    The ``.pkl`` file is written last and marks a finished scan.

    Raises:
        VolumeError: a file is damaged.
        ImagesFolderError: the channels lie on different grids.
    """
    manager = PlansManager(plans)
    chosen = manager.get_configuration(configuration)
    if plans["image_reader_writer"] in READ_BY_SIMPLEITK:  # SimpleITK reads some damaged files without an error
        for file in files:
            check_image(Path(file), dimensions=3 if len(chosen.patch_size) == 3 else None)
        if len(files) > 1:
            check_same_grid([Path(file) for file in files])  # nnU-Net's error names neither the file nor the difference
    working = f"{target}.part"
    chosen.preprocessor_class(verbose=False).run_case_save(working, files, None, manager, chosen, dataset_json)
    for ending in (".b2nd", "_seg.b2nd", ".pkl"):
        Path(working + ending).replace(target + ending)


def preprocess_images(folders: Sequence[Path], dataset: PlannedDataset) -> list[PreprocessedImages]:
    """Preprocess the scans of several folders into a cache in the dataset's folder; finished scans are reused.

    A scan that is damaged, or that nnU-Net cannot preprocess, is skipped and named in the log.

    Raises:
        ImagesFolderError: a folder is missing, or none of its scans can be used.
        WorkerError: a worker process died.
    """
    result = []
    for folder in folders:
        scans = find_scans(folder, dataset)
        where = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
        cache = (
            dataset.base
            / "nnunet_invariance_images"
            / preprocessing_fingerprint(dataset.plans, dataset.configuration)[:12]
            / f"{folder.name}_{where}"
        )
        cache.mkdir(parents=True, exist_ok=True)
        _forget_changed(cache, scans)
        todo = {name: paths for name, paths in scans.items() if not (cache / f"{name}.pkl").is_file()}
        logger.info("%s: %s, %d to preprocess", folder, counted(len(scans), "scan"), len(todo))
        skipped = _preprocess_all(cache, todo, dataset)
        for case in skipped:
            logger.warning("skipped scan %s of %s: %s", case.name, folder, case.reason)
        if len(skipped) == len(scans):
            msg = f"Images folder {folder}: no scan can be used; the first one: {skipped[0].reason} "
            raise ImagesFolderError(f"{msg}Replace these files, or give another folder.")
        result.append(PreprocessedImages(cache, tuple(skipped)))
    return result


def _forget_changed(cache: Path, scans: dict[str, list[Path]]) -> None:
    """Delete cached scans whose source files were changed or deleted."""
    record = cache.with_suffix(".json")
    now = {name: [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in paths] for name, paths in scans.items()}
    try:
        before = read_json(record, default={}, form=dict)
    except DamagedFileError as error:
        logger.warning("%s; all scans of this folder are preprocessed again", error)
        before = {path.stem: None for path in cache.glob("*.pkl")}
    for name in before:
        if before[name] != now.get(name):
            for ending in (".pkl", ".b2nd", "_seg.b2nd"):
                (cache / f"{name}{ending}").unlink(missing_ok=True)
    for leftover in cache.glob("*.part*"):
        leftover.unlink()
    write_json(record, now, indent=None)


def _preprocess_all(cache: Path, todo: dict[str, list[Path]], dataset: PlannedDataset) -> list[SkippedCase]:
    if not todo:
        return []
    settings = (dataset.plans.plans, dataset.configuration_name, dataset.dataset_json)
    skipped: list[SkippedCase] = []
    workers = min(default_num_processes, len(todo))
    with (
        Progress(total=len(todo), desc=f"preprocessing {cache.name}", unit="scan") as bar,
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
    ):
        futures = {
            pool.submit(preprocess_scan, str(cache / name), [str(p) for p in paths], *settings): name
            for name, paths in todo.items()
        }
        for future in as_completed(futures):
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                raise _worker_error(cache, todo, workers) from error
            if error is not None:
                reason = str(error) if isinstance(error, InvarianceError) else f"{type(error).__name__}: {error}"
                skipped.append(SkippedCase(futures[future], reason))
            bar.update()
    return sorted(skipped, key=lambda case: case.name)


def _worker_error(cache: Path, todo: dict[str, list[Path]], workers: int) -> WorkerError:
    """Error for a worker that the system killed; any scan without a result may be the cause."""
    unfinished = [name for name in todo if not (cache / f"{name}.pkl").is_file()]
    return WorkerError(
        f"A worker process that preprocesses scans died, probably because the memory was full. "
        f"{len(todo) - len(unfinished)} of {len(todo)} scans are finished and are kept; unfinished: "
        f"{', '.join(unfinished[:5])}{' ...' if len(unfinished) > 5 else ''}. Use fewer workers than {workers} (set "
        "nnUNet_def_n_proc), or a machine with more memory, and repeat the command."
    )
