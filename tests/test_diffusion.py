"""The diffusion path on a tiny model: base folders, sampling against diffusers' pipelines, every action of `style`."""

import importlib
import json
import shutil
import sys
from dataclasses import replace

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
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
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from tiny_diffusion import write_model

from nnunet_invariance.cli.main import main
from nnunet_invariance.diffusion import packages, training
from nnunet_invariance.diffusion.base_model import check_folder, open_base
from nnunet_invariance.diffusion.controlnet import new_controlnet, train_controlnet
from nnunet_invariance.diffusion.dreambooth import check_prompt, train_dreambooth
from nnunet_invariance.diffusion.generate import ViewOptions, generate_views
from nnunet_invariance.diffusion.memory import RESERVED, activation_bytes, check_memory, training_bytes
from nnunet_invariance.diffusion.noise import named_generator
from nnunet_invariance.diffusion.objective import (
    Batch,
    PromptStates,
    SliceSampler,
    diffusion_loss,
)
from nnunet_invariance.diffusion.sampling import SamplingOptions, sample_slices
from nnunet_invariance.diffusion.slices import open_slices
from nnunet_invariance.diffusion.training import TrainingOptions
from nnunet_invariance.errors import (
    BaseModelError,
    DeviceMemoryError,
    MissingPackageError,
    NonFiniteLossError,
    OptionError,
    OutputError,
    ShapeError,
    StyleFolderError,
)

SAMPLING = SamplingOptions(steps=2, strength=0.5, guidance=1.0)
VIEWS = ViewOptions(SAMPLING, batch_size=64)
STEPS = TrainingOptions(steps=3, learning_rate=1e-3, batch_size=2, accumulate=2, drop_prompt=0.3, save_every=1)


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A folder with a whole tiny model."""
    return write_model(tmp_path_factory.mktemp("model") / "sd")


@pytest.fixture
def base(model):
    return open_base(model)


@pytest.fixture(scope="module")
def styled(tiny, model, tmp_path_factory):
    """Slices of the tiny data set, a U-Net and a ControlNet of three steps."""
    root = tmp_path_factory.mktemp("style")
    common = ["--base", str(model), "-device", "cpu", "--steps", "3", "--accumulate", "1", "--learning-rate", "0.01"]
    assert main(["style", "slices", tiny.name, str(root), "--size", "32"]) == 0
    assert main(["style", "dreambooth", str(root), "--prompt", "axial phantom", *common]) == 0
    assert main(["style", "controlnet", str(root), "--conditions", "edges", "body", *common]) == 0
    return root


def perturbed(network, seed=1, by=0.1):
    """The network with noise on all of its weights: a fresh ControlNet ends in zeros."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data += by * torch.randn(parameter.shape, generator=generator)
    return network


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


# ---- packages and base model -----------------------------------------------------------------------------------------


def test_missing_and_broken_packages_are_named(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "diffusers", None)
        with pytest.raises(MissingPackageError, match=r"diffusers.*pip install 'nnunet_invariance\[diffusion\]'"):
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


def test_base_models_that_are_unsafe_broken_or_of_another_kind(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "sd")
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(content)
    with pytest.raises(BaseModelError, match=r"unet/diffusion_pytorch_model\.bin are pickles, which are not opened"):
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
        ({"strength": 0.0}, "leaves no step"),
        ({"steps": 2, "strength": 0.4}, "leaves no step"),
        ({"guidance": -1}, "expected 0 or more"),
        ({"scheduler": "euler"}, "one of ddim, unipc"),
        ({"noise": "pink"}, "one of shared, autoregressive, independent"),
    ):
        with pytest.raises(OptionError, match=words):
            SamplingOptions(**changes)


# ---- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_is_that_of_the_formula(model, tmp_path, prediction):
    base = open_base(model)
    base.scheduler.register_to_config(prediction_type=prediction)
    images = torch.rand(3, 64, 64, generator=named_generator("images"))
    seen = {}

    def predict(noisy, time):
        seen.update(noisy=noisy, time=time)
        return 0.3 * noisy

    loss = diffusion_loss(base, Batch(images, images, named_generator("draws")), predict)
    draws = named_generator("draws")
    pixels = images[:, None].repeat(1, 3, 1, 1) * 2 - 1
    latents = base.vae.encode(pixels).latent_dist.sample(draws) * base.vae.config.scaling_factor
    noise = torch.randn(latents.shape, generator=draws)
    time = torch.randint(1000, (3,), generator=draws)
    alpha = base.scheduler.alphas_cumprod[time].view(3, 1, 1, 1)
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    target = noise if prediction == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
    assert torch.equal(seen["time"], time)
    assert torch.allclose(seen["noisy"], noisy, atol=1e-5)
    assert loss.item() == pytest.approx(((0.3 * noisy - target) ** 2).mean().item(), rel=1e-4)


def test_slices_are_drawn_from_all_cases_and_prompts_dropped_as_often_as_asked(styled, base):
    slices = open_slices(styled)
    sampler = SliceSampler(slices)
    batch = sampler.draw(200, named_generator(0))
    ends = sampler.ends.tolist()
    index = torch.randint(ends[-1], (200,), generator=named_generator(0))
    for row in (0, 7, 199):
        case = next(c for c, end in enumerate(ends) if index[row] < end)
        z = int(index[row]) - ([0, *ends][case])
        assert torch.equal(batch.labels[row], torch.from_numpy(np.array(slices.case(slices.names[case]).labels[z])))
    assert len({int(torch.searchsorted(sampler.ends, i, right=True)) for i in index}) == len(slices.names)
    prompts = PromptStates(base, "axial phantom", 0.25)
    drawn = prompts.draw(4000, named_generator(0))
    dropped = (drawn == prompts.states[1]).flatten(1).all(1)
    assert dropped.float().mean() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(drawn[~dropped][0], base.embed(["axial phantom"])[0])


def test_dreambooth_trains_the_unet_and_leaves_the_base_alone(styled, model, base, tmp_path):
    before = {file: file.read_bytes() for file in model.rglob("*.safetensors")}
    for part in ("slices", "slices.json"):
        (tmp_path / part).symlink_to(styled / part)
    path = train_dreambooth(tmp_path, model, "axial phantom", STEPS, "cpu")
    assert {file: file.read_bytes() for file in model.rglob("*.safetensors")} == before
    tuned = packages.UNet2DConditionModel.from_pretrained(path)
    assert not any(torch.equal(a, b) for a, b in zip(tuned.parameters(), base.unet.parameters(), strict=True))
    assert json.loads((path / "training.json").read_text())["prompt"] == "axial phantom"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["slices", "slices.json", "unet"]


@pytest.mark.slow
def test_a_killed_training_continues_bit_by_bit(styled, model, tmp_path, monkeypatch):
    paths = {}
    for name in ("whole", "killed"):
        paths[name] = tmp_path / name
        paths[name].mkdir()
        for part in ("slices", "slices.json", "unet"):
            (paths[name] / part).symlink_to(styled / part)
    train_controlnet(paths["whole"], model, STEPS, device="cpu")
    step, calls = training._step, []

    def killed(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(training, "_step", killed)
        with pytest.raises(KeyboardInterrupt):
            train_controlnet(paths["killed"], model, STEPS, device="cpu")
    assert not (paths["killed"] / "controlnet").exists()
    with pytest.raises(OutputError, match=r"controlnet_training\.pt is there already. Continue with --c"):
        train_controlnet(paths["killed"], model, STEPS, device="cpu")
    with pytest.raises(StyleFolderError, match=r"cannot be continued: conditions: was \[\], is \['body'\]"):
        train_controlnet(paths["killed"], model, STEPS, ["body"], device="cpu", resume=True)
    train_controlnet(paths["killed"], model, STEPS, device="cpu", resume=True)
    networks = [packages.ControlNetModel.from_pretrained(paths[name] / "controlnet") for name in paths]
    assert same(*networks)
    assert networks[0].config.conditioning_channels == 3
    assert not (paths["killed"] / "controlnet_training.pt").exists()
    train_controlnet(paths["killed"], model, STEPS, device="cpu", resume=True)  # finished: stays


def test_nothing_to_continue_and_losses_that_are_not_finite(styled, model, tmp_path, monkeypatch):
    for part in ("slices", "slices.json"):
        (tmp_path / part).symlink_to(styled / part)
    with pytest.raises(StyleFolderError, match="--c: there is nothing to continue"):
        train_dreambooth(tmp_path, model, "axial phantom", STEPS, "cpu", resume=True)
    with pytest.raises(BaseModelError, match=r"unet holds no config\.json\. Run first: .*style dreambooth"):
        train_controlnet(tmp_path, model, STEPS, device="cpu")
    monkeypatch.setattr(training, "_step", lambda *args: float("nan"))
    with pytest.raises(NonFiniteLossError, match="unet: the loss was not finite in 5 steps up to 5"):
        train_dreambooth(tmp_path, model, "axial phantom", TrainingOptions(9, 1e-3), "cpu")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["slices", "slices.json"]


def test_prompts_and_training_options_that_are_wrong(styled, model, capsys):
    for prompt, words in (("", "is empty"), ("axial CT abdomen", "names the modality 'ct'"), ("MRI", "'mri'")):
        with pytest.raises(OptionError, match=words):
            check_prompt(prompt)
    for changes, words in (
        ({"steps": 0}, "--steps is 0; expected at least 1"),
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"learning_rate": 0.0}, "--learning-rate is 0"),
        ({"drop_prompt": 2.0}, "share from 0 to 1"),
        ({"amp": "fp8"}, "one of no, fp16, bf16"),
    ):
        with pytest.raises(OptionError, match=words):
            TrainingOptions(**{"steps": 1, "learning_rate": 1.0, **changes})
    assert (
        main(["style", "controlnet", str(styled), "--base", str(model), "--conditions", "bones", "-device", "cpu"]) == 2
    )
    assert "'bones' is unknown; expected some of body, clusters, edges" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert main(["style", "dreambooth", str(styled), "--base", str(model), "--prompt", "axial phantom"]) == 2
        assert "-device cuda: not available" in capsys.readouterr().err


# ---- views -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def views(tiny, styled, model):
    """The whole command line after the trainings; what stands beside the preprocessed cases is taken away again."""
    generate = ["style", "generate", str(styled), "--base", str(model), "--styles", "T1 MRI", "X-ray", "-device", "cpu"]
    assert main([*generate, "--steps", "2", "--strength", "0.5", "--guidance", "1", "--batch-size", "64"]) == 0
    yield styled
    for folder in (tiny.preprocessed / tiny.name).glob("*_styleviews"):
        shutil.rmtree(folder)


def test_views_lie_in_the_source_s_grid_and_are_counted(tiny, views, capsys):
    images = tiny.raw / tiny.name / "imagesTr"
    for view in ("T1-MRI", "X-ray"):
        counts = {f.stem: json.loads(f.read_text()) for f in (views / "views" / view).glob("case_*.json")}
        assert len(counts) == 6
        for name, count in counts.items():
            path = views / "views" / view / f"{name}.nii.gz"
            assert path.is_file() == count["written"]
            assert count["written"] == (count["rejected"] <= count["slices"] / 2)
            if count["written"]:
                made, source = sitk.ReadImage(path), sitk.ReadImage(images / f"{name}_0000.nii.gz")
                assert made.GetSize() == source.GetSize()
                assert made.GetDirection() == source.GetDirection()
                assert made.GetOrigin() == source.GetOrigin()
    record = json.loads((views / "views/X-ray/view.json").read_text())
    assert record["text"] == "axial phantom X-ray"
    assert record["swap"] is True
    assert record["controlnet"]["conditions"] == ["body", "edges"]


def test_views_are_made_once_and_by_one_set_of_settings(views, model, monkeypatch):
    files = {f: f.stat().st_mtime_ns for f in (views / "views").rglob("*.*")}
    counts = generate_views(views, model, ["T1 MRI", "X-ray"], VIEWS, device="cpu")
    assert set(counts) == {"T1-MRI", "X-ray"}
    assert counts["X-ray"]["slices"] == sum(
        s.shape[0] for s in (open_slices(views).case(n).image for n in open_slices(views).names)
    )
    assert {f: f.stat().st_mtime_ns for f in (views / "views").rglob("*.*")} == files
    with pytest.raises(OutputError, match=r"view\.json: the view was made with other settings"):
        generate_views(views, model, ["X-ray"], replace(VIEWS, swap=False), device="cpu")
    with pytest.raises(OptionError, match="--batch-size is 0"):
        replace(VIEWS, batch_size=0)


def small_copy(views, target, case="case_005"):
    """The same networks with one volume."""
    for part in ("slices", "unet", "controlnet"):
        (target / part).symlink_to(views / part)
    record = json.loads((views / "slices.json").read_text())
    (target / "slices.json").write_text(json.dumps({**record, "cases": [case]}))
    return target


@pytest.mark.slow
def test_a_seed_and_a_style_decide_a_view(views, model, tmp_path, monkeypatch):
    monkeypatch.setattr("nnunet_invariance.diffusion.generate.MOST_REJECTED", 1.0)
    monkeypatch.setattr("nnunet_invariance.diffusion.quality.SPREAD", -1.0)
    monkeypatch.setattr("nnunet_invariance.diffusion.quality.BORDER", -1.0)
    made = {}
    changed = {"again": {"batch_size": 5}, "seed": {"seed": 1}, "kept": {"swap": False}, "matched": {"match": True}}
    for name, changes in {"first": {}, **changed}.items():
        root = tmp_path / name
        root.mkdir()
        small_copy(views, root)
        generate_views(root, model, ["T2"], replace(VIEWS, **changes), device="cpu")
        made[name] = sitk.GetArrayFromImage(sitk.ReadImage(root / "views/T2/case_005.nii.gz"))
    assert np.allclose(made["first"], made["again"], atol=1e-2)
    for other in ("seed", "kept", "matched"):
        assert not np.allclose(made["first"], made[other], atol=0.1)


def test_volumes_of_which_most_slices_are_rejected_are_left_out(views, model, tmp_path, monkeypatch):
    monkeypatch.setattr("nnunet_invariance.diffusion.quality.SPREAD", 9.0)
    counts = generate_views(small_copy(views, tmp_path), model, ["T2"], VIEWS, device="cpu")
    assert counts == {"T2": {"slices": 26, "rejected": 26, "volumes": 0, "left_out": 1}}
    assert not list((tmp_path / "views").rglob("*.nii.gz"))


def test_too_little_memory_at_generation_says_so(views, model, tmp_path, monkeypatch):
    def short(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("nnunet_invariance.diffusion.generate.sample_slices", short)
    with pytest.raises(DeviceMemoryError, match=r"64 slices of 32 pixels do not fit.*smaller --batch-size"):
        generate_views(small_copy(views, tmp_path), model, ["T2"], VIEWS, device="cpu")
    assert not list((tmp_path / "views").rglob("case*"))


def test_the_picture(views, capsys):
    assert main(["style", "preview", str(views), "-n", "2"]) == 0
    assert (views / "preview.png").stat().st_size > 10_000


def test_preprocessed_views_have_the_shape_and_place_of_their_cases(tiny, views, capsys):
    for name in ("case_000", "case_005"):  # make sure that there is something, whatever was rejected
        source = tiny.raw / tiny.name / "imagesTr" / f"{name}_0000.nii.gz"
        shutil.copy(source, views / "views/X-ray" / f"{name}.nii.gz")
    assert main(["style", "preprocess", str(views)]) == 0
    folder = tiny.preprocessed / tiny.name / "nnUNetPlans_3d_fullres"
    target = folder.with_name("nnUNetPlans_3d_fullres_styleviews")
    assert f"finished: {target}" in capsys.readouterr().out
    cases, made = nnUNetDatasetBlosc2(str(folder)), json.loads((target / "views.json").read_text())["views"]
    for case, of_case in made.items():
        for view in of_case:
            array = blosc2.open(str(target / f"{case}__{view}.b2nd"))
            assert array.shape == cases.load_case(case)[0].shape
            assert array.dtype == np.float32
    for name in ("case_000", "case_005"):  # a view that is the source becomes what nnU-Net made of the source
        array = blosc2.open(str(target / f"{name}__X-ray.b2nd"))[:]
        assert np.allclose(array, cases.load_case(name)[0][:], atol=1e-5)
    before = {f: f.stat().st_mtime_ns for f in target.iterdir()}
    assert main(["style", "preprocess", str(views)]) == 0  # nothing changed: nothing is made again
    assert {f: f.stat().st_mtime_ns for f in target.iterdir()} == before
