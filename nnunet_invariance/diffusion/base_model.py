"""A latent diffusion model of the class of Stable Diffusion, from a folder on this machine."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from nnunet_invariance.diffusion.packages import (
    AutoencoderKL,
    CLIPTextModel,
    CLIPTokenizer,
    DDPMScheduler,
    UNet2DConditionModel,
)
from nnunet_invariance.errors import BaseModelError

#: Config and stem of the weights of each part.
PARTS = {
    "unet": ("config.json", "diffusion_pytorch_model"),
    "vae": ("config.json", "diffusion_pytorch_model"),
    "text_encoder": ("config.json", "model"),
}


@dataclass(frozen=True)
class BaseModel:
    """The parts of a model; ``scheduler`` is the one that training adds noise by."""

    folder: Path
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: DDPMScheduler

    @property
    def latent_factor(self) -> int:
        """Pixels of the image along one of a latent."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Hidden states (B, tokens, D) of prompts, cut to the tokens that the text encoder takes."""
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        return self.text_encoder(tokens.input_ids.to(self.text_encoder.device))[0]

    @torch.no_grad()
    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Latents of grey images (B, R, R) in [0, 1]: a sample where there is a generator, their mode otherwise."""
        pixels = (images[:, None].expand(-1, 3, -1, -1) * 2 - 1).to(self.vae.device, self.vae.dtype)
        latent = self.vae.encode(pixels).latent_dist
        return (latent.mode() if generator is None else latent.sample(generator)) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Grey images (B, R, R) in [0, 1], the mean of the three colours, float32 on the CPU."""
        pixels = self.vae.decode((latents / self.vae.config.scaling_factor).to(self.vae.dtype)).sample
        return (pixels.float().mean(1) / 2 + 0.5).clamp(0, 1).cpu()

    def check_size(self, size: int) -> None:
        """Refuse a resolution that the model would round.

        Raises:
            BaseModelError
        """
        multiple = size_multiple(self.unet, self.vae)
        if size % multiple:
            msg = f"Slices of {size} pixels do not fit {self.folder}: its networks halve them to fractions. "
            near = max(multiple, round(size / multiple) * multiple)
            raise BaseModelError(f"{msg}Make slices of a multiple of {multiple}: style slices --size {near}.")


def size_multiple(unet: UNet2DConditionModel, vae: AutoencoderKL) -> int:
    """What the side of an image must be a multiple of."""
    return 2 ** (len(vae.config.block_out_channels) - 1 + len(unet.config.block_out_channels) - 1)


def open_base(folder: Path) -> BaseModel:
    """Open a model in float32; nothing is downloaded and no pickle is read.

    Raises:
        BaseModelError: a file is missing, not safetensors, broken, or the model is of another kind.
    """
    check_folder(folder)
    options = {"local_files_only": True}
    weights = {**options, "use_safetensors": True}
    with _reading(folder):
        base = BaseModel(
            folder,
            UNet2DConditionModel.from_pretrained(folder / "unet", **weights),
            AutoencoderKL.from_pretrained(folder / "vae", **weights),
            CLIPTextModel.from_pretrained(folder / "text_encoder", **weights),
            CLIPTokenizer.from_pretrained(folder / "tokenizer", **options),
            DDPMScheduler.from_pretrained(folder / "scheduler", **options),
        )
    _check_kind(base)
    for part in (base.unet, base.vae, base.text_encoder):
        part.float().eval().requires_grad_(False)
    return base


def open_part(kind: type[nn.Module], folder: Path, command: str) -> nn.Module:
    """A network that a command of ours has left in ``folder``.

    Raises:
        BaseModelError: the command was not run, or a file is broken.
    """
    check_part(folder, command)
    with _reading(folder):
        part = kind.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    return part.float().eval().requires_grad_(False)


def check_part(folder: Path, command: str) -> None:
    """Say which command of ours leaves a network in ``folder``, where it has not run.

    Raises:
        BaseModelError
    """
    if not (folder / "config.json").is_file():
        raise BaseModelError(f"{folder} holds no config.json. Run first: nnunet-invariance style {command}")


def check_folder(folder: Path) -> None:
    """Name the first file of a model's folder that is missing.

    Raises:
        BaseModelError
    """
    needed = [Path("model_index.json"), Path("scheduler/scheduler_config.json")]
    needed += [Path(part, config) for part, (config, _) in PARTS.items()]
    missing = [str(path) for path in needed if not (folder / path).is_file()]
    for part, (_, stem) in PARTS.items():
        missing += _missing_weights(folder, part, stem)
    tokenizer = folder / "tokenizer"
    if not (tokenizer / "tokenizer.json").is_file():
        missing += [f"tokenizer/{name}" for name in ("vocab.json", "merges.txt") if not (tokenizer / name).is_file()]
    if missing:
        pickled = [str(path.relative_to(folder)) for path in sorted(folder.glob("*/*.bin"))]
        why = f" {', '.join(pickled)} are pickles, which are not opened: save them as safetensors." if pickled else ""
        msg = f"The base model {folder} is incomplete: {', '.join(missing)} missing.{why} "
        raise BaseModelError(f"{msg}Expected a folder as diffusers' save_pretrained writes it, in safetensors.")


def _missing_weights(folder: Path, part: str, stem: str) -> list[str]:
    index = folder / part / f"{stem}.safetensors.index.json"
    if not index.is_file():
        name = f"{part}/{stem}.safetensors"
        return [] if (folder / name).is_file() else [name]
    shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    return [f"{part}/{shard}" for shard in shards if not (folder / part / shard).is_file()]


def _check_kind(base: BaseModel) -> None:
    """Refuse models whose U-Net wants more than noisy latents, a time and the states of this text encoder."""
    unet, text = base.unet.config, base.text_encoder.config
    for field, found, expected in (
        ("unet in_channels", unet.in_channels, base.vae.config.latent_channels),
        ("unet cross_attention_dim", unet.cross_attention_dim, text.hidden_size),
        ("unet addition_embed_type", unet.addition_embed_type, None),
        ("unet class_embed_type", unet.class_embed_type, None),
    ):
        if found != expected:
            msg = f"The base model {base.folder} is of another kind: {field} is {found}, expected {expected}. "
            raise BaseModelError(f"{msg}Take a text-to-image model of the class of Stable Diffusion 1 or 2.")
    if base.scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
        found = base.scheduler.config.prediction_type
        raise BaseModelError(f"{base.folder}: prediction_type is {found!r}; expected 'epsilon' or 'v_prediction'.")


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Say which folder was being read when diffusers or transformers fail on its content."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        msg = f"The model in {folder} cannot be read: {type(error).__name__}: {error}. "
        raise BaseModelError(f"{msg}Copy it again.") from error
