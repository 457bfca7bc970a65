"""Checks of the loop on what a method returns; the contract itself is in :mod:`.method`."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_invariance.errors import MethodContractError
from nnunet_invariance.pretraining.engine.method import Method, StepOutput


def _violation(method: Method, part: str, found: str, expected: str) -> MethodContractError:
    where = "See the contract in nnunet_invariance/pretraining/engine/method.py."
    return MethodContractError(f"The method {method.name!r}: {part} is {found}; expected {expected}. {where}")


def check_method(method: Method) -> None:
    """Check a method that was just built: options, network, heads, teacher, and loss weights.

    Raises:
        MethodContractError: names the part, what was found and what was expected.
    """
    if not isinstance(method.options, method.options_class):
        found = type(method.options).__name__
        raise _violation(method, "options", f"a {found}", f"a {method.options_class.__name__}")
    for part in ("network", "heads"):
        if not isinstance(getattr(method, part), nn.Module):
            raise _violation(method, part, f"a {type(getattr(method, part)).__name__}", "an nn.Module")
    if method.teacher is not None:
        names = [set(dict(module.named_parameters())) for module in (method.teacher, method.network)]
        if names[0] != names[1]:
            differing = ", ".join(sorted(names[0] ^ names[1])[:3])
            raise _violation(method, "teacher", f"another network ({differing})", "a copy of the network, or None")
        if any(parameter.requires_grad for parameter in method.teacher.parameters()):
            raise _violation(method, "teacher", "a network with gradients", "frozen_copy(self.network)")
    if not any(parameter.requires_grad for parameter in method.parameters()):
        raise _violation(method, "network", "without a trained parameter", "at least one")
    saved = ("network", "heads", "teacher")
    if other := sorted({name for name in method.state_dict() if name.split(".")[0] not in saved}):
        expected = f"a tensor in {', '.join(saved)}, which alone are saved and restored"
        raise _violation(method, f"the state {other[0]!r}", "an attribute of the method itself", expected)
    weights = method.loss_weights
    if not weights or not all(isinstance(w, int | float) and 0 <= w < float("inf") for w in weights.values()):
        raise _violation(method, "loss_weights", repr(weights), "a finite weight of at least 0 for every loss")


def check_result(method: Method, hook: str, result: Any, kind: type, expected: str) -> None:
    """Check the type of what a hook of the method returned.

    Raises:
        MethodContractError: it has another type.
    """
    if not isinstance(result, kind):
        raise _violation(method, f"the result of {hook}()", f"a {type(result).__name__}", expected)


def split_batch(method: Method, batch: Any) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a batch, and the names of its cases.

    Raises:
        MethodContractError: the batch is no dict of tensors with a list of names ``keys``.
    """
    if not isinstance(batch, Mapping):
        raise _violation(method, "a batch of dataset()", f"a {type(batch).__name__}", "a dict")
    keys = batch.get("keys")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise _violation(method, "a batch's 'keys'", repr(keys), "a list of the names of its cases")
    tensors = {name: value for name, value in batch.items() if name != "keys"}
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise _violation(method, f"a batch's {name!r}", f"a {type(value).__name__}", "a tensor")
    return tensors, list(keys)


def check_views(method: Method, views: Any) -> None:
    """Check the input of the forward pass.

    Raises:
        MethodContractError: the views are no dict, or one of them has a gradient.
    """
    check_result(method, "make_views", views, Mapping, "a dict")
    for name, value in views.items():
        if isinstance(value, Tensor) and value.requires_grad:
            expected = "a tensor without gradient; decorate make_views with torch.no_grad()"
            raise _violation(method, f"the view {name!r}", "a tensor with gradient", expected)


def check_output(method: Method, output: Any) -> None:
    """Check the losses, diagnostics, state and rows of a forward pass; reads no value, so that no device waits.

    Raises:
        MethodContractError: names the part, what was found and what was expected.
    """
    check_result(method, "forward", output, StepOutput, "a StepOutput")
    weights = method.loss_weights
    unknown = sorted(output.losses.keys() - weights.keys())
    missing = sorted(name for name, weight in weights.items() if weight and name not in output.losses)
    if unknown or missing:
        found = f"{', '.join(output.losses) or 'empty'}"
        raise _violation(method, "the set of losses", found, f"the names in loss_weights: {', '.join(weights)}")
    for name, loss in output.losses.items():
        _check_scalar(method, f"the loss {name!r}", loss)
        if weights[name] and torch.is_grad_enabled() and not loss.requires_grad:
            raise _violation(method, f"the loss {name!r}", "without gradient", "a scalar with gradient")
    for name, value in output.diagnostics.items():
        _check_scalar(method, f"the diagnostic {name!r}", value)
        if value.requires_grad:
            raise _violation(method, f"the diagnostic {name!r}", "a scalar with gradient", "a detached scalar")
    if both := sorted(output.losses.keys() & output.diagnostics.keys() | {"loss"} & output.diagnostics.keys()):
        raise _violation(method, f"the diagnostic {both[0]!r}", "also the name of a loss", "another name")
    for part in ("state", "rows"):
        for name, value in getattr(output, part).items():
            if not isinstance(value, Tensor):
                raise _violation(method, f"{part}[{name!r}]", f"a {type(value).__name__}", "a tensor")


def check_gradients(method: Method) -> None:
    """Check after a backward pass that every trained parameter has a gradient; several ranks would wait for it.

    Raises:
        MethodContractError: names the first parameter without a gradient.
    """
    for name, parameter in method.named_parameters():
        if parameter.requires_grad and parameter.grad is None:
            expected = "a gradient for every parameter with requires_grad in every step; freeze what no loss uses, for "
            expected += "example by self.freeze_decoder()"
            raise _violation(method, f"the parameter {name!r}", "without gradient", expected)


def _check_scalar(method: Method, part: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise _violation(method, part, f"a {type(value).__name__}", "a scalar tensor")
    if value.ndim:
        raise _violation(method, part, f"a tensor of shape {tuple(value.shape)}", "a scalar tensor")
