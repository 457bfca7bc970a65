"""Preprocessed volumes for pre-training; each volume is inspected once before it is used."""

import hashlib
import logging
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from skimage.filters import threshold_otsu

from nnunet_invariance.common.hashing import sha256_of_json
from nnunet_invariance.common.image_files import check_image
from nnunet_invariance.common.json_files import read_json, write_json
from nnunet_invariance.common.json_forms import Maybe
from nnunet_invariance.common.progress import Progress
from nnunet_invariance.common.wording import counted
from nnunet_invariance.errors import DamagedFileError, NotPreprocessedError, TooFewVolumesError, VolumeError

__all__ = ["Case", "CaseVolume", "Manifest", "SkippedCase", "load_volume", "make_manifest", "scan_cases"]

logger = logging.getLogger(__name__)

CACHE_FORMAT = 3  # version of the cached inspection results; entries of another version are not reused
#: Exceptions that nnU-Net, blosc2 and pickle raise for damaged files.
_DAMAGE = (
    OSError, RuntimeError, ValueError, EOFError, AssertionError, LookupError, TypeError, AttributeError, ImportError,
    pickle.UnpicklingError,
)  # fmt: skip
#: Form of ``manifest.json``, as far as it is read.
MANIFEST_FORM = {"sha256": str, "cases": [{"name": str, "source": Maybe(str)}]}
ENDINGS = (".b2nd", ".npz")  # nnU-Net's current and previous format of preprocessed images


@dataclass(frozen=True)
class Case:
    """One usable volume.

    >>> Case("case_000", "nnUNetPlans_3d_fullres", (64, 64, 64), ((0, 64), (8, 60), (10, 50))).name
    'case_000'

    Attributes:
        name: case identifier.
        folder: folder with the preprocessed cases.
        shape: spatial size in voxels.
        body: bounding box ((lo, hi), ...) in voxels of the voxels above Otsu's threshold in the first channel that is
            not constant.
        content: SHA-256 of a subset of the voxels.
    """

    name: str
    folder: str
    shape: tuple[int, ...]
    body: tuple[tuple[int, int], ...]
    content: str = ""


@dataclass(frozen=True)
class SkippedCase:
    """A volume that cannot be used, with the reason.

    >>> SkippedCase("case_001", "has a constant channel").reason
    'has a constant channel'
    """

    name: str
    reason: str


class CaseVolume:
    r"""Preprocessed image (C, \*spatial), float32; indexing reads only the requested part.

    Raises:
        NotPreprocessedError: a file of the case is missing or damaged; indexing can raise it too.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        try:
            self._image = _open_image(Path(case.folder), case.name)
        except _DAMAGE as error:
            raise self._error(error) from error
        self.shape: tuple[int, ...] = tuple(self._image.shape)

    def __getitem__(self, index: Any) -> np.ndarray:
        try:
            return np.asarray(self._image[index])
        except (OSError, RuntimeError, ValueError) as error:
            raise self._error(error) from error

    def _error(self, error: Exception) -> NotPreprocessedError:
        return NotPreprocessedError(
            f"The preprocessed case {self.case.name} in {self.case.folder} cannot be read "
            f"({type(error).__name__}: {error}). It was deleted or damaged after it was inspected. Preprocess it again "
            "(nnUNetv2_preprocess; scans of --images: repeat the command), then continue with --c."
        )


def load_volume(case: Case) -> CaseVolume:
    """Open a preprocessed image.

    Raises:
        NotPreprocessedError: a file of the case is missing or damaged.
    """
    return CaseVolume(case)


def _open_image(folder: Path, name: str) -> Any:
    """Open the image with nnU-Net's dataset class, which also reads the properties file."""
    return infer_dataset_class(str(folder))(str(folder), [name]).load_case(name)[0]


def _thinned(shape: Sequence[int]) -> tuple[slice, ...]:
    """Slices that keep every n-th voxel, so that 64 to 127 voxels remain along each long axis."""
    return tuple(slice(None, None, max(1, n // 64)) for n in shape)


def _sampled(image: np.ndarray) -> tuple[slice, ...]:
    """Slices of the voxels that define the body: a subset, or all voxels if the subset is constant."""
    step = _thinned(image.shape)
    return step if np.ptp(image[step]) > 0 else (slice(None, None, 1),) * image.ndim


def body_threshold(image: np.ndarray) -> float:
    """Otsu's threshold of one channel that is not constant; brighter voxels belong to the body."""
    return float(threshold_otsu(image[_sampled(image)]))


def body_box(image: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Bounding box of the bright part (above Otsu's threshold) of one channel, ((lo, hi), ...) in voxels."""
    step = _sampled(image)
    bright = np.argwhere(image[step] > body_threshold(image))
    low, high = bright.min(0), bright.max(0) + 1
    return tuple(
        (int(a * s.step), int(min(b * s.step, n))) for a, b, s, n in zip(low, high, step, image.shape, strict=True)
    )


def _inspect(
    name: str, folder: Path, channels: int, cell: Sequence[int], missing: bool, raw: Sequence[Path]
) -> Case | SkippedCase:
    try:
        for file in raw:  # nnU-Net's reader replaces NaN and fills the end of a cut file without a message
            check_image(file)
    except VolumeError as error:
        return SkippedCase(name, f"was preprocessed from a damaged image: {error}")
    try:
        image = np.asarray(_open_image(folder, name)[:])
    except _DAMAGE as error:
        return SkippedCase(name, f"cannot be read ({type(error).__name__}: {error})")
    shape = image.shape[1:]
    if image.shape[0] != channels:
        return SkippedCase(name, f"has {counted(image.shape[0], 'channel')}, expected {channels}")
    if not np.isfinite(image).all():
        return SkippedCase(name, "contains NaN or infinite voxels")
    images = [channel for channel in image if np.ptp(channel) > 0]
    if not images or (len(images) < channels and not missing):
        return SkippedCase(name, "has a constant channel" if images else "has no channel that is not constant")
    if any(n < c for n, c in zip(shape, cell, strict=True)):
        return SkippedCase(name, f"is too small: {shape} voxels, expected at least {tuple(cell)}")
    subset = (slice(None), *_thinned(shape))
    content = hashlib.sha256(np.ascontiguousarray(image[subset]).tobytes()).hexdigest()
    return Case(name, str(folder), tuple(int(n) for n in shape), body_box(images[0]), content)


def _cache_key(folder: Path, name: str, channels: int, cell: Sequence[int], missing: bool, raw: Sequence[Path]) -> str:
    """Cache key: changes if a file or a criterion of the inspection changes; "" if the file does not exist."""
    file = next((file for ending in ENDINGS if (file := folder / f"{name}{ending}").is_file()), None)
    if file is None:
        return ""
    stamps = [stamp for path in (file, *raw) for stamp in (path.stat().st_size, path.stat().st_mtime_ns)]
    parts = (CACHE_FORMAT, *stamps, channels, "x".join(map(str, cell)))
    return ":".join(map(str, parts)) + ":missing" * missing


def scan_cases(
    folder: Path,
    channels: int,
    cell: Sequence[int],
    missing: bool = False,
    raw: Mapping[str, Sequence[Path]] = MappingProxyType({}),
) -> tuple[list[Case], list[SkippedCase]]:
    """Check that every volume of a preprocessed folder is readable, finite, not constant and large enough.

    The results are cached in ``FOLDER.nnunet_invariance_scan.json`` beside the folder, so that the next run
    starts at once; a damaged cache is rebuilt.

    Args:
        folder: folder with the preprocessed cases.
        channels: expected number of channels.
        cell: minimum size in voxels along each axis.
        missing: accept constant (missing) channels if at least one channel is not constant.
        raw: image files of the cases, which are checked for damage too.

    Raises:
        NotPreprocessedError: the folder is missing or contains no preprocessed case.
    """
    names = _identifiers(folder)
    if not names:
        msg = f"{folder} contains no preprocessed case. "
        raise NotPreprocessedError(f"{msg}Run `nnUNetv2_preprocess` for these plans and this configuration first.")
    cache_file = folder.parent / f"{folder.name}.nnunet_invariance_scan.json"
    cache = _read_cache(cache_file)
    seen: dict[str, Any] = {}
    cases: list[Case] = []
    skipped: list[SkippedCase] = []
    for name in Progress(names, desc=f"inspecting the volumes of {folder.name}", unit="volume"):
        key = _cache_key(folder, name, channels, cell, missing, raw.get(name, ()))
        found = _from_cache(cache.get(name), key, name, str(folder))
        if found is None:
            found = _inspect(name, folder, channels, cell, missing, raw.get(name, ()))
        seen[name] = {"key": key, **asdict(found)}
        if isinstance(found, Case):
            cases.append(found)
        else:
            skipped.append(found)
    if seen != cache:
        write_json(cache_file, seen, indent=None)
    return cases, skipped


def _identifiers(folder: Path) -> list[str]:
    """Case names, as listed by nnU-Net's dataset class.

    Raises:
        NotPreprocessedError: the folder mixes both formats of preprocessed cases.
    """
    suffixes = {path.suffix for path in folder.iterdir()} & set(ENDINGS) if folder.is_dir() else set()
    if len(suffixes) > 1:
        msg = f"{folder} contains cases of two formats, {' and '.join(sorted(suffixes))}; expected one. "
        raise NotPreprocessedError(f"{msg}Delete the folder and run `nnUNetv2_preprocess` again.")
    return sorted(infer_dataset_class(str(folder)).get_identifiers(str(folder))) if suffixes else []


def _read_cache(file: Path) -> dict[str, Any]:
    """Read the cached inspection results; empty if the file is missing or damaged."""
    try:
        return read_json(file, default={}, form=dict)
    except DamagedFileError as error:
        logger.warning("%s is damaged and will be rebuilt (%s)", file, error)
        return {}


def _from_cache(known: Any, key: str, name: str, folder: str) -> Case | SkippedCase | None:
    """Cached inspection result of a case; None if it is missing, outdated or incomplete."""
    if not isinstance(known, dict) or not key or known.get("key") != key:
        return None
    try:
        if "reason" in known:
            return SkippedCase(name, str(known["reason"]))
        body = tuple((int(low), int(high)) for low, high in known["body"])
        return Case(name, folder, tuple(int(n) for n in known["shape"]), body, str(known["content"]))
    except (KeyError, TypeError, ValueError):
        return None


@dataclass(frozen=True)
class Manifest:
    """Data of one pre-training run: the cases that are used, and the skipped cases with their reasons.

    >>> Manifest((), (SkippedCase("case_001", "has a constant channel"),)).to_dict()["cases"]
    []
    """

    cases: tuple[Case, ...]
    skipped: tuple[SkippedCase, ...]

    @property
    def sha256(self) -> str:
        """SHA-256 of the names, shapes, boxes and voxels in order; identical files give identical hashes anywhere."""
        return sha256_of_json([(c.name, c.shape, c.body, c.content) for c in self.cases])

    def to_dict(self) -> dict[str, Any]:
        """Content of ``manifest.json``."""
        rows = [{"name": c.name, "source": Path(c.folder).name, "shape": list(c.shape)} for c in self.cases]
        return {"sha256": self.sha256, "cases": rows, "skipped": [asdict(s) for s in self.skipped]}


def make_manifest(
    folders: Sequence[Path],
    channels: int,
    cell: Sequence[int],
    minimum: int,
    missing: bool = False,
    already_skipped: Sequence[SkippedCase] = (),
    raw: Mapping[Path, Mapping[str, Sequence[Path]]] = MappingProxyType({}),
) -> Manifest:
    """Inspect the volumes of all folders; the log names each volume that cannot be used.

    Args:
        folders: folders with preprocessed cases.
        channels, cell, missing: see :func:`scan_cases`.
        minimum: minimum number of usable volumes.
        already_skipped: scans that preprocessing skipped; they are listed in the manifest.
        raw: image files by folder and case, which are checked for damage too.

    Raises:
        NotPreprocessedError: a folder contains no preprocessed case.
        TooFewVolumesError: fewer than ``minimum`` usable volumes.
    """
    cases: list[Case] = []
    skipped = list(already_skipped)
    for folder in folders:
        good, bad = scan_cases(folder, channels, cell, missing, raw.get(folder, {}))
        cases += good
        skipped += bad
    for case in skipped[len(already_skipped) :]:
        logger.warning("skipped %s: %s", case.name, case.reason)
    logger.info("using %s, skipping %d", counted(len(cases), "volume"), len(skipped))
    if len(cases) < minimum:
        reasons = "; ".join(f"{s.name} {s.reason}" for s in skipped[:5]) or "none was skipped"
        msg = (
            f"{counted(len(cases), 'usable volume')} in {', '.join(f.name for f in folders)}, expected at least "
            f"{minimum} ({reasons}). Preprocess more cases, or add unlabelled scans with --images DIR."
        )
        raise TooFewVolumesError(msg)
    return Manifest(tuple(cases), tuple(skipped))
