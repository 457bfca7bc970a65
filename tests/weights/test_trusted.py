"""Only names from an allow-list are called when a network is built from the description in a file."""

import ast
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from nnunet_invariance.cli.main import main
from nnunet_invariance.errors import CheckpointCorruptError, WeightsIncompatibleError
from nnunet_invariance.networks.heads.anatomical_embedding import EmbeddingHead
from nnunet_invariance.networks.planned import Architecture, unique_tensors
from nnunet_invariance.pretraining.data.embedder import Embedder
from nnunet_invariance.weights.checkpoint import load_checkpoint, save_checkpoint
from nnunet_invariance.weights.trusted_architecture import LAYERS, build_trusted, trusted_architecture
from tests.helpers.hostile_files import our_file
from tests.helpers.small_checkpoints import architecture, metadata, write

ROOT = Path(__file__).parents[2]
#: Calls that import or run what a string names, and the files that may make them.
CALLS = {
    "get_network_from_plans": {
        "nnunet_invariance/networks/planned.py",  # an Architecture, of plans or checked
        "plans/puir_planner.py",  # what the planner has just decided
    },
    "import_module": {
        "nnunet_invariance/_discovery.py",  # modules of the registry
        "nnunet_invariance/registry.py",  # modules of methods and trainers
        "nnunet_invariance/common/lazy.py",  # modules of public names, as in the next lines
        *(f"nnunet_invariance/{package}/__init__.py" for package in ("evaluation", "pretraining", "probing")),
        *(f"{package}/__init__.py" for package in ("trainers", "plans")),
        "nnunet_invariance/cli/main.py",  # modules of the verbs
        "nnunet_invariance/weights/importers/registry.py",  # modules of the importers
        "nnunet_invariance/demo/run.py",  # modules of the demos
        "nnunet_invariance/doctor.py",  # torchvision, by its literal name
        "nnunet_invariance/common/tensorboard.py",  # tensorboard, by its literal name
        "nnunet_invariance/cli/completion.py",  # shtab, by its literal name
        "nnunet_invariance/registration/convex_adam.py",  # convexAdam, by its literal name
    },
    "torch.load": {"nnunet_invariance/weights/foreign.py"},  # weights only
    **{name: set() for name in ("__import__", "eval", "exec", "pickle.load", "pickle.loads")},
}
#: Files that may make an Architecture, which is what a network is built from.
ARCHITECTURES = {
    "nnunet_invariance/networks/planned.py",
    "nnunet_invariance/weights/trusted_architecture.py",
    "nnunet_invariance/weights/importers/sam.py",  # literal arguments
    "nnunet_invariance/weights/importers/anatomix.py",  # literal arguments
    "nnunet_invariance/networks/frozen_features.py",  # literal arguments
    "nnunet_invariance/pretraining/methods/sam.py",  # literal arguments
    "nnunet_invariance/pretraining/engine/target.py",  # the user's plans, or a preset
    "nnunet_invariance/modality_translation/translator.py",  # the user's plans
    "trainers/puir.py",  # the user's plans
    "plans/fit.py",  # the user's plans
    "plans/preflight.py",  # the user's plans
    "nnunet_invariance/probing/protocol.py",  # the user's plans
}


def with_architecture(path: Path, checkpoint: Path, **changes: object) -> Path:
    """A copy of a checkpoint whose header says something else of its network."""
    loaded = load_checkpoint(checkpoint)
    entry = loaded.metadata["architecture"]
    entry = {**entry, **{key: value for key, value in changes.items() if key in entry}}
    entry["arch_kwargs"] = {**entry["arch_kwargs"], **{k: v for k, v in changes.items() if k not in entry}}
    save_checkpoint(path, loaded.tensors, {**loaded.metadata, "architecture": entry})
    return path


@pytest.fixture
def embedding(tmp_path):
    """A checkpoint of ``pretrain sam``."""
    path = write(tmp_path / "sam.safetensors", method="sam")
    loaded = load_checkpoint(path)
    encoder = trusted_architecture(loaded).build().encoder
    head = unique_tensors(EmbeddingHead(encoder.output_channels, encoder.strides, 8))
    tensors = {n: t for n, t in loaded.tensors.items() if n.startswith("network.")}
    save_checkpoint(path, {**tensors, **{f"heads.{n}": t for n, t in head.items()}}, loaded.metadata)
    Embedder.load(path)
    return path


def test_a_sam_checkpoint_runs_no_code_that_its_header_names(embedding, tmp_path):
    canary = tmp_path / "canary"
    path = with_architecture(
        tmp_path / "evil.safetensors", embedding, nonlin="os.system", nonlin_kwargs={"command": f"touch {canary}"}
    )
    with pytest.raises(CheckpointCorruptError, match=r"'nonlin'.*'os\.system'.*a layer of torch\.nn"):
        Embedder.load(path)
    assert not canary.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"network_class_name": "os.system"},
        {"network_class_name": "subprocess.Popen"},
        {"conv_op": "builtins.exec"},
        {"norm_op": "torch.nn.Module"},
        {"norm_op": "torch.nn.parallel.DistributedDataParallel"},
        {"nonlin": "torch.nn.modules.module.os.system"},
        {"nonlin": ["torch.nn.ReLU"]},
        {"n_stages": 10**6},
        {"n_conv_per_stage": 4096},
        {"n_conv_per_stage": [2, 2, 65]},
        {"features_per_stage": [10**9] * 3},
        {"input_channels": 10**9},
        {"input_channels": "1"},
        {"num_classes": -1},
    ],
    ids=str,
)
def test_names_and_sizes_outside_the_allow_list_are_refused(embedding, tmp_path, changes):
    path = with_architecture(tmp_path / "evil.safetensors", embedding, **changes)
    with pytest.raises((CheckpointCorruptError, WeightsIncompatibleError), match=r"evil\.safetensors"):
        trusted_architecture(load_checkpoint(path))


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"conv_bias": "yes", "n_conv_per_stage_decoder": [[1, 1]]}, "n_conv_per_stage_decoder"),
        ({"strides": [[1, 1, 1]] * 2}, "strides"),
        ({"no_such_argument": 1}, "no_such_argument"),
        ({"_kw_requires_import": 0.5}, r"the names of its classes are 0\.5; expected a list of arguments"),
        ({"_kw_requires_import": [["conv_op"]]}, r"the names of its classes are .*expected a list of arguments"),
    ],
    ids=str,
)
def test_a_network_that_cannot_be_built_is_named(embedding, tmp_path, changes, found):
    path = with_architecture(tmp_path / "odd.safetensors", embedding, **changes)
    with pytest.raises(CheckpointCorruptError, match=rf"(?s)odd\.safetensors cannot be used.*{found}"):
        build_trusted(load_checkpoint(path))


def test_a_network_much_larger_than_its_file_is_refused(embedding, tmp_path, monkeypatch):
    path = with_architecture(tmp_path / "large.safetensors", embedding, features_per_stage=[1024] * 3)
    monkeypatch.setattr(Architecture, "build", _on_meta_only(Architecture.build))
    with pytest.raises(
        CheckpointCorruptError, match=r"its network has [\d,]+ bytes, and the file [\d,]+; expected at most"
    ):
        build_trusted(load_checkpoint(path))


def _on_meta_only(build):
    def checked(self):
        assert torch.get_default_device().type == "meta"
        return build(self)

    return checked


@pytest.mark.parametrize("heads", [{}, {"fine.smooth.bias": torch.zeros(8)}], ids=["none", "one"])
def test_an_embedding_without_its_heads_is_named(embedding, tmp_path, heads):
    loaded = load_checkpoint(embedding)
    tensors = {name: tensor for name, tensor in loaded.tensors.items() if name.startswith("network.")}
    path = tmp_path / "sam.safetensors"
    save_checkpoint(path, {**tensors, **{f"heads.{name}": tensor for name, tensor in heads.items()}}, loaded.metadata)
    with pytest.raises(CheckpointCorruptError, match="its tensors are not those of the embedding"):
        Embedder.load(path)


@pytest.mark.parametrize("entry", [None, "PlainConvUNet", {}, []], ids=str)
def test_a_header_without_an_architecture_is_an_error_message(tmp_path, entry, capsys):
    path, out = tmp_path / "odd.safetensors", tmp_path / "x.pth"
    whole = {**metadata(architecture()), "format": 2, "created": "now", "sha256": "0" * 64}
    path.write_bytes(our_file({**whole, "architecture": entry}))
    with pytest.raises(CheckpointCorruptError, match=r"'architecture': .*expected a mapping with network_class_name"):
        load_checkpoint(path)
    for action in (["inspect", path], ["export", path, out, "--format", "nnunet"], ["plan", "778", path]):
        assert main(["weights", *map(str, action)]) == 2
        assert "Traceback" not in capsys.readouterr().err


def test_every_allowed_layer_exists():
    for name, module in LAYERS.items():
        assert issubclass(getattr(nn, name), nn.Module)
        assert getattr(torch.nn.modules, module).__dict__[name] is getattr(nn, name)


def calls() -> list[tuple[str, str]]:
    """Every call in the package: file, and the called name as far as it is written."""
    found = []
    for file in [*ROOT.glob("nnunet_invariance/**/*.py"), *ROOT.glob("trainers/*.py"), *ROOT.glob("plans/*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                found.append((str(file.relative_to(ROOT)), ast.unparse(node.func)))
    return found


@pytest.mark.integration
def test_only_listed_files_import_or_build_by_name():
    for file, called in calls():
        for name, allowed in CALLS.items():
            if called == name or (len(name) > 5 and called.endswith(f".{name}")):
                assert file in allowed, f"{file} calls {called}; give the reason in CALLS, or use trusted_architecture"
        if called in ("Architecture", "Architecture.from_plans", "cls.from_plans"):
            assert file in ARCHITECTURES, f"{file} makes an Architecture; use trusted_architecture for files"


def test_no_file_imports_pydoc_or_another_pickle():
    for file in ROOT.glob("nnunet_invariance/**/*.py"):
        assert not re.search(r"^\s*(from|import) (pydoc|dill|joblib|marshal)\b", file.read_text(), re.M), file


@pytest.mark.integration
def test_the_walk_sees_calls():
    assert ("nnunet_invariance/networks/planned.py", "get_network_from_plans") in calls()
