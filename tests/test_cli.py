"""python -m fedlib: bad input is one line and exit code 2 before any training; failure and interruption have their code."""

import pytest
import typer

from fedlib import cli
from fedlib.study import runner as study
from tests.helpers import python


@pytest.fixture
def command(monkeypatch, capsys):
    """Call the command in this process; gives exit code, standard output, and the lines on standard error."""

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["fedlib", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = capsys.readouterr()
        return left.value.code or 0, said.out, said.err.splitlines()

    return call


def check_refused(code, said, words):
    assert code == 2
    assert len(said) == 1, said
    assert said[0].startswith("error: ")
    assert [word for word in words if word not in said[0]] == [], said[0]


BAD = [
    (["--client-counts", "2,some"], ["client_counts", "some"]),
    (["--strategy", "nonsense"], ["strategy", "nonsense", "fedavg"]),
    (["--rounds", "0"], ["rounds", "0", "greater"]),
    (["--learning-rate", "5"], ["learning_rate", "5"]),
    (["--set", "batch_norm"], ["--set batch_norm", "NAME=VALUE"]),
    (["--set", "batch_norms=local"], ["batch_norms", "did you mean 'batch_norm'"]),
    (["--set", "batch_norm=remote"], ["batch_norm", "remote", "local"]),
    (["--set", "privacy=central"], ["batch_norm = 'average'", "expected 'group'"]),
]


@pytest.mark.parametrize(("options", "words"), BAD, ids=lambda value: " ".join(value[:2]))
def test_a_bad_option_is_one_line(command, tmp_path, options, words):
    code, _, said = command("study", "--profile", "smoke", "--out", tmp_path / "out", *options)
    check_refused(code, said, words)
    assert list(tmp_path.iterdir()) == []


SKEW, GROUPS = (["--partitions", name, "--client-counts", n] for name, n in (("label_skew", "6"), ("by_group", "2,9")))
BAD_DATA = [
    ("none", "classification", [], ["none", "prepared"]),
    ("segmentation", "classification", [], ["segmentation", "expected classification"]),
    ("classification", "all", [], ["classification", "expected segmentation"]),
    ("classification", "classification", ["--client-counts", "2,999"], ["n_clients = 999", "at least 999"]),
    ("segmentation", "segmentation", ["--client-counts", "7"], ["n_clients = 7", "at least 7"]),
    ("segmentation", "segmentation", ["--partitions", "label_skew"], ["label_skew", "of one class", "expected unbalanced"]),
    ("classification", "classification", [*SKEW, "--client-counts", "2,999"], ["n_clients = 999", "fewer clients"]),
    ("classification", "classification", [*SKEW, "--alpha", "0.001"], ["alpha = 0.001, n_clients = 6", "a larger alpha"]),
    ("classification", "classification", GROUPS, ["group_column = ''", "label, scanner"]),
    ("classification", "classification", [*GROUPS, "--group-column", "city"], ["'city'", "no such column", "scanner"]),
    ("classification", "classification", [*GROUPS, "--group-column", "split"], ["'split'", "values in it: 1", "scanner"]),
    ("classification", "classification", [*GROUPS, "--group-column", "scanner"], ["n_clients = 9", "fewer clients"]),
]


@pytest.mark.parametrize(("name", "task", "options", "words"), BAD_DATA)
def test_data_that_cannot_carry_the_study_is_refused_at_once(command, tmp_path, prepared, name, task, options, words):
    folder = prepared["classification"].folder.parent / name
    given = ("--profile", "smoke", "--task", task, "--data", folder, "--out", tmp_path / "out")
    code, _, said = command("study", *given, *options)
    check_refused(code, said, words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_too_many_clients_for_the_synthetic_set_are_refused_before_training(tmp_path):
    given = ("--profile", "smoke", "--task", "classification", "--client-counts", 999, "--out", tmp_path / "out")
    done = python("-m", "fedlib", "study", *given)
    assert done.returncode == 2
    assert "n_clients = 999" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out" / "runs").exists(), "nothing was trained"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["study", "--profile", "huge"], ["--profile", "huge"]),
        (["study", "--rounds", "five"], ["rounds", "five"]),
        (["study", "--seeds", "0"], ["--seeds", "0"]),
        (["train"], ["train"]),
    ],
)
def test_what_the_command_line_itself_refuses_names_option_and_value(command, arguments, words):
    code, _, said = command(*arguments)
    check_refused(code, said, words)


@pytest.mark.parametrize("name", ["report", "runs"])
def test_a_folder_that_is_no_study_is_one_line(command, tmp_path, name):
    code, _, said = command(name, tmp_path)
    check_refused(code, said, [str(tmp_path), "study"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["study", "grade"])
def test_where_nothing_can_be_written_is_one_line_at_once(command, smoke, tmp_path, name):
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "students" / "ada").mkdir(parents=True)
    grading = ["course", "grade", tmp_path / "students", "--out-dir", smoke]
    arguments = [*grading, "--to"] if name == "grade" else ["study", "--profile", "smoke", "--out"]
    code, _, said = command(*arguments, tmp_path / "file" / "new")
    check_refused(code, said, [str(tmp_path / "file"), "Not a directory"])


def test_runs_names_a_run_that_is_damaged_and_lists_the_others(command, smoke, tmp_path):
    for run in sorted((smoke / "runs").glob("[!.]*"))[:2]:
        (tmp_path / "runs" / run.name).mkdir(parents=True)
        for name in ("config.json", "status.json"):
            (tmp_path / "runs" / run.name / name).write_bytes((run / name).read_bytes())
    (tmp_path / "runs" / run.name / "config.json").write_text('{"task": ')
    code, out, said = command("runs", tmp_path)
    assert (code, said) == (0, [])
    good, bad = out.splitlines()
    assert " 0." in good
    assert "config.json: damaged" in bad


def test_runs_lists_every_run_with_its_score(command, smoke):
    code, out, said = command("runs", smoke)
    assert (code, said) == (0, [])
    assert len(out.splitlines()) == 10
    assert all(line.startswith("done") for line in out.splitlines())
    assert "dice_LV 0." in out
    assert "accuracy 0." in out


def test_a_failed_run_is_exit_code_1_and_named(command, monkeypatch, tmp_path):
    monkeypatch.setattr(study, "run_study", lambda *_: ["run-7: OSError: disk full"])
    code, out, said = command("study", "--profile", "smoke", "--out", tmp_path)
    assert (code, said) == (1, ["FAILED: run-7: OSError: disk full"])
    assert out == f"Open {tmp_path}/index.html\n"


def test_ctrl_c_is_exit_code_130_and_says_how_to_resume(command, monkeypatch, tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "run_study", interrupted)
    code, _, said = command("study", "--profile", "smoke", "--out", tmp_path)
    assert (code, said) == (130, ["Interrupted. The same command resumes the study."])


def test_options_reach_the_study(command, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(study, "run_study", lambda studies, *where: seen.extend([studies, where]) or [])
    options = ["--client-counts", "2,4", "--partitions", "balanced", "--rounds", 3, "--seeds", 2, "--jobs", 2]
    options += ["--executor", "ray", "--address", "head:6379", "--course"]
    options += ["--alpha", 0.1, "--group-column", "scanner"]
    options += ["--margin-accuracy", 0.1, "--margin-sensitivity", 0.2, "--margin-dice", 0.03, "--significance", 0.01]
    assert command("study", "--profile", "smoke", "--out", tmp_path, *options)[0] == 0
    studies, where = seen
    assert where == (2, "ray", "head:6379", True)
    assert [each.task for each in studies] == ["classification", "segmentation"]
    for each in studies:
        assert (each.client_counts, each.partitions, each.rounds, each.seeds) == ((2, 4), ("balanced",), 3, (1, 2))
        assert (each.out_dir, each.alpha, each.group_column) == (tmp_path, 0.1, "scanner")
        assert [each.margin(name) for name in ("accuracy", "sensitivity", "dice_Myo")] == [0.1, 0.2, 0.03]
        assert each.significance == 0.01


COMMANDS = typer.main.get_command(cli.app).commands


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_every_option(command, name):
    code, out, said = command(name, "--help")
    assert (code, said) == (0, [])
    assert f"Usage: python -m fedlib {name}" in out
    for parameter in COMMANDS[name].params:
        assert parameter.param_type_name == "argument" or (parameter.help and parameter.opts[0] in out)


def test_the_command_alone_shows_what_there_is(command):
    code, out, said = command()
    assert (code, said) == (0, [])
    assert all(name in out for name in COMMANDS)
    assert "python -m data_prep --help" in out
