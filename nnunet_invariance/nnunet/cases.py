"""The preprocessed volumes a pre-training reads, each looked at once before it is used."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from skimage.filters import threshold_otsu
from tqdm import tqdm

from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.common.wording import counted
from nnunet_invariance.errors import NotPreprocessedError, TooFewVolumesError

logger = logging.getLogger(__name__)

CACHE_FORMAT = 2  # of what is remembered of a volume; another one is looked at again


@dataclass(frozen=True)
class Case:
    """One usable volume.

    Attributes:
        name: identifier of the case in its folder.
        folder: folder of preprocessed cases.
        shape: spatial size in voxels.
        body: bounding box of the bright part (above Otsu's threshold of the first channel that is not constant),
            ((lo, hi), ...) in voxels.
        content: hash of thinned out voxels.
    """

    name: str
    folder: str
    shape: tuple[int, ...]
    body: tuple[tuple[int, int], ...]
    content: str = ""


@dataclass(frozen=True)
class SkippedCase:
    """A volume that cannot be used, and why."""

    name: str
    reason: str


def load_volume(case: Case) -> Any:
    """The preprocessed image (C, *spatial), float32, opened lazily: only the part that is indexed is read."""
    return infer_dataset_class(case.folder)(case.folder, [case.name]).load_case(case.name)[0]


def _thinned(shape: Sequence[int]) -> tuple[slice, ...]:
    """Every n-th voxel of an axis, so that 64 to 127 are left of a long one."""
    return tuple(slice(None, None, max(1, n // 64)) for n in shape)


def _looked_at(image: np.ndarray) -> tuple[slice, ...]:
    """Which voxels tell the body: thinned out ones, or all where these are constant."""
    step = _thinned(image.shape)
    return step if np.ptp(image[step]) > 0 else (slice(None, None, 1),) * image.ndim


def body_threshold(image: np.ndarray) -> float:
    """Otsu's threshold of one channel that is not constant; what is brighter is body."""
    return float(threshold_otsu(image[_looked_at(image)]))


def body_box(image: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Bounding box of the bright part (above Otsu's threshold) of one channel, ((lo, hi), ...) in voxels."""
    step = _looked_at(image)
    bright = np.argwhere(image[step] > body_threshold(image))
    low, high = bright.min(0), bright.max(0) + 1
    return tuple(
        (int(a * s.step), int(min(b * s.step, n))) for a, b, s, n in zip(low, high, step, image.shape, strict=True)
    )


def _inspect(name: str, folder: Path, channels: int, cell: Sequence[int], missing: bool) -> Case | SkippedCase:
    try:
        image = np.asarray(infer_dataset_class(str(folder))(str(folder), [name]).load_case(name)[0][:])
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        return SkippedCase(name, f"cannot be read ({error})")
    shape = image.shape[1:]
    if image.shape[0] != channels:
        return SkippedCase(name, f"has {image.shape[0]} channels, expected {channels}")
    if not np.isfinite(image).all():
        return SkippedCase(name, "holds NaN or infinite voxels")
    images = [channel for channel in image if np.ptp(channel) > 0]
    if not images or (len(images) < channels and not missing):
        return SkippedCase(name, "has a constant channel" if images else "has no channel that is not constant")
    if any(n < c for n, c in zip(shape, cell, strict=True)):
        return SkippedCase(name, f"is too small: {shape} voxels, expected at least {tuple(cell)}")
    content = hashlib.sha256(np.ascontiguousarray(image[(slice(None), *_thinned(shape))])).hexdigest()
    return Case(name, str(folder), tuple(int(n) for n in shape), body_box(images[0]), content)


def _cache_key(folder: Path, name: str, channels: int, cell: Sequence[int], missing: bool) -> str:
    files = sorted(folder.glob(f"{name}.b2nd")) or sorted(folder.glob(f"{name}.npz"))
    stat = files[0].stat()
    words = (CACHE_FORMAT, stat.st_size, stat.st_mtime_ns, channels, "x".join(map(str, cell)))
    return ":".join(map(str, words)) + ":missing" * missing


def scan_cases(
    folder: Path, channels: int, cell: Sequence[int], missing: bool = False
) -> tuple[list[Case], list[SkippedCase]]:
    """Look at every volume of a preprocessed folder once: readable, finite, not constant, at least one ``cell`` large.

    With ``missing``, channels may be constant as long as one is not.

    What was seen is remembered in ``nnunet_invariance_scan.json`` beside the folder, so that a second run starts at
    once.

    Raises:
        NotPreprocessedError: the folder is missing or holds no preprocessed case.
    """
    names = sorted(infer_dataset_class(str(folder)).get_identifiers(str(folder))) if _holds_cases(folder) else []
    if not names:
        msg = f"{folder} holds no preprocessed case. "
        raise NotPreprocessedError(f"{msg}Run `nnUNetv2_preprocess` for these plans and this configuration first.")
    cache_file = folder.parent / f"{folder.name}.nnunet_invariance_scan.json"
    cache = json.loads(cache_file.read_text()) if cache_file.is_file() else {}
    seen: dict[str, Any] = {}
    cases, skipped = [], []
    for name in tqdm(names, desc=f"looking at the volumes of {folder.name}", unit="volume", disable=None):
        key = _cache_key(folder, name, channels, cell, missing)
        known = cache.get(name)
        if known and known["key"] == key:
            found = _from_json(known, name, str(folder))
        else:
            found = _inspect(name, folder, channels, cell, missing)
        seen[name] = {"key": key, **asdict(found)}
        (cases if isinstance(found, Case) else skipped).append(found)
    if seen != cache:
        atomic_write(cache_file, lambda file: file.write(json.dumps(seen).encode()))
    return cases, skipped


def _holds_cases(folder: Path) -> bool:
    return folder.is_dir() and any(p.suffix in {".b2nd", ".npz"} for p in folder.iterdir())


def _from_json(known: dict[str, Any], name: str, folder: str) -> Case | SkippedCase:
    if "reason" in known:
        return SkippedCase(name, known["reason"])
    return Case(name, folder, tuple(known["shape"]), tuple(tuple(b) for b in known["body"]), known["content"])


@dataclass(frozen=True)
class Manifest:
    """The data of one pre-training: what is used, what was left out and why."""

    cases: tuple[Case, ...]
    skipped: tuple[SkippedCase, ...]

    @property
    def sha256(self) -> str:
        """Hash of names, shapes, boxes and voxels in order; the same files give the same hash on another machine."""
        rows = [(c.name, c.shape, c.body, c.content) for c in self.cases]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """What ``manifest.json`` holds."""
        rows = [{"name": c.name, "source": Path(c.folder).name, "shape": list(c.shape)} for c in self.cases]
        return {"sha256": self.sha256, "cases": rows, "skipped": [asdict(s) for s in self.skipped]}


def make_manifest(
    folders: Sequence[Path], channels: int, cell: Sequence[int], minimum: int, missing: bool = False
) -> Manifest:
    """Scan all folders. Volumes that cannot be used are named in the log and counted.

    Raises:
        TooFewVolumesError: fewer than ``minimum`` usable volumes.
    """
    cases: list[Case] = []
    skipped: list[SkippedCase] = []
    for folder in folders:
        good, bad = scan_cases(folder, channels, cell, missing)
        cases += good
        skipped += bad
    for case in skipped:
        logger.warning("skipped %s: %s", case.name, case.reason)
    logger.info("using %s, skipping %d", counted(len(cases), "volume"), len(skipped))
    if len(cases) < minimum:
        reasons = "; ".join(f"{s.name} {s.reason}" for s in skipped[:5]) or "none was skipped"
        msg = (
            f"{len(cases)} usable volume(s) in {', '.join(f.name for f in folders)}, expected at least {minimum} "
            f"({reasons}). Preprocess more cases, or add unlabelled scans with --images DIR."
        )
        raise TooFewVolumesError(msg)
    return Manifest(tuple(cases), tuple(skipped))
