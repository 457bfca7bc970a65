"""The Python interface: data frames and arrays in, data frames with intervals out, no nnU-Net and no torch."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from nnunet_invariance import evaluation
from nnunet_invariance.errors import ComparisonError
from nnunet_invariance.evaluation import compare, mean_scores, rank
from nnunet_invariance.evaluation.frames import to_scores
from nnunet_invariance.evaluation.statistics.effects import Contrast, paired_difference, paired_effects


def frame(**changes) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    index = pd.MultiIndex.from_product(
        [["a", "b", "c"], range(3), [f"case{i}" for i in range(6)], ["x", "y"]], names=["arm", "draw", "case", "class"]
    )
    data = index.to_frame(index=False)
    gain = data["arm"].map({"a": 0.1, "b": 0.0, "c": -0.1})
    return data.assign(dice=0.5 + gain + rng.normal(0, 0.02, len(data)), **changes)


@pytest.mark.integration
def test_a_frame_gives_the_statistics_of_its_matrices():
    data = frame()
    table = compare(data, baseline="b")
    assert list(table["arm"].unique()) == ["a", "c"]
    assert set(table["class"]) == {"all classes", "x", "y"}
    wide = {
        arm: d.pivot(index="draw", columns="case", values="dice")
        for arm, d in data[data["class"] == "x"].groupby("arm")
    }
    found = table.set_index(["arm", "class"]).loc[("a", "x")]
    expected = paired_difference((wide["a"] - wide["b"]).to_numpy(), bounds=(-1, 1))
    for name, value in vars(expected).items():
        assert found[name] == pytest.approx(value), name
    assert found["verdict"] == "better"
    assert found["p_holm"] == pytest.approx(2 * expected.p)


def test_arrays_and_the_columns_of_a_scores_file_give_the_same():
    data = frame()
    arrays = {name: data[name].to_numpy() for name in data}
    stored = data.rename(columns={"class": "label"}).assign(n_ref=1, n_pred=1)
    for same in (arrays, stored, data.assign(condition="", age=70)):
        pd.testing.assert_frame_equal(compare(same, baseline="b"), compare(data, baseline="b"))
    effects = paired_effects(to_scores(data), [Contrast("a", "b", "b"), Contrast("c", "b", "b")])
    assert [e.mean for e in effects] == compare(data, "b")["mean"].tolist()


def test_holm_is_over_the_chosen_arms():
    alone = compare(frame(), baseline="b", arms=["a"])
    assert alone["p_holm"].tolist() == alone["p"].tolist()
    assert set(alone["arm"]) == {"a"}


def test_means_and_ranking():
    means = mean_scores(frame())
    overall = means[means["class"] == "all classes"].set_index("arm")
    assert overall.loc["a", "mean"] == pytest.approx(frame().query("arm == 'a'")["dice"].mean())
    assert (overall["low"] < overall["mean"]).all()
    assert rank(frame())["arm"].tolist() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"case": ["a"], "dice": [1.0]}, r"have the columns case, dice; missing: arm\. Give arm, case and"),
        ({"arm": ["a"], "case": ["a"], "iou": [1.0]}, r"missing: dice, nsd, hd95"),
        ({"arm": ["a", "a"], "case": ["c", "c"], "dice": [1.0, 0.9]}, r"more than one row for .* arm 'a', case 'c'"),
        ({"arm": ["a"], "case": ["c"], "dice": [94.0]}, r"dice is 94 in row 0; expected a value in \[0, 1\]"),
        ({"arm": ["a"], "case": ["c"], "dice": [0.9]}, r"have no arm 'b'; their arms are a\."),
    ],
)
def test_wrong_scores_are_named(data, message):
    with pytest.raises(ComparisonError, match=message):
        compare(data, baseline="b")


def test_missing_scores_are_left_out():
    data = frame()
    data.loc[(data["arm"] == "a") & (data["draw"] == 2), "dice"] = np.nan
    assert set(compare(data, "b").query("arm == 'a'")["draws"]) == {2}


def test_the_package_imports_nothing_heavy_and_lists_its_names():
    code = (
        "import sys, nnunet_invariance.evaluation as e; "
        "heavy = {'torch', 'pandas', 'nnunetv2', 'numpy'} & set(sys.modules); "
        "assert not heavy, heavy; assert set(e.__all__) <= set(dir(e))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    for name in evaluation.__all__:
        assert callable(getattr(evaluation, name)), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        evaluation.nothing  # noqa: B018
