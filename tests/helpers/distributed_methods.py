"""The same small methods, and the views of each rank, in every process of test_distributed."""

from dataclasses import fields

import torch
from torch import Tensor

from nnunet_invariance.losses.hard_negative_info_nce import SampledIndices
from nnunet_invariance.pretraining.engine.method import Method, Setup
from nnunet_invariance.pretraining.methods.sam import SAM, SAMOptions
from tests.helpers.planned_networks import architecture
from tests.helpers.tiny_anatomix import make as make_anatomix

RANKS = 2


def build(name: str) -> Method:
    """A method in float64; the heads of anatomix have no batch norm, whose statistics differ between ranks."""
    if name == "anatomix":
        method = make_anatomix(batch_size=1).double()
        method.heads.eval()
        return method
    torch.manual_seed(0)
    setup = Setup(architecture(), (16, 16, 16), (1.0, 1.0, 1.0), 4, False, ())
    return SAM(setup, SAMOptions(features=8, batch_size=2, others=30, ignore=2.0)).train().double()


def views_of(name: str, rank: int) -> dict:
    """The views of one rank: a label map of anatomix, or two volumes of sam, whose negatives come from these two."""
    method = build(name).float()
    generator = torch.Generator().manual_seed(rank + 1)
    if name == "anatomix":
        return method.make_views({"seed": torch.tensor(0), "number": torch.tensor([rank])}, generator)
    valid = torch.ones(4, 1, 16, 16, 16, dtype=torch.bool)
    valid[rank, :, :5] = False
    image = torch.randn(valid.shape, generator=generator) * valid
    return method.make_views({"image": image, "valid": valid, "origin": torch.zeros(4, 3)}, generator)


def joined(parts: list[dict]) -> dict:
    """The views of all ranks as those of one rank: all first views, then all second views; indices are adapted."""
    views = {}
    for key, first in parts[0].items():
        values = [part[key] for part in parts]
        if key in ("image", "clean"):
            chunks = [value.chunk(2) for value in values]
            views[key] = torch.cat([c[0] for c in chunks] + [c[1] for c in chunks])
        elif isinstance(first, Tensor):
            views[key] = torch.cat(values)
        else:
            views[key] = {name: torch.cat([v[name] for v in values]) for name in ("position", "valid_mask")}
            views[key]["indices"] = _joined_indices([v["indices"] for v in values], first["position"].shape[:2].numel())
    return views


def _joined_indices(indices: list[SampledIndices], keys: int) -> SampledIndices:
    """Adapt indices: ``cross_sample`` indexes all ``keys`` keys of a rank, the others the keys of a volume."""
    parts = {f.name: [getattr(i, f.name) for i in indices] for f in fields(SampledIndices)}
    parts["cross_sample"] = [index + rank * keys for rank, index in enumerate(parts["cross_sample"])]
    return SampledIndices(**{name: torch.cat(tensors) for name, tensors in parts.items()})


def losses_of(module: torch.nn.Module, views: dict) -> Tensor:
    """The losses in float64, after the backward pass."""
    output = module({**views, "image": views["image"].double()}, 0.5)
    losses = torch.stack(list(output.losses.values()))
    losses.sum().backward()
    return losses.detach()
