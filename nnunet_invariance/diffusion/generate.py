"""Style views of whole volumes: the base U-Net gives the style, the ControlNet keeps the anatomy (arXiv 2411.05223)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunet_invariance.common.image_files import write_like
from nnunet_invariance.common.json_files import claim_folder, write_json
from nnunet_invariance.common.progress import Progress
from nnunet_invariance.diffusion import controlnet, dreambooth
from nnunet_invariance.diffusion.base_model import BaseModel, check_part, open_base, open_part
from nnunet_invariance.diffusion.conditions import make_condition
from nnunet_invariance.diffusion.noise import named_generator, noise_along
from nnunet_invariance.diffusion.options import ViewOptions
from nnunet_invariance.diffusion.packages import ControlNetModel, PartialState, UNet2DConditionModel, config_of
from nnunet_invariance.diffusion.quality import match_slices, rejected_slices, replace_rejected
from nnunet_invariance.diffusion.record import read_record
from nnunet_invariance.diffusion.sampling import sample_slices
from nnunet_invariance.diffusion.slices import SlicedCase, SliceFolder, batches, open_slices, unit_images
from nnunet_invariance.diffusion.training import to_device
from nnunet_invariance.diffusion.views import FOLDER, RECORD, count_file, count_slices, put_back, view_names
from nnunet_invariance.diffusion.volumes import RawDataset, open_raw_dataset, read_case
from nnunet_invariance.errors import DeviceMemoryError, OptionError

MOST_REJECTED = 0.5  # a volume with a larger share of rejected slices is not written


@dataclass(frozen=True)
class Generator:
    """All networks on one device; ``states``: hidden states of the prompt and of the empty prompt, per view."""

    base: BaseModel
    unet: UNet2DConditionModel
    control: ControlNetModel
    states: dict[str, Tensor]
    extras: tuple[str, ...]
    options: ViewOptions

    def slices(self, case: SlicedCase, view: str, classes: int) -> Tensor:
        """Make all slices of a volume in one style, (D, R, R) in [0, 1].

        Raises:
            DeviceMemoryError: a batch does not fit.
        """
        sampling, size = self.options.sampling, self.options.batch_size
        side = len(case.image[0]) // self.base.latent_factor
        shape = (config_of(self.base.unet).in_channels, side, side)
        generator = named_generator(self.options.seed, case.name, view)
        noise = noise_along(len(case.image), shape, sampling.noise, generator, sampling.correlation)
        made = []
        for rows in batches(len(case.image), size):
            images, labels = unit_images(case.image[rows]), torch.from_numpy(case.labels[rows].copy())
            condition = make_condition(labels, images, classes, self.extras)
            try:
                source = self.base.encode(images) if sampling.strength < 1 else None
                parts = (self.base, self.unet, self.control, condition, self.states[view], noise[rows])
                made.append(self.base.decode(sample_slices(*parts, sampling, source)))
            except torch.OutOfMemoryError as error:
                msg = f"{size} slices of {len(case.image[0])} pixels do not fit into the device's memory. "
                raise DeviceMemoryError(
                    f"{msg}Use a smaller --batch-size, --amp, or slices of a smaller --size."
                ) from error
        return torch.cat(made)


def generate_views(
    root: Path,
    base_folder: Path,
    styles: Sequence[str],
    options: ViewOptions,
    prompts: Sequence[str] = (),
    device: str = "cuda",
) -> dict[str, dict[str, int]]:
    """Write ``root/views/<style>/<case>``, except for volumes that exist; returns the counts of slices per view.

    Under ``accelerate launch`` or ``torchrun`` the volumes are distributed over the devices.

    Args:
        prompts: texts to which the styles are appended; default: the prompt of the training.

    Raises:
        OutputError: a view of that name was made with other settings.
        OptionError, BaseModelError, StyleFolderError, DeviceMemoryError
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise OptionError("-device cuda: not available on this machine. Add -device cpu (for tiny models).")
    slices = open_slices(root)
    raw = open_raw_dataset(slices.dataset)
    state = PartialState(cpu=device == "cpu")
    trained = read_controlnet_record(root, base_folder)
    texts = view_names(prompts or [trained["prompt"]], styles)
    generator = open_generator(root, base_folder, slices.size, trained["conditions"], texts, options, state.device)
    settings = {key: value for key, value in options.to_dict().items() if key != "batch_size"}
    record = {"base": base_folder.name, "controlnet": trained, **settings}
    with state.main_process_first():  # it writes, the others compare
        for view, text in texts.items():
            claim_folder(root / FOLDER / view / RECORD, {**record, "text": text}, f"the views {view!r}")
    jobs = [(view, name) for view in texts for name in slices.names]
    todo = [job for job in jobs if not count_file(root, *job).is_file()]
    for view, name in Progress(todo[state.process_index :: state.num_processes], desc="views", unit="volume"):
        _write_view(root, raw, slices, name, view, generator)
    state.wait_for_everyone()
    return {view: count_slices(root, view, slices.names) for view in texts}


def read_controlnet_record(root: Path, base_folder: Path) -> dict[str, Any]:
    """The settings with which the ControlNet was trained.

    Raises:
        BaseModelError: it was not trained.
    """
    check_part(root / controlnet.FOLDER, f"controlnet {root} --base {base_folder}")
    return read_record(root / controlnet.FOLDER)


def open_generator(
    root: Path,
    base_folder: Path,
    size: int,
    extras: Sequence[str],
    texts: Mapping[str, str],
    options: ViewOptions,
    device: torch.device,
) -> Generator:
    """Open all networks, and embed the text of each view.

    Raises:
        BaseModelError: a network is missing or broken, or ``size`` does not fit.
    """
    base = open_base(base_folder)
    base.check_size(size)
    control = open_part(ControlNetModel, root / controlnet.FOLDER, f"controlnet {root} --base {base_folder}")
    tuned = root / dreambooth.FOLDER
    command = f"dreambooth {root} --base {base_folder}"
    unet = base.unet if options.swap else open_part(UNet2DConditionModel, tuned, command)
    states = {view: base.embed([text, ""]) for view, text in texts.items()}
    for network in (base.vae, unet, control):
        to_device(network, device, options.amp)
    return Generator(base, unet, control, states, tuple(extras), options)


def _write_view(root: Path, raw: RawDataset, slices: SliceFolder, name: str, view: str, generator: Generator) -> None:
    case = slices.case(name)
    made = generator.slices(case, view, slices.classes)
    rejected = rejected_slices(made, torch.from_numpy(np.array(case.labels)))
    written = bool(rejected.float().mean() <= MOST_REJECTED)
    if written:
        made = replace_rejected(made, unit_images(case.image), rejected)
        image, source, _ = read_case(*raw.cases[name], raw.classes)
        volume = put_back(match_slices(made) if generator.options.match else made, case, source)
        write_like(root / FOLDER / view / f"{name}{raw.ending}", volume, image)
    counts = {"slices": len(made), "rejected": int(rejected.sum()), "written": written}
    write_json(count_file(root, view, name), counts, indent=None)  # last: the view of this case is complete
