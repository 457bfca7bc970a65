"""Trainers with the summed head: start from a probe, continue, and predict with nnU-Net's predictor."""

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

from nnunet_invariance.errors import UnsupportedConfigurationError
from nnunet_invariance.networks.architectures.puir import PUIRNet
from nnunet_invariance.networks.summed_head import SummedHeadUNet
from nnunet_invariance.trainers.head import add_head
from tests.helpers.tiny_trainers import assert_same, log_of, make_trainer, values, write_weights


def started(tiny, name, **options):
    trainer = make_trainer(tiny, name, head="summed", **options)
    trainer.on_train_start()
    return trainer


def test_the_head_starts_from_a_probe_that_segments_the_training_cases(tiny, results):
    trainer = started(tiny, "MAETrainer_scratch_1epoch")
    assert isinstance(trainer.plain_network, SummedHeadUNet)
    assert "The summed head starts from a linear probe" in log_of(trainer)
    assert any(layer.weight.abs().sum() > 0 for layer in trainer.plain_network.side_layers.values())


def test_pretrained_weights_fill_encoder_and_decoder_below_the_summed_head(tiny, results):
    section = write_weights(tiny).section("teacher")
    trainer = started(tiny, "AliceTrainer_1epoch", transfer="encoder+decoder")
    loaded = values(trainer.plain_network.encoder) | {
        f"decoder.{name}": value
        for name, value in values(trainer.plain_network.decoder).items()
        if name.startswith(("stages.", "transpconvs."))
    }
    assert_same(loaded, {name: section.get(name, section.get(f"encoder.{name}")) for name in loaded})
    assert "The summed head starts from a linear probe" in log_of(trainer)


def test_zero_starts_as_the_planned_network(tiny, results):
    summed = started(tiny, "MAETrainer_scratch_1epoch", head_start="zero", seed=3).plain_network.eval()
    stock = make_trainer(tiny, "MAETrainer_scratch_1epoch", seed=3)
    stock.initialize()
    x = torch.randn(1, 1, *stock.configuration_manager.patch_size)
    for network in (summed, stock.plain_network):
        network.decoder.deep_supervision = False
    torch.testing.assert_close(summed(x), stock.plain_network.eval()(x), rtol=0, atol=0)


def test_a_training_continues_and_prediction_builds_the_same_network(tiny, results):
    trainer = started(tiny, "MAETrainer_scratch_1epoch", seed=1)
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    trainer.train_step(next(trainer.dataloader_train))
    path = f"{trainer.output_folder}/checkpoint_latest.pth"
    trainer.save_checkpoint(path)
    again = make_trainer(tiny, "MAETrainer_scratch_1epoch", head="summed", seed=1)
    again.load_checkpoint(path)
    assert_same(values(trainer.plain_network), values(again.plain_network))
    network = type(trainer).build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, 1, trainer.label_manager.num_segmentation_heads, False
    )
    network.load_state_dict(trainer.plain_network.state_dict())


def test_puir_has_no_summed_head(modalities, results):
    with pytest.raises(UnsupportedConfigurationError, match=r'Remove "head"'):
        make_trainer(modalities, "PUIRTrainer_scratch_1epoch", head="summed").initialize()


def test_the_automatic_head_follows_the_trainer_and_the_network(tiny, modalities, results):
    for name, kind in (("MAETrainer", SummedHeadUNet), ("TransferTrainer", PlainConvUNet), ("PUIRTrainer", PUIRNet)):
        trainer = make_trainer(modalities if name.startswith("PUIR") else tiny, f"{name}_scratch_1epoch")
        trainer.initialize()
        assert type(trainer.plain_network) is kind
    other = torch.nn.Conv3d(1, 2, 1)  # no decoder that the summed head can read
    assert add_head(other, "auto", automatic="summed") is other
    with pytest.raises(UnsupportedConfigurationError, match=r'Conv3d.*Set "head": "stock"'):
        add_head(other, "summed", automatic="summed")


def test_a_stock_checkpoint_fills_the_network_below_the_summed_head(tiny, results):
    donor = make_trainer(tiny, "BaselineTrainer_1epoch", seed=7)
    donor.initialize()
    path = f"{donor.output_folder}/checkpoint_final.pth"
    donor.save_checkpoint(path)
    trainer = make_trainer(tiny, "MAETrainer_1epoch")
    trainer.initialize()
    load_pretrained_weights(trainer.network, path)  # as `nnUNetv2_train -pretrained_weights` does
    loaded = {n: v for n, v in values(trainer.network).items() if "seg_layers" not in n}
    assert_same(loaded, {name: values(donor.network)[name] for name in loaded})
