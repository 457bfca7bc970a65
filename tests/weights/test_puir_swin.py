"""PUIR's released network and files in the layout of the release."""

import math

import pytest
import torch
import torch.nn.functional as F

from nnunet_invariance.errors import ShapeError, WeightsIncompatibleError
from nnunet_invariance.networks.architectures.puir_swin import NETWORK, PATCH, PriorRefinement, PUIRSwinUNETR
from nnunet_invariance.networks.architectures.swin_unetr import arch_kwargs
from nnunet_invariance.weights.checkpoint import load_checkpoint
from nnunet_invariance.weights.importers.importing import import_foreign, recognise
from nnunet_invariance.weights.importers.puir_swin import STEM, layout
from nnunet_invariance.weights.transfer import load_pretrained
from tests.helpers.swin_files import WIDTH, released_puir, save

pytest.importorskip("monai")

OWN_STEM = ("encoder.swin.patch_embed.proj.weight", *(f"decoder.{name}" for name in STEM[1:]))


@pytest.mark.integration
def test_the_layout_is_that_of_the_release():
    """Numbers of entries and parameters, and shapes, as our notes on the release have them."""
    shapes = layout(48)
    assert len(shapes) == 202
    parameters = sum(math.prod(s) for name, s in shapes.items() if not name.endswith("_index"))
    assert round(parameters / 1e6, 2) == 163.52
    assert shapes["static_prior"] == (1, 768, 3, 3, 3)
    assert shapes["swinViT1.patch_embed.proj.weight"] == (48, 4, 2, 2, 2)
    assert shapes["swinViT1.layers4.0.downsample.reduction.weight"] == (768, 3072)
    assert shapes["attn_for_mod.in_proj_weight"] == shapes["attn_for_x.in_proj_weight"] == (81, 27)
    assert shapes["fuse_to_X.weight"] == (768, 2304, 3, 3, 3)
    assert shapes["contrastive_head.weight"] == (512, 768)
    assert shapes["conv2.20.weight"] == (4, 48, 1, 1, 1)
    assert shapes["decoder5.transp_conv.conv.weight"] == (768, 384, 2, 2, 2)


def test_the_refinement_against_a_loop_over_samples_and_channels():
    torch.manual_seed(0)
    refine = PriorRefinement(6).double()
    z = torch.randn(2, 6, 3, 3, 3, dtype=torch.float64)
    attention = refine.attn_for_x
    prior = refine.static_prior[0].flatten(1)
    layers = zip(attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True)
    query, key, value = (lambda x, w=w, b=b: x @ w.T + b for w, b in layers)
    for sample, found in zip(z, refine(z), strict=True):
        cells = sample.flatten(1)  # a token a channel, an entry a cell
        read = torch.zeros_like(cells)
        for channel in range(6):
            parts = []
            for head in range(3):
                part = slice(9 * head, 9 * head + 9)
                scores = query(cells)[channel, part] @ key(prior)[:, part].T / 3  # sqrt(9)
                parts.append(torch.softmax(scores, 0) @ value(prior)[:, part])
            read[channel] = attention.out_proj(torch.cat(parts))
        retrieved = refine.tansfer_for_mod(read.view(1, 6, 3, 3, 3))
        expected = F.conv3d(
            torch.cat((sample[None], retrieved, sample[None]), 1),
            refine.fuse_to_X.weight,
            refine.fuse_to_X.bias,
            padding=1,
        )
        assert torch.allclose(found, expected[0], atol=1e-10)
    with pytest.raises(ShapeError, match=r"patches of \[96, 96, 96\]"):
        refine(torch.zeros(1, 6, 4, 3, 3, dtype=torch.float64))


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("puir")
    content = {"state_dict": {f"module.{n}": t for n, t in released_puir().items()}, "epoch": 3, "best_acc": 0.1}
    file = save(content, folder / "a.pt")
    assert recognise(file, content) == "puir-swin"
    return load_checkpoint(import_foreign(file))


@pytest.mark.integration
def test_a_released_file_is_imported_completely(imported):
    metadata = imported.metadata
    assert metadata["architecture"]["network_class_name"] == NETWORK
    assert metadata["architecture"]["input_channels"] == 1
    assert metadata["pretrained"] == ["encoder", "decoder"]
    assert metadata["patch_size"] == PATCH
    assert metadata["options"]["channels_summed"] == 4
    left = {name.split(".")[0] for name in metadata["options"]["left_out"]}
    assert left == {"attn_for_mod", "rotation_head", "contrastive_head", "conv", "conv2"}
    network = PUIRSwinUNETR(1, 2, **arch_kwargs(WIDTH, 1))
    report = load_pretrained(network, imported, transfer="encoder+decoder", branch="student")
    assert report.coverage == 1
    assert report.decoder == "from the file"
    section, released = imported.section("network"), released_puir()
    assert torch.equal(section["encoder.refine.static_prior"], released["static_prior"])
    name = "layers3.0.blocks.1.attn.qkv.weight"
    assert torch.equal(section[f"encoder.swin.{name}"], released[f"swinViT1.{name}"])


def test_one_channel_gives_the_output_of_four_tiled_ones(imported):
    """The release tiles one image into four channels; the first layers are linear in them."""
    section, released = imported.section("network"), released_puir()
    image = torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    for own, theirs in zip(OWN_STEM, STEM, strict=True):
        four = F.conv3d(image.expand(-1, 4, -1, -1, -1), released[theirs])
        assert torch.allclose(F.conv3d(image, section[own]), four, atol=1e-6)


@pytest.mark.parametrize("change", ["lacking", "more", "shape", "before"])
def test_another_layout_is_refused_key_by_key(tmp_path, change):
    state = released_puir()
    if change == "lacking":
        del state["attn_for_mod.out_proj.bias"]
    elif change == "more":
        state["extra.weight"] = torch.zeros(1)
    elif change == "shape":
        state["rotation_head.bias"] = torch.zeros(5)
    else:  # as after the pre-training, before the convolutions of the transfer task are added
        state = {n: t for n, t in state.items() if not n.startswith(("encoder", "decoder", "out."))}
    said = {
        "lacking": r"attn_for_mod\.out_proj\.bias: not in the file",
        "more": r"extra\.weight: not in the release",
        "shape": r"rotation_head\.bias: \[5\] in the file, \[4\] in the release",
        "before": r"169 tensors instead of 202",
    }
    with pytest.raises(WeightsIncompatibleError, match=said[change]):
        import_foreign(save(state, tmp_path / "a.pt"))
    assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.parametrize("width", [0, 13])
def test_a_width_that_no_network_has_is_refused(tmp_path, width):
    state = released_puir() | {STEM[0]: torch.zeros(width, 4, 2, 2, 2)}
    with pytest.raises(WeightsIncompatibleError, match=rf"has {width} filters, expected a multiple of 12"):
        import_foreign(save(state, tmp_path / "a.pt"))


@pytest.mark.slow
def test_the_network_for_one_channel_gives_the_output_of_that_for_four(imported):
    one, four = (PUIRSwinUNETR(channels, 4, **arch_kwargs(WIDTH, 1)).eval() for channels in (1, 4))
    load_pretrained(one, imported, transfer="encoder+decoder", branch="student")
    stems = dict(zip(OWN_STEM, (released_puir()[name] for name in STEM), strict=True))
    four.load_state_dict({**one.state_dict(), **stems})
    image = torch.randn(1, 1, *PATCH, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(one(image), four(image.expand(-1, 4, -1, -1, -1)), atol=1e-3)
