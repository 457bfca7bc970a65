"""Sound files of every kind that the package reads, and functions that read such a file as the commands do."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

from nnunet_invariance.common.csv_files import read_csv_rows
from nnunet_invariance.common.image_files import check_image
from nnunet_invariance.errors import InvarianceError
from nnunet_invariance.evaluation.report import page
from nnunet_invariance.evaluation.runner.stored import stored_jobs
from nnunet_invariance.networks.heads.anatomical_embedding import EmbeddingHead
from nnunet_invariance.networks.planned import Architecture, unique_tensors
from nnunet_invariance.nnunet.cases import _read_cache
from nnunet_invariance.nnunet.planned_dataset import open_planned_dataset
from nnunet_invariance.pretraining.data.embedder import Embedder
from nnunet_invariance.registration.network import load_feature_network
from nnunet_invariance.weights.checkpoint import load_checkpoint, save_checkpoint
from nnunet_invariance.weights.foreign import open_foreign
from nnunet_invariance.weights.importers.importing import import_foreign
from nnunet_invariance.weights.importers.registry import IMPORTERS, get_importer
from nnunet_invariance.weights.inspection import inspect
from nnunet_invariance.weights.model_card import export_card
from nnunet_invariance.weights.nnssl_export import export_nnssl
from nnunet_invariance.weights.nnunet_export import export_nnunet
from nnunet_invariance.weights.transfer import load_pretrained
from tests.helpers import stored_comparison
from tests.helpers.foreign_checkpoints import encoder_file, nnssl_file, nnunet_file
from tests.helpers.small_checkpoints import architecture, build, metadata, tensors


def foreign(path: Path) -> None:
    """As ``weights inspect`` and ``weights import``; the last error wins, so that both readers are seen."""
    _all(lambda: inspect(path).to_text(), lambda: import_foreign(path, path.with_name("out.safetensors")))


def ours(path: Path) -> None:
    """As every command that takes a checkpoint of ours."""
    network = architecture().build()
    _all(
        lambda: inspect(path).to_text(),
        lambda: load_pretrained(network, path),
        lambda: export_nnunet(path, path.with_name("out.pth"), random_decoder=True),
        lambda: export_nnssl(path, path.with_name("out.nnssl.pth")),
        lambda: export_card(path, path.with_name("card")),
        lambda: Embedder.load(path),
        lambda: load_feature_network(path, torch.device("cpu")),
    )


def image(path: Path) -> None:
    """As every command that takes images."""
    check_image(path, dimensions=3)


def _all(*reads: Callable[[], Any]) -> None:
    refused: InvarianceError | None = None
    for read in reads:
        try:
            read()
        except InvarianceError as error:
            refused = error
    if refused:
        raise refused


def foreign_contents() -> dict[str, Callable[[], dict[str, Any]]]:
    """Makers of the content of small files of other tools."""
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    for network in ("PlainConvUNet", "ResidualEncoderUNet"):
        planned = architecture(network)
        for write in (nnunet_file, nnssl_file, encoder_file):
            content = _content(write, planned)
            found[f"{write.__name__.removesuffix('_file')}, {network}"] = lambda content=content: dict(content)
    for name in IMPORTERS:
        keys = get_importer(name).KEYS
        found[f"{name}, keys only"] = lambda keys=keys: {
            f"{key}{'weight' if key.endswith('.') else ''}": torch.ones(4, 1, 3, 3, 3) for key in keys
        }
    return found


def _content(write: Callable[..., Path], planned: Architecture) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return open_foreign(write(Path(folder) / "a.pth", planned, build(planned, 3)))


def our_contents() -> dict[str, dict[str, torch.Tensor]]:
    """Tensors of small checkpoints of ours, by method."""
    plain = tensors(architecture())
    encoder = build(architecture(), 1).encoder
    head = unique_tensors(EmbeddingHead(encoder.output_channels, encoder.strides, 8))
    network = {name: tensor for name, tensor in plain.items() if name.startswith("network.")}
    return {"alice": plain, "sam": {**network, **{f"heads.{name}": t.detach() for name, t in head.items()}}}


def image_bytes() -> bytes:
    """A small NIfTI file."""
    voxels = np.random.default_rng(0).normal(100, 20, (6, 7, 8)).astype(np.float32)
    return nibabel.Nifti1Image(voxels, np.eye(4)).to_bytes()


class Documents:
    """A folder with a planned data set and a comparison; a changed file is put into it, read, and put back."""

    def __init__(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        for draw in ("draw_means", "draw_effects", "draw_heat_map"):
            setattr(page, draw, lambda *_: b"")  # pictures take most of the time and read no file
        page.case_section = lambda *_: ""
        self.comparison = stored_comparison.write_comparison(folder / "comparison")
        self.dataset = _write_planned(folder)
        job = stored_jobs(self.comparison)[0]
        self.places = {
            "comparison.json": self.comparison / "comparison.json",
            "record.json": job.record,
            "scores.csv": job.scores,
            "transfer_report.json": job.model / "transfer_report.json",
            "nnUNetPlans.json": self.dataset / "nnUNetPlans.json",
            "dataset.json": self.dataset / "dataset.json",
            "scan.json": folder / "scan.json",
            "metrics.csv": folder / "metrics.csv",
        }
        case = {"key": "2:9:9:1:4x4x4", "name": "a", "folder": "f", "shape": [9, 9, 9], "body": [[0, 9]] * 3}
        self.places["scan.json"].write_text(json.dumps({"a": {**case, "content": "0"}}))
        self.places["metrics.csv"].write_text("epoch,loss\n1,0.5\n2,0.25\n")
        self.files = {name: path.read_bytes() for name, path in self.places.items()}

    def read(self, name: str, changed: Path) -> None:
        """Read a changed document as the commands do."""
        place = self.places[name]
        place.write_bytes(changed.read_bytes())
        try:
            self._read(name)
        finally:
            place.write_bytes(self.files[name])
            damaged = place.with_name(f"{place.name}.damaged")
            damaged.unlink(missing_ok=True)

    def _read(self, name: str) -> None:
        if name in ("nnUNetPlans.json", "dataset.json"):
            open_planned_dataset(self.dataset.name, "3d_fullres")
        elif name == "scan.json":
            _read_cache(self.places[name])
        elif name == "metrics.csv":
            read_csv_rows(self.places[name], ["epoch", "loss"])
        else:
            page.write_report(self.comparison)


def _write_planned(folder: Path) -> Path:
    from tests.helpers.planned_files import plans_of_network

    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(folder / name)
    dataset = folder / "preprocessed" / "Dataset778_Planned"
    dataset.mkdir(parents=True)
    (folder / "raw" / dataset.name).mkdir(parents=True)
    (dataset / "nnUNetPlans.json").write_text(json.dumps(plans_of_network(architecture())))
    labels = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}
    (dataset / "dataset.json").write_text(json.dumps(labels))
    return dataset


def warm_up(folder: Path) -> None:
    """Read one sound file of each kind, so that all modules are imported before the readers are watched."""
    import urllib3  # noqa: F401  # a library imports it late, and it binds a port of this host to look for IPv6

    folder.mkdir(parents=True, exist_ok=True)
    for number, make in enumerate(foreign_contents().values()):
        path = folder / f"{number}.pth"
        torch.save(make(), path)
        _quietly(foreign, path)
        path.with_name("out.safetensors").unlink(missing_ok=True)
    for method, content in our_contents().items():
        path = folder / f"{method}.safetensors"
        save_checkpoint(path, content, metadata(architecture(), method=method))
        load_checkpoint(path)
        _quietly(ours, path)
        for name in ("out.pth", "out.nnssl.pth"):
            path.with_name(name).unlink(missing_ok=True)
        shutil.rmtree(folder / "card", ignore_errors=True)
    (folder / "a.nii").write_bytes(image_bytes())
    image(folder / "a.nii")


def _quietly(read: Callable[[Path], Any], path: Path) -> None:
    try:
        read(path)
    except InvarianceError:
        return
