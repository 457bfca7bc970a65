"""``nnunet-invariance synthesize``: label maps and random appearances of them as files."""

import argparse
from pathlib import Path

from nnunet_invariance.cli.closing import finish
from nnunet_invariance.cli.help import ShowDefaults


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command and its flags."""
    parser = subparsers.add_parser(
        "synthesize",
        help="make synthetic label maps with two appearances each",
        description="Makes random label maps from shape templates and two random appearances of each, and writes them "
        "as NIfTI files: OUT/labels, OUT/view1, OUT/view2. With --as-dataset, it writes a labelled data set named OUT "
        "in nnUNet_raw, with one appearance per map. The same command continues a run that was stopped.",
        formatter_class=ShowDefaults,
    )
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="output folder, or name of the data set")
    add("-n", type=int, default=100, help="number of label maps")
    add("--size", type=int, default=128, help="voxels along each axis, a multiple of 16")
    add("--templates", type=Path, metavar="DIR", help="folder of label maps; default: the shapes of --shapes")
    shapes = ["procedural", "formula", "mixed"]
    add("--shapes", choices=shapes, default=shapes[0], help="shapes without templates: formula: implicit formulas")
    add("--as-dataset", type=int, metavar="ID", help="id of the new data set in nnUNet_raw")
    add("--preview", action="store_true", help="also write preview.png")
    add("--seed", type=int, default=0, help="random seed")
    add("-device", choices=["cuda", "cpu", "mps"], default="cpu", help="device that makes the volumes")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    from nnunet_invariance.synthesis.engine import SynthesisEngine
    from nnunet_invariance.synthesis.files import dataset_layout, pairs_layout, write_dataset_json, write_elements
    from nnunet_invariance.synthesis.options import SynthesisOptions
    from nnunet_invariance.synthesis.preview import write_preview

    options = SynthesisOptions(size=(args.size,) * 3, shapes=args.shapes)
    as_dataset = args.as_dataset is not None
    layout = dataset_layout(str(args.out), args.as_dataset) if as_dataset else pairs_layout(args.out)
    engine = SynthesisEngine(options, args.templates, args.device, args.seed)
    write_elements(engine, layout, args.n)
    if as_dataset:
        write_dataset_json(layout, engine)
    if args.preview:
        write_preview(engine, layout.root / "preview.png", min(args.n, 6))
    if as_dataset:
        return finish(layout.root, f"nnUNetv2_plan_and_preprocess -d {args.as_dataset} -c 3d_fullres")
    return finish(layout.root, f"nnunet-invariance synthesize NAME -n {args.n} --as-dataset ID")
