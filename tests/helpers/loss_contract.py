"""What every loss of the package promises; a test class per loss inherits these tests."""

import inspect
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from nnunet_invariance.errors import InvarianceError, OptionError, ShapeError
from tests.helpers.two_ranks import on_two_ranks

HALF = (torch.float16, torch.bfloat16)


class LossContract:
    """Base class of the contract tests of one loss.

    Attributes:
        loss_class: the loss.
        options: arguments of its constructor.
        wrong_options: arguments that the constructor has to refuse, one each.
        differentiable: names of the inputs that get a gradient.
        gathers: whether the loss compares rows of different ranks.
    """

    loss_class: ClassVar[type[nn.Module]]
    options: ClassVar[dict[str, Any]] = {}
    wrong_options: ClassVar[tuple[dict[str, Any], ...]] = ()
    differentiable: ClassVar[tuple[str, ...]]
    gathers: ClassVar[bool] = False

    def inputs(self) -> dict[str, Any]:
        """Arguments of ``forward`` by name, in float64: four samples, and masks that are partly False."""
        raise NotImplementedError

    def disturbed(self, inputs: dict[str, Any]) -> dict[str, Any] | None:
        """The same arguments with other values where a mask is False; None for a loss without a mask."""
        raise NotImplementedError

    def make(self, device: torch.device, dtype: torch.dtype = torch.float32) -> nn.Module:
        return self.loss_class(**self.options).to(device, dtype)

    def given(self, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        """The inputs on a device; floating-point tensors in ``dtype``."""

        def convert(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.to(device, dtype if value.is_floating_point() else value.dtype)

        return {name: convert(value) for name, value in self.inputs().items()}

    def test_the_loss_is_a_finite_scalar_with_a_finite_gradient(self, device):
        inputs = self.given(device, torch.float32)
        rows = [inputs[name].requires_grad_() for name in self.differentiable]
        loss = self.make(device)(**inputs)
        assert loss.shape == ()
        assert loss.isfinite()
        assert loss >= 0
        gradients = torch.autograd.grad(loss, rows)
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert all(gradient.any() for gradient in gradients)

    def test_loss_and_gradient_are_those_of_float64_on_the_cpu(self, device):
        found = []
        for where, dtype in ((device, torch.float32), (torch.device("cpu"), torch.float64)):
            inputs = self.given(where, dtype)
            rows = [inputs[name].requires_grad_() for name in self.differentiable]
            loss = self.make(where, dtype)(**inputs)
            found.append([value.detach().cpu().double() for value in (loss, *torch.autograd.grad(loss, rows))])
        for value, expected in zip(*found, strict=True):
            assert (value - expected).norm() <= 1e-4 * expected.norm()

    @pytest.mark.parametrize("dtype", HALF)
    def test_half_precision_is_computed_in_float32(self, device, dtype):
        inputs = self.given(device, dtype)
        loss = self.make(device)(**inputs)
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        wide = {k: v.float() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()}
        torch.testing.assert_close(loss, self.make(device)(**wide))

    def test_autocast_does_not_change_the_loss(self, device):
        inputs, loss = self.given(device, torch.float32), self.make(device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            under_autocast = loss(**inputs)
        assert under_autocast.dtype == torch.float32
        torch.testing.assert_close(under_autocast, loss(**inputs))

    def test_masked_values_have_no_influence(self, device):
        inputs = self.given(device, torch.float32)
        disturbed = self.disturbed(inputs)
        if disturbed is None:
            assert not any("mask" in name for name in inspect.signature(self.loss_class.forward).parameters)
            return
        assert any(not torch.equal(disturbed[name], inputs[name]) for name in self.differentiable)
        loss = self.make(device)
        assert torch.equal(loss(**disturbed), loss(**inputs))

    def test_the_gradient_equals_finite_differences(self, device):
        inputs, loss = self.given(device, torch.float64), self.make(device, torch.float64)
        rows = [inputs[name].requires_grad_() for name in self.differentiable]
        assert torch.autograd.gradcheck(
            lambda *rows: loss(**{**inputs, **dict(zip(self.differentiable, rows, strict=True))}), rows
        )

    def test_wrong_shapes_are_errors_that_name_both_shapes(self, device):
        inputs, loss = self.given(device, torch.float32), self.make(device)
        for name, value in inputs.items():
            if isinstance(value, Tensor):
                for wrong in (value[:1], value[0]):
                    with pytest.raises(ShapeError, match=r"has shape \([\d, ]*\); expected \(") as error:
                        loss(**{**inputs, name: wrong})
                    assert isinstance(error.value, InvarianceError), name
                    assert isinstance(error.value, ValueError), name

    def test_wrong_options_are_errors_that_name_the_argument(self):
        names = set(inspect.signature(self.loss_class.__init__).parameters) - {"self"}
        checked = {name for wrong in self.wrong_options for name in wrong}
        assert {name for name in names if not isinstance(self.default(name), bool)} == checked
        for wrong in self.wrong_options:
            ((name, value),) = wrong.items()
            with pytest.raises(OptionError, match=f"'{name}' is ") as error:
                self.loss_class(**{**self.options, **wrong})
            assert repr(value) in str(error.value)
            assert isinstance(error.value, ValueError)

    def default(self, name: str) -> Any:
        return inspect.signature(self.loss_class.__init__).parameters[name].default

    def test_repr_shows_the_parameters(self):
        text = repr(self.loss_class(**self.options))
        assert text.startswith(f"{self.loss_class.__name__}(")
        for name in list(inspect.signature(self.loss_class.__init__).parameters)[1:]:
            value = self.options.get(name, self.default(name))
            assert f"{name}={value!r}" in text

    def test_two_ranks_equal_one_rank_on_the_joined_batch(self):
        """The mean over ranks of the loss, and of the gradient, as DistributedDataParallel takes it."""
        if not self.gathers:
            return
        loss, *gradients = self.value_and_gradients(slice(None))
        halves = on_two_ranks(self.half)
        torch.testing.assert_close(torch.stack([half[0] for half in halves]).mean(), loss)
        for index, gradient in enumerate(gradients, start=1):
            torch.testing.assert_close(torch.cat([half[index] for half in halves]) / 2, gradient)

    def half(self, rank: int) -> list[Tensor]:
        """Loss and gradients of two of the four samples."""
        return self.value_and_gradients(slice(2 * rank, 2 * rank + 2))

    def value_and_gradients(self, samples: slice) -> list[Tensor]:
        """Loss and gradients of some of the samples in float64 on the CPU."""
        cpu = torch.device("cpu")
        inputs = self.given(cpu, torch.float64)
        inputs = {k: v[samples] if isinstance(v, Tensor) else v for k, v in inputs.items()}
        rows = [inputs[name].requires_grad_() for name in self.differentiable]
        loss = self.make(cpu, torch.float64)(**inputs)
        return [loss.detach(), *torch.autograd.grad(loss, rows)]
