"""Importer of released SAM / UAE files, and their use as a start of `pretrain sam`."""

import pytest
import torch

from nnunet_invariance.common.distributed import DistributedContext
from nnunet_invariance.errors import WeightsIncompatibleError
from nnunet_invariance.nnunet.cases import Manifest
from nnunet_invariance.pretraining.data.embedder import Embedder
from nnunet_invariance.pretraining.engine.method import Setup
from nnunet_invariance.pretraining.methods.sam import SAM, SAMOptions
from nnunet_invariance.weights.checkpoint import load_checkpoint
from nnunet_invariance.weights.importers.importing import import_foreign, recognise
from tests.helpers.planned_networks import architecture
from tests.helpers.sam_files import released_state

ONE_RANK = DistributedContext(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def released():
    return released_state()


@pytest.mark.integration
def test_a_released_file_becomes_a_checkpoint(released, tmp_path):
    path = tmp_path / "SAM.pth"
    torch.save({"state_dict": {**released, "semantic_head.weight": torch.ones(2)}, "meta": {"iter": 20000}}, path)
    out = import_foreign(path)
    checkpoint = load_checkpoint(out)
    assert checkpoint.metadata["method"] == "sam"
    assert checkpoint.metadata["pretrained"] == ["encoder"]
    assert checkpoint.metadata["options"]["left_out"] == ["semantic_head.weight"]
    assert len(checkpoint.tensors) == 138 - 21  # without the counters
    network = checkpoint.section("network")
    assert torch.equal(network["encoder.layer4.0.downsample.conv.weight"],
                       released["backbone.layer4.0.downsample.conv.weight"])  # fmt: skip
    heads = checkpoint.section("heads")
    assert torch.equal(heads["coarse.smooth.weight"], released["read_out_head.fpn_convs.0.conv.weight"])
    assert torch.equal(heads["fine.lateral.2.bias"], released["neck.lateral_convs.2.conv.bias"])
    embed = Embedder.load(out)
    assert embed.window == (32, 96, 96)
    assert torch.equal(embed.encoder.conv1.bn.running_var, released["backbone.conv1.bn.running_var"])


@pytest.mark.integration
def test_it_is_a_start_for_a_run_of_the_same_backbone_and_features(released, tmp_path):
    path = tmp_path / "SAM.pth"
    torch.save({"state_dict": released}, path)
    out = import_foreign(path)

    def method(**options):
        torch.manual_seed(1)
        return SAM(
            Setup(architecture(), (32, 96, 96), (1.0,) * 3, 2, False, ()),
            SAMOptions(initial_weights=str(out), **options),
        )

    sam, nothing = (
        method(backbone="resnet"),
        (Manifest((), ()), tmp_path, ONE_RANK),
    )
    sam.prepare(*nothing, resume=True)  # a continued run has its own weights
    assert not torch.equal(sam.network.encoder.conv1.conv.weight, released["backbone.conv1.conv.weight"])
    sam.prepare(*nothing, resume=False)
    assert torch.equal(sam.network.encoder.conv1.conv.weight, released["backbone.conv1.conv.weight"])
    assert torch.equal(sam.heads.coarse.smooth.weight, released["read_out_head.fpn_convs.0.conv.weight"])
    for options in ({}, {"backbone": "resnet", "features": 64}):
        with pytest.raises(WeightsIncompatibleError, match="Set backbone and features to those of the file"):
            method(**options).prepare(*nothing, resume=False)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("key", "error"),
    [("backbone.layer2.1.conv2.conv.weight", "encoder.layer2.1.conv2.conv.weight"),
     ("neck.fpn_convs.0.conv.bias", "fine.smooth.bias")],
)  # fmt: skip
def test_a_file_that_lacks_a_tensor_is_refused(released, tmp_path, key, error):
    path = tmp_path / "SAM.pth"
    torch.save({"state_dict": {name: t for name, t in released.items() if name != key}}, path)
    with pytest.raises(WeightsIncompatibleError, match=error):
        import_foreign(path)
    assert [p.name for p in tmp_path.iterdir()] == ["SAM.pth"]


def test_other_files_are_not_recognised(tmp_path):
    with pytest.raises(WeightsIncompatibleError, match="No importer reads"):
        recognise(tmp_path / "x.pth", {"backbone.conv1.conv.weight": torch.ones(1)})
