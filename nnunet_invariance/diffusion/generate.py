"""Style views of whole volumes: the base U-Net back in, the ControlNet holding the anatomy (arXiv 2411.05223)."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nnunet_invariance.diffusion import controlnet, dreambooth
from nnunet_invariance.diffusion.base_model import BaseModel, open_base, open_part
from nnunet_invariance.diffusion.conditions import make_condition
from nnunet_invariance.diffusion.noise import named_generator, noise_along
from nnunet_invariance.diffusion.packages import ControlNetModel, PartialState, UNet2DConditionModel
from nnunet_invariance.diffusion.quality import match_slices, rejected_slices, replace_rejected
from nnunet_invariance.diffusion.sampling import SamplingOptions, sample_slices
from nnunet_invariance.diffusion.slices import SlicedCase, SliceFolder, batches, open_slices, unit_images
from nnunet_invariance.diffusion.training import place, read_record
from nnunet_invariance.diffusion.views import FOLDER, RECORD, count_file, count_slices, put_back, view_names
from nnunet_invariance.diffusion.volumes import RawDataset, open_raw_dataset, read_case, write_like
from nnunet_invariance.errors import DeviceMemoryError, OptionError, OutputError
from nnunet_invariance.weights.atomic import atomic_write

MOST_REJECTED = 0.5  # share of slices beyond which a volume is not written


@dataclass(frozen=True)
class Generator:
    """Everything that makes slices, on one device; ``states`` of the prompt and of the empty one, by view."""

    base: BaseModel
    unet: UNet2DConditionModel
    control: ControlNetModel
    states: dict[str, Tensor]
    extras: tuple[str, ...]
    options: SamplingOptions
    seed: int
    batch_size: int

    def slices(self, case: SlicedCase, view: str, classes: int) -> Tensor:
        """All slices of a volume in one style, (D, R, R) in [0, 1].

        Raises:
            DeviceMemoryError: a batch does not fit.
        """
        side = len(case.image[0]) // self.base.latent_factor
        shape = (self.base.unet.config.in_channels, side, side)
        draws = named_generator(self.seed, case.name, view)
        noise = noise_along(len(case.image), shape, self.options.noise, draws, self.options.correlation)
        made = []
        for rows in batches(len(case.image), self.batch_size):
            images, labels = unit_images(case.image[rows]), torch.from_numpy(case.labels[rows].copy())
            condition = make_condition(labels, images, classes, self.extras)
            try:
                source = self.base.encode(images) if self.options.strength < 1 else None
                parts = (self.base, self.unet, self.control, condition, self.states[view], noise[rows])
                made.append(self.base.decode(sample_slices(*parts, self.options, source)))
            except torch.OutOfMemoryError as error:
                msg = f"{self.batch_size} slices of {len(case.image[0])} pixels do not fit into the device's memory. "
                raise DeviceMemoryError(
                    f"{msg}Take a smaller --batch-size, --amp, or slices of a smaller --size."
                ) from error
        return torch.cat(made)


def generate_views(
    root: Path,
    base_folder: Path,
    styles: Sequence[str],
    options: SamplingOptions,
    prompts: Sequence[str] = (),
    swap: bool = True,
    match: bool = False,
    amp: str = "no",
    batch_size: int = 4,
    seed: int = 0,
    device: str = "cuda",
) -> dict[str, dict[str, int]]:
    """Write ``root/views/<style>/<case>``; volumes that are there are not made again. Counts of slices by view.

    Under ``accelerate launch`` or ``torchrun`` the volumes are shared out to the devices.

    Args:
        prompts: texts that styles are appended to; by default that of the training.
        swap: take the base model's U-Net; False keeps the tuned one, which knows one style only.
        match: smooth mean and s.d. of the slices along the volume.

    Raises:
        OutputError: a view of that name was made with other settings.
        OptionError, BaseModelError, StyleFolderError, DeviceMemoryError
    """
    if batch_size < 1:
        raise OptionError(f"--batch-size is {batch_size}; expected at least 1.")
    if device == "cuda" and not torch.cuda.is_available():
        raise OptionError("-device cuda: not available on this machine. Take -device cpu, for tiny models.")
    slices = open_slices(root)
    raw = open_raw_dataset(slices.dataset)
    state = PartialState(cpu=device == "cpu")
    record, generator, texts = _prepare(
        root, base_folder, slices, styles, prompts, swap, amp, batch_size, seed, options, state
    )
    with state.main_process_first():  # it writes, the others compare
        for view, text in texts.items():
            _claim(root / FOLDER / view / RECORD, {**record, "text": text, "match": match})
    jobs = [(view, name) for view in texts for name in slices.names]
    todo = [job for job in jobs if not count_file(root, *job).is_file()]
    for view, name in tqdm(todo[state.process_index :: state.num_processes], desc="views", unit="volume", disable=None):
        _write_view(root, raw, slices, name, view, generator, match)
    state.wait_for_everyone()
    return {view: count_slices(root, view, slices.names) for view in texts}


def _prepare(
    root: Path,
    base_folder: Path,
    slices: SliceFolder,
    styles: Sequence[str],
    prompts: Sequence[str],
    swap: bool,
    amp: str,
    batch_size: int,
    seed: int,
    options: SamplingOptions,
    state: PartialState,
) -> tuple[dict[str, Any], Generator, dict[str, str]]:
    """Open all networks; what the views depend on, what makes them, and their texts by name."""
    base = open_base(base_folder)
    base.check_size(slices.size)
    control = open_part(ControlNetModel, root / controlnet.FOLDER, f"controlnet {root} --base {base_folder}")
    trained = read_record(root / controlnet.FOLDER)
    texts = view_names(prompts or [trained["prompt"]], styles)
    tuned = root / dreambooth.FOLDER
    unet = base.unet if swap else open_part(UNet2DConditionModel, tuned, f"dreambooth {root} --base {base_folder}")
    states = {view: base.embed([text, ""]) for view, text in texts.items()}
    for network in (base.vae, unet, control):
        place(network, state.device, amp)
    extras = tuple(trained["conditions"])
    generator = Generator(base, unet, control, states, extras, options, seed, batch_size)
    record = {
        "base": base_folder.name,
        "swap": swap,
        "seed": seed,
        "sampling": dataclasses.asdict(options),
        "controlnet": trained,
    }
    return record, generator, texts


def _claim(path: Path, record: dict[str, Any]) -> None:
    """Record what a view is made with, or check that it is the same."""
    if not path.is_file():
        atomic_write(path, lambda file: file.write(json.dumps(record, indent=1).encode()))
    elif json.loads(path.read_text()) != json.loads(json.dumps(record)):
        msg = f"{path}: the view was made with other settings. Move {path.parent} away, or name another style."
        raise OutputError(msg)


def _write_view(
    root: Path, raw: RawDataset, slices: SliceFolder, name: str, view: str, generator: Generator, match: bool
) -> None:
    case = slices.case(name)
    made = generator.slices(case, view, slices.classes)
    rejected = rejected_slices(made, torch.from_numpy(np.array(case.labels)))
    written = bool(rejected.float().mean() <= MOST_REJECTED)
    if written:
        made = replace_rejected(made, unit_images(case.image), rejected)
        image, source, _ = read_case(*raw.cases[name], raw.classes)
        volume = put_back(match_slices(made) if match else made, case, source)
        write_like(root / FOLDER / view / f"{name}{raw.ending}", volume, image)
    counts = {"slices": len(made), "rejected": int(rejected.sum()), "written": written}
    atomic_write(count_file(root, view, name), lambda file: file.write(json.dumps(counts).encode()))  # last: done
