"""A latent diffusion model of the class of Stable Diffusion, from a folder on this machine."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from nnunet_invariance.common.json_files import read_json
from nnunet_invariance.common.json_forms import Objects
from nnunet_invariance.diffusion.packages import (
    AutoencoderKL,
    CLIPTextModel,
    CLIPTokenizer,
    DDPMScheduler,
    ModelMixin,
    UNet2DConditionModel,
    config_of,
)
from nnunet_invariance.errors import BaseModelError

Part = TypeVar("Part", bound=ModelMixin)

#: Config and stem of the weights of each part.
PARTS = {
    "unet": ("config.json", "diffusion_pytorch_model"),
    "vae": ("config.json", "diffusion_pytorch_model"),
    "text_encoder": ("config.json", "model"),
}


@dataclass(frozen=True)
class BaseModel:
    """The parts of a model; ``scheduler`` adds the noise in training."""

    folder: Path
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: DDPMScheduler

    @property
    def latent_factor(self) -> int:
        """Pixels of the image per pixel of the latents, along one axis."""
        return 2 ** (len(config_of(self.vae).block_out_channels) - 1)

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Hidden states (B, tokens, D) of prompts, truncated to the length that the text encoder accepts."""
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
        """Latents of grey images (B, R, R) in [0, 1]: a sample if a generator is given, the mode otherwise."""
        pixels = (images[:, None].expand(-1, 3, -1, -1) * 2 - 1).to(self.vae.device, self.vae.dtype)
        latent = self.vae.encode(pixels).latent_dist
        return (latent.mode() if generator is None else latent.sample(generator)) * config_of(self.vae).scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Grey images (B, R, R) in [0, 1], the mean of the three colours, float32 on the CPU."""
        pixels = self.vae.decode((latents / config_of(self.vae).scaling_factor).to(self.vae.dtype)).sample
        return (pixels.float().mean(1) / 2 + 0.5).clamp(0, 1).cpu()

    def check_size(self, size: int) -> None:
        """Check that the model does not round a resolution.

        Raises:
            BaseModelError: ``size`` is not a multiple of the number by which the networks divide it.
        """
        multiple = size_multiple(self.unet, self.vae)
        if size % multiple:
            msg = f"Slices of {size} pixels do not fit {self.folder}: its networks halve them to fractions. "
            near = max(multiple, round(size / multiple) * multiple)
            raise BaseModelError(f"{msg}Make slices of a multiple of {multiple}: style slices --size {near}.")


def size_multiple(unet: UNet2DConditionModel, vae: AutoencoderKL) -> int:
    """Number of which the side of an image must be a multiple."""
    return 2 ** (len(config_of(vae).block_out_channels) - 1 + len(config_of(unet).block_out_channels) - 1)


def open_base(folder: Path) -> BaseModel:
    """Open a model in float32; nothing is downloaded and no pickle is read.

    Raises:
        BaseModelError: a file is missing, not safetensors, broken, or the model is of another kind.
    """
    check_folder(folder)
    weights: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
    with _reading(folder):
        base = BaseModel(
            folder,
            UNet2DConditionModel.from_pretrained(folder / "unet", **weights),
            AutoencoderKL.from_pretrained(folder / "vae", **weights),
            CLIPTextModel.from_pretrained(folder / "text_encoder", **weights),
            CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
            DDPMScheduler.from_pretrained(folder / "scheduler", local_files_only=True),
        )
    _check_kind(base)
    parts: tuple[nn.Module, ...] = (base.unet, base.vae, base.text_encoder)
    for part in parts:
        part.float().eval().requires_grad_(False)
    return base


def open_part(kind: type[Part], folder: Path, command: str) -> Part:
    """Open the network that a command of this package wrote to ``folder``.

    Raises:
        BaseModelError: the command was not run, or a file is damaged.
    """
    check_part(folder, command)
    with _reading(folder):
        part: Part = kind.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    part.float().eval().requires_grad_(False)
    return part


def check_part(folder: Path, command: str) -> None:
    """Check that ``folder`` contains a network.

    Raises:
        BaseModelError: it does not; names the command that writes it.
    """
    if not (folder / "config.json").is_file():
        raise BaseModelError(f"{folder} contains no config.json. Run first: nnunet-invariance style {command}")


def check_folder(folder: Path) -> None:
    """Check that a model's folder is complete.

    Raises:
        BaseModelError: names the missing files.
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
        why = (
            f" {', '.join(pickled)} are pickle files, which are not opened: save them as safetensors."
            if pickled
            else ""
        )
        msg = f"The base model {folder} is incomplete: {', '.join(missing)} missing.{why} "
        raise BaseModelError(f"{msg}Expected a folder as diffusers' save_pretrained writes it, in safetensors.")


def _missing_weights(folder: Path, part: str, stem: str) -> list[str]:
    index = folder / part / f"{stem}.safetensors.index.json"
    if not index.is_file():
        name = f"{part}/{stem}.safetensors"
        return [] if (folder / name).is_file() else [name]
    shards = sorted(set(read_json(index, form={"weight_map": Objects(str)})["weight_map"].values()))
    return [f"{part}/{shard}" for shard in shards if not (folder / part / shard).is_file()]


def _check_kind(base: BaseModel) -> None:
    """Check that the U-Net needs only noisy latents, a time and the states of this text encoder."""
    unet, text = config_of(base.unet), config_of(base.text_encoder)
    for field, found, expected in (
        ("unet in_channels", unet.in_channels, config_of(base.vae).latent_channels),
        ("unet cross_attention_dim", unet.cross_attention_dim, text.hidden_size),
        ("unet addition_embed_type", unet.addition_embed_type, None),
        ("unet class_embed_type", unet.class_embed_type, None),
    ):
        if found != expected:
            msg = f"The base model {base.folder} is of another kind: {field} is {found}, expected {expected}. "
            raise BaseModelError(f"{msg}Use a text-to-image model of the class of Stable Diffusion 1 or 2.")
    if config_of(base.scheduler).prediction_type not in ("epsilon", "v_prediction"):
        found = config_of(base.scheduler).prediction_type
        raise BaseModelError(f"{base.folder}: prediction_type is {found!r}; expected 'epsilon' or 'v_prediction'.")


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Name the folder in errors of diffusers or transformers."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        msg = f"The model in {folder} cannot be read: {type(error).__name__}: {error}. "
        raise BaseModelError(f"{msg}Copy it again.") from error
