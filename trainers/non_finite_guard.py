"""Protection of a training against losses, gradients and weights that are not finite."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_invariance.common.collectives import all_reduce_max
from nnunet_invariance.common.non_finite import MAX_NON_FINITE_STEPS
from nnunet_invariance.errors import NonFiniteLossError


def is_finite(losses: Mapping[str, np.ndarray]) -> bool:
    """Return whether every loss of a step is finite.

    >>> is_finite({"loss": np.asarray(0.5), "info_nce": np.asarray(np.nan)})
    False
    """
    return all(np.isfinite(value) for value in losses.values())


class NonFiniteGuard:
    """Skips and counts steps with non-finite losses or gradients; :data:`MAX_NON_FINITE_STEPS` in a row stop the run.

    A skipped step changes neither the parameters, nor the optimiser's momentum, nor the buffers of the network.

    Attributes:
        in_epoch: number of skipped steps since :meth:`start_epoch`.

    >>> layer = nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    >>> guard = NonFiniteGuard()
    >>> guard.attach(optimizer)
    >>> before = layer.weight.item()
    >>> with guard.protect([layer]):
    ...     (layer(torch.ones(1, 1)) * torch.inf).sum().backward()
    ...     optimizer.step()
    >>> layer.weight.item() == before, guard.skipped
    (True, True)
    """

    def __init__(self) -> None:
        self.in_epoch = 0
        self.skipped = False
        self._scaler: torch.amp.GradScaler | None = None
        self._losses: list[Tensor] = []  # of the current step
        self._cases: list[Sequence[str]] = []  # of each step since the last finite one

    def attach(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None = None) -> None:
        """Watch the steps of an optimiser; a scaler skips non-finite gradients by itself."""
        self._scaler = scaler
        optimizer.register_step_pre_hook(self._before_step)

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Remove all gradients if one is not finite: an optimiser changes no parameter that has no gradient."""
        if self._scaler is not None:  # it calls the optimiser only if all gradients are finite
            self.skipped = False
            return
        finite = [gradient.isfinite().all() for gradient in _gradients(optimizer)]
        if not finite or torch.stack(finite).all():  # one value for the host to wait for
            return
        self.skipped = True
        optimizer.zero_grad(set_to_none=True)

    @contextmanager
    def protect(self, modules: Iterable[nn.Module]) -> Iterator[None]:
        """Enclose one training step; if it is skipped, the buffers of the modules get their values back."""
        self.skipped, self._losses = self._scaler is not None, []
        saved = [(buffer, buffer.clone()) for module in modules for buffer in module.buffers()]
        yield
        if self.skipped:
            for buffer, value in saved:
                buffer.copy_(value)

    def report_loss(self, total: Tensor) -> None:
        """Note a loss of the current step; the step is skipped if one of its losses is not finite on a rank."""
        self._losses.append(total.detach())

    def mark_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Before the step: a loss that is not finite on a rank makes a gradient NaN on all of them.

        The gradient of such a loss can be finite, and all ranks must skip the same steps.
        """
        if not self._losses:
            return
        broken = all_reduce_max(torch.stack([~loss.isfinite() for loss in self._losses]).any().float())
        first = next(_gradients(optimizer), None)
        if first is not None:  # without a gradient there is no step
            first.masked_fill_(broken > 0, torch.nan)

    def start_epoch(self) -> None:
        """Reset :attr:`in_epoch`; the number of steps in a row is kept across epochs."""
        self.in_epoch = 0

    def check(self, losses: Mapping[str, np.ndarray], cases: Sequence[str]) -> str | None:
        """Return a warning for the log, or None after a finite step.

        Raises:
            NonFiniteLossError: too many non-finite steps in a row; names the cases of all of them.
        """
        found = [name for name, value in losses.items() if not np.isfinite(value)]
        if not found and not self.skipped:
            self._cases.clear()
            return None
        self.in_epoch += 1
        # A scaler overflows on purpose to find its scale; below 1 the unscaled gradients themselves are not finite.
        if not found and self._scaler is not None and self._scaler.get_scale() >= 1:
            return None
        found = found or ["gradients"]
        self._cases.append([str(case) for case in cases])
        what = "gradients were" if found == ["gradients"] else f"loss ({', '.join(found)}) was"
        if len(self._cases) == MAX_NON_FINITE_STEPS:
            names = ", ".join(sorted({case for step in self._cases for case in step}))
            raise NonFiniteLossError(
                f"The {what} not finite in {len(self._cases)} steps in a row, with the cases {names}. The checkpoint "
                "of the last finished epoch is kept. Look for broken values in these cases, then continue with --c."
            )
        return (
            f"WARNING: the {what} not finite, and the step was skipped; cases {', '.join(self._cases[-1])}; "
            f"{len(self._cases)} in a row, {MAX_NON_FINITE_STEPS} stop the run."
        )


def _gradients(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    return (parameter.grad for parameter in parameters if parameter.grad is not None)


def require_finite(state: Mapping[str, Any], file: str) -> None:
    """Refuse to write non-finite tensors to a checkpoint.

    Args:
        state: content of the checkpoint; nested containers are searched too.
        file: path for the message.

    Raises:
        NonFiniteLossError: a tensor is not finite.
    """
    broken = [name for name, tensor in _tensors(state) if not tensor.isfinite().all()]
    if broken:
        raise NonFiniteLossError(
            f"{file} was not written, because {broken[0]} is not finite (tensors with such values: {len(broken)}). An "
            "earlier checkpoint stays. Look for warnings in the log, lower the learning rate, and continue with --c."
        )


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _tensors(item, f"{name}.{index}")
