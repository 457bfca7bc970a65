"""A very small Stable Diffusion model, saved in the format of diffusers."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

SPECIALS = ("<|startoftext|>", "<|endoftext|>")


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write a tokenizer of characters and a few merges; the two special tokens have the ids 0 and 2."""
    characters = [chr(code) for code in range(33, 101)]
    words = [SPECIALS[0], "!</w>", SPECIALS[1], *characters, *(f"{c}</w>" for c in characters if c != "!")]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), bos_token=SPECIALS[0], eos_token=SPECIALS[1],
        unk_token=SPECIALS[1], pad_token=SPECIALS[1], model_max_length=77,
    )  # fmt: skip


def build(
    widths: tuple[int, ...] = (8, 16), groups: int = 4, hidden: int = 16, vae_widths: tuple[int, ...] = (4, 8, 8, 8),
    prediction: str = "epsilon",
) -> dict:  # fmt: skip
    """Build U-Net, autoencoder, text encoder and scheduler with seeded random weights."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=widths,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=hidden, attention_head_dim=2, norm_num_groups=groups,
    )  # fmt: skip
    blocks = len(vae_widths)
    vae = AutoencoderKL(
        block_out_channels=vae_widths, latent_channels=4, layers_per_block=1, norm_num_groups=groups, sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks,
    )  # fmt: skip
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=1000, hidden_size=hidden, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=77, bos_token_id=0, eos_token_id=2, pad_token_id=2,
        )
    )  # fmt: skip
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000,
        clip_sample=False, steps_offset=1, prediction_type=prediction,
    )  # fmt: skip
    return {"unet": unet, "vae": vae, "text_encoder": text, "scheduler": scheduler}


def write_model(folder: Path, **options) -> Path:
    """Write the parts, the tokenizer and ``model_index.json``; returns the folder."""
    for name, part in build(**options).items():
        part.save_pretrained(folder / name)
    write_tokenizer(folder / "words").save_pretrained(folder / "tokenizer")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    return folder
