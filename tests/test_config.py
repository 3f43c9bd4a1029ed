"""Configurations: validated in one line, frozen, and named by everything that they hold."""

import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedlib.config import (
    RECIPE,
    ROOT,
    AnalysisConfig,
    Partition,
    ProfileName,
    RunConfig,
    StudyConfig,
    UserError,
    precision_note,
    task_values,
)
from tests.helpers import ARMS, SIZES

BASE = SIZES | ARMS["federated"] | {"task": "classification", "mode": "federated", "seed": 1, "data_fingerprint": "aa"}
OTHER = {
    "rounds": 3,
    "local_epochs": 2,
    "batch_size": 9,
    "learning_rate": 0.0011,
    "width": 5,
    "unbalance_ratio": 2.5,
    "precision": "bf16",
    "deterministic": False,
    "optimizer": "sgd",
    "momentum": 0.5,
    "weight_decay": 0.1,
    "schedule": "constant",
    "drop_last": True,
    "augmentation": "none",
    "input_low": 0,
    "recipe": RECIPE + 1,
    "n_clients": 4,
    "partition": "unbalanced",
    "alpha": 0.1,
    "n_missing": 1,
    "group_column": "hospital",
    "quorum": 0.5,
    "fraction_train": 0.5,
    "reply_timeout": 60,
    "batch_norm": "local",
    "privacy": "central",
    "noise_multiplier": 0.5,
    "clipping_norm": 2.0,
    "strategy": "none",
    "task": "segmentation",
    "mode": "local",
    "seed": 2,
    "data_fingerprint": "ab",
}


@given(st.sets(st.sampled_from(sorted(OTHER))), st.sets(st.sampled_from(sorted(OTHER))))
def test_run_ids_are_equal_exactly_when_configurations_are(some, others):
    one, two = (RunConfig(**BASE | {name: OTHER[name] for name in names}) for names in (some, others))
    assert (one.run_id == two.run_id) == (one == two)


@pytest.mark.parametrize("name", sorted(set(RunConfig.model_fields) - set(AnalysisConfig.model_fields)))
def test_every_field_that_trains_is_part_of_the_run_id(name):
    assert RunConfig(**BASE | {name: OTHER[name]}).run_id != RunConfig(**BASE).run_id


@pytest.mark.parametrize("name", AnalysisConfig.model_fields)
def test_a_margin_is_in_the_record_of_a_run_and_not_in_its_name(name):
    study = StudyConfig.make(**{name: 0.1})
    (run, usual) = (own.runs("ff")[0] for own in (study, StudyConfig.make()))
    assert getattr(run, name) == 0.1 != getattr(usual, name)
    assert run.run_id == usual.run_id, "another margin trains nothing again"


def test_both_structures_have_the_margin_of_the_dice_score():
    study = StudyConfig.make(margin_dice=0.03)
    margins = [study.margin(metric) for metric in ("dice_LV", "dice_Myo", "accuracy", "sensitivity")]
    assert margins == [0.03, 0.03, 0.05, 0.05]


def test_run_id_is_the_same_in_another_process():
    config = RunConfig(**BASE)
    code = "import sys; from fedlib.config import RunConfig; print(RunConfig.model_validate_json(sys.argv[1]).run_id)"
    command = [sys.executable, "-c", code, config.model_dump_json()]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip() == config.run_id


def test_a_run_id_holds_every_effective_value_and_the_recipe(monkeypatch):
    """C9: after a changed default, or a changed version of the code's results, an older run is another run."""

    class Later(RunConfig):
        weight_decay: float = 0.02

    assert Later(**BASE).run_id != RunConfig(**BASE).run_id
    assert Later(**BASE, weight_decay=0.01).run_id == RunConfig(**BASE).run_id
    assert RunConfig(**BASE, recipe=RECIPE - 1).run_id != RunConfig(**BASE).run_id


def test_a_configuration_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        RunConfig(**BASE).rounds = 5


@pytest.mark.parametrize("text", ["2,4,8", "[2, 4, 8]", "(2,4,8)", [2, 4, 8], (2, 4, 8)])
def test_lists_come_as_text_or_as_lists(text):
    assert StudyConfig.make(client_counts=text).client_counts == (2, 4, 8)


@pytest.mark.parametrize("text", ["balanced,unbalanced", "['balanced', 'unbalanced']", ["balanced", "unbalanced"]])
def test_names_come_as_text_or_as_lists(text):
    assert StudyConfig.make(partitions=text).partitions == ("balanced", "unbalanced")


def test_what_is_asked_twice_is_run_once():
    study = StudyConfig.make(client_counts="4,2,4", partitions="balanced,balanced", seed="1,1")
    assert (study.client_counts, study.partitions, study.seeds) == ((4, 2), ("balanced",), (1,))


def test_a_damaged_record_does_not_keep_a_study_from_deciding_its_precision(tmp_path):
    for name, text in (("classification-a", '{"precision": "bf16"}'), ("classification-b", '{"prec')):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        (run / "config.json").write_text(text)
        (run / "provenance.json").write_text("{}")
    assert StudyConfig.make(precision="auto", out_dir=tmp_path).decided().precision == "bf16"


def test_a_lone_number_or_name_is_a_list_of_one():
    study = StudyConfig.make(client_counts=4, partitions="balanced", seed="3")
    assert (study.client_counts, study.partitions, study.seeds) == ((4,), ("balanced",), (3,))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("client_counts", 0),
        ("client_counts", "2,0"),
        ("client_counts", "2,many"),
        ("client_counts", ""),
        ("partitions", "balanced,nonsense"),
        ("strategy", "nonsense"),
        ("task", "nonsense"),
        ("profile", "nonsense"),
        ("rounds", "five"),
        ("rounds", 0),
        ("batch_size", -1),
        ("batch_size", 2),  # classification: a batch of one has no spread for BatchNorm
        ("reply_timeout", "inf"),
        ("noise_multiplier", "inf"),
        ("learning_rate", 0),
        ("learning_rate", 2),
        ("alpha", 0),
        ("alpha", -0.5),
        ("alpha", "inf"),
        ("alpha", "even"),
        ("group_column", 3),
        ("quorum", 0),
        ("quorum", 1.5),
        ("margin_accuracy", 0),
        ("margin_sensitivity", -0.05),
        ("margin_dice", 2),
        ("margin_dice", "small"),
        ("significance", 0),
        ("significance", 0.5),
        ("seed", -1),
    ],
)
def test_a_bad_value_is_one_line_with_parameter_and_value(name, value):
    with pytest.raises(UserError) as caught:
        StudyConfig.make(**{name: value})
    line = str(caught.value)
    assert "\n" not in line
    assert name.rstrip("s") in line
    assert str(value).split(",")[-1] in line


def test_an_unknown_parameter_is_named_with_a_hint():
    with pytest.raises(UserError, match="'client_countz'.*'client_counts'"):
        StudyConfig.make(client_countz=4)
    with pytest.raises(UserError, match="'zzz'.*rounds"):
        StudyConfig.make(zzz=4)


def test_a_user_error_shows_no_traceback_in_a_notebook():
    assert UserError("rounds = 0: wrong")._render_traceback_() == ["UserError: rounds = 0: wrong"]


def test_notebook_reads_its_parameters_and_finds_the_unknown_one():
    namespace = {"task": "segmentation", "rounds": None, "client_counts": "2", "seed": 7, "unrelated": 5}
    study = StudyConfig.from_notebook(namespace)
    assert (study.task, study.client_counts, study.seeds) == ("segmentation", (2,), (7,))
    assert study.rounds == task_values("segmentation")["quick"]["rounds"], "None means: as the profile says"
    injected = namespace | {"n_clientz": 4, "In": ["", "task = 'x'", "# Parameters\nrounds = 2\nn_clientz = 4\n"]}
    with pytest.raises(UserError, match="n_clientz"):
        StudyConfig.from_notebook(injected)


@pytest.mark.parametrize(
    ("line", "hint"), [("round = 5", "'rounds'"), ('client_count = "2,4"', "'client_counts'"), ("zzz = 1", "zzz")]
)
def test_a_name_typed_by_hand_into_the_parameters_cell_is_checked_too(line, hint):
    """Jupyter: nothing is injected; the cell itself has the wrong name. Corrected and run again, it is fine."""
    cell = f'task = "classification"\nprofile = "smoke"\nout_dir = None\n{line}\n'
    namespace = {"In": ["", "%matplotlib inline", "1 +", cell, "helper = 3"], "helper": 3}
    exec(cell, namespace)
    with pytest.raises(UserError, match=hint):
        StudyConfig.from_notebook(namespace)
    corrected = 'task = "classification"\nprofile = "smoke"\nout_dir = None\nrounds = 3\n'
    namespace["In"].append(corrected)
    exec(corrected, namespace)
    assert StudyConfig.from_notebook(namespace).rounds == 3


@pytest.mark.parametrize("profile", ProfileName.__args__)
def test_a_profile_makes_a_study_of_each_task(profile):
    for task in ("classification", "segmentation"):
        study = StudyConfig.make(profile=profile, task=task)
        assert study.size % 8 == 0, "the 3D U-Net halves a volume three times"
        assert study.out_dir.name == profile


def test_the_paper_s_client_counts_are_those_of_the_real_study():
    assert StudyConfig.make(profile="paper", task="classification").client_counts == (2, 4, 8)
    assert StudyConfig.make(profile="paper", task="segmentation").client_counts == (2, 4, 8, 16)


def test_the_grid_holds_every_arm_once_and_centralized_first():
    study = StudyConfig.make(client_counts="2,4", seed="1,2", partitions="balanced,unbalanced")
    grid = study.runs("ff")
    assert len(grid) == len({run.run_id for run in grid}) == 2 * (1 + 2 * 2 * 2)
    assert grid[0].mode == "centralized"
    dealt = {(run.seed, run.n_clients, run.partition, run.mode) for run in grid if run.mode != "centralized"}
    modes, partitions = ("local", "federated"), ("balanced", "unbalanced")
    assert dealt == {(s, k, p, m) for s in (1, 2) for k in (2, 4) for p in partitions for m in modes}
    assert all(run.strategy == "none" for run in grid if run.mode != "federated")


def test_only_the_partition_that_needs_a_value_gets_it():
    every = ",".join(Partition.__args__)
    usual = {run.partition: run.run_id for run in StudyConfig.make(partitions=every).runs("ff", ("federated",))}
    study = StudyConfig.make(partitions=every, alpha="0.1", group_column="hospital")
    runs = {run.partition: run for run in study.runs("ff", ("federated",))}
    assert list(runs) == list(Partition.__args__)
    assert (runs["label_skew"].alpha, runs["by_group"].group_column) == (0.1, "hospital")
    assert [name for name, run in runs.items() if run.run_id != usual[name]] == ["label_skew", "by_group"]
    assert study.runs("ff", ("centralized",)) == StudyConfig.make().runs("ff", ("centralized",))


def test_every_arm_of_a_grid_has_the_same_training_and_data():
    grid = StudyConfig.make(task="segmentation", rounds=7).runs("ff")
    shared = {json.dumps(run.model_dump(include=set(SIZES) | {"data_fingerprint", "task"}), sort_keys=True) for run in grid}
    assert len(shared) == 1
    assert grid[0].rounds == 7


def test_folders_do_not_depend_on_where_the_kernel_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = StudyConfig.make(out_dir="here", data_dir="there")
    assert (study.out_dir, study.data_dir) == (tmp_path / "here", tmp_path / "there")


@pytest.mark.parametrize(
    ("gpu", "processor", "expected"),
    [
        (True, {}, "bf16"),
        (False, {"avx512_bf16": True}, "fp32"),
        (None, {"avx512_bf16": True}, "bf16"),
        (None, {"amx_bf16": True}, "bf16"),
        (None, {"avx512_f": True, "avx512_bf16": False}, "fp32"),
        (None, {"architecture": "arm64"}, "fp32"),
    ],
)
def test_auto_is_bf16_where_the_gpu_or_else_the_processor_has_it(gpu, processor, expected, monkeypatch):
    """gpu: whether there is one that has bf16; None: there is none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu or including_emulation)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor)
    asked = StudyConfig.make(precision="auto")
    assert {run.precision for run in asked.runs("ff")} == {asked.decided().precision} == {expected}
    assert asked.runs("ff") == asked.replace(precision=expected).runs("ff"), "a run says what was really used"


def test_auto_is_what_the_folder_s_finished_runs_have(tmp_path, monkeypatch):
    """Results handed out from a machine with bf16 are found on a laptop without it, and one is told."""
    study = StudyConfig.make(profile="smoke", precision="auto", out_dir=tmp_path)
    monkeypatch.setattr("fedlib.config.native_precision", lambda: "bf16")
    made = study.runs("ff")[0]
    folder = tmp_path / "runs" / made.run_id
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(made.model_dump_json())
    monkeypatch.setattr("fedlib.config.native_precision", lambda: "fp32")
    assert study.runs("ff")[0].precision == "fp32", "a run that was only begun decides nothing"
    (folder / "provenance.json").write_text("{}")
    assert study.runs("ff")[0].run_id == made.run_id
    assert "bf16" in precision_note("bf16")
    assert precision_note("fp32") == ""


def test_a_run_holds_a_precision_and_no_wish():
    with pytest.raises(ValueError, match="'fp32' or 'bf16'"):
        RunConfig(**BASE | {"precision": "auto"})
