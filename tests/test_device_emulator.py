"""The emulated device itself: each planted fault is found, each wait is counted, and values are those of the CPU."""

import pytest
import torch
from torch import nn

from tests.helpers.device_emulator import DEVICE, DeviceError, DeviceTensor, Emulator, to_device

HOST = torch.ones(3)
WAITS = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.sum() > 0),
    "a branch on a value": lambda x: 1 if x.max() > 0 else 2,
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "equal": lambda x: torch.equal(x, x + 1),
    "nonzero": lambda x: x.nonzero(),
    "boolean index": lambda x: x[x > 0],
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "bincount": lambda x: torch.bincount(x.long().abs()),
    "numbers to the device": lambda x: torch.tensor([1.0], device=x.device),
    "tensor to the device": lambda x: HOST.to(x.device),
    "tensor to a tensor of the device": lambda x: HOST.to(x),
    "index of the host": lambda x: x[[0, 1]],
    "copy to the device": lambda x: x.copy_(HOST),
    "copy to the host": lambda x: torch.zeros(3).copy_(x),
}
FREE = {
    "arithmetic": lambda x: (x * 2 + 1).sum(),
    "scalar of the host": lambda x: x * torch.tensor(2.0),
    "slices": lambda x: x[1:].flip(0),
    "index of the device": lambda x: x[x.long() * 0],
    "made on the device": lambda x: torch.zeros(3, device=x.device) + x.new_ones(3),
    "copy without waiting": lambda x: HOST.to(x.device, non_blocking=True) + x,
    "mask": lambda x: torch.where(x > 0, x, 0).masked_fill(x > 1, 0),
    "values of the host": lambda x: HOST.tolist(),
}
FAULTS = {
    "both sides": lambda x: x + HOST,
    "host tensor as an argument": lambda x: torch.where(x > 0, x, HOST),
    "host tensor in a list": lambda x: torch.cat((x, HOST)),
    "made on the host": lambda x: x + torch.arange(3),
    "index of the device in a tensor of the host": lambda x: HOST[x.long() * 0] + x,
    "numpy": lambda x: x.numpy(),
    "generator of the host": lambda x: torch.rand(3, generator=torch.Generator(), device=x.device),
    "generator of the device": lambda x: torch.rand(3, generator=torch.Generator(x.device)),
    "normal with a generator of the host": lambda x: x.normal_(generator=torch.Generator()),
}


@pytest.fixture
def emulator():
    with Emulator() as found:
        yield found


@pytest.mark.parametrize("call", WAITS.values(), ids=WAITS)
def test_a_wait_is_counted_once(emulator, call):
    call(to_device(torch.tensor([1.0, 0.0, 2.0])))
    assert emulator.total == 1, emulator.waits


@pytest.mark.parametrize("call", FREE.values(), ids=FREE)
def test_other_calls_do_not_count(emulator, call):
    call(to_device(torch.tensor([1.0, 0.0, 2.0])))
    assert emulator.total == 0, emulator.waits


@pytest.mark.parametrize("call", FAULTS.values(), ids=FAULTS)
def test_a_fault_is_found(emulator, call):
    with pytest.raises((DeviceError, RuntimeError)):
        call(to_device(torch.tensor([1.0, 0.0, 2.0])))


def test_a_training_step_has_the_values_of_the_cpu(emulator):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 2, 3), nn.InstanceNorm3d(2, affine=True), nn.LeakyReLU(inplace=True))
    image = torch.randn(1, 1, 5, 5, 5)
    network(image).square().mean().backward()
    expected = [parameter.grad.clone() for parameter in network.parameters()]
    network.zero_grad()
    to_device(network)
    assert {parameter.device for parameter in network.parameters()} == {DEVICE}
    network(to_device(image)).square().mean().backward()
    for parameter, gradient in zip(network.parameters(), expected, strict=True):
        assert isinstance(parameter.grad, DeviceTensor)
        assert torch.equal(parameter.grad.values, gradient)
    torch.optim.SGD(network.parameters(), 0.1).step()
    assert emulator.total == 0


def test_autocast_casts_as_on_cuda(emulator):
    x = to_device(torch.ones(2, 2))
    with torch.autocast(x.device.type, torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        assert torch.softmax(x.bfloat16(), 0).dtype == torch.float32
        with torch.autocast("cuda", enabled=False):
            assert (x @ x).dtype == torch.float32
            with pytest.raises(RuntimeError, match="dtype"):
                x @ x.bfloat16()
    assert (x @ x).dtype == torch.float32
