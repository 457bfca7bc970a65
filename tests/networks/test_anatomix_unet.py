"""The anatomix U-Nets: the released list layer by layer, heads, channels and sizes."""

from dataclasses import replace

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_invariance.errors import OptionError, ShapeError, UnsupportedConfigurationError
from nnunet_invariance.networks.architectures import anatomix_unet
from nnunet_invariance.networks.architectures.anatomix_unet import (
    DESIGNS,
    NETWORK,
    AnatomixUNet,
    arch_kwargs,
    check_patch,
    fitting_patch,
    own_name,
)
from nnunet_invariance.networks.feature_hook import EncoderFeatureHook
from tests.helpers.anatomix_files import KEYS, ReleasedUNet, released_state


def filled(variant: str = "anatomix", **arguments) -> AnatomixUNet:
    """The network with the values of a released file, in evaluation mode."""
    network = AnatomixUNet(1, 2, variant=variant, **arguments)
    state = {own_name(key, variant): value for key, value in released_state(variant).items()}
    lacking = network.load_state_dict(state, strict=False)
    assert not lacking.unexpected_keys
    assert all(name.startswith("decoder.seg_layers.") for name in lacking.missing_keys)
    return network.eval()


def image(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def unet() -> AnatomixUNet:
    return filled()


@pytest.mark.parametrize("variant", DESIGNS)
def test_keys_and_shapes_are_those_of_the_released_file(variant):
    with torch.device("meta"):
        own = AnatomixUNet(1, 2, variant=variant).state_dict()
    released = released_state(variant, device="meta")
    assert len(released) == KEYS[variant]
    ours = {name: tensor.shape for name, tensor in own.items() if "seg_layers" not in name}
    assert ours == {own_name(name, variant): tensor.shape for name, tensor in released.items()}
    assert {name.split(".", 1)[1] for name in ours} == set(released)


def test_numbers_of_parameters_are_those_published():
    with torch.device("meta"):
        sizes = [
            sum(p.numel() for n, p in AnatomixUNet(1, 1, variant=variant).named_parameters() if "seg_layers" not in n)
            for variant in ("anatomix", "anatomix-dev")
        ]
    assert sizes == [5_899_344, 94_369_568]


@pytest.mark.integration
@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
def test_every_activation_equals_that_of_the_layer_list(unet, training):
    oracle = ReleasedUNet().train(training)
    oracle.load_state_dict(released_state("anatomix"))
    unet = filled().train(training)
    x = image(2, 1, 32, 48, 32)
    outputs = oracle(x)
    asked = [27, 31, 38, 45, 52, 65, 8, 37, 43, 64]
    for layer, found in zip(asked, unet.activations(x, asked), strict=True):
        assert torch.equal(found, outputs[layer]), layer
    oracle.load_state_dict(released_state("anatomix"))  # training moved the running statistics
    assert torch.equal(filled().train(training).features(x), outputs[65])


@pytest.mark.integration
@torch.no_grad()
def test_skips_heads_and_deep_supervision(unet):
    outputs = ReleasedUNet().eval()
    outputs.load_state_dict(released_state("anatomix"))
    x = image(1, 1, 32, 32, 32)
    outputs = outputs(x)
    skips = unet.encoder(x)
    for skip, layer in zip(skips, (8, 15, 22, 29, 36), strict=True):
        assert torch.equal(skip, outputs[layer])
    assert [skip.shape[1] for skip in skips] == unet.encoder.output_channels
    unet.decoder.deep_supervision = True
    logits = unet(x)
    unet.decoder.deep_supervision = False
    for head, layer, found in zip(unet.decoder.seg_layers, (43, 50, 57, 65), reversed(logits), strict=True):
        assert torch.equal(found, head(outputs[layer]))
    assert [tuple(t.shape[2:]) for t in logits] == [(32,) * 3, (16,) * 3, (8,) * 3, (4,) * 3]
    assert torch.equal(unet(x), logits[0])


def test_the_feature_hook_reads_the_encoder(unet):
    network = AnatomixUNet(1, 2)
    hook = EncoderFeatureHook(network.encoder)
    network(image(2, 1, 32, 32, 32))
    assert [t.shape[1] for t in hook.pop()] == [16, 32, 64, 128, 256]


def narrow(design) -> AnatomixUNet:
    """The variant anatomix-dev, 4 channels wide."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(anatomix_unet, "DESIGNS", {"narrow": replace(design, width=4, features=4)})
        return AnatomixUNet(1, 2, variant="narrow", deep_supervision=True).apply(AnatomixUNet.initialize)


@pytest.mark.integration
@torch.no_grad()
def test_the_dev_variant_uses_average_pooling_and_interpolation():
    network = narrow(DESIGNS["anatomix-dev"])
    x = image(1, 1, 64, 64, 64)
    kinds = {type(module).__name__ for module in network.modules()}
    assert {"AvgPool3d", "InstanceNorm3d"} <= kinds
    assert not {"MaxPool3d", "BatchNorm3d"} & kinds
    up, deepest, concatenated = network.activations(x, [36, 43, 44])
    wanted = torch.nn.functional.interpolate(deepest, scale_factor=2, mode="trilinear")
    assert torch.equal(concatenated[:, up.shape[1] :], wanted)
    assert torch.equal(concatenated[:, : up.shape[1]], up)
    assert len(network.decoder.seg_layers) == 5


@pytest.mark.integration
@torch.no_grad()
def test_separate_channels_share_the_network(unet):
    two = AnatomixUNet(2, 2, channels="separate").eval()
    weights = {name: value for name, value in unet.state_dict().items() if "seg_layers" not in name}
    assert not two.load_state_dict(weights, strict=False).unexpected_keys
    x = image(2, 2, 32, 32, 32)
    alone = [unet.features(x[:, channel : channel + 1]) for channel in (0, 1)]
    torch.testing.assert_close(two.features(x), torch.cat(alone, 1))
    assert two.encoder.output_channels == [32, 64, 128, 256, 512]
    assert two(x).shape == (2, 2, 32, 32, 32)


@torch.no_grad()
def test_nnunet_builds_it_from_plans_with_any_number_of_classes():
    network = get_network_from_plans(NETWORK, arch_kwargs("anatomix"), [], 3, 5, deep_supervision=True)
    assert network.encoder.model["0"].weight.shape == (16, 3, 3, 3, 3)
    assert [head.out_channels for head in network.decoder.seg_layers] == [5, 5, 5, 5]
    assert all(not head.bias.any() for head in network.decoder.seg_layers)
    off = get_network_from_plans(NETWORK, arch_kwargs("anatomix"), [], 3, 5, deep_supervision=False)
    assert off.state_dict().keys() == network.state_dict().keys()


@pytest.mark.parametrize("size", [(16, 32, 32), (40, 32, 32)])
def test_an_indivisible_size_is_an_error_that_names_the_divisor(unet, size):
    with pytest.raises(ShapeError, match="multiples of 16 and at least 32"):
        unet(torch.zeros(1, 1, *size))


@pytest.mark.parametrize(
    ("patch", "variant", "fitting"),
    [
        ([32, 160, 128], "anatomix", [32, 160, 128]),
        ([20, 56, 60], "anatomix", [32, 48, 64]),
        ([32, 160, 128], "anatomix-dev", [64, 160, 128]),
    ],
)
def test_fitting_patch_is_the_nearest_one(patch, variant, fitting):
    assert fitting_patch(patch, variant) == fitting
    check_patch(fitting, variant)
    if patch != fitting:
        with pytest.raises(UnsupportedConfigurationError, match=f"fits is \\[{fitting[0]}, {fitting[1]}"):
            check_patch(patch, variant)


def test_wrong_arguments_are_errors_that_name_them():
    with pytest.raises(OptionError, match="no anatomix U-Net 'anatomix-xl'"):
        AnatomixUNet(1, 2, variant="anatomix-xl")
    with pytest.raises(OptionError, match="expected 'averaged' or 'separate'"):
        AnatomixUNet(1, 2, channels="each")
    with pytest.raises(UnsupportedConfigurationError, match="strides"):
        AnatomixUNet(1, 2, strides=[[1, 1, 1], [1, 2, 2]])
