"""``nnunet-invariance register``: bring one volume onto another, of the same or another modality."""

import argparse
from pathlib import Path

from nnunet_invariance.cli.help import ShowDefaults


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the verb and its flags."""
    parser = subparsers.add_parser(
        "register",
        help="bring one volume onto another, also across modalities",
        description="Affine alignment by mutual information, then ConvexAdam on features of both images. Writes "
        "OUT/warped.nii.gz, OUT/displacement.nii.gz (mm, the whole way, for SimpleITK's DisplacementFieldTransform), "
        "OUT/registration.json (folded voxels and other Jacobian statistics) and OUT/checkerboard.png.",
        formatter_class=ShowDefaults,
    )
    add = parser.add_argument
    add("fixed", type=Path, metavar="FIXED", help="image that stays")
    add("moving", type=Path, metavar="MOVING", help="image that is brought onto it")
    add("out", type=Path, metavar="OUT", help="folder")
    add("--weights", type=Path, metavar="FILE", help="checkpoint of the feature network, for anatomix and both")
    add("--features", choices=["anatomix", "mind", "both"], default="both", help="what is compared")
    add("--fixed-mask", type=Path, metavar="FILE", help="region of the fixed image to compare, above 0")
    add("--moving-mask", type=Path, metavar="FILE", help="region of the moving image to compare, above 0")
    add("--ct", choices=["none", "fixed", "moving", "both"], default="none", help="images to cut to [-450, 450] HU")
    add("--spacing", type=float, metavar="MM", help="voxels features are compared at; as many as FIXED has by default")
    add("--no-affine", action="store_true", help="the images are aligned already")
    add("--grid", type=int, default=2, help="voxels between the points of the convex stage")
    add("--search", type=int, default=1, help="grid steps the convex stage tries along each axis, either way")
    add("--smoothness", type=float, default=0.75, help="weight of the regulariser")
    add("-device", choices=["cuda", "cpu"], default="cpu", help="where features and ConvexAdam run")


def run(args: argparse.Namespace) -> int:
    """Run the verb; returns the exit status."""
    from nnunet_invariance.registration.convex_adam import ConvexAdamOptions
    from nnunet_invariance.registration.register import register

    result = register(
        args.fixed,
        args.moving,
        args.out,
        features=args.features,
        weights=args.weights,
        fixed_mask=args.fixed_mask,
        moving_mask=args.moving_mask,
        ct=args.ct,
        spacing=args.spacing,
        affine=not args.no_affine,
        options=ConvexAdamOptions(grid=args.grid, search=args.search, smoothness=args.smoothness),
        device=args.device,
    )
    folded, length = result["jacobian"]["folded_share"], result["displacement_mm"]
    print(f"displacement: mean {length['mean']:.2f} mm, largest {length['maximum']:.2f} mm; folded: {folded:.3%}")
    print(f"finished: {args.out}")
    return 0
