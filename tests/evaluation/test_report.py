"""The report: rebuilt from the folder alone, complete in itself, and true numbers."""

import base64
import csv
import io
import json
import re
import shutil
from pathlib import Path

import matplotlib.image
import pytest

from nnunet_invariance.cli.main import main
from nnunet_invariance.common.json_files import write_json
from nnunet_invariance.evaluation.report import cases
from nnunet_invariance.evaluation.report.page import write_report
from nnunet_invariance.evaluation.report.pictures import draw_means
from nnunet_invariance.evaluation.report.results import compute_results, natural
from nnunet_invariance.evaluation.report.tables import headline
from nnunet_invariance.evaluation.runner.record import add_command
from nnunet_invariance.evaluation.runner.stored import state, stored_jobs
from nnunet_invariance.evaluation.scoring.scores import Score
from nnunet_invariance.evaluation.statistics.effects import Contrast
from tests.helpers.stored_comparison import DATASET, UNFINISHED, write_comparison


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = write_comparison(tmp_path_factory.mktemp("stored"))
    assert write_report(folder) == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def text(out) -> str:
    return (out / "report.html").read_text()


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.integration
def test_nothing_is_fetched_and_every_picture_decodes(text):
    assert not re.search(r"<(script|link|iframe|object)|(src|href)=\"(?!data:)", text)
    pictures = re.findall(r'<img alt="([^"]+)"[^>]* src="data:image/png;base64,([^"]+)"', text)
    assert len(pictures) == text.count("<img ") == 3  # differences, means, and the worst, median and best case
    for _, data in pictures:
        assert min(matplotlib.image.imread(io.BytesIO(base64.b64decode(data)), format="png").shape[:2]) > 50


@pytest.mark.integration
def test_how_it_was_made_is_said(tmp_path, monkeypatch):
    out = write_comparison(tmp_path / "made")
    plans = out / "nnUNet_preprocessed" / DATASET / "P.json"
    block = {"seed": 7, "iterations_per_epoch": 33}
    write_json(plans, {"configurations": {"3d_fullres": {"nnunet_invariance": block}}})
    first, second = (stored_jobs(out)[i].record for i in (0, 1))
    for record, name, torch in ((first, "node one", "2.0"), (first, "node one", "2.0"), (second, "node two", "2.1")):
        place = {"machine": {"cpu": name, "device": "cuda"}, "versions": {"torch": torch}}
        add_command(record, "train", ["again"], 1.0, place)
    monkeypatch.setattr("nnunet_invariance.evaluation.report.cases.SHOWN_ARMS", 2)
    text = write_report(out).read_text()
    for said in (
        *("training seed in the plans: 7", "33 iterations per epoch", "mirroring at prediction: no"),
        *("tolerance of NSD: 1.0 mm", "The pictures show 2 arms; not shown: MAE<"),
        *("<p>cpu: node one, device: cuda</p>", "<p>cpu: node two, device: cuda</p>", "<p>cpu: &lt;c&gt;</p>"),
        "torch 2.0 and 2 and 2.1",
    ):
        assert said in text, said


def test_losses_are_said_as_such(text, out):
    assert re.search(
        r"<td>worse</td><td>-0.0\d+ \[-0.0\d+, -0.0\d+\]</td><td>Alice against Alice_scratch</td>"
        r"<td>10 shots</td>",
        text,
    )
    assert "MAE against Alice_scratch, 10 shots: not decided, because one draw" in text
    assert '<tr class="worse">' in text
    summary = (out / "summary.txt").read_text()
    assert "worse: AliceTrainer_2epochs against AliceTrainer_scratch_2epochs, 10 shots: Dice -0.0" in summary
    overall = [e for e in rows(out / "effects.csv") if (e["metric"], e["label"]) == ("dice", "all classes")]
    assert {(e["condition"], e["arm"]): e["verdict"] for e in overall} == {
        ("3 shots", "AliceTrainer_2epochs"): "worse",
        ("3 shots", "MAETrainer_2epochs"): "better",
        ("10 shots", "AliceTrainer_2epochs"): "worse",
        ("10 shots", "MAETrainer_2epochs"): "not decided",  # one draw is finished
    }
    assert summary.index("3 shots: Dice") < summary.index("10 shots: Dice")


def test_the_verdict_comes_first_in_one_sentence(text):
    words = re.sub(r"<[^>]+>", "", text.split("<h1>")[1].split("<h2>")[0])
    assert "4 comparisons: 2 worse, 1 better, 1 not decided; the" in words
    assert "largest decided difference is +0.1" in words
    assert "MAE against Alice_scratch, 3 shots." in words
    assert text.index('class="verdict"') < text.index("<img ") < text.index("<table>")


def scored(values: dict[str, float]) -> list[Score]:
    """One class of six cases in three draws, with the same Dice in every case of an arm."""
    draws = [(draw, case) for draw in range(3) for case in range(6)]
    return [
        Score("5 shots", draw, arm, f"case_{case}", "organ", dice, dice, 1.0, 9, 9)
        for arm, dice in values.items()
        for draw, case in draws
    ]


def test_two_arms_that_are_each_others_reference_count_once_in_the_verdict():
    contrasts = [Contrast("A", "B", "B"), Contrast("B", "A", "A"), Contrast("A", "B", "own twin")]
    effects = compute_results(scored({"A": 0.8, "B": 0.7}), contrasts, seed=0).main_effects
    assert len(effects) == 3
    assert headline(effects, {}).startswith("A is better than B: +0.100 Dice")
    third = compute_results(scored({"A": 0.8, "B": 0.7, "C": 0.4}), [*contrasts, Contrast("C", "A", "A")], seed=0)
    assert headline(third.main_effects, {}).startswith("2 comparisons: 1 better, 1 worse; the largest")


def test_the_largest_difference_is_named_also_if_nothing_is_decided():
    scores = [score for score in scored({"A": 0.8, "B": 0.7, "C": 0.4}) if score.draw == 0]
    contrasts = [Contrast("A", "B", "B"), Contrast("C", "B", "B")]
    said = headline(compute_results(scores, contrasts, seed=0).main_effects, {})
    assert said == "2 comparisons: 2 not decided; the largest difference is -0.300 Dice: C against B, 5 shots."


def test_the_legend_of_long_names_fits_into_the_figure(monkeypatch):
    figures = []
    monkeypatch.setattr("nnunet_invariance.evaluation.report.pictures.png", figures.append)
    for names in (["short", "names"], [f"AliceTrainer_{i}_with-a-long-name" for i in range(4)]):
        means = compute_results(scored(dict.fromkeys(names, 0.5)), [], seed=0).main_means
        draw_means(means, ["5 shots"], "Dice")
        figure = figures.pop()
        figure.draw_without_rendering()
        assert figure.legends[0].get_window_extent().x1 <= figure.bbox.x1


@pytest.mark.parametrize(("number", "ranks"), [(0, {}), (1, {"worst": 0}), (2, {"worst": 0, "best": 1})])
def test_few_cases_are_ranked(number, ranks):
    assert cases._ranked(list(range(number))) == ranks


@pytest.mark.integration
def test_the_worst_median_and_best_case_stand_side_by_side_with_their_dice(out, monkeypatch):
    drawn = []
    monkeypatch.setattr(cases, "draw_cases", lambda shown, colours: drawn.append((shown, colours)) or b"")
    write_report(out)
    ((shown, colours),) = drawn
    assert [case.title for case in shown] == ["worst: case_0", "median: case_3", "best: case_5"]
    assert list(colours) == ["organ", "core"]
    mean = {(s["case"], s["arm"]): s["dice"] for s in rows(out / "scores.csv") if s["label"] == "organ"}
    assert f"MAE: Dice {float(mean['case_0', 'MAETrainer_2epochs']):.2f}"[:9] in str(list(shown[0].segmentations))


def test_an_unfinished_cell_is_listed_and_enters_no_number(text, out):
    assert "Not finished: 1 of 12 cells" in text
    assert f"<td>{UNFINISHED}</td><td>not run</td>" in text
    draws = {(e["condition"], e["arm"]): e["draws"] for e in rows(out / "effects.csv")}
    assert draws["10 shots", "MAETrainer_2epochs"] == "1"
    assert draws["10 shots", "AliceTrainer_2epochs"] == "2"
    arm = UNFINISHED.split("/")[0]
    found = {(s["arm"], s["condition"], s["draw"]) for s in rows(out / "scores.csv")}
    assert (arm, "10 shots", "0") in found
    assert (arm, "10 shots", "1") not in found


def test_cost_commands_seeds_versions_and_transfer_stand_there(text):
    for words in (
        "nnUNetv2_train &lt;&amp;&gt; AliceTrainer_2epochs/shots3_draw0",
        "1.5 min, 100 steps",
        '<td class="number">1.0 min</td>',
        "torch 2",
        "seed of draws and intervals: 0",
        "sha256 abc",
        "100% of the encoder&#x27;s stages come from weights.safetensors",
        "PUIRTrainer needs at least 2 channels",
        "&lt;Stored&gt;",
    ):
        assert words in text, words


@pytest.mark.integration
def test_test_sets_are_conditions(tmp_path):
    out = write_comparison(tmp_path, ("all channels", "without T1"))
    assert main(["evaluate", "report", str(out)]) == 0
    conditions = {e["condition"] for e in rows(out / "effects.csv")}
    assert conditions == {f"{k} shots, {name}" for k in (3, 10) for name in ("all channels", "without T1")}
    assert (out / "report.html").read_text().count("<img ") == 3 + 2  # the heat map is for several test sets


@pytest.mark.integration
def test_seen_test_images_are_said(tmp_path):
    out = write_comparison(tmp_path)
    record = json.loads((out / "comparison.json").read_text())
    record["comparison"]["transductive"] = {"case_0": True}
    (out / "comparison.json").write_text(json.dumps(record))
    assert "has seen 1 test image (transductive)" in write_report(out).read_text()


@pytest.mark.integration
def test_warnings_of_a_pretraining_are_shown_in_red(tmp_path):
    out = write_comparison(tmp_path)
    record = json.loads((out / "comparison.json").read_text())
    record["comparison"]["pretrainings"]["alice__P__3d_fullres"]["warnings"] = ["collapse: <uniform> (epoch 5)"]
    (out / "comparison.json").write_text(json.dumps(record))
    said = "Pre-training alice__P__3d_fullres: collapse: &lt;uniform&gt; (epoch 5)"
    assert f'<p class="notice">{said}</p>' in write_report(out).read_text()


@pytest.mark.integration
def test_names_with_signs_of_mathematics_are_drawn_as_they_are(tmp_path, monkeypatch):
    """Matplotlib reads text between two dollar signs as mathematics, and refuses "c$^$0"."""
    name = "c$^$0"
    out = write_comparison(tmp_path, (f"set {name}", "other"))
    text = (out / "comparison.json").read_text()
    (out / "comparison.json").write_text(text.replace("case_0", name).replace("PUIRTrainer", name))
    for file in [*out.rglob("case_0*.nii.gz")]:
        file.rename(file.with_name(file.name.replace("case_0", name)))
    for file in out.rglob("scores.csv"):
        file.write_text(file.read_text().replace("case_0", name).replace("organ", "o$^$0"))
    dataset = next(out.rglob("dataset.json"))
    dataset.write_text(dataset.read_text().replace("organ", "o$^$0"))
    drawn = []
    draw_cases = cases.draw_cases

    def remember(shown, colours):
        drawn.extend(case.title for case in shown)
        return draw_cases(shown, colours)

    monkeypatch.setattr(cases, "draw_cases", remember)
    assert "<td>o$^$0</td>" in write_report(out).read_text()
    assert any(name in title for title in drawn)


def test_states_of_cells(out):
    job = next(job for job in stored_jobs(out) if job.name == UNFINISHED)
    assert state(job) == "not run"
    job.folder.mkdir(parents=True)
    (job.folder / "train.log").write_text("x: Epoch 1 \n")
    assert state(job) == "stopped after 1 of 2 epochs"
    job.model.mkdir(parents=True)
    (job.model / "checkpoint_final.pth").touch()
    assert state(job) == "trained, not scored"


def test_conditions_sort_by_their_numbers():
    assert sorted(["10 shots", "1 shot", "3 shots"], key=natural) == ["1 shot", "3 shots", "10 shots"]


def test_a_folder_without_a_comparison(tmp_path, capsys):
    assert main(["evaluate", "report", str(tmp_path)]) == 2
    assert "contains no comparison.json" in capsys.readouterr().err


def test_a_comparison_of_which_nothing_has_run(tmp_path):
    out = write_comparison(tmp_path)
    shutil.rmtree(out / "arms")
    page = write_report(out).read_text()
    assert "Not finished: 12 of 12 cells" in page
    assert "No two arms can be compared yet" in page
