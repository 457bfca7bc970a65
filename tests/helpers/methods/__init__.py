"""Small forms of every pre-training method, for the tests that hold for all of them: one module per method.

A module ``NAME`` of this package describes the method of the same name:

    SETTINGS         arguments of ``--set`` for a run of a second or two on the tiny data set
    build()          a small method without cases, with the same weights in every process
    batch(rank)      the batch of one of two ranks, as ``dataset`` gives it, without ``keys``
    PAIRED           optional: views that hold first halves of all pairs, then second halves; None for all views
    join(key, ...)   optional: joins the parts of a view that is not a tensor
"""

import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_invariance.pretraining.engine.method import Method, Setup
from tests.helpers.planned_networks import architecture

PATCH = (16, 16, 16)


def small(name: str) -> ModuleType:
    """The module that describes a method."""
    return importlib.import_module(f"{__name__}.{name}")


def setup(channels: int = 1, batch_size: int = 2) -> Setup:
    """A three-stage network and a patch of 16^3 voxels, without cases."""
    torch.manual_seed(0)
    return Setup(architecture(channels=channels), PATCH, (1.0, 1.0, 1.0), batch_size, False, ())


def images(rank: int, samples: int = 2, channels: int = 1) -> dict[str, Tensor]:
    """Random images (samples, channels, 16, 16, 16), one of them with padding, and the valid mask."""
    generator = torch.Generator().manual_seed(rank + 1)
    valid = torch.ones(samples, 1, *PATCH, dtype=torch.bool)
    valid[rank, :, :5] = False
    return {"image": torch.randn(samples, channels, *PATCH, generator=generator) * valid, "valid": valid}


def build(name: str) -> Method:
    """A method in float64, without dropout, and without the batch statistics that each rank has of its own."""
    method = small(name).build().train().double()
    for module in method.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return method


def views_of(name: str, rank: int) -> dict[str, Any]:
    """The views of one rank."""
    return build(name).float().make_views(small(name).batch(rank), torch.Generator().manual_seed(rank + 1))


def joined(name: str, parts: list[dict]) -> dict[str, Any]:
    """The views of all ranks as those of one rank."""
    paired = getattr(small(name), "PAIRED", ())
    views: dict[str, Any] = {}
    for key, first in parts[0].items():
        values = [part[key] for part in parts]
        if not isinstance(first, Tensor):
            views[key] = small(name).join(key, values)
        elif paired is None or key in paired:
            chunks = [value.chunk(2) for value in values]
            views[key] = torch.cat([c[0] for c in chunks] + [c[1] for c in chunks])
        else:
            views[key] = torch.cat(values)
    return views


def losses_of(module: nn.Module, views: dict[str, Any]) -> Tensor:
    """The losses on images in float64, after their backward pass."""
    views = {k: v.double() if isinstance(v, Tensor) and v.dtype == torch.float32 else v for k, v in views.items()}
    losses = torch.stack(list(module(views, 0.5).losses.values()))
    losses.sum().backward()
    return losses.detach()
