"""Which samples are styled, when and how, and the weight of InfoNCE that follows the gradients."""

import copy
import itertools

import numpy as np
import pytest
import torch

from nnunet_invariance.augmentation.interventions.base import Domain, match_statistics
from nnunet_invariance.augmentation.interventions.mixed import Mixed
from nnunet_invariance.errors import OptionError
from nnunet_invariance.plans.style_options import ICMSegTrainerOptions, StyleOptions
from nnunet_invariance.trainers.gradient_share import EVERY, MOMENTUM, GradientShare
from tests.helpers.tiny_trainers import started, with_views

pytestmark = pytest.mark.usefixtures("results")


@pytest.fixture(scope="module")
def small(tiny, tmp_path_factory):
    """A trainer of single views before its first step, and a batch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_results", str(tmp_path_factory.mktemp("results")))
        return started(tiny, "ICMSegTrainer_4epochs", style_views="single", style="gin", precision="fp32")


@pytest.fixture
def change(small, monkeypatch):
    """Replace options of the trainer for one test."""
    trainer, _ = small

    def replace(**options):
        changed = type(trainer.options)(**{**trainer.options.to_dict(), **options})
        monkeypatch.setattr(trainer, "options", changed)
        return trainer

    return replace


# ---- which samples, and when -----------------------------------------------------------------------------------------


def test_the_probability_is_that_of_a_sample(change):
    trainer = change(style_probability=0.3)
    chosen = torch.stack([trainer.choose_styled(["a", "b"]) for _ in range(2000)])
    assert chosen.float().mean(0).tolist() == pytest.approx([0.3, 0.3], abs=0.04)
    assert (chosen[:, 0] & chosen[:, 1]).float().mean().item() == pytest.approx(0.09, abs=0.03)  # independent
    assert change(style_probability=1.0).choose_styled(["a"] * 50).all()
    assert not change(style_probability=0.0).choose_styled(["a"] * 50).any()


@pytest.mark.parametrize(("start", "length"), [*itertools.product([0.0, 0.25, 0.5], [0.0, 0.5])])
def test_the_probability_starts_late_and_rises_linearly(change, monkeypatch, start, length):
    trainer = change(style_probability=0.8, style_start=start, style_ramp=length)
    found, expected = [], []
    for epoch, step in itertools.product(range(4), range(2)):
        monkeypatch.setattr(trainer, "current_epoch", epoch)
        monkeypatch.setattr(trainer, "step_in_epoch", step)
        found.append(trainer.style_probability)
        done = (2 * epoch + step) / 8
        share = 0.0 if done < start else 1.0 if done >= start + length else (done - start) / length
        expected.append(0.8 * share)
    assert found == pytest.approx(expected)


def test_samples_that_are_not_chosen_keep_their_values(small, change, monkeypatch):
    trainer, batch = change(style_probability=0.5), small[1]
    moved = with_views(trainer, batch)
    monkeypatch.setattr(trainer, "choose_styled", lambda keys: torch.tensor([False, True]))
    view = trainer.style_view(moved, 2)
    assert torch.equal(view[0], moved["views"].first[0])
    assert not torch.allclose(view[1], moved["views"].first[1], atol=0.05)


# ---- one view --------------------------------------------------------------------------------------------------------


def test_a_step_on_single_views_is_one_pass_with_the_gradient_of_its_segmentation_loss(small):
    trainer, batch = copy.copy(small[0]), copy.deepcopy(small[1])
    network, sizes = copy.deepcopy(trainer.network), []
    trainer.network = copy.deepcopy(trainer.network)
    trainer.network.register_forward_hook(lambda module, arguments, output: sizes.append(len(arguments[0])))
    trainer.optimizer = torch.optim.SGD(trainer.network.parameters(), 0.0)
    state = trainer.generator.get_state()
    view = trainer.style_view(with_views(trainer, batch), 2)
    trainer.generator.set_state(state)
    losses = trainer.update(batch)
    assert sizes == [2]
    assert set(losses) == {"loss", "total"}
    assert trainer.feature_hook is None
    assert not trainer.aux
    loss = trainer.loss(network(view), batch["target"])
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
    assert losses["loss"] == pytest.approx(loss.item(), rel=1e-5)
    pairs = [(p.grad, q.grad) for p, q in zip(trainer.network.parameters(), network.parameters(), strict=True)]
    assert sum(expected is not None for _, expected in pairs) > 20
    for found, expected in pairs:  # the coarsest segmentation layer has no gradient
        assert (found is None) == (expected is None)
        assert found is None or torch.allclose(found, expected, atol=1e-6)


def test_a_single_view_has_intensity_transforms_and_no_second_view(small):
    trainer, _ = small
    changed = 0
    for _ in range(4):  # every transform has a probability
        views = with_views(trainer, next(trainer.dataloader_train))["views"]
        assert torch.equal(views.second, views.clean)
        changed += not torch.equal(views.first, views.clean)
    assert changed > 0


# ---- tissues ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tissues", ["image", "labels"])
def test_labels_are_read_only_if_the_options_say_so(small, change, tissues):
    trainer, batch = change(style="clusters", tissues=tissues), copy.deepcopy(small[1])
    moved = with_views(trainer, batch)
    state = trainer.generator.get_state()
    view = trainer.style_view(moved, 2)
    moved["target"] = [target.flip(-1).roll(3, -2) for target in moved["target"]]
    trainer.generator.set_state(state)
    assert torch.equal(trainer.style_view(moved, 2), view) == (tissues == "image")
    trainer.generator.set_state(state)


def test_the_default_style_is_mixed_without_labels(small, change):
    trainer, batch = change(style="mixed", tissues=StyleOptions().tissues), small[1]
    moved = with_views(trainer, batch)
    state = trainer.generator.get_state()
    view = trainer.style_view(moved, 2)
    generator = torch.Generator()
    generator.set_state(state)
    torch.rand(2, generator=generator)
    image, mixed = moved["views"].first, Mixed(tissues="image")
    params = mixed.sample(Domain(tuple(image.shape), 3), generator)
    expected = match_statistics(mixed.apply(image, None, params), image)
    inside = moved["views"].valid_mask > 0
    assert torch.allclose(view, torch.where(inside, expected, image), atol=1e-5)


# ---- weight by gradients ---------------------------------------------------------------------------------------------


def test_the_weight_gives_the_auxiliary_gradient_its_share():
    generator = torch.Generator().manual_seed(0)
    layers = [torch.nn.Parameter(torch.randn(3, 3, generator=generator)) for _ in range(2)]
    x, y = (torch.randn(5, 3, generator=generator) for _ in range(2))
    share = GradientShare(0.3)
    expected = 0.0
    for step in range(3):
        hidden = (x + step) @ layers[0]
        losses = hidden.square().mean(), (hidden @ layers[1] - y).abs().mean()
        share.update(*losses, layers)
        norms = []
        for loss in losses:
            for layer in layers:
                layer.grad = None
            loss.backward(retain_graph=True)
            norms.append(np.sqrt(sum(float(p.grad.square().sum()) for p in layers if p.grad is not None)))
        measured = 0.3 * norms[0] / norms[1]
        expected = measured if step == 0 else MOMENTUM * expected + (1 - MOMENTUM) * measured
        assert share.weight == pytest.approx(expected, rel=1e-5)
    before = share.weight
    frozen = torch.nn.Parameter(torch.zeros(1), requires_grad=False)  # as those of frozen features
    share.update(*losses, [*layers, frozen])
    assert share.weight == pytest.approx(MOMENTUM * before + (1 - MOMENTUM) * measured, rel=1e-5)
    before = share.weight
    share.update(losses[0] * torch.inf, losses[1], layers)
    share.update(losses[0], losses[1] * 0, layers)
    assert share.weight == before
    assert [share.is_due(step) for step in (0, 1, EVERY)] == [True, False, True]


def test_the_trainer_follows_the_gradients_at_the_encoder_and_saves_the_weight(tiny):
    options = {
        "aux_gradient_share": 0.4,
        "style": "gin",
        "num_positions": 32,
        "label_mask": "supcon",
        "precision": "fp32",
    }
    trainer, batch = started(tiny, "ICMSegTrainer", **options)
    network, aux = copy.deepcopy(trainer.network), copy.deepcopy(trainer.aux)
    state = trainer.generator.get_state()
    losses = trainer.train_step(copy.deepcopy(batch))
    assert trainer.weight_of("info_nce") == trainer.gradient_share.weight > 0
    assert losses["total"] == pytest.approx(
        losses["loss"] + trainer.gradient_share.weight * losses["info_nce"], rel=1e-5
    )

    trainer.network.load_state_dict(network.state_dict())
    trainer.aux.load_state_dict(aux.state_dict())
    trainer.generator.set_state(state)
    moved = with_views(trainer, batch)
    segmentation, others = trainer._losses_of_pair(trainer.network, moved, trainer.style_view(moved, 2))
    norms = []
    for loss in (segmentation, others["info_nce"]):
        trainer.network.zero_grad()
        loss.backward(retain_graph=True)
        found = [p.grad for p in trainer.network.encoder.parameters() if p.grad is not None]
        norms.append(torch.cat([g.flatten() for g in found]).norm().item())
    assert trainer.gradient_share.weight == pytest.approx(0.4 * norms[0] / norms[1], rel=1e-4)
    block = trainer.checkpoint_block()
    trainer.gradient_share.weight = 0.0
    trainer.load_checkpoint_block(block)
    assert trainer.gradient_share.weight == block["gradient_share_weight"] > 0


# ---- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["aux_weight", "consistency_weight", "aux_gradient_share", "views_probability"])
def test_losses_between_views_need_a_pair(field):
    with pytest.raises(OptionError, match=f"'{field}' .* is 0.5; expected 0.*style_views is 'single'"):
        ICMSegTrainerOptions(style_views="single", **{field: 0.5})
    ICMSegTrainerOptions(**{field: 0.5})


@pytest.mark.parametrize(("field", "value"), [("contrast", "within_image"), ("label_mask", "supcon"), ("stages", [1])])
def test_a_form_of_info_nce_needs_info_nce(field, value):
    with pytest.raises(OptionError, match=f"'{field}' .*; expected .*InfoNCE is off; a pair of views with aux_weight"):
        ICMSegTrainerOptions(**{field: value})
    ICMSegTrainerOptions(**{field: value}, aux_gradient_share=0.1)


def test_by_default_info_nce_is_not_computed(tiny):
    assert not StyleOptions().contrasts
    assert StyleOptions(aux_weight=0.1).contrasts
    assert StyleOptions(aux_gradient_share=0.1).contrasts
    trainer, batch = started(tiny, "ICMSegTrainer", style="gin")
    assert set(trainer.train_step(batch)) == {"loss", "total"}
    assert not trainer.aux
