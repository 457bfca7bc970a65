"""NonFiniteGuard on single layers: skipped steps, buffers, and the scale of a gradient scaler."""

import copy
import math

import numpy as np
import pytest
import torch

from nnunet_invariance.common.non_finite import MAX_NON_FINITE_STEPS
from nnunet_invariance.errors import NonFiniteLossError
from nnunet_invariance.trainers.non_finite_guard import NonFiniteGuard, require_finite
from nnunet_invariance.trainers.stepping import clipped_step
from tests.helpers.tiny_trainers import assert_same
from tests.helpers.two_ranks import on_two_ranks

FINITE = {"loss": np.asarray(0.5)}


def test_a_skipped_step_leaves_parameters_momentum_and_buffers():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    guard = NonFiniteGuard()
    guard.attach(optimizer)

    def step(scale: float) -> None:
        with guard.protect([network]):
            optimizer.zero_grad()
            (network(torch.randn(5, 3)).square().sum() * scale).backward()
            optimizer.step()

    def state() -> dict:
        return copy.deepcopy({"network": network.state_dict(), "momentum": optimizer.state_dict()["state"]})

    step(1.0)
    before = state()
    for scale in (math.inf, math.nan):
        step(scale)
        assert guard.skipped
        assert_same(state(), before)
    step(1.0)
    assert not guard.skipped
    assert not torch.equal(network[0].weight, before["network"]["0.weight"])
    assert not torch.equal(network[1].running_mean, before["network"]["1.running_mean"])


def step_with_a_loss(value: float, scaler: torch.amp.GradScaler | None = None) -> tuple[bool, bool]:
    """Whether a step was skipped, and whether it changed the weight; the gradient does not depend on the value."""
    layer = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    guard = NonFiniteGuard()
    guard.attach(optimizer, scaler)
    before = layer.weight.item()
    with guard.protect([layer]):
        total = layer(torch.ones(1, 1)).sum() + value
        guard.report_loss(total)
        (total if scaler is None else scaler.scale(total)).backward()
        clipped_step(optimizer, scaler, guard)
    return guard.skipped, layer.weight.item() != before


@pytest.mark.parametrize("scaled", [False, True])
def test_a_finite_gradient_of_a_non_finite_loss_is_skipped_too(scaled):
    for value in (math.inf, math.nan):
        assert step_with_a_loss(value, torch.amp.GradScaler("cpu") if scaled else None) == (True, False)
    assert step_with_a_loss(1.0, torch.amp.GradScaler("cpu") if scaled else None) == (False, True)


def losses_of_a_rank(rank: int) -> list[list[bool]]:
    """A step whose loss is broken on the second rank only, and a step without a broken loss."""
    return [list(step_with_a_loss(value)) for value in (math.nan if rank else 1.0, 1.0)]


def test_all_ranks_skip_the_step_that_one_of_them_has_to_skip():
    assert on_two_ranks(losses_of_a_rank) == [[[True, False], [False, True]]] * 2


def test_an_overflow_counts_only_if_the_scale_is_below_one():
    """A gradient scaler overflows on purpose, and halves its scale from 2^16 until the gradients fit."""
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer, scaler = torch.optim.SGD(network.parameters(), 0.1), torch.amp.GradScaler("cpu")
    guard = NonFiniteGuard()
    guard.attach(optimizer, scaler)
    before = copy.deepcopy(network.state_dict())

    def overflow() -> str | None:
        with guard.protect([network]):
            optimizer.zero_grad()
            scaler.scale(network(torch.randn(5, 3)).sum() * math.inf).backward()
            scaler.step(optimizer)
            scaler.update()
        assert guard.skipped
        return guard.check(FINITE, ["case"])

    while scaler.get_scale() > 1:
        assert overflow() is None
    assert guard.in_epoch == 16  # skipped steps all the same
    for number in range(1, MAX_NON_FINITE_STEPS):
        assert f"gradients were not finite, and the step was skipped; cases case; {number} in a row" in overflow()
    with pytest.raises(NonFiniteLossError, match=f"gradients were not finite in {MAX_NON_FINITE_STEPS} steps in a row"):
        overflow()
    assert_same(network.state_dict(), before)


def test_a_finite_step_ends_a_row():
    guard = NonFiniteGuard()
    for _ in range(3):
        for _ in range(MAX_NON_FINITE_STEPS - 1):
            assert guard.check({"loss": np.asarray(math.nan)}, ["case"]) is not None
        assert guard.check(FINITE, ["case"]) is None
    assert guard.in_epoch == 3 * (MAX_NON_FINITE_STEPS - 1)


def test_an_overflow_does_not_end_a_row():
    guard = NonFiniteGuard()
    guard.attach(torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), 0.1), torch.amp.GradScaler("cpu"))
    broken = {"loss": np.asarray(math.nan)}

    def skip(losses: dict) -> None:
        with guard.protect([]):
            pass  # the scaler does not call the optimiser
        guard.check(losses, ["case"])

    for _ in range(MAX_NON_FINITE_STEPS - 1):
        skip(broken)
        skip(FINITE)
    with pytest.raises(NonFiniteLossError):
        skip(broken)
    assert guard.in_epoch == 2 * MAX_NON_FINITE_STEPS - 1


def test_non_finite_tensors_of_a_checkpoint_are_named():
    state = {"weights": {"a": torch.ones(2)}, "optimizer": {"state": [{"b": torch.tensor([1.0, math.inf])}]}, "n": 3}
    with pytest.raises(
        NonFiniteLossError, match=r"x\.pth was not written, because optimizer\.state\.0\.b is not finite"
    ):
        require_finite(state, "x.pth")
    require_finite({**state, "optimizer": {}}, "x.pth")
