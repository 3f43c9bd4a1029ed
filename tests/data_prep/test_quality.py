"""What the quality page says of a set is what is in it."""

import json

import numpy as np
import pandas as pd
import pytest

from data_prep import quality
from fedlib.data.dataset import PreparedDataset
from fedlib.views import plots


def labelled(columns: dict[str, list], n: int = 40) -> PreparedDataset:
    """Two classes by turns, in every split; grey values that tell nothing; and the columns given."""
    split = np.array(["train"] * (n // 2) + ["test"] * (n // 2))
    own = {"case": [f"c{i}" for i in range(n)], "label": ["ill", "well"] * (n // 2), "split": split}
    cases = pd.DataFrame(own | {"patient": own["case"], "dup_group": "", "file": own["case"]} | columns)
    return PreparedDataset(None, {"task": "classification"}, cases, np.full((n, 1, 2, 2), 9, np.uint8), np.zeros(n))


def test_counts_add_up(data):
    table = quality.counts(data)
    assert table["total"].sum() == len(data.cases) == table[["train", "val", "test"]].to_numpy().sum()
    assert table.loc[:, "train"].sum() == len(data.split("train"))
    assert table["patients"].sum() == data.cases["patient"].nunique()


def test_listed_reads_what_was_rejected_and_what_is_there_twice(data):
    counts = json.loads((data.folder / "manifest.json").read_text())["counts"]
    assert len(quality.listed(data, "qc")) == counts["rejected"]
    assert len(quality.listed(data, "duplicates")) == counts["exact_duplicates"] + counts["near_duplicates"]


def test_volumes_kept_names_the_worst_case(volumes):
    table = quality.volumes_kept(volumes)
    worst = volumes.cases.set_index("case").loc[table.loc["LV", "worst case"]]
    assert table.loc["LV", "kept (worst)"] == worst["LV_ml_prepared"] / worst["LV_ml"]
    assert list(table.index) == ["LV", "Myo"]
    assert table.round(1).loc["LV", "kept (median)"] == 1, "columns of numbers are numbers"


def test_acquisition_tells_the_size_of_the_raw_images(images, volumes):
    assert quality.acquisition(images)["cases"].to_dict() == {("shape", "32x32"): len(images.cases)}
    assert set(quality.acquisition(volumes).index.get_level_values("raw")) == {"shape", "spacing_mm"}


def test_a_column_that_gives_the_class_away_is_found_and_an_empty_one_is_not():
    age = [3, 60] * 20  # children are ill
    tells = labelled({"age": age, "scanner": ["A"] * 40, "note": [f"n{i}" for i in range(40)]})
    table = quality.shortcuts(tells).set_index("column")
    assert table.loc["age", "accuracy"] == 1
    assert table.loc["age", "always the commonest"] == pytest.approx(0.5)
    assert set(table.index) == {"age"}, "one value says nothing, a value a case is a name"


def test_a_number_is_cut_at_the_deciles_of_the_training_cases():
    rng = np.random.default_rng(0)
    pressure = np.where(np.arange(40) % 2, 120.0, 80.0) + rng.normal(0, 5, 40)
    table = quality.shortcuts(labelled({"pressure": pressure.tolist()})).set_index("column")
    assert table.loc["pressure", "accuracy"] > 0.9
    assert table.loc["pressure", "values"] <= quality.BINS
    noise = quality.shortcuts(labelled({"noise": rng.normal(size=40).tolist()})).set_index("column")
    assert noise.loc["noise", "accuracy"] < 0.8


def test_a_value_that_training_never_saw_counts_as_the_commonest_class():
    site = ["A", "B"] * 10 + ["C"] * 20
    table = quality.shortcuts(labelled({"site": site})).set_index("column")
    assert table.loc["site", "accuracy"] == table.loc["site", "always the commonest"]


def test_pictures_say_what_they_show(data):
    picture = plots.intensities(data)
    assert all(name.replace("_", " ") in picture.alt for name in data.classes)
