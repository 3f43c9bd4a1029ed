"""The notebooks: clean and alike in the repository, each runs alone by papermill, bad parameters stop them at once."""

import re
import statistics
from concurrent.futures import ThreadPoolExecutor

import nbformat
import pytest

from data_prep import quality
from data_prep.sources import prepare_class_folders
from fedlib.config import StudyConfig
from fedlib.study.runner import NOTEBOOKS, ORDER
from fedlib.training.run_store import RunStore
from tests.data_prep import raw
from tests.helpers import python, snapshot

NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
BOOKS = {name: nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4) for name in NAMES}
LONGEST_CELL, MEDIAN_CELL, FIRST_CELLS = 25, 8, 5
OF_THE_STUDY = sorted(ORDER)


def code_cells(name):
    return [cell for cell in BOOKS[name].cells if cell.cell_type == "code"]


def tagged(name):
    return [cell.source for cell in code_cells(name) if "parameters" in cell.metadata.get("tags", [])]


def test_they_are_the_story_s_parts_in_order():
    assert [name[:2] for name in NAMES] == [f"{n:02}" for n in range(len(NAMES))]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_in_the_repository_is_clean(name):
    nbformat.validate(BOOKS[name])
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code_cells(name))
    assert BOOKS[name].metadata.kernelspec.name == "python3"


@pytest.mark.parametrize("name", NAMES)
def test_cells_are_short(name):
    lengths = [len(cell.source.splitlines()) for cell in code_cells(name)]
    assert max(lengths) <= LONGEST_CELL
    assert statistics.median(lengths) <= MEDIAN_CELL


@pytest.mark.parametrize("name", NAMES)
def test_functions_and_classes_live_in_the_package(name):
    assert [cell.source for cell in code_cells(name) if re.search(r"^\s*(def|class) ", cell.source, re.MULTILINE)] == []


def test_every_notebook_has_the_same_parameters_and_fedlib_knows_them():
    assert len({text for name in NAMES for text in tagged(name)}) == 1
    assert all(len(tagged(name)) == 1 for name in NAMES)
    known = {field.alias or key for key, field in StudyConfig.model_fields.items()}
    assert set(re.findall(r"^(\w+) =", tagged(NAMES[0])[0], re.MULTILINE)) <= known


def papermill(name, folder, *parameters):
    """Run a notebook as a batch user does; gives the finished process and the folder it worked in."""
    arguments = [text for pair in zip(parameters[::2], parameters[1::2], strict=True) for text in ("-p", *map(str, pair))]
    common = ["-p", "profile", "smoke", "-p", "out_dir", folder / "study", "--no-progress-bar"]
    folder.mkdir(exist_ok=True)
    done = python("-m", "papermill", NOTEBOOKS / f"{name}.ipynb", folder / f"{name}.ipynb", *common, *arguments)
    return done, folder


BATCH = {
    "04 alone": ("04_compare_results", "task", "segmentation"),
    "unknown": ("03_federated_simulation", "client_countz", 4),
    "too many": ("03_federated_simulation", "client_counts", 999, "task", "segmentation"),
}


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    """Notebooks run by papermill, each in its own folder, two at a time: most of a minute is spent importing."""
    with ThreadPoolExecutor(2) as pool:
        yield {
            title: pool.submit(papermill, name, tmp_path_factory.mktemp("notebook"), *parameters)
            for title, (name, *parameters) in BATCH.items()
        }


def last_line(done):
    return re.sub(r"\x1b\[[0-9;]*m", "", done.stderr.strip().splitlines()[-1])


def check_executed(folder, name):
    book = nbformat.read(folder / f"{name}.ipynb", as_version=4)
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not any(output.output_type == "error" for output in outputs)
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    first = [output for cell in [c for c in book.cells if c.cell_type == "code"][:FIRST_CELLS] for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in first), "a picture comes early"
    assert all(picture.metadata["image/png"]["alt"] for picture in pictures)
    assert not any(output.get("name") == "stderr" for output in outputs), "nothing is painted red"


@pytest.mark.slow
def test_03_runs_alone_with_flat_literals(tmp_path):
    literals = ("client_counts", 2, "partitions", "balanced,unbalanced", "seed", 1, "rounds", 1, "strategy", "fedavg")
    done, folder = papermill("03_federated_simulation", tmp_path, "task", "classification", *literals)
    assert done.returncode == 0, done.stderr[-2000:]
    check_executed(folder, "03_federated_simulation")
    runs = [run.config for run in RunStore(folder / "study").all() if run.done]
    arms = {(config.mode, config.partition) for config in runs}
    assert arms == {(mode, partition) for mode in ("local", "federated") for partition in ("balanced", "unbalanced")}
    assert {(config.seed, config.n_clients, config.rounds) for config in runs} == {(1, 2, 1)}


def test_04_without_runs_says_what_to_run_first(batch):
    done, folder = batch["04 alone"].result()
    assert done.returncode != 0
    assert "02" in last_line(done)
    assert "03" in last_line(done)
    assert RunStore(folder / "study").all() == []


def test_an_unknown_parameter_stops_before_anything_is_made(batch):
    done, folder = batch["unknown"].result()
    assert done.returncode != 0
    assert "client_countz" in last_line(done)
    assert "client_counts" in last_line(done)
    assert not (folder / "study").exists()


def test_more_clients_than_cases_stop_before_training(batch):
    done, folder = batch["too many"].result()
    assert done.returncode != 0
    assert "n_clients = 999" in last_line(done)
    assert RunStore(folder / "study").all() == []


@pytest.mark.slow
@pytest.mark.parametrize(("name", "value"), [("client_counts", 0), ("strategy", "nonsense"), ("rounds", "five")])
def test_a_bad_value_stops_before_anything_is_made(tmp_path, name, value):
    done, folder = papermill("02_centralized_training", tmp_path, name, value)
    assert done.returncode != 0
    assert name in last_line(done)
    assert str(value) in last_line(done)
    assert not (folder / "study").exists()


@pytest.mark.slow
def test_01_shows_why_a_case_was_rejected_to_the_last_word(tmp_path):
    folder = raw.class_folders(tmp_path / "raw")
    (folder / "ill" / "ill-3.png").write_text("see the archive")
    data = prepare_class_folders(folder, tmp_path / "set", 16, on_bad="skip")
    parameters = ("task", "classification", "data_dir", data.folder, "client_counts", 2)
    done, _ = papermill("01_data_preparation", tmp_path / "alone", *parameters)
    assert done.returncode == 0, done.stderr[-2000:]
    assert quality.listed(data, "qc")["reason"][0] in (tmp_path / "alone" / "01_data_preparation.ipynb").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "segmentation"])
@pytest.mark.parametrize("name", [name for name in NAMES if name[:2] != "04"])
def test_every_notebook_runs_alone(tmp_path, name, task):
    done, _ = papermill(name, tmp_path, "task", task)
    assert done.returncode == 0, done.stderr[-2000:]
    check_executed(tmp_path, name)
    if name.startswith("02"):
        assert [run.config.mode for run in RunStore(tmp_path / "study").all() if run.done] == ["centralized"]


@pytest.mark.slow
def test_any_order_will_do_and_nothing_is_trained_twice(tmp_path):
    """Only 04 asks for others, 02 and 03; what one of them made is read by the next, and by itself."""
    for number in ("05", "03", "02", "04", "01", "00"):
        name = next(name for name in NAMES if name.startswith(number))
        done, _ = papermill(name, tmp_path, "task", "segmentation")
        assert done.returncode == 0, done.stderr[-2000:]
    weights = {path: time for path, time in snapshot(tmp_path).items() if path.endswith(".safetensors")}
    assert weights
    done, _ = papermill("03_federated_simulation", tmp_path, "task", "segmentation")
    assert done.returncode == 0, done.stderr[-2000:]
    assert {path: time for path, time in snapshot(tmp_path).items() if path in weights} == weights


@pytest.mark.parametrize("task", ["classification", "segmentation"])
@pytest.mark.parametrize("name", OF_THE_STUDY)
def test_the_study_executed_every_notebook_of_its_stages(smoke, name, task):
    check_executed(smoke / task, name)
