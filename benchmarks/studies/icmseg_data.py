"""The data sets of icmseg_styles.py and icmseg_shift.py in nnU-Net's raw layout: training and test cases.

Every function reads the data folder, writes raw data sets and returns the task. A data set that has a dataset.json is
complete and is not changed.
"""

import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from benchmarks.studies.raw_data import ENDING, cases_of, describe, like, read_description, write_image
from nnunet_invariance.errors import ComparisonError
from nnunet_invariance.evaluation.runner.tree import link
from nnunet_invariance.evaluation.scoring.label_maps import Named

WINDOW = (-125, 275)  # HU, soft tissue; otherwise the z-score would include air and the table
#: Organs in both label maps of the abdomen: values in the CT map and in the MR map (both are model output).
ORGANS = {
    "spleen": (1, 1),
    "kidney_right": (2, 2),
    "kidney_left": (3, 3),
    "gallbladder": (4, 4),
    "liver": (5, 5),
    "stomach": (6, 6),
    "pancreas": (7, 7),
    "small_bowel": (18, 13),
    "duodenum": (19, 14),
    "colon": (20, 15),
    "aorta": (52, 23),
    "inferior_vena_cava": (63, 24),
}
LARGEST_VALUE = 117
ABDOMEN_MR = "Dataset903_AbdomenMR"


@dataclass(frozen=True)
class Task:
    """Training and test data; ``most_draws`` is the number of different draws of training cases."""

    source: str
    targets: Sequence[str]
    shots: Sequence[int | str] = ("all",)
    n_val: int = 2
    parts: int | None = None
    names: Mapping[str, Mapping[str, Named]] = field(default_factory=dict)
    most_draws: int = 100


# --- contrasts; each keeps shape and anatomy, accepts any scale of intensities, and is deterministic


def original(image: np.ndarray, seed: int) -> np.ndarray:
    """The image itself."""
    return image


def inverted(image: np.ndarray, seed: int) -> np.ndarray:
    """The image with inverted intensities."""
    return image.max() + image.min() - image


def remapped(image: np.ndarray, seed: int) -> np.ndarray:
    r"""Like T2 from T1: :math:`e^{-4u} + 0.5 e^{-((u - 0.6) / 0.1)^2}` of the share u of darker voxels.

    The curve decreases, increases and decreases again, and acts on ranks. Curves of interventions are
    monotone or have one turning point, and location-scale changes are linear within a tissue.
    """
    _, place, counts = np.unique(image, return_inverse=True, return_counts=True)
    u = ((np.cumsum(counts) - 0.5 * counts) / image.size)[place].reshape(image.shape)
    return np.exp(-4 * u) + 0.5 * np.exp(-(((u - 0.6) / 0.1) ** 2))


def biased(image: np.ndarray, seed: int) -> np.ndarray:
    """The image minus its minimum, times exp(b), where b is a quadratic polynomial of the position in [-1.2, 1.2]."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in image.shape), indexing="ij")
    terms = (z, y, x, z * y, z * x, y * x, z * z, y * y, x * x)
    b = sum(weight * term for weight, term in zip(rng.standard_normal(len(terms)), terms, strict=True))
    b = 2.4 * (b - b.min()) / np.ptp(b) - 1.2
    return (image - image.min()) * np.exp(b)


CONTRASTS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "Original": original,
    "Inverted": inverted,
    "Remapped": remapped,
    "Biased": biased,
}


# --- data sets


def lay_out_hippocampus(data: Path, raw: Path, seed: int, n_test: int = 20) -> Task:
    """Write hippocampus; trains on 20 of the cases that are not held out.

    The anterior and the posterior part are one class, because such a short training does not separate them.
    """
    targets = _lay_out_contrasts(data / "Dataset004_Hippocampus", raw, 810, n_test, seed, "hippocampus")
    return Task("Dataset004_Hippocampus", targets, shots=(20,))


def lay_out_left_atrium(data: Path, raw: Path, seed: int, n_test: int = 6) -> Task:
    """Write the left atrium; trains on 6 of the 10 cases that are not held out."""
    targets = _lay_out_contrasts(data / "Dataset901_LA2018", raw, 820, n_test, seed, "left atrium")
    return Task("Dataset901_LA2018", targets, shots=(6,))


def _lay_out_contrasts(data: Path, raw: Path, first: int, n_test: int, seed: int, organ: str) -> list[str]:
    """Write the training cases, and the held-out cases in each contrast; returns the names of the latter data sets."""
    described = read_description(data)
    cases = cases_of(data)
    test = sorted(random.Random(f"styles {seed}").sample(cases, n_test))
    source = raw / data.name
    if set(test) & {p.name.removesuffix(ENDING) for p in source.glob("labelsTr/*")}:
        raise ComparisonError(f"{source} was made with another seed. Give another --work.")
    for case in sorted(set(cases) - set(test)):
        link(data / "imagesTr" / f"{case}_0000{ENDING}", source / "imagesTr" / f"{case}_0000{ENDING}")
        _write_organ(data / "labelsTr" / f"{case}{ENDING}", source)
    channel, labels = described["channel_names"]["0"], {"background": 0, organ: 1}
    describe(source, [channel], labels)
    names = []
    for number, (name, change) in enumerate(CONTRASTS.items(), first):
        target = raw / f"Dataset{number}_{name}"
        names.append(target.name)
        if (target / "dataset.json").is_file():
            continue
        for case in test:
            image = sitk.ReadImage(data / "imagesTr" / f"{case}_0000{ENDING}")
            array = sitk.GetArrayFromImage(image).astype(np.float32)
            _write(change(array, zlib.crc32(case.encode())), image, target / "imagesTr" / f"{case}_0000{ENDING}")
            _write_organ(data / "labelsTr" / f"{case}{ENDING}", target)
        describe(target, [channel], labels)
    return names


def _write_organ(path: Path, dataset: Path) -> None:
    """Write a label map with all labels merged into one."""
    labels = sitk.ReadImage(path)
    _write((sitk.GetArrayFromImage(labels) > 0).astype(np.uint8), labels, dataset / "labelsTr" / path.name)


def lay_out_abdomen(data: Path, raw: Path, seed: int) -> Task:
    """Write the abdomen: trains on one CT in the soft-tissue window, tests on one MR with other label values.

    The second CT is a slab of the first and serves only as nnU-Net's validation case; there is one draw.
    """
    data, source, target = data / "abdomen_ct_mr", raw / "Dataset902_AbdomenCT", raw / ABDOMEN_MR
    for case, image, labels in (
        ("ct", "example_ct", "example_seg_fast_force_split"),
        ("slab", "example_ct_sm", "example_seg"),
    ):
        volume, segmentation = (sitk.ReadImage(data / f"{name}{ENDING}") for name in (image, labels))
        values = sitk.GetArrayFromImage(segmentation)
        organs = sum(number * (values == ct) for number, (ct, _) in enumerate(ORGANS.values(), 1)).astype(np.uint8)
        clipped = sitk.GetArrayFromImage(volume).clip(*WINDOW)
        _write(clipped, volume, source / "imagesTr" / f"{case}_0000{ENDING}")
        _write(organs, segmentation, source / "labelsTr" / f"{case}{ENDING}")
    # Not "CT": nnU-Net would normalise an MR by Hounsfield units.
    describe(source, ["windowed CT"], {"background": 0, **{name: i for i, name in enumerate(ORGANS, 1)}})
    for source_name, folder, name in (("example_mr_sm", "imagesTr", "mr_0000"), ("example_seg_mr", "labelsTr", "mr")):
        link(data / f"{source_name}{ENDING}", target / folder / f"{name}{ENDING}")
    describe(target, ["MR"], {"background": 0, **{f"value {v}": v for v in range(1, LARGEST_VALUE + 1)}})
    names = {ABDOMEN_MR: {name: mr for name, (_, mr) in ORGANS.items()}}
    return Task(source.name, [ABDOMEN_MR], n_val=1, names=names, most_draws=1)


def lay_out_prostate(data: Path, raw: Path, seed: int) -> Task:
    """Write the prostate: MR to ultrasound, six patients, cross-validated; the gland is volume 0 of the labels."""
    data = data / "prostate_mr_us"
    names = {"mr": "Dataset904_ProstateMR", "us": "Dataset905_ProstateUS"}
    for kind, name in names.items():
        for path in sorted((data / f"{kind}_images").glob(f"*{ENDING}")):
            case, image = path.name.removesuffix(ENDING), sitk.ReadImage(path)
            gland = sitk.GetArrayFromImage(sitk.ReadImage(data / f"{kind}_labels" / path.name))[0] > 0.5
            link(path, raw / name / "imagesTr" / f"{case}_0000{ENDING}")
            _write(gland.astype(np.uint8), image, raw / name / "labelsTr" / path.name)
        describe(raw / name, [kind.upper()], {"background": 0, "gland": 1})
    return Task(names["mr"], [names["us"]], n_val=1, parts=3)


def lay_out_myops(data: Path, raw: Path, seed: int, source: str, n_test: int = 10) -> Task:
    """Write MyoPS: trains on one sequence of 15 people, tests on all three sequences of the 10 others.

    The myocardium is one class, because edema and scar cannot be seen in every sequence.
    """
    data, sequences = data / "Dataset912_MyoPS", ("C0", "LGE", "T2")
    read_description(data)
    cases = cases_of(data)
    test = sorted(random.Random(f"styles {seed}").sample(cases, n_test))
    names = {"train": f"Dataset83{sequences.index(source)}_MyoPS{source}"}
    names |= {sequence: f"Dataset83{3 + i}_{sequence}" for i, sequence in enumerate(sequences)}
    for kind, name in names.items():
        channel = sequences.index(source if kind == "train" else kind)
        for case in sorted(set(cases) - set(test)) if kind == "train" else test:
            image = raw / name / "imagesTr" / f"{case}_0000{ENDING}"
            link(data / "imagesTr" / f"{case}_{channel:04d}{ENDING}", image)
            labels = sitk.ReadImage(data / "labelsTr" / f"{case}{ENDING}")
            merged = sitk.GetArrayFromImage(labels).clip(max=3).astype(np.uint8)
            _write(merged, labels, raw / name / "labelsTr" / f"{case}{ENDING}")
        describe(raw / name, ["MR"], {"background": 0, "lv_blood_pool": 1, "rv_blood_pool": 2, "myocardium": 3})
    return Task(names["train"], [names[sequence] for sequence in sequences], shots=(12,))


#: In the order in which they run.
SETS: dict[str, Callable[..., Task]] = {
    "hippocampus": lay_out_hippocampus,
    "left_atrium": lay_out_left_atrium,
    "abdomen": lay_out_abdomen,
    "prostate": lay_out_prostate,
}


def _write(array: np.ndarray, image: sitk.Image, path: Path) -> None:
    """Write labels (uint8), or intensities as float32, with the grid of an image."""
    write_image(like(array if array.dtype == np.uint8 else array.astype(np.float32), image), path)
