"""Unlabelled scans from any folder, sent through nnU-Net's own preprocessor under the dataset's plans."""

import hashlib
import json
import logging
import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from nnunetv2.configuration import default_num_processes
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tqdm import tqdm

from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.common.wording import counted
from nnunet_invariance.errors import ImagesFolderError
from nnunet_invariance.nnunet.grids import READ_BY_SIMPLEITK, check_same_grid
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset
from nnunet_invariance.nnunet.preprocessing_fingerprint import preprocessing_fingerprint

logger = logging.getLogger(__name__)

_CHANNEL = re.compile(r"_(\d{4})$")


def find_scans(folder: Path, dataset: PlannedDataset) -> dict[str, list[Path]]:
    """Group the images of a folder into scans: ``NAME_0000.nii.gz`` and so on by channel, or one bare file a scan.

    Raises:
        ImagesFolderError: the folder is missing or holds no image, or a scan has another number of channels.
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
        msg = f"The images folder {folder} holds no image ending in {', '.join(endings)}. "
        raise ImagesFolderError(f"{msg}Convert the scans, or give another folder.")
    counts = {name: len(paths) for name, paths in scans.items()}
    wrong = {name: n for name, n in counts.items() if n != channels}
    if wrong:
        name, n = next(iter(wrong.items()))
        msg = (
            f"Images folder {folder}: scan {name!r} has {n} channel file(s), but the dataset has {channels} "
            f"({len(wrong)} of {len(counts)} scans differ). Name channels NAME_0000, NAME_0001, ... "
            "in the dataset's order, or move the other scans to another folder."
        )
        raise ImagesFolderError(msg)
    return scans


def preprocess_scan(
    target: str, files: list[str], plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any]
) -> None:
    """Preprocess one scan to ``target``.b2nd, ``target``_seg.b2nd and ``target``.pkl (written last, marks it done)."""
    manager = PlansManager(plans)
    chosen = manager.get_configuration(configuration)
    if len(files) > 1 and plans["image_reader_writer"] in READ_BY_SIMPLEITK:
        check_same_grid([Path(file) for file in files])  # nnU-Net names neither the file nor the difference
    working = f"{target}.part"
    chosen.preprocessor_class(verbose=False).run_case_save(working, files, None, manager, chosen, dataset_json)
    for ending in (".b2nd", "_seg.b2nd", ".pkl"):
        Path(working + ending).replace(target + ending)


def preprocess_images(folders: Sequence[Path], dataset: PlannedDataset) -> list[Path]:
    """Preprocess all scans of ``folders`` into a cache beside the dataset's own cases; done ones are not done again.

    A scan that nnU-Net cannot read or preprocess is named in the log and left out. Returns one cache folder a folder.
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
        failed = _preprocess_all(cache, todo, dataset)
        for name, reason in failed.items():
            logger.warning("skipped scan %s of %s: %s", name, folder, reason)
        if len(failed) == len(scans):
            reason = next(iter(failed.values()))
            msg = f"Images folder {folder}: no scan could be preprocessed; the first failed with: {reason} "
            raise ImagesFolderError(f"{msg}Look at these files, or give another folder.")
        result.append(cache)
    return result


def _forget_changed(cache: Path, scans: dict[str, list[Path]]) -> None:
    """Drop cached scans whose files changed or went away, so that the cache always mirrors the folder."""
    record = cache.with_suffix(".json")
    now = {name: [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in paths] for name, paths in scans.items()}
    before = json.loads(record.read_text()) if record.is_file() else {}
    for name in before:
        if before[name] != now.get(name):
            for ending in (".pkl", ".b2nd", "_seg.b2nd"):
                (cache / f"{name}{ending}").unlink(missing_ok=True)
    for leftover in cache.glob("*.part*"):
        leftover.unlink()
    atomic_write(record, lambda file: file.write(json.dumps(now).encode()))


def _preprocess_all(cache: Path, todo: dict[str, list[Path]], dataset: PlannedDataset) -> dict[str, str]:
    if not todo:
        return {}
    jobs = {
        name: (
            str(cache / name),
            [str(p) for p in paths],
            dataset.plans.plans,
            dataset.configuration_name,
            dataset.dataset_json,
        )
        for name, paths in todo.items()
    }
    failed: dict[str, str] = {}
    bar = tqdm(total=len(jobs), desc=f"preprocessing {cache.name}", unit="scan", disable=None)
    workers = min(default_num_processes, len(jobs))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(preprocess_scan, *job): name for name, job in jobs.items()}
        for future in as_completed(futures):
            error = future.exception()
            if error is not None:
                failed[futures[future]] = f"{type(error).__name__}: {error}"
            bar.update()
    bar.close()
    return failed
