"""Faults of files: checkpoints, plans, records, caches and images that are damaged, missing or of another kind."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

from benchmarks.faults.fault import command, fault, warnings
from benchmarks.faults.subjects import CONFIGURATION, PLANS
from nnunet_invariance.common.image_files import check_image
from nnunet_invariance.common.json_files import read_json
from nnunet_invariance.evaluation.protocols.cases import seen_cases
from nnunet_invariance.evaluation.report.page import write_report
from nnunet_invariance.evaluation.runner.stored import state, stored_jobs
from nnunet_invariance.nnunet.cases import load_volume, scan_cases
from nnunet_invariance.nnunet.planned_dataset import open_planned_dataset
from nnunet_invariance.nnunet.unlabelled_images import find_scans
from nnunet_invariance.pretraining.data.mining import SUMMARY, load_pairs
from nnunet_invariance.weights.checkpoint import load_checkpoint
from tests.helpers.damaged_images import damaged_images
from tests.helpers.small_checkpoints import write
from tests.helpers.stored_comparison import write_comparison
from tests.helpers.tiny_dataset import NAME

CELL = (4, 4, 4)


def flip(path: Path, at: int) -> None:
    """Flip one bit; a negative position counts from the end."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@fault("file", "a checkpoint is cut to half", "a.safetensors cannot be used: it is truncated", "Copy it again")
def _cut(folder: Path) -> str:
    path = write(folder / "a.safetensors")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return command("weights", "inspect", path)


@fault("file", "one bit of a tensor in a checkpoint is flipped", "its tensors have the checksum", "Copy it again")
def _tensor_bit(folder: Path) -> str:
    path = write(folder / "a.safetensors")
    flip(path, -5)
    return command("weights", "inspect", path)


@fault("file", "one bit of the metadata in a checkpoint is flipped", "metadata do not match their checksum")
def _metadata_bit(folder: Path) -> str:
    path = write(folder / "a.safetensors")
    flip(path, path.read_bytes().index(b"total_steps") + 16)
    return command("weights", "inspect", path)


@fault("file", "a damaged checkpoint has a previous version", "The previous version is kept: ", ".previous.safetensors")
def _previous(folder: Path) -> str:
    path = write(write(folder / "a.safetensors"))
    flip(path, -5)
    return command("weights", "inspect", path)


@fault("file", "a checkpoint is empty", "it is empty")
def _empty(folder: Path) -> str:
    (folder / "a.safetensors").touch()
    return command("weights", "inspect", folder / "a.safetensors")


@fault("file", "a checkpoint is a Git LFS pointer", "it is a Git LFS pointer", "git lfs pull")
def _pointer(folder: Path) -> str:
    (folder / "a.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    return command("weights", "inspect", folder / "a.safetensors")


@fault("file", "a checkpoint is a web page", "it is a web page", "download it again")
def _page(folder: Path) -> str:
    (folder / "a.pth").write_text("<!doctype html><html></html>")
    return command("weights", "inspect", folder / "a.pth")


@fault("file", "a checkpoint is a folder", "is a folder, not a checkpoint", "checkpoint_final.safetensors")
def _folder(folder: Path) -> str:
    load_checkpoint(folder)
    return ""


@fault("file", "a PyTorch file has a flipped bit", "does not match its CRC", "Copy it again")
def _crc(folder: Path) -> str:
    torch.save({"network_weights": {"a": torch.zeros(500)}}, folder / "a.pth")
    flip(folder / "a.pth", (folder / "a.pth").stat().st_size // 2)
    return command("weights", "inspect", folder / "a.pth")


@fault("file", "a checkpoint contains NaN", "1 of 6 tensors are not finite", "no checkpoint was written")
def _nan(folder: Path) -> str:
    from tests.helpers.line_method import Line, make_loop

    method = Line()
    method.network.weight.data.fill_(float("nan"))
    make_loop(method, folder).save()
    return ""


def _with_plans(folder: Path, name: str, change: object) -> str:
    dataset = folder / "preprocessed" / NAME
    shutil.copytree(open_planned_dataset(NAME, CONFIGURATION, PLANS).base, dataset)
    text = (dataset / name).read_text()
    (dataset / name).write_text(change(text))  # type: ignore[operator]
    os.environ["nnUNet_preprocessed"] = str(folder / "preprocessed")
    return command("pretrain", "mae", NAME, CONFIGURATION, "-p", PLANS, "-device", "cpu")


@fault("file", "the plans are cut", f"{PLANS}.json is not a valid JSON file", "line", "Plan again")
def _plans(folder: Path) -> str:
    return _with_plans(folder, f"{PLANS}.json", lambda text: text[: len(text) // 2])


@fault("file", "the plans lack the network", "cannot be resolved", "Plan again")
def _architecture(folder: Path) -> str:
    return _with_plans(folder, f"{PLANS}.json", lambda text: text.replace('"architecture"', '"arch"'))


@fault("file", "dataset.json has a list of labels", "dataset.json", "labels is [0, 1], expected an object")
def _dataset(folder: Path) -> str:
    return _with_plans(folder, "dataset.json", lambda text: json.dumps({**json.loads(text), "labels": [0, 1]}))


def _cases(folder: Path) -> Path:
    planned = open_planned_dataset(NAME, CONFIGURATION, PLANS)
    return Path(shutil.copytree(planned.folder, folder / "cases"))


@fault("file", "a preprocessed image is damaged", "case_001", "cannot be read")
def _image(folder: Path) -> str:
    cases = _cases(folder)
    (cases / "case_001.b2nd").write_bytes(b"damaged")
    return next(f"skipped {case.name}: {case.reason}" for case in scan_cases(cases, 1, CELL)[1])


@fault("file", "a preprocessed image is deleted during a run", "case_000", "deleted or damaged after it was inspected")
def _deleted(folder: Path) -> str:
    cases, _ = scan_cases(_cases(folder), 1, CELL)
    shutil.rmtree(cases[0].folder)
    load_volume(cases[0])
    return ""


@fault("file", "the cache of the inspection is damaged", "is damaged and will be rebuilt")
def _cache(folder: Path) -> str:
    cases = _cases(folder)
    scan_cases(cases, 1, CELL)
    (folder / "cases.nnunet_invariance_scan.json").write_text("{")
    with warnings() as lines:
        assert len(scan_cases(cases, 1, CELL)[0]) == 6
    return lines[0]


@fault("file", "comparison.json is cut", "comparison.json is not a valid JSON file", "repeat the `evaluate` command")
def _comparison(folder: Path) -> str:
    out = write_comparison(folder / "c")
    (out / "comparison.json").write_text((out / "comparison.json").read_text()[:100])
    return command("evaluate", "report", out)


@fault("file", "an entry of comparison.json is of another type", "subsets[0].train is 'a', expected a list")
def _entry(folder: Path) -> str:
    out = write_comparison(folder / "c")
    content = read_json(out / "comparison.json")
    content["comparison"]["subsets"][0]["train"] = "a"
    (out / "comparison.json").write_text(json.dumps(content))
    return command("evaluate", "report", out)


@fault("file", "the record of a cell is damaged", "record.json.damaged", "trainings and scores are not")
def _record(folder: Path) -> str:
    out = write_comparison(folder / "c")
    stored_jobs(out)[0].record.write_text("[]")
    with warnings() as lines:
        write_report(out)
    return lines[0]


@fault("file", "scores.csv is cut", "scores.csv is damaged or incomplete", "repeat the command")
def _scores(folder: Path) -> str:
    job = stored_jobs(write_comparison(folder / "c"))[0]
    job.scores.write_text(job.scores.read_text()[:-3])
    return state(job)


@fault("file", "manifest.json has no cases", "manifest.json", "cases is missing, expected a list")
def _manifest(folder: Path) -> str:
    path = write(folder / "a.safetensors")
    (folder / "manifest.json").write_text('{"sha256": "0"}')
    seen_cases([path])
    return ""


@fault(
    "file", "the mined pairs are damaged", "pairs.json is not a valid JSON file", "so that the pairs are mined again"
)
def _pairs(folder: Path) -> str:
    (folder / SUMMARY).write_text("[1")
    load_pairs(folder, {})
    return ""


@fault("file", "the images of --images have too many channels", "scan 'a' has 2 channel files", "move the other scans")
def _channels(folder: Path) -> str:
    for name in ("a_0000.nii.gz", "a_0001.nii.gz"):
        (folder / name).touch()
    find_scans(folder, open_planned_dataset(NAME, CONFIGURATION, PLANS))
    return ""


def _damaged(number: int, words: str) -> None:
    @fault("file", f"a scan: {words}", "scan.nii.gz")
    def check(folder: Path) -> str:
        path = folder / "scan.nii.gz"
        for index, _ in enumerate(damaged_images(path)):
            if index == number:
                check_image(path, dimensions=3)
        return ""


for _number, _words in enumerate(
    ("empty", "text", "cut", "cut inside of a valid gzip stream", "zeroed bytes", "one NaN", "one infinity", "half NaN",
     "spacing 0", "spacing NaN", "spacing -1", "two axes", "four axes")
):  # fmt: skip
    _damaged(_number, _words)


@fault("file", "a raw training scan is damaged", "case_001", "damaged image", "voxels that are NaN", "Replace them")
def _raw(folder: Path) -> str:
    path = folder / "case_001_0000.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(np.full((40, 40, 40), np.nan, np.float32)), str(path))
    (skipped,) = scan_cases(_cases(folder), 1, CELL, raw={"case_001": [path]})[1]
    return f"skipped {skipped.name}: {skipped.reason}"
