"""A small SAM, and two views of two volumes per rank; the negatives are sampled from these volumes."""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from nnunet_invariance.losses.hard_negative_info_nce import SampledIndices
from nnunet_invariance.pretraining.methods.sam import SAM, SAMOptions
from tests.helpers.methods import images, setup

SETTINGS = ["features=8", "num_cross_sample=50"]
PAIRED = ("image",)


def build() -> SAM:
    """With short embeddings and few negatives."""
    return SAM(
        setup(batch_size=4), SAMOptions(features=8, batch_size=2, num_cross_sample=30, min_negative_distance=2.0)
    )


def batch(rank: int) -> dict[str, Tensor]:
    """Two views of two volumes."""
    return {**images(rank, samples=4), "origin": torch.zeros(4, 3)}


def join(key: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Positions and masks of all ranks, and sampled indices that name the same keys as before."""
    keys = parts[0]["position"].shape[:2].numel()
    view: dict[str, Any] = {name: torch.cat([part[name] for part in parts]) for name in ("position", "valid_mask")}
    sampled = {f.name: [getattr(part["indices"], f.name) for part in parts] for f in fields(SampledIndices)}
    # ``cross_sample`` names a key of all volumes of a rank; all other indices name a key of their own volume
    sampled["cross_sample"] = [index + rank * keys for rank, index in enumerate(sampled["cross_sample"])]
    view["indices"] = SampledIndices(**{name: torch.cat(tensors) for name, tensors in sampled.items()})
    return view
