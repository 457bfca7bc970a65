"""Cases and scans that the arms of a comparison learn from without labels; no test case may be among them."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunet_invariance._discovery import find_trainer
from nnunet_invariance.errors import ComparisonError
from nnunet_invariance.evaluation.protocols.checkpoints import plans_of
from nnunet_invariance.evaluation.protocols.splits import Subset, shared_cases
from nnunet_invariance.evaluation.runner.jobs import Arm, CaseSet
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset
from nnunet_invariance.nnunet.unlabelled_images import find_scans
from nnunet_invariance.plans.block import read_options
from nnunet_invariance.plans.unlabelled import REST, UnlabelledOptions


@dataclass(frozen=True)
class Unlabelled:
    """What an arm learns from without labels.

    Attributes:
        cases: names of preprocessed cases. With ``rest``, every training uses those that are not its own.
        scans: files of the scans in folders, by name.

    >>> Unlabelled(("case_7",), rest=False, scans={}).describe()
    {'cases': ['case_7'], 'rest': False, 'scans': []}
    """

    cases: tuple[str, ...]
    rest: bool
    scans: Mapping[str, Sequence[Path]]

    def describe(self) -> dict[str, Any]:
        """Content of the record."""
        return {"cases": list(self.cases), "rest": self.rest, "scans": sorted(self.scans)}


def unlabelled_of(arms: Sequence[Arm], planned: PlannedDataset, test: Collection[str]) -> dict[str, Unlabelled]:
    """What each arm learns from without labels, by arm; arms that learn from labels alone are left out.

    Args:
        test: test cases of the data set that is trained on; they do not belong to the rest.

    Raises:
        ImagesFolderError: a folder of scans is missing or empty.
    """
    found = {arm.name: _unlabelled_of(arm, planned, test) for arm in arms}
    return {name: unlabelled for name, unlabelled in found.items() if unlabelled}


def _unlabelled_of(arm: Arm, planned: PlannedDataset, test: Collection[str]) -> Unlabelled | None:
    trainer: Any = find_trainer(arm.trainer)
    if trainer is None:  # nnU-Net's own, which has no such option
        return None
    own = plans_of(arm, planned)
    block = read_options(trainer.options_class, own.configuration.configuration).unlabelled
    if block is None:
        return None
    options = UnlabelledOptions.read(block)
    rest = options.cases == REST
    known = {path.stem for path in planned.folder.glob("*.pkl")}
    cases = sorted(known - set(test)) if rest else options.cases
    scans: dict[str, Sequence[Path]] = {}
    for folder in options.images:
        scans |= find_scans(Path(folder), own)
    return Unlabelled(tuple(cases), rest, scans)


def learned_test_cases(
    unlabelled: Mapping[str, Unlabelled], tests: Sequence[CaseSet], subsets: Sequence[Subset], reader: BaseReaderWriter
) -> dict[str, set[str]]:
    """Test cases that an arm learns from without their labels, by arm, compared by name and by the voxels of scans."""
    cases = {case.name: case for test in tests for case in test.cases}
    contents = _Contents(reader)
    found = {}
    for arm, used in unlabelled.items():
        shared = cases.keys() & (used.cases if not used.rest else _tested_rest(used, subsets))
        shared |= cases.keys() & used.scans.keys()
        images = {content for case in cases.values() for content in contents.of(case.images)} if used.scans else set()
        by_content = [name for name, files in used.scans.items() if images & set(contents.of(files))]
        if shared or by_content:
            found[arm] = shared | set(by_content)
    return found


def _tested_rest(used: Unlabelled, subsets: Sequence[Subset]) -> set[str]:
    """Cases of the rest that are tested in the same training, as in a cross-validation."""
    pool = set(used.cases).union(*({*s.train, *s.val} for s in subsets))
    return {case for s in subsets for case in (s.test or ()) if case in pool - {*s.train, *s.val}}


def require_no_test_case(found: Mapping[str, Collection[str]]) -> None:
    """Refuse a comparison in which an arm learns from test cases without their labels.

    Raises:
        ComparisonError: names arm and cases.
    """
    for arm, cases in found.items():
        msg = shared_cases(sorted(cases), f"unlabelled scans of {arm}")
        raise ComparisonError(f"{msg} With --transductive they are allowed, and the report says so.")


class _Contents:
    """Hashes of the voxels of images; each file is read once."""

    def __init__(self, reader: BaseReaderWriter) -> None:
        self.reader = reader
        self.known: dict[Path, str] = {}

    def of(self, files: Sequence[Path]) -> list[str]:
        """One hash per file, of shape and voxels."""
        for file in set(files) - self.known.keys():
            image = np.ascontiguousarray(self.reader.read_images([str(file)])[0], np.float32)
            self.known[file] = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
        return [self.known[file] for file in files]
