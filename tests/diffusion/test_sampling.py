"""A base model, its memory, and sampling against diffusers' pipelines."""

import importlib
import json
import shutil
import sys

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from diffusers import (
    DDIMScheduler,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetPipeline,
    UniPCMultistepScheduler,
)

from nnunet_invariance.diffusion import packages
from nnunet_invariance.diffusion.base_model import check_folder, open_base
from nnunet_invariance.diffusion.controlnet import new_controlnet
from nnunet_invariance.diffusion.memory import RESERVED, activation_bytes, check_memory, training_bytes
from nnunet_invariance.diffusion.noise import named_generator
from nnunet_invariance.diffusion.options import SamplingOptions
from nnunet_invariance.diffusion.sampling import sample_slices
from nnunet_invariance.errors import (
    BaseModelError,
    DeviceMemoryError,
    MissingPackageError,
    OptionError,
    ShapeError,
)
from tests.helpers.tiny_diffusion import write_model

SAMPLING = SamplingOptions(steps=2, strength=0.5, guidance=1.0)


def perturbed(network, seed=1, by=0.1):
    """The network with noise on all of its weights: a fresh ControlNet ends in zeros."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data += by * torch.randn(parameter.shape, generator=generator)
    return network


# ---- packages and base model -----------------------------------------------------------------------------------------


def test_missing_and_broken_packages_are_named(monkeypatch):
    with monkeypatch.context() as patch:
        for name in [name for name in sys.modules if name.split(".")[0] == "diffusers"]:
            patch.setitem(sys.modules, name, None)
        with pytest.raises(MissingPackageError, match=r"diffusers.*pip install 'diffusers"):
            importlib.reload(packages)

    class Broken:
        """As transformers fails where torchvision was built for another torch."""

        def __getattr__(self, name):
            raise RuntimeError("operator torchvision::nms does not exist")

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "transformers", Broken())
        with pytest.raises(MissingPackageError, match=r"torchvision was built for another torch.*it is not needed"):
            importlib.reload(packages)
    importlib.reload(packages)


@pytest.mark.parametrize(
    "lost",
    [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
    ],
)
def test_an_incomplete_base_model_names_the_file(model, tmp_path, lost):
    folder = shutil.copytree(model, tmp_path / "sd")
    (folder / lost).unlink()
    expected = "tokenizer/vocab.json" if lost.startswith("tokenizer") else lost
    with pytest.raises(BaseModelError, match=rf"is incomplete: .*{expected}.* missing"):
        open_base(folder)


@pytest.mark.integration
def test_base_models_that_are_unsafe_broken_or_of_another_kind(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "sd")
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(content)
    with pytest.raises(BaseModelError, match=r"diffusion_pytorch_model\.bin are pickle files, which are not opened"):
        open_base(folder)
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(BaseModelError, match=r"sd cannot be read: .*Copy it again"):
        open_base(folder)
    index = {"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}
    weights.unlink()
    (folder / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BaseModelError, match=r"unet/part-1\.safetensors, unet/part-2\.safetensors missing"):
        check_folder(folder)
    other = write_model(tmp_path / "other", prediction="sample")
    with pytest.raises(BaseModelError, match="prediction_type is 'sample'; expected 'epsilon' or 'v_prediction'"):
        open_base(other)
    shutil.rmtree(other / "text_encoder")
    shutil.copytree(write_model(tmp_path / "wide", hidden=32) / "text_encoder", other / "text_encoder")
    with pytest.raises(BaseModelError, match=r"unet cross_attention_dim is 16, expected 32.*Stable Diffusion 1 or 2"):
        open_base(other)


def test_sizes_that_diffusers_would_round_are_refused(base):
    base.check_size(64)
    with pytest.raises(BaseModelError, match=r"Slices of 56 pixels.*multiple of 16: style slices --size 64"):
        base.check_size(56)


# ---- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_activations_are_counted_as_in_a_real_pass(base):
    inputs = torch.randn(2, 4, 8, 8), torch.tensor([3, 4]), torch.randn(2, 77, 16)
    total = 0

    def count(leaf, arguments, output):
        nonlocal total
        total += output.numel() * 4

    hooks = [leaf.register_forward_hook(count) for leaf in base.unet.modules() if not list(leaf.children())]
    base.unet(*inputs)
    for hook in hooks:
        hook.remove()
    assert activation_bytes(base.unet, lambda unet: unet(*(tensor.to("meta") for tensor in inputs)), 4) == total


@pytest.mark.slow
def test_memory_says_what_fits(base):
    control = new_controlnet(base.unet, base, 5)

    def needed(side):
        return training_bytes(base, side, 2, False, control)

    assert needed(64) < needed(128) < training_bytes(base, 128, 4, False, control)
    assert training_bytes(base, 128, 2, True, control) < needed(128)
    trained = 16 * sum(p.numel() for p in base.unet.parameters())
    assert training_bytes(base, 16, 1, False) > RESERVED + trained
    check_memory(needed(128), 128, base, needed)
    with pytest.raises(DeviceMemoryError, match=r"128 pixels needs about 1\.0 GiB.*; 96 pixels would fit.*--size 96"):
        check_memory(needed(96), 128, base, needed)
    with pytest.raises(DeviceMemoryError, match="not even 16 pixels fit"):
        check_memory(0, 32, base, needed)


# ---- sampling --------------------------------------------------------------------------------------------------------


def pipeline(kind, base, control, scheduler):
    parts = {"vae": base.vae, "text_encoder": base.text_encoder, "tokenizer": base.tokenizer, "unet": base.unet}
    made = kind(
        **parts, controlnet=control, scheduler=scheduler.from_config(base.scheduler.config), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.integration
@pytest.mark.parametrize("channels", [3, 5])
@pytest.mark.parametrize(
    ("name", "scheduler", "guidance"),
    [("ddim", DDIMScheduler, 7.5), ("ddim", DDIMScheduler, 1.0), ("unipc", UniPCMultistepScheduler, 3.0)],
)
def test_sampling_equals_diffusers_pipeline(base, channels, name, scheduler, guidance):
    control = perturbed(new_controlnet(base.unet, base, channels))
    condition = torch.rand(2, channels, 64, 64, generator=named_generator("condition"))
    noise = torch.randn(2, 4, 8, 8, generator=named_generator("noise"))
    states = base.embed(["axial phantom T1", ""])
    options = SamplingOptions(steps=4, guidance=guidance, strength=1.0, scheduler=name, control_scale=0.7)
    ours = sample_slices(base, base.unet, control, condition, states, noise, options)
    theirs = pipeline(StableDiffusionControlNetPipeline, base, control, scheduler)(
        prompt=["axial phantom T1"] * 2, image=condition, latents=noise.clone(), num_inference_steps=4,
        guidance_scale=guidance, controlnet_conditioning_scale=0.7, output_type="latent",
    ).images  # fmt: skip
    assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.integration
@pytest.mark.parametrize(("name", "scheduler"), [("ddim", DDIMScheduler), ("unipc", UniPCMultistepScheduler)])
def test_image_to_image_equals_diffusers_pipeline(base, name, scheduler):
    control = perturbed(new_controlnet(base.unet, base, 3))
    condition = torch.rand(2, 3, 64, 64, generator=named_generator("condition"))
    source = torch.randn(2, 4, 8, 8, generator=named_generator("source"))
    states = base.embed(["axial phantom T1", ""])
    options = SamplingOptions(steps=5, guidance=2.0, strength=0.6, scheduler=name)
    draw = torch.Generator().manual_seed(3)
    noise = torch.randn(2, 4, 8, 8, generator=draw)
    ours = sample_slices(base, base.unet, control, condition, states, noise, options, source)
    theirs = pipeline(StableDiffusionControlNetImg2ImgPipeline, base, control, scheduler)(
        prompt=["axial phantom T1"] * 2, image=source, control_image=condition, strength=0.6, num_inference_steps=5,
        guidance_scale=2.0, controlnet_conditioning_scale=1.0, generator=torch.Generator().manual_seed(3),
        output_type="latent",
    ).images  # fmt: skip
    assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.integration
def test_what_a_controlnet_does_to_the_output(base):
    states, noise = base.embed(["a", ""]), torch.randn(1, 4, 8, 8, generator=named_generator(0))
    condition = torch.rand(1, 3, 64, 64, generator=named_generator(1))
    options = SamplingOptions(steps=2, strength=1.0)
    fresh = new_controlnet(base.unet, base, 3)

    def sample(control, condition=condition, options=options, unet=base.unet):
        return sample_slices(base, unet, control, condition, states, noise, options)

    plain = sample(fresh)
    assert torch.equal(plain, sample(fresh, 1 - condition))  # its last layers are zero
    control = perturbed(fresh, by=0.3)
    followed = sample(control)
    assert not torch.allclose(plain, followed, atol=1e-3)
    assert not torch.allclose(followed, sample(control, condition[:, [1, 2, 0]]), atol=1e-4)
    assert torch.equal(plain, sample(control, options=SamplingOptions(steps=2, strength=1.0, control_scale=0.0)))
    swapped = perturbed(open_base(base.folder).unet)
    assert not torch.allclose(followed, sample(control, unet=swapped), atol=1e-3)


def test_conditions_of_another_size_are_refused_where_diffusers_rounds(base):
    control = new_controlnet(base.unet, base, 3)
    noise, states = torch.randn(1, 4, 8, 8), base.embed(["a", ""])
    for shape in ((1, 3, 60, 64), (1, 4, 64, 64), (2, 3, 64, 64)):
        with pytest.raises(ShapeError, match=r"expected \(1, 3, 64, 64\)"):
            sample_slices(base, base.unet, control, torch.zeros(shape), states, noise, SAMPLING)


def test_wrong_sampling_options():
    for changes, words in (
        ({"strength": 0.0}, r"--strength is 0.0; expected a number in \(0, 1\]"),
        ({"steps": 2, "strength": 0.4}, "--strength is 0.4; expected steps x strength of at least 1, with --steps 2"),
        ({"guidance": -1}, r"--guidance is -1; expected a number in \[0, inf\)"),
        ({"scheduler": "euler"}, "one of 'ddim', 'unipc'"),
        ({"noise": "pink"}, "one of 'shared', 'autoregressive', 'independent'"),
    ):
        with pytest.raises(OptionError, match=words):
            SamplingOptions(**changes)
