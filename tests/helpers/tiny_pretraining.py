"""Alice on the tiny data set: a short pre-training, and the method outside of the loop."""

import shutil

import torch

from nnunet_invariance.networks.planned import Architecture
from nnunet_invariance.nnunet.cases import scan_cases
from nnunet_invariance.pretraining.engine.method import Setup
from nnunet_invariance.pretraining.methods.alice import Alice, AliceOptions
from nnunet_invariance.weights.checkpoint import load_checkpoint
from tests.helpers.pretraining_runs import run_pretraining

SHORT = ["epochs=3", "iterations=2", "lr=1e-3", "workers=0", "head_width=64", "num_prototypes=64"]


def pretrain(tiny, *settings, resume=False, **kwargs):
    """Pre-train on the CPU with the short settings, which ``settings`` override."""
    words = [s for s in SHORT if s.split("=")[0] not in {w.split("=")[0] for w in settings}] + list(settings)
    return run_pretraining("alice", tiny.name, "3d_fullres", device="cpu", resume=resume, settings=words, **kwargs)


def make_alice(tiny, **options):
    """Alice on the tiny volumes, without the loop."""
    configuration = tiny.plans["configurations"]["3d_fullres"]
    folder = tiny.preprocessed / tiny.name / configuration["data_identifier"]
    cases, _ = scan_cases(folder, 1, (4, 4, 4))
    architecture = Architecture.from_plans(configuration["architecture"], 1, 1)
    torch.manual_seed(0)
    setup = Setup(architecture, (32, 32, 32), (1.0, 1.0, 1.0), 2, False, tuple(cases))
    return Alice(setup, AliceOptions(head_width=64, num_prototypes=64, **options)).train()


def batch_of(alice, step):
    """One batch without the names of its cases."""
    return {k: v for k, v in alice.dataset(1000, 0, 0)[step].items() if k != "keys"}


def copy_cases(tiny, folder, names):
    """Copy the files of preprocessed cases into a folder."""
    source = tiny.preprocessed / tiny.name / tiny.plans["configurations"]["3d_fullres"]["data_identifier"]
    folder.mkdir(parents=True)
    for name in names:
        for path in source.glob(f"{name}*"):
            shutil.copy(path, folder)


def tensors(path):
    """All tensors of a checkpoint."""
    return load_checkpoint(path).tensors


def assert_same(first, second):
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert different == []
