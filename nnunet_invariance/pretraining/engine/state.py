"""The state that a continued run needs, as flat tensors and JSON: modules, optimizer and random number generators."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_invariance.networks.planned import unique_tensors


def module_tensors(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a module, each tensor once, with the prefix ``prefix.`` before their names.

    >>> sorted(module_tensors("network", nn.Linear(2, 1)))
    ['network.bias', 'network.weight']
    """
    return {f"{prefix}.{name}": tensor.detach() for name, tensor in unique_tensors(module).items()}


@torch.no_grad()
def restore_module(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy the tensors of :func:`module_tensors`, without their prefix, back into a module.

    Raises:
        KeyError: the names are not exactly those of the module.
    """
    own = unique_tensors(module)
    if own.keys() != tensors.keys():
        raise KeyError(f"tensors differ: {sorted(own.keys() ^ tensors.keys())[:5]}")
    for name, tensor in own.items():
        tensor.copy_(tensors[name])


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors ``optimizer.<parameter>.<name>`` and the rest as JSON (floats survive JSON exactly)."""
    state = optimizer.state_dict()
    tensors = {f"optimizer.{i}.{k}": v for i, entry in state["state"].items() for k, v in entry.items()}
    return tensors, {"param_groups": state["param_groups"]}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], rest: dict[str, Any]) -> None:
    """Load what :func:`optimizer_state` returned; ``tensors`` have names without the section prefix."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": rest["param_groups"]})


def non_finite_tensors(tensors: dict[str, Tensor]) -> list[str]:
    """Names of the tensors that contain NaN or infinity.

    >>> non_finite_tensors({"a": torch.ones(2), "b": torch.tensor([1.0, float("nan")])})
    ['b']
    """
    return [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]


def rng_tensors() -> dict[str, Tensor]:
    """States of the generators of Python, NumPy, torch and every CUDA device."""
    _, internal, gauss = random.getstate()
    state = np.random.get_state(legacy=False)
    position, has_gauss, cached = state["state"]["pos"], state["has_gauss"], state["gauss"]
    tensors = {
        "rng.python": torch.tensor(internal, dtype=torch.int64),
        "rng.python_gauss": torch.tensor([gauss is not None, gauss or 0.0], dtype=torch.float64),
        "rng.numpy": torch.from_numpy(state["state"]["key"].astype(np.int64)),
        "rng.numpy_rest": torch.tensor([position, has_gauss, cached], dtype=torch.float64),
        "rng.torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        tensors |= {f"rng.cuda{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return tensors


def restore_rng(tensors: dict[str, Tensor]) -> None:
    """Load what :func:`rng_tensors` returned; ``tensors`` have names without the section prefix."""
    has_python_gauss, gauss = tensors["python_gauss"].tolist()
    random.setstate((3, tuple(tensors["python"].tolist()), gauss if has_python_gauss else None))
    position, has_gauss, cached = tensors["numpy_rest"].tolist()
    np.random.set_state(("MT19937", tensors["numpy"].numpy().astype(np.uint32), int(position), int(has_gauss), cached))
    torch.set_rng_state(tensors["torch"])
    if torch.cuda.is_available():
        states = [tensors[f"cuda{i}"] for i in range(torch.cuda.device_count()) if f"cuda{i}" in tensors]
        torch.cuda.set_rng_state_all(states)
