"""The diffusion path on a tiny model: training, and every action of `style`."""

import json
import shutil
from dataclasses import replace

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunet_invariance.cli.main import main
from nnunet_invariance.diffusion import packages, training
from nnunet_invariance.diffusion.base_model import open_base
from nnunet_invariance.diffusion.controlnet import train_controlnet
from nnunet_invariance.diffusion.dreambooth import check_prompt, train_dreambooth
from nnunet_invariance.diffusion.generate import generate_views
from nnunet_invariance.diffusion.noise import named_generator
from nnunet_invariance.diffusion.objective import (
    Batch,
    PromptStates,
    SliceSampler,
    diffusion_loss,
)
from nnunet_invariance.diffusion.options import SamplingOptions, TrainingOptions, ViewOptions
from nnunet_invariance.diffusion.slices import open_slices
from nnunet_invariance.errors import (
    BaseModelError,
    DeviceMemoryError,
    NonFiniteLossError,
    OptionError,
    OutputError,
    StyleFolderError,
)

SAMPLING = SamplingOptions(steps=2, strength=0.5, guidance=1.0)
VIEWS = ViewOptions(SAMPLING, batch_size=64)
STEPS = TrainingOptions(steps=3, learning_rate=1e-3, batch_size=2, grad_accum_steps=2, drop_prompt=0.3, save_every=1)


@pytest.fixture(scope="module")
def styled(tiny, model, tmp_path_factory):
    """Slices of the tiny data set, a U-Net and a ControlNet of three steps."""
    root = tmp_path_factory.mktemp("style")
    common = [
        "--base",
        str(model),
        "-device",
        "cpu",
        "--steps",
        "3",
        "--grad-accum-steps",
        "1",
        "--learning-rate",
        "0.01",
    ]
    assert main(["style", "slices", tiny.name, str(root), "--size", "32"]) == 0
    assert main(["style", "dreambooth", str(root), "--prompt", "axial phantom", *common]) == 0
    assert main(["style", "controlnet", str(root), "--conditions", "edges", "body", *common]) == 0
    return root


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


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
    batch = sampler.sample(200, named_generator(0))
    ends = sampler.ends.tolist()
    index = torch.randint(ends[-1], (200,), generator=named_generator(0))
    for row in (0, 7, 199):
        case = next(c for c, end in enumerate(ends) if index[row] < end)
        z = int(index[row]) - ([0, *ends][case])
        assert torch.equal(batch.labels[row], torch.from_numpy(np.array(slices.case(slices.names[case]).labels[z])))
    assert len({int(torch.searchsorted(sampler.ends, i, right=True)) for i in index}) == len(slices.names)
    prompts = PromptStates(base, "axial phantom", 0.25)
    sampled = prompts.sample(4000, named_generator(0))
    dropped = (sampled == prompts.states[1]).flatten(1).all(1)
    assert dropped.float().mean() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(sampled[~dropped][0], base.embed(["axial phantom"])[0])


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
    with pytest.raises(OutputError, match=r"controlnet_training\.pt exists. Continue with --c"):
        train_controlnet(paths["killed"], model, STEPS, device="cpu")
    with pytest.raises(StyleFolderError, match=r"cannot be continued: conditions: was \[\], is \['body'\]"):
        train_controlnet(paths["killed"], model, STEPS, ["body"], device="cpu", resume=True)
    assert main(["style", "controlnet", str(paths["killed"]), "--c"]) == 0  # no other flag
    networks = [packages.ControlNetModel.from_pretrained(paths[name] / "controlnet") for name in paths]
    assert same(*networks)
    assert networks[0].config.conditioning_channels == 3
    assert not list(paths["killed"].glob("controlnet_training*"))
    train_controlnet(paths["killed"], model, STEPS, device="cpu", resume=True)  # finished: stays


def test_nothing_to_continue_and_losses_that_are_not_finite(styled, model, tmp_path, monkeypatch):
    for part in ("slices", "slices.json"):
        (tmp_path / part).symlink_to(styled / part)
    with pytest.raises(StyleFolderError, match="--c: there is nothing to continue"):
        train_dreambooth(tmp_path, model, "axial phantom", STEPS, "cpu", resume=True)
    with pytest.raises(BaseModelError, match=r"unet contains no config\.json\. Run first: .*style dreambooth"):
        train_controlnet(tmp_path, model, STEPS, device="cpu")
    monkeypatch.setattr(training, "_step", lambda *args: float("nan"))
    with pytest.raises(NonFiniteLossError, match="unet: the loss was not finite in 5 steps up to 5"):
        train_dreambooth(tmp_path, model, "axial phantom", TrainingOptions(9, 1e-3), "cpu")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["slices", "slices.json", "unet_training.json"]


def test_prompts_and_training_options_that_are_wrong(styled, model, capsys):
    for prompt, words in (("", "is empty"), ("axial CT abdomen", "names the modality 'ct'"), ("MRI", "'mri'")):
        with pytest.raises(OptionError, match=words):
            check_prompt(prompt)
    for changes, words in (
        ({"steps": 0}, "--steps is 0; expected a whole number of at least 1"),
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"learning_rate": 0.0}, "--learning-rate is 0"),
        ({"drop_prompt": 2.0}, r"--drop-prompt is 2.0; expected a number in \[0, 1\]"),
        ({"amp": "fp8"}, "one of 'no', 'fp16', 'bf16'"),
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
    with pytest.raises(OutputError, match=r"view\.json: the views .* were made with other settings"):
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
