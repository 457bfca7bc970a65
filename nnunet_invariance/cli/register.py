"""``nnunet-invariance register``: align a volume with another volume, also across modalities."""

import argparse
from pathlib import Path

from nnunet_invariance.cli.closing import finish
from nnunet_invariance.cli.help import ShowDefaults


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command and its flags."""
    parser = subparsers.add_parser(
        "register",
        help="align a volume with another volume, also across modalities",
        description="Affine alignment by mutual information, then ConvexAdam on features of both images. Writes "
        "OUT/warped.nii.gz, OUT/displacement.nii.gz (in mm, including the affine transform, for SimpleITK's "
        "DisplacementFieldTransform), OUT/registration.json (folded voxels and other Jacobian statistics) and "
        "OUT/checkerboard.png.",
        formatter_class=ShowDefaults,
    )
    add = parser.add_argument
    add("fixed", type=Path, metavar="FIXED", help="image that defines the grid of the result")
    add("moving", type=Path, metavar="MOVING", help="image that is aligned with FIXED")
    add("out", type=Path, metavar="OUT", help="output folder")
    add(
        "--weights",
        type=Path,
        metavar="FILE",
        help="checkpoint of the feature network, for --features anatomix or both",
    )
    add("--features", choices=["anatomix", "mind", "both"], default="both", help="features to compare")
    add("--fixed-mask", type=Path, metavar="FILE", help="mask of FIXED; only voxels above 0 are compared")
    add("--moving-mask", type=Path, metavar="FILE", help="mask of MOVING; only voxels above 0 are compared")
    add("--ct", choices=["none", "fixed", "moving", "both"], default="none", help="images to clip to [-450, 450] HU")
    add(
        "--spacing",
        type=float,
        metavar="MM",
        help="voxel size of the working grid (default: keep the voxel volume of FIXED)",
    )
    add("--no-affine", action="store_true", help="skip the affine alignment")
    add("--grid", type=int, default=2, help="grid spacing of the convex stage, in voxels")
    add("--search", type=int, default=1, help="largest displacement along each axis in the convex stage, in grid steps")
    add("--smoothness", type=float, default=0.75, help="weight of the regulariser")
    add("-device", choices=["cuda", "cpu"], default="cpu", help="device for features and ConvexAdam")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    from nnunet_invariance.plans.preflight import check_device, check_output
    from nnunet_invariance.registration import ConvexAdamOptions, RegistrationOptions, register

    check_device(args.device)
    check_output(args.out)
    report = register(
        args.fixed,
        args.moving,
        args.out,
        RegistrationOptions(features=args.features, ct=args.ct, spacing=args.spacing, affine=not args.no_affine),
        ConvexAdamOptions(grid=args.grid, search=args.search, smoothness=args.smoothness),
        weights=args.weights,
        fixed_mask=args.fixed_mask,
        moving_mask=args.moving_mask,
        device=args.device,
    )
    folded, length = report["jacobian"]["folded_share"], report["displacement_mm"]
    print(f"displacement: mean {length['mean']:.2f} mm, maximum {length['maximum']:.2f} mm; folded: {folded:.3%}")
    return finish(args.out, f"look at {args.out / 'checkerboard.png'} and the folded voxels in registration.json")
