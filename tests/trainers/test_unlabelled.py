"""Learning from unlabelled scans: the teacher, its labels, the loss on them, and trainings that are continued."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

from nnunet_invariance._discovery import find_trainer
from nnunet_invariance.errors import OptionError, TooFewVolumesError, UnsupportedConfigurationError
from nnunet_invariance.trainers.mean_teacher import MeanTeacher, Trust, pseudo_dice, scheduled_weight
from nnunet_invariance.trainers.pseudo_labels import PseudoLabelLoss, pseudo_labels
from tests.helpers.threads import preprocess_scans_in_threads
from tests.helpers.tiny_dataset import cut_down, cut_down_2d
from tests.helpers.tiny_trainers import assert_same, log_of, make_trainer, values

TRAIN, VAL = ["case_000"], ["case_001"]
RAMPLESS = {"cases": "rest", "ramp": 0.0, "confidence": 0.0}


def trainer_on_one_case(tiny, name="BaselineTrainer_2epochs", unlabelled=None, **options):
    """A trainer with one training and one validation case; the other four are the rest."""
    options = {"seed": 1, "aux_ramp": 0.0, "num_positions": 64, **options}
    if unlabelled is not None:
        options["unlabelled"] = unlabelled
    options = {"iterations_per_epoch": 2, "val_iterations_per_epoch": 1, **options}
    plans = cut_down(tiny.plans, "nnUNetPlans", **options)
    plans["configurations"]["3d_fullres"]["patch_size"] = [16, 16, 16]
    trainer = make_trainer(tiny, name, plans)
    trainer.do_split = lambda: (TRAIN, VAL)
    trainer.perform_actual_validation = lambda *_: None
    return trainer


def trusting(trainer):
    """Let the teacher be trusted from the first step, whatever it predicts."""
    trainer.initialize()
    trust = trainer.unlabelled.trust
    trust.given = True
    trust.judge = lambda *_: True
    return trainer


# ---- parts -----------------------------------------------------------------------------------------------------------


def test_the_average_has_its_closed_form():
    student, teacher = torch.nn.Linear(3, 2), MeanTeacher(torch.nn.Linear(3, 2), ema=0.9)
    teacher.start_from(student)
    first = student.weight.detach().clone()
    steps = [torch.randn(2, 3) for _ in range(5)]
    for weight in steps:
        student.weight.data.copy_(weight)
        teacher.follow(student)
    expected = 0.9**5 * first + sum(0.1 * 0.9 ** (4 - i) * w for i, w in enumerate(steps))
    torch.testing.assert_close(teacher.network.weight, expected)
    assert not teacher.network.weight.requires_grad


def test_labels_count_where_the_teacher_is_confident():
    logits = 2 * torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    labels, regions = pseudo_labels(logits, 0.7, regions=False), pseudo_labels(logits, 0.7, regions=True)
    for b, y, x in np.ndindex(2, 4, 5):
        p = logits[b, :, y, x].softmax(0)
        assert labels[b, 0, y, x] == (p.argmax() if p.max() > 0.7 else 3)
        q = logits[b, :, y, x].sigmoid()
        assert regions[b, :, y, x].tolist() == [*(q > 0.5).tolist(), not all(max(v, 1 - v) > 0.7 for v in q.tolist())]
    assert 0 < (labels == 3).sum() < labels.numel()
    assert 0 < regions[:, -1].sum() < labels.numel()


def slow_loss(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Mean cross-entropy of the counted voxels minus the mean Dice of samples and foreground classes."""
    samples, classes = logits.shape[:2]
    entropies, dices = [], []
    for b in range(samples):
        p = logits[b].softmax(0).flatten(1).T
        counted = [i for i, label in enumerate(labels[b].flatten().tolist()) if label < classes]
        known = labels[b].flatten()
        entropies += [-math.log(p[i, known[i]]) for i in counted]
        for c in range(1, classes):
            both = sum(float(p[i, c]) for i in counted if known[i] == c)
            total = sum(float(p[i, c]) for i in counted) + sum(int(known[i] == c) for i in counted)
            dices.append((2 * both + 1e-5) / (total + 1e-5))
    return sum(entropies) / len(entropies) - sum(dices) / len(dices)


def test_the_loss_is_cross_entropy_and_dice_of_the_counted_voxels():
    logits = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(4, (2, 1, 4, 4, 4), generator=torch.Generator().manual_seed(1))
    loss = PseudoLabelLoss(3, regions=False, batch_dice=False, ddp=False, weights=[2.0, 0.5, 0.0])
    coarse = torch.randn(2, 3, 2, 2, 2, generator=torch.Generator().manual_seed(2))
    of_coarse = labels[:, :, 1::2, 1::2, 1::2]  # nearest-exact: of two voxels, the second
    expected = 2 * slow_loss(logits, labels) + 0.5 * slow_loss(coarse, of_coarse)
    assert loss([logits, coarse, coarse], labels).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("regions", [False, True])
def test_voxels_that_do_not_count_change_nothing(regions):
    logits = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = pseudo_labels(2 * torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(1)), 0.8, regions)
    ignored = labels[:, -1:] if regions else labels == 2
    loss = PseudoLabelLoss(2, regions, batch_dice=True, ddp=False, weights=[1.0])
    other = torch.where(ignored, logits + 3, logits)
    assert 0 < ignored.sum() < ignored.numel()
    torch.testing.assert_close(loss([other], labels), loss([logits], labels))
    everywhere = logits + torch.tensor([1.0, -1.0]).view(1, 2, 1, 1)
    assert not torch.isclose(loss([everywhere], labels), loss([logits], labels))


def test_the_weight_rises_and_ends():
    weights = [scheduled_weight(t / 10, 2.0, 0.4, 0.2) for t in range(10)]
    assert weights == pytest.approx([0, 0.5, 1, 1.5, 2, 2, 2, 2, 0, 0])


def test_a_wrong_or_an_empty_teacher_is_not_trusted():
    trust = Trust()
    assert not trust.given
    assert trust.judge(0.8, 0.82, foreground=1.0)
    assert not trust.judge(0.7, 0.82, foreground=1.0)
    assert trust.judge(0.8, 0.82, foreground=0.5)
    assert not trust.judge(0.05, 0.02, foreground=1.0)
    assert "below 0.1" in trust.reason
    assert not trust.judge(0.8, 0.82, foreground=0.001)
    assert "no confident foreground" in trust.reason
    assert not trust.judge(0.9, 0.82, foreground=math.nan)  # nothing seen, nothing changed


def test_the_teachers_pseudo_dice_is_nnunets(tiny, results):
    trainer = trainer_on_one_case(tiny, unlabelled={"cases": "rest"})
    counts = [{n: np.array(v, float) for n, v in zip(("tp_hard", "fp_hard", "fn_hard"), rows, strict=True)}
              for rows in (([3, 0], [1, 0], [2, 5]), ([4, 1], [0, 2], [1, 1]))]  # fmt: skip
    type(trainer).__mro__[-2].on_validation_epoch_end(trainer, [{**c, "loss": np.zeros(1)} for c in counts])
    assert pseudo_dice(counts) == pytest.approx(trainer.logger.get_value("mean_fg_dice", step=-1))


# ---- options and cases -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({}, r"'cases' of \"unlabelled\".*expected 'rest'"),
        ({"cases": "all"}, "'cases'.*expected 'rest', or a list"),
        ({"images": ["scans"]}, "'images'.*a list of absolute paths"),
        ({"cases": "rest", "confidence": 1.0}, r"'confidence'.*\[0, 1\)"),
        ({"cases": "rest", "ramp": 0.7, "last_phase": 0.5}, "'last_phase' .*at most 1 - ramp = 0.3"),
        ({"cases": "rest", "wight": 1}, "Unknown option 'wight' .*Did you mean 'weight'"),
    ],
)
def test_wrong_options_are_refused(tiny, results, block, message):
    with pytest.raises(OptionError, match=message):
        make_trainer(tiny, "BaselineTrainer", unlabelled=block)
    assert not results.exists()


def test_a_cascade_is_refused(tiny, results):
    plans = copy.deepcopy(tiny.plans)
    block = {"unlabelled": {"cases": "rest"}}
    second = {"inherits_from": "3d_fullres", "previous_stage": "3d_fullres", "nnunet_invariance": block}
    plans["configurations"]["second"] = second
    with pytest.raises(UnsupportedConfigurationError, match=r'second of .* does not support "unlabelled"'):
        make_trainer(tiny, "BaselineTrainer", plans, "second")


def cases_of(trainer) -> list[str]:
    trainer.on_train_start()
    return [case["name"] for case in json.loads(Path(trainer.output_folder, "unlabelled.json").read_text())]


def test_the_rest_is_every_case_outside_of_the_fold(tiny, results):
    assert cases_of(trainer_on_one_case(tiny, unlabelled={"cases": "rest"})) == [f"case_00{i}" for i in range(2, 6)]


@pytest.mark.parametrize(("name", "why"), [("case_001", "is a training or validation case"), ("case_9", "is not in")])
def test_cases_of_the_fold_and_unknown_ones_are_refused(tiny, results, name, why):
    trainer = trainer_on_one_case(tiny, unlabelled={"cases": ["case_002", name]})
    with pytest.raises(OptionError, match=f"names '{name}', which {why}"):
        trainer.on_train_start()


def test_a_fold_without_a_rest_is_refused(tiny, results):
    trainer = trainer_on_one_case(tiny, unlabelled={"cases": "rest"})
    trainer.do_split = lambda: ([f"case_00{i}" for i in range(5)], ["case_005"])
    with pytest.raises(TooFewVolumesError, match='"unlabelled" finds no case'):
        trainer.on_train_start()


def test_scans_of_a_folder_are_preprocessed_and_those_of_the_fold_left_out(tiny, results, tmp_path, monkeypatch):
    preprocess_scans_in_threads(monkeypatch)
    scans = tmp_path / "scans"
    scans.mkdir()
    for name in ("case_000", "case_003"):
        (scans / f"{name}_0000.nii.gz").symlink_to(tiny.raw / tiny.name / "imagesTr" / f"{name}_0000.nii.gz")
    trainer = trainer_on_one_case(tiny, unlabelled={"images": [str(scans)], "cases": ["case_005"]})
    assert cases_of(trainer) == ["case_005", "case_003"]
    batches = [next(trainer.unlabelled.loader) for _ in range(4)]
    assert {"data", "keys"} == batches[0].keys()
    assert {key for batch in batches for key in batch["keys"]} == {"0_case_005", "1_case_003"}


def test_labels_of_the_rest_are_not_used(tiny, results, monkeypatch):
    """Patches are the same if the other cases have other labels."""
    batches = []
    for shift in (0, 1):
        trainer = trainer_on_one_case(tiny, unlabelled={"cases": "rest"})
        trainer.on_train_start()
        dataset = trainer.unlabelled.loader.data_loader.loader._data
        load = dataset.load_case

        def relabelled(name, load=load, shift=shift):
            image, labels, *rest = load(name)
            labels = np.asarray(labels[:])
            return image, np.where(labels > 0, labels + shift, labels), *rest

        dataset.load_case = relabelled
        batches.append(next(trainer.unlabelled.loader))
    assert_same(batches[0]["data"], batches[1]["data"])


# ---- training --------------------------------------------------------------------------------------------------------


def final(trainer) -> dict:
    """Content of the final checkpoint without clock times."""
    checkpoint = torch.load(Path(trainer.output_folder, "checkpoint_final.pth"), weights_only=True)
    checkpoint["logging"] = {k: v for k, v in checkpoint["logging"].items() if "timestamps" not in k}
    return checkpoint


def test_a_weight_of_0_is_a_training_on_the_labels_alone(tiny, results, tmp_path, monkeypatch):
    plain = trainer_on_one_case(tiny)
    plain.run_training()
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "second"))
    zero = trusting(trainer_on_one_case(tiny, unlabelled={**RAMPLESS, "weight": 0.0, "keep": "student"}))
    zero.run_training()
    for key in ("network_weights", "optimizer_state"):
        assert_same(final(zero)[key], final(plain)[key])
    assert zero.unlabelled.drawn == 0


@pytest.fixture(scope="module")
def straight(tiny, tmp_path_factory):
    """A finished training whose teacher was always trusted, and the folder of its first checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("straight")
        patch.setenv("nnUNet_results", str(folder))
        trainer = trusting(trainer_on_one_case(tiny, unlabelled={**RAMPLESS, "symmetries": True}))
        save = trainer.save_checkpoint

        def keep_first(filename):
            save(filename)
            if trainer.current_epoch == 0 and "latest" in filename:
                Path(folder, "first.pth").write_bytes(Path(filename).read_bytes())

        trainer.save_checkpoint = keep_first
        trainer.run_training()
        return trainer, folder / "first.pth"


def test_a_continued_training_is_bit_exact_also_with_workers(straight, tiny, results, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    trainer, first = straight
    again = trusting(trainer_on_one_case(tiny, unlabelled={**RAMPLESS, "symmetries": True}))
    Path(again.output_folder, "checkpoint_latest.pth").write_bytes(first.read_bytes())
    maybe_load_checkpoint(again, continue_training=True, validation_only=False)
    again.unlabelled.trust.judge = lambda *_: True
    again.run_training()
    assert_same(final(again), final(trainer))


def test_curves_and_state_are_stored(straight):
    trainer, _ = straight
    checkpoint = final(trainer)
    curves = checkpoint["logging"]
    assert {len(curve) for curve in curves.values()} == {2}
    assert curves["unlabelled_weight"] == [1.0, 1.0]
    assert all(0 < share <= 1 for share in curves["teacher_confident"])
    assert all(math.isfinite(loss) for loss in curves["unlabelled_loss"])
    state = checkpoint["nnunet_invariance"]["unlabelled"]
    assert (state["steps"], state["drawn"]) == (4, 4)
    assert Path(trainer.output_folder, "unlabelled.png").is_file()
    assert "Teacher: pseudo dice" in log_of(trainer)


def test_the_unlabelled_batch_changes_the_training(straight, tiny, results):
    trainer, _ = straight
    plain = trainer_on_one_case(tiny)
    plain.run_training()
    pairs = zip(values(plain.network).values(), trainer.unlabelled.teacher.network.parameters(), strict=True)
    assert any(not torch.equal(*pair) for pair in pairs)


def test_a_mixture_shows_each_patch_with_its_own_labels(tiny, results):
    trainer = trainer_on_one_case(tiny, unlabelled=RAMPLESS)
    trainer.initialize()
    learning = trainer.unlabelled
    image, labelled = torch.full((4, 1, 9, 9, 9), 5.0), torch.full((4, 1, 9, 9, 9), -5.0)
    labels, target = torch.full(image.shape, 2), torch.full(image.shape, 1, dtype=torch.int16)
    mixed, known = learning._mixed(image, labels, labelled, target)
    assert torch.equal(known, torch.where(mixed > 0, 2, 1))
    assert (mixed > 0).flatten(1).any(1).all()
    assert (mixed < 0).flatten(1).any(1).all()


@pytest.mark.parametrize("keep", ["teacher", "student"])
def test_the_final_weights_are_those_that_are_kept(straight, tiny, results, keep):
    _, first = straight
    again = trusting(trainer_on_one_case(tiny, unlabelled={**RAMPLESS, "keep": keep}))
    again.load_checkpoint(str(first))
    again.unlabelled.loader = None
    student = values(again.network)
    teacher = values(again.unlabelled.teacher.network)
    again.unlabelled.finish()
    assert_same(values(again.network), teacher if keep == "teacher" else student)


def test_a_planted_wrong_teacher_gets_the_weight_0(tiny, results):
    trainer = trainer_on_one_case(tiny, unlabelled=RAMPLESS, name="BaselineTrainer_1epoch")
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    learning = trainer.unlabelled
    learning.trust.given = True
    batch = next(trainer.dataloader_val)
    target = batch["target"][0] if isinstance(batch["target"], list) else batch["target"]
    one_hot = torch.nn.functional.one_hot(target[:, 0].long(), 3).movedim(-1, 1).float()

    class Oracle(torch.nn.Module):
        """Predicts the reference, with its classes in another order if it is wrong."""

        def __init__(self, order):
            super().__init__()
            self.order = order

        def forward(self, image):
            logits = 9 * one_hot[:, self.order]
            return [logits] * len(batch["target"]) if isinstance(batch["target"], list) else logits

    def epoch(order):
        learning.teacher.network, learning.teacher.follow = Oracle(order), lambda student: None
        trainer.network = Oracle([0, 1, 2])
        learning.start_epoch()
        learning.looks = [{"confident": torch.tensor(1.0), "foreground": torch.tensor(500.0)}]
        trainer.loss = lambda *_: torch.zeros(())
        trainer.on_validation_epoch_end([trainer.validation_step(batch)])
        return learning.trust.given

    student = trainer.network
    assert epoch([0, 1, 2])
    trainer.current_epoch = 1
    assert not epoch([0, 2, 1])
    assert "is not trusted, so its weight is 0: its pseudo-Dice 0.000 is clearly below the 1.000" in log_of(trainer)
    trainer.network = student
    learning.step_in_epoch = -100
    assert learning.loss_of_step(batch["data"], batch["target"]) is None


@pytest.mark.parametrize("name", ["MAETrainer_scratch_1epoch", "ICMSegTrainer_1epoch", "BaselineTrainerDA5_1epoch"])
def test_every_kind_of_trainer_learns_from_them(tiny, results, name):
    trainer = trusting(
        trainer_on_one_case(tiny, name, unlabelled={**RAMPLESS, "strong": "gin", "mix": "DA5" not in name})
    )
    trainer.run_training()
    assert trainer.unlabelled.drawn == 2
    assert math.isfinite(final(trainer)["logging"]["unlabelled_loss"][0])


def trains(trainer) -> dict:
    """Train one epoch with a teacher that is trusted; returns its curves."""
    trainer.do_split = lambda: (TRAIN, VAL)
    trainer.perform_actual_validation = lambda *_: None
    trusting(trainer).run_training()
    assert trainer.unlabelled.drawn == 2
    return final(trainer)["logging"]


OPTIONS = {"seed": 1, "iterations_per_epoch": 2, "val_iterations_per_epoch": 1, "unlabelled": RAMPLESS}


def test_slices_are_learned_from(tiny, results):
    plans = cut_down_2d(tiny.plans, "nnUNetPlans", **OPTIONS)
    curves = trains(make_trainer(tiny, "BaselineTrainer_1epoch", plans, "2d"))
    assert math.isfinite(curves["unlabelled_loss"][0])


@pytest.mark.parametrize("ignore", [{}, {"ignore": 3}])
def test_regions_and_an_ignore_label_are_supported(tiny, results, monkeypatch, ignore):
    dataset = json.loads((tiny.preprocessed / tiny.name / "dataset.json").read_text())
    dataset["labels"] = {"background": 0, "body": [1, 2], "core": 2, **ignore}
    dataset["regions_class_order"] = [1, 2]
    options = {**OPTIONS, "unlabelled": {**RAMPLESS, "mix": True}}
    plans = cut_down(tiny.plans, "nnUNetPlans", **options)
    plans["configurations"]["3d_fullres"].update(patch_size=[16, 16, 16])
    trainer = find_trainer("BaselineTrainer_1epoch")
    loader = nnUNetDataLoader.get_bbox
    monkeypatch.setattr(nnUNetDataLoader, "get_bbox", lambda self, shape, *_: loader(self, shape, False, without(self)))
    trainer = trainer({**plans, "continue_training": False}, "3d_fullres", 0, dataset, torch.device("cpu"))
    curves = trains(trainer)
    assert math.isfinite(curves["unlabelled_loss"][0])
    assert 0 < curves["teacher_confident"][0] <= 1


def without(loader) -> dict:
    """No places of labels; the tiny data set was preprocessed without regions and ignored voxels."""
    return {loader.annotated_classes_key: []}
