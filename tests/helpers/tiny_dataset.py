"""A small labelled data set in nnU-Net's raw format, and plans that a CPU trains in seconds.

    python tiny_dataset.py raw FOLDER            write images, labels and dataset.json into FOLDER
    python tiny_dataset.py plans FILE NAME       write the cut-down copy NAME.json beside the plans FILE

It needs NumPy and SimpleITK only, so that it works in an environment that contains just the installed wheel.
"""

import json
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import SimpleITK as sitk

NAME = "Dataset777_Tiny"
TRAINING_SHAPES = [(40, 40, 40)] * 4 + [(36, 40, 44), (26, 40, 40)]  # the last is smaller than the patch
TEST_SHAPES = [(40, 40, 40), (38, 40, 42)]


def write_raw_dataset(folder: Path) -> None:
    """Write six labelled cases, two test images and dataset.json."""
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / name).mkdir(parents=True)
    for index, shape in enumerate(TRAINING_SHAPES):
        image, labels = synthetic_case(shape, seed=index)
        sitk.WriteImage(image, folder / "imagesTr" / f"case_{index:03d}_0000.nii.gz")
        sitk.WriteImage(labels, folder / "labelsTr" / f"case_{index:03d}.nii.gz")
    for index, shape in enumerate(TEST_SHAPES):
        image, _ = synthetic_case(shape, seed=100 + index)
        sitk.WriteImage(image, folder / "imagesTs" / f"test_{index:03d}_0000.nii.gz")
    dataset = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "body": 1, "core": 2},
        "numTraining": len(TRAINING_SHAPES),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(dataset))


def synthetic_case(shape: tuple[int, int, int], seed: int) -> tuple[sitk.Image, sitk.Image]:
    """Image and labels: an ellipsoid (label 1) contains a ball (label 2), on a smooth background; 1 mm voxels."""
    random = np.random.default_rng(seed)
    size = np.array(shape)
    voxels = np.indices(shape).transpose(1, 2, 3, 0)
    centre = size / 2 + random.uniform(-2, 2, 3)
    radii = size * random.uniform(0.28, 0.36, 3)
    labels = (np.square((voxels - centre) / radii).sum(-1) < 1).astype(np.uint8)
    ball = centre + random.uniform(-2, 2, 3)
    labels[np.square(voxels - ball).sum(-1) < random.uniform(4, 6) ** 2] = 2
    waves = np.sin(voxels @ random.uniform(0.1, 0.3, 3))
    image = 50 + np.array([0, 60, 120])[labels] + 10 * waves + random.normal(0, 8, shape)
    return sitk.GetImageFromArray(image.astype(np.float32)), sitk.GetImageFromArray(labels)


def cut_down(plans: dict, name: str, **options: object) -> dict:
    """A copy of the plans with another name; 3d_fullres has patches of 32^3, batches of 2 and a U-Net of three stages.

    `options` are written to the block `nnunet_invariance` of the configuration.
    """
    plans = deepcopy(plans)
    plans["plans_name"] = name
    configuration = plans["configurations"]["3d_fullres"]
    configuration.update(patch_size=[32, 32, 32], batch_size=2)
    kwargs = configuration["architecture"]["arch_kwargs"]
    kwargs.update(n_stages=3, features_per_stage=[8, 16, 32], kernel_sizes=[[3, 3, 3]] * 3)
    kwargs.update(strides=[[1, 1, 1], [2, 2, 2], [2, 2, 2]])
    kwargs.update(n_conv_per_stage=[2, 2, 2], n_conv_per_stage_decoder=[2, 2])
    if options:
        configuration["nnunet_invariance"] = options
    return plans


def cut_down_2d(plans: dict, name: str, **options: object) -> dict:
    """As :func:`cut_down`; the 2d configuration has the same network in 2-D, for slices of the cases of 3d_fullres."""
    plans = cut_down(plans, name)
    flat = plans["configurations"]["2d"]
    kwargs = deepcopy(plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"])
    kwargs.update(conv_op="torch.nn.modules.conv.Conv2d", norm_op="torch.nn.modules.instancenorm.InstanceNorm2d")
    kwargs.update({key: [part[1:] for part in kwargs[key]] for key in ("kernel_sizes", "strides")})
    flat.update(patch_size=[32, 32], batch_size=2, data_identifier="nnUNetPlans_3d_fullres", nnunet_invariance=options)
    flat["architecture"]["arch_kwargs"] = kwargs
    return plans


def main() -> None:
    """Run one of the two commands above."""
    verb, path, *name = sys.argv[1:]
    if verb == "raw":
        write_raw_dataset(Path(path))
    else:
        plans = json.loads(Path(path).read_text())
        short = cut_down(plans, *name, iterations_per_epoch=2, val_iterations_per_epoch=1)
        Path(path).with_name(f"{name[0]}.json").write_text(json.dumps(short, indent=2))


if __name__ == "__main__":
    main()
