"""One rank of a DreamBooth training and of the generation after it; run by torchrun. FOLDER MODEL"""

import sys
from pathlib import Path

from nnunet_invariance.cli.main import main

folder, model = sys.argv[1:3]
common = [folder, "--base", model, "-device", "cpu"]
if not (Path(folder) / "unet").is_dir():
    steps = ["--steps", "3", "--learning-rate", "0.01", "--save-every", "1"]
    assert main(["style", "dreambooth", *common, "--prompt", "axial phantom", *steps]) == 0
    assert main(["style", "controlnet", *common, *steps]) == 0
sampling = ["--steps", "2", "--strength", "0.5", "--guidance", "1", "--batch-size", "64"]
assert main(["style", "generate", *common, "--styles", "T1", *sampling]) == 0
