"""Decide which axes a trainer mirrors, from its training cases."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from nnunet_invariance.nnunet.mirroring import LabelledImage, MirroringDecision, decide_mirroring

MOST_CASES = 30


def mirroring_of(
    folder: str, cases: Sequence[str], dataset_json: Mapping[str, Any], axes: Sequence[int]
) -> MirroringDecision:
    """Decide which of ``axes`` may be mirrored, from at most thirty evenly spaced training cases of ``cases``.

    Args:
        folder: folder of nnU-Net's preprocessed cases.
        cases: names of the training cases; validation cases must not be among them.
        dataset_json: content of ``dataset.json``.
        axes: the axes that nnU-Net would mirror.
    """
    labels = dataset_json["labels"]
    names = {value: name for name, value in labels.items() if isinstance(value, int) and value > 0 and name != "ignore"}
    step = max(1, -(-len(cases) // MOST_CASES))
    return decide_mirroring(_read(folder, cases[::step]), names, axes)


def _read(folder: str, cases: Sequence[str]) -> Iterator[LabelledImage]:
    dataset = infer_dataset_class(folder)(folder, list(cases))
    for name in cases:
        image, labels, *_ = dataset.load_case(name)
        yield LabelledImage(np.asarray(image[:]), np.asarray(labels[:])[0])
