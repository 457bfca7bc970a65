"""One step of every method on an emulated device: no tensor on the wrong side, and one wait of the host."""

import math

import pytest
import torch

from nnunet_invariance import registry
from nnunet_invariance.common import precision
from nnunet_invariance.common.distributed import DistributedContext
from nnunet_invariance.pretraining.data.synthetic_pairs import (
    VOLUMES_IN_TURN,
    SyntheticPairGenerator,
    balanced_positions,
    crop,
)
from nnunet_invariance.pretraining.engine.loop import Loop
from nnunet_invariance.pretraining.engine.options import LoopOptions
from nnunet_invariance.synthesis import SynthesisEngine, SynthesisOptions
from nnunet_invariance.synthesis.online import apply_augmentation, sample_augmentation
from nnunet_invariance.synthesis.randomness import element_generator
from tests.helpers import tiny_anatomix
from tests.helpers.device_emulator import DEVICE, Emulator, to_device
from tests.helpers.line_method import Bar
from tests.helpers.methods import small

#: Waits in addition to the one of the loop: the synthesis reads its seed, and how many blocks each template reaches.
ADDITIONAL = {"anatomix": 3}
MOST_WAITS_OF_A_PAIR = 2


@pytest.mark.integration
@pytest.mark.parametrize("name", sorted(entry.name for entry in registry.METHODS))
def test_a_step_waits_once(name, tmp_path, monkeypatch):
    """The second step: the first one also moves templates. An epoch ends with an evaluation under autocast."""
    monkeypatch.setitem(precision.SUPPORTED, DEVICE.type, ("bf16",))
    method, batch = small(name).build(), small(name).batch(0)
    options = LoopOptions(epochs=1, iterations=4, workers=0, precision="bf16")
    monkeypatch.setattr(Loop, "save", lambda loop: None)
    with Emulator() as emulator:
        loop = Loop(method, options, DistributedContext(0, 1, DEVICE), tmp_path, {})
        for _ in range(2):
            emulator.waits.clear()
            loop._train_step([{**batch, "keys": ["case"]}], Bar())
        waits = emulator.total, emulator.waits.copy()
        loop._end_epoch(1.0, 1)
    assert loop.skipped == 0
    assert all(math.isfinite(value) for value in loop.history[0].values())
    assert {parameter.device for parameter in method.parameters()} == {DEVICE}
    assert waits[0] == 1 + ADDITIONAL.get(name, 0), waits[1]


def test_a_step_with_a_loss_scale_waits_once(tmp_path, monkeypatch):
    monkeypatch.setitem(precision.SUPPORTED, DEVICE.type, ("fp16",))
    method, batch = small("mae").build(), small("mae").batch(0)
    with Emulator() as emulator:
        loop = Loop(method, LoopOptions(precision="fp16"), DistributedContext(0, 1, DEVICE), tmp_path, {})
        assert loop.scaler is not None
        loop.scaler = torch.amp.GradScaler(DEVICE.type, init_scale=64.0)  # small enough for the first step
        emulator.waits.clear()
        loop._train_step([{**batch, "keys": ["case"]}], Bar())
    assert loop.skipped == 0
    assert emulator.total == 1, emulator.waits


@pytest.mark.integration
@pytest.mark.parametrize("quirks", [False, True])
def test_the_synthesis_of_a_batch_of_pairs_hardly_waits(quirks):
    """The number of waits does not depend on the number of pairs, nor on what is sampled."""
    names = ("bias", "spike", "gamma", "smoothing", "ringing", "sharpening", "low_resolution")
    always = {f"{name}_probability": 1.0 for name in names}
    options = SynthesisOptions(size=(32, 32, 32), foreground=1.0, envelope=0.5, official_quirks=quirks, **always)
    engine = SynthesisEngine(options)
    for pairs in (1, 3):
        generators = [element_generator(0, number) for number in range(pairs)]
        elements = [engine.sample(generator) for generator in generators]
        augmentations = [sample_augmentation(generator) for generator in generators]
        expected = apply_augmentation(engine.apply(elements), augmentations)
        with Emulator() as emulator:
            engine.bank.flat = to_device(engine.bank.flat)
            found = apply_augmentation(engine.apply(elements), augmentations)
            engine.bank.flat = engine.bank.flat.values
        assert emulator.total <= MOST_WAITS_OF_A_PAIR, emulator.waits
        assert found.first.device == DEVICE
        assert torch.equal(found.labels.values, expected.labels)


def test_a_patch_of_the_synthetic_volume_is_chosen_without_a_wait():
    generator = SyntheticPairGenerator((8, 12, 10), volume=32)
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (3, 1, 32, 32, 32), generator=random, dtype=torch.uint8)
    starts = torch.randint(21, (3, 8, 3), generator=random)
    chosen = generator._best_starts(labels, starts)
    with Emulator() as emulator:
        found = generator._best_starts(to_device(labels), starts)
        patches = crop(to_device(labels), found, generator.patch_size)
    assert torch.equal(found.values, chosen)
    for patch, volume, (z, y, x) in zip(patches.values, labels, chosen.tolist(), strict=True):
        assert torch.equal(patch, volume[:, z : z + 8, y : y + 12, x : x + 10])
    assert emulator.total == 0, emulator.waits


@pytest.mark.integration
def test_a_later_patch_of_a_volume_waits_for_its_number_only(tmp_path):
    method = tiny_anatomix.make(patch=(16, 16, 16), volume=32, cuts=2)
    items = [method.dataset(8, 0, 0)[step] for step in (0, VOLUMES_IN_TURN)]
    with Emulator() as emulator:
        loop = Loop(method, LoopOptions(precision="fp32"), DistributedContext(0, 1, DEVICE), tmp_path, {})
        loop._train_step(items[:1], Bar())
        emulator.waits.clear()
        loop._train_step(items[1:], Bar())
    assert emulator.total == 2, emulator.waits


def test_positions_are_chosen_without_a_wait():
    labels = torch.randint(5, (4096,), generator=torch.Generator().manual_seed(0))
    expected = balanced_positions(labels, 100, seed=1)
    with Emulator() as emulator:
        found = balanced_positions(to_device(labels), 100, seed=1)
    assert torch.equal(found.values, expected)
    assert emulator.total == 0, emulator.waits
