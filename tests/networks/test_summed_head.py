"""The summed head: the planned network at the start, a linear probe after ``set_head``, exact deep supervision."""

import pytest
import torch

from nnunet_invariance.errors import ShapeError
from nnunet_invariance.networks.hypercolumns import compute_hypercolumns, linear_map
from nnunet_invariance.networks.summed_head import SummedHeadUNet
from tests.helpers.small_checkpoints import NETWORKS, architecture


def build(kind: str = "PlainConvUNet", dimensions: int = 3, classes: int = 3) -> torch.nn.Module:
    torch.manual_seed(0)
    return architecture(kind, dimensions=dimensions, classes=classes).build().eval()


def image(dimensions: int) -> torch.Tensor:
    return torch.randn(2, 1, *([32] * dimensions), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("kind", NETWORKS)
def test_it_starts_as_the_planned_network(kind, dimensions):
    planned = build(kind, dimensions)
    x = image(dimensions)
    expected = planned(x)
    summed = SummedHeadUNet(planned).eval()
    torch.testing.assert_close(summed(x), expected, rtol=0, atol=0)
    planned.decoder.deep_supervision = True
    for own, theirs in zip(summed(x), planned(x), strict=True):
        torch.testing.assert_close(own, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_linear_classifier_of_hypercolumns_becomes_the_head(dimensions):
    summed = SummedHeadUNet(build(dimensions=dimensions)).eval()
    maps = compute_hypercolumns(summed, image(dimensions))
    weight, bias = torch.randn(3, sum(maps.channels)), torch.randn(3)
    summed.set_head(weight, bias)
    expected = linear_map(maps, weight, bias, image(dimensions).shape[2:])
    torch.testing.assert_close(summed(image(dimensions)), expected, rtol=1e-4, atol=1e-4)
    assert [f"{n}" for n in [*summed.side_layers, "decoder_0"]] == list(maps.names)


def test_every_side_layer_receives_a_gradient():
    summed = SummedHeadUNet(build())
    summed(image(3)).square().mean().backward()
    assert all(layer.weight.grad.abs().sum() > 0 for layer in summed.side_layers.values())


def test_a_classifier_of_another_size_is_refused():
    with pytest.raises(ShapeError, match="expected"):
        SummedHeadUNet(build()).set_head(torch.ones(3, 5), torch.ones(3))
