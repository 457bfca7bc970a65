"""The contract tests of the losses, one class per loss; every public loss must have one."""

from typing import ClassVar

import torch
from torch import Tensor

from nnunet_invariance import losses
from nnunet_invariance.losses import modality_invariance
from nnunet_invariance.losses.hard_negative_info_nce import HardNegativeInfoNCE
from tests.helpers.loss_contract import LossContract

BATCH, CHANNELS, SIZE = 4, 3, (2, 3, 2)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mask(*shape: int, share: float = 0.7, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


def other_values(rows: Tensor, valid: Tensor) -> Tensor:
    """``rows`` with large values where the mask, broadcast to their shape, is False."""
    return torch.where(valid, rows, 1000 + rows)


def constant_after_first(function):
    """``function``, which returns its first result in all later calls."""
    results = []

    def call(*arguments):
        if not results:
            results.append(function(*arguments))
        return results[0]

    return call


PRESENT = torch.tensor([[True, True, True], [True, False, True], [False, True, True], [True, True, False]])
TEMPERATURES = tuple({"temperature": value} for value in (0.0, -1, float("nan"), "warm"))


class TestPatchInfoNCE(LossContract):
    loss_class = losses.PatchInfoNCE
    options: ClassVar = {"temperature": 0.5}
    wrong_options = (*TEMPERATURES, {"negatives": "all"}, {"label_mask": "exclude"})
    differentiable = ("first", "second")
    gathers = True

    def inputs(self):
        return {
            "first": random(BATCH, 5, 4),
            "second": random(BATCH, 5, 4, seed=1),
            "valid_mask": mask(BATCH, 5),
        }

    def disturbed(self, inputs):
        valid = inputs["valid_mask"][..., None]
        return {**inputs, **{name: other_values(inputs[name], valid) for name in self.differentiable}}


class TestPatchInfoNCEWithLabels(TestPatchInfoNCE):
    options: ClassVar = {"temperature": 0.5, "negatives": "same_position", "label_mask": "supcon"}

    def inputs(self):
        return {**super().inputs(), "labels": torch.arange(BATCH * 5).view(BATCH, 5) % 3}


class TestDenseInfoNCE(LossContract):
    loss_class = losses.DenseInfoNCE
    options: ClassVar = {"temperature": 0.5, "least_distance": 1.0}
    wrong_options = (*TEMPERATURES, {"least_distance": -1}, {"least_distance": float("inf")})
    differentiable = ("first", "second")

    def inputs(self):
        return {
            "first": random(BATCH, 5, 4),
            "second": random(BATCH, 5, 4, seed=1),
            "positions": random(BATCH, 5, 3, seed=2),
            "valid_mask": mask(BATCH, 5),
        }

    def disturbed(self, inputs):
        valid = inputs["valid_mask"][..., None]
        return {**inputs, **{name: other_values(inputs[name], valid) for name in (*self.differentiable, "positions")}}


class TestSupervisedInfoNCE(LossContract):
    loss_class = losses.SupervisedInfoNCE
    options: ClassVar = {"positives": "across", "negatives": "across", "denominator_class_weight": "inverse"}
    wrong_options = (
        *TEMPERATURES,
        {"positives": "all"},
        {"negatives": "all"},
        {"anchor_class_weight": "raw"},
        {"denominator_class_weight": "sqrt"},
    )
    differentiable = ("features",)
    gathers = True

    def inputs(self):
        labels = torch.arange(BATCH * 6).view(BATCH, 6) % 4
        return {"features": random(BATCH, 6, 4), "labels": labels, "valid_mask": mask(BATCH, 6)}

    def disturbed(self, inputs):
        valid = inputs["valid_mask"]
        features = other_values(inputs["features"], valid[..., None])
        return {**inputs, "features": features, "labels": torch.where(valid, inputs["labels"], 2)}


class TestSupervisedInfoNCEWithin(TestSupervisedInfoNCE):
    options: ClassVar = {}


class TestSelfDistillationLoss(LossContract):
    loss_class = losses.SelfDistillationLoss
    options: ClassVar = {"num_prototypes": 5}
    wrong_options = (
        {"num_prototypes": 0},
        {"num_prototypes": 2.5},
        {"student_temperature": -1},
        {"center_momentum": 1.0},
        {"center_momentum": -0.1},
        {"collapse_guard": "sinkhron"},
    )
    differentiable = ("student",)
    gathers = True

    def inputs(self):
        return {
            "student": random(BATCH, 6, 5),
            "teacher": random(BATCH, 6, 5, seed=1),
            "teacher_temperature": 0.5,
            "valid_mask": mask(BATCH, 6),
        }

    def given(self, device, dtype):
        return {**super().given(device, dtype), "teacher_temperature": 0.5}

    def disturbed(self, inputs):
        valid = inputs["valid_mask"][..., None]
        return {**inputs, **{name: other_values(inputs[name], valid) for name in ("student", "teacher")}}


class TestSelfDistillationLossWithSinkhorn(TestSelfDistillationLoss):
    options: ClassVar = {"num_prototypes": 5, "collapse_guard": "sinkhorn"}


class TestMaskedReconstructionLoss(LossContract):
    loss_class = losses.MaskedReconstructionLoss
    differentiable = ("reconstruction",)

    def inputs(self):
        shape = (BATCH, 2, *SIZE)
        return {"reconstruction": random(*shape), "image": random(*shape, seed=1), "mask": mask(BATCH, 1, *SIZE)}

    def disturbed(self, inputs):
        return {**inputs, **{k: other_values(inputs[k], inputs["mask"]) for k in ("reconstruction", "image")}}


class TestModalityInvarianceLoss(LossContract):
    loss_class = losses.ModalityInvarianceLoss
    wrong_options = ({"anchor": "other"},)
    differentiable = ("estimates",)

    def inputs(self):
        order = torch.tensor([[2, 0, 1], [0, 1, 2], [1, 2, 0], [0, 2, 1]])
        return {"estimates": random(BATCH, CHANNELS, 3, 1, 2, 1), "present": PRESENT, "order": order}

    def disturbed(self, inputs):
        maps = inputs["present"][:, :, None, None, None, None]
        return {**inputs, "estimates": other_values(inputs["estimates"], maps)}

    def test_the_gradient_equals_finite_differences(self, device, monkeypatch):
        """The anchors are held constant, because their gradient is stopped."""
        inputs, loss = self.given(device, torch.float64), self.make(device, torch.float64)
        estimates = inputs["estimates"].requires_grad_()
        (expected,) = torch.autograd.grad(loss(**inputs), estimates)
        for name in ("_mean_of_others", "_running_anchors"):
            monkeypatch.setattr(modality_invariance, name, constant_after_first(getattr(modality_invariance, name)))
        (gradient,) = torch.autograd.grad(loss(**inputs), estimates)
        assert torch.equal(gradient, expected)
        assert torch.autograd.gradcheck(lambda rows: loss(**{**inputs, "estimates": rows}), estimates)


class TestModalityInvarianceLossWithRunningAnchor(TestModalityInvarianceLoss):
    options: ClassVar = {"anchor": "running"}


class TestDecompositionLoss(LossContract):
    loss_class = losses.DecompositionLoss
    wrong_options = ({"weight": -1}, {"weight": float("inf")})
    differentiable = ("outputs",)

    def inputs(self):
        return {
            "outputs": random(BATCH, 2, CHANNELS, *SIZE),
            "image": random(BATCH, CHANNELS, *SIZE, seed=1),
            "present": PRESENT,
            "valid_mask": mask(BATCH, 1, *SIZE),
            "sources": torch.tensor([[True, True], [True, False], [False, True], [False, False]]),
        }

    def disturbed(self, inputs):
        sources = inputs["sources"][:, :, None, None, None, None]
        present = inputs["present"][:, None, :, None, None, None]
        counted = sources & present & inputs["valid_mask"][:, None]
        image = other_values(inputs["image"], inputs["valid_mask"] & present[:, 0])
        return {**inputs, "outputs": other_values(inputs["outputs"], counted), "image": image}


class TestFeatureEquivarianceLoss(LossContract):
    loss_class = losses.FeatureEquivarianceLoss
    differentiable = ("estimates",)

    def inputs(self):
        shape = (BATCH, CHANNELS, 3, 1, 2, 1)
        return {"estimates": random(*shape), "reference": random(*shape, seed=1), "present": PRESENT}

    def disturbed(self, inputs):
        maps = inputs["present"][:, :, None, None, None, None]
        return {**inputs, **{name: other_values(inputs[name], maps) for name in ("estimates", "reference")}}


class TestOutputEquivarianceLoss(LossContract):
    loss_class = losses.OutputEquivarianceLoss
    differentiable = ("outputs",)

    def inputs(self):
        return {"outputs": random(BATCH, CHANNELS, *SIZE), "reference": random(BATCH, CHANNELS, *SIZE, seed=1)}

    def disturbed(self, inputs):
        return None


class TestMultilabelOutputEquivarianceLoss(TestOutputEquivarianceLoss):
    options: ClassVar = {"multilabel": True}


class TestSubsetDistillationLoss(LossContract):
    loss_class = losses.SubsetDistillationLoss
    differentiable = ("outputs",)

    def inputs(self):
        outputs, reference = (random(BATCH, CHANNELS, *SIZE, seed=seed) for seed in (0, 1))
        return {"outputs": outputs, "reference": reference, "valid_mask": torch.tensor([True, False, True, True])}

    def disturbed(self, inputs):
        valid = inputs["valid_mask"].view(-1, *[1] * 4)
        return {**inputs, **{name: other_values(inputs[name], valid) for name in ("outputs", "reference")}}


class TestMultilabelSubsetDistillationLoss(TestSubsetDistillationLoss):
    options: ClassVar = {"multilabel": True}


class TestConsistencyLoss(LossContract):
    loss_class = losses.ConsistencyLoss
    differentiable = ("first", "second")

    def inputs(self):
        return {"first": random(BATCH, CHANNELS, *SIZE), "second": random(BATCH, CHANNELS, *SIZE, seed=1)}

    def disturbed(self, inputs):
        return None


class TestMultilabelConsistencyLoss(TestConsistencyLoss):
    options: ClassVar = {"multilabel": True}


class TestIndividualContrast(LossContract):
    loss_class = losses.IndividualContrast
    options: ClassVar = {"temperature": 0.5}
    wrong_options = TEMPERATURES
    differentiable = ("anchors",)

    def inputs(self):
        ids = torch.tensor([[0, 0], [0, 1], [5, 2], [6, 3], [7, 4], [-1, -1]])
        return {"anchors": random(4, 5), "anchor_ids": ids[:4], "keys": random(6, 5, seed=1), "key_ids": ids}

    def disturbed(self, inputs):
        return None  # it has no mask; a key without a case is tested below

    def test_an_empty_key_has_no_influence(self, device):
        inputs, loss = self.given(device, torch.float32), self.make(device)
        keys = inputs["keys"].clone()
        keys[-1] += 1000
        assert torch.equal(loss(**{**inputs, "keys": keys}), loss(**inputs))


class TestHardNegativeInfoNCE(LossContract):
    loss_class = HardNegativeInfoNCE
    options: ClassVar = {
        "max_positive_distance": 0.7,
        "min_negative_distance": 1.2,
        "num_queries": 3,
        "num_hardest": 6,
        "num_negatives": 4,
        "num_cross_sample": 5,
    }
    wrong_options = (
        {"max_positive_distance": -1},
        {"min_negative_distance": "far"},
        {"num_queries": -1},
        {"num_hardest": 0},
        {"num_negatives": 0},
        {"num_cross_sample": 1.5},
        {"max_candidates": 0},
        *TEMPERATURES,
    )
    differentiable = ("keys",)

    def inputs(self):
        cells = torch.cartesian_prod(*[torch.arange(2.0)] * 3).double()
        position = torch.cat((cells, cells + 0.2))[None].repeat(BATCH, 1, 1)
        valid = mask(BATCH, 16)
        keys = torch.nn.functional.normalize(random(BATCH, 16, 3), dim=2)
        sampled = HardNegativeInfoNCE(**self.options)
        indices = sampled.sample_indices(position, valid, torch.Generator().manual_seed(0))
        return {"keys": keys, "position": position, "valid_mask": valid, "indices": indices}

    def disturbed(self, inputs):
        return {**inputs, "keys": other_values(inputs["keys"], inputs["valid_mask"][..., None])}


def test_every_public_loss_has_a_contract():
    covered = {contract.loss_class.__name__ for contract in LossContract.__subclasses__()}
    assert covered == set(losses.__all__)
