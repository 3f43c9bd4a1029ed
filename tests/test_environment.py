"""One lock for pip and conda users, documents that name files that exist, and rooms that import downwards only."""

import ast
import graphlib
import json
import os
import re
import sys
import tomllib

import pandas as pd
import pytest
import yaml

from fedlib.config import ROOT
from tests.helpers import python

FLOORS = {
    **{"config": 1, "data": 2, "tasks": 3, "training": 4, "federated": 5, "analysis": 5},
    **{"views": 6, "course": 7, "study": 7, "cli": 8},
}
"""Floor of each room, from the ground. A room imports from itself and from lower floors."""
MODULES = sorted((ROOT / "fedlib").rglob("*.py"))


def read(name):
    return (ROOT / name).read_text()


def canonical(requirement):
    """The name of a requirement, as the index spells it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", requirement.strip())[0]).lower()


@pytest.fixture(scope="module")
def locked():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def test_every_dependency_is_pinned_exactly_once(locked):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(name for group in project["optional-dependencies"].values() for name in group)]
    pinned = [canonical(line) for line in locked]
    assert {name for name in map(canonical, wanted) if pinned.count(name) != 1} == {project["name"]}, "dev takes an extra"


def test_the_lock_holds_exact_versions_that_any_machine_can_install(locked):
    assert len(set(map(canonical, locked))) == len(locked)
    assert [line for line in locked if not re.fullmatch(r"[A-Za-z0-9_.\-]+==[A-Za-z0-9.]+", line)] == [], "no +cpu, no URL"


def test_conda_takes_its_versions_from_the_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge"]
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    assert sorted(map(canonical, conda)) == ["pip", "python"]
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert pip == ["-c constraints.txt", "-e .[dev]"], "it pins nothing itself"
    python_pin = next(entry for entry in conda if entry.startswith("python"))
    lowest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    assert tuple(map(int, python_pin.split("=")[-1].split("."))) >= tuple(map(int, lowest.split(".")))


def test_every_module_that_is_imported_is_a_declared_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    spelled = {"PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit-learn", "bs4": "beautifulsoup4", "IPython": "ipython"}
    imported = {name.split(".")[0] for path in MODULES + sorted((ROOT / "data_prep").glob("*.py")) for name in imports(path)}
    outside = {canonical(spelled.get(name, name)) for name in imported - {*sys.stdlib_module_names, "fedlib", "data_prep"}}
    extras = project["optional-dependencies"]
    declared = [*project["dependencies"], *extras["ray"], *extras["export"]]
    assert outside - {canonical(name) for name in declared} == set()


def test_files_that_the_readme_names_exist():
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text)
    named = re.findall(r"`((?:fedlib|data_prep|notebooks|tests|reports)/[\w./-]+)`", text)
    made = ("reports/smoke", "reports/quick", "reports/paper", "reports/bench")  # by the commands
    expected = [path for path in (*links, *named) if not path.startswith(made)]
    assert [path for path in expected if not (ROOT / path).exists()] == []


def test_accuracies_in_the_readme_are_those_of_the_stored_study():
    table = pd.read_csv(ROOT / "reports" / "reference" / "quick-results.csv")
    central, federated, local = (table[table["mode"] == mode]["accuracy"] for mode in ("centralized", "federated", "local"))
    text = " ".join((ROOT / "README.md").read_text().split())
    assert f"(accuracy {federated.min():.3f} to {federated.max():.3f}, centralized {central.max():.3f})" in text
    eight = local[table["n_clients"] == 8].groupby(table["partition"]).mean()
    assert f"fall to {eight['balanced']:.2f} (balanced) and {eight['unbalanced']:.2f} (unbalanced)" in text


def test_make_targets_that_documents_and_containers_name_exist():
    targets = set(
        re.findall(r"^([a-z-]+|\.venv/\.ready):", read("Makefile").replace("$(READY)", ".venv/.ready"), re.MULTILINE)
    )
    code = "\n".join(re.findall(r"`[^`]+`|```.*?```", read("README.md") + read("CONTRIBUTING.md"), re.S))
    named = set(re.findall(r"\bmake ([a-z-]+(?: [a-z-]+)?)", code))
    run, command = (
        re.search(r"^RUN make (\S+)$", read("Dockerfile"), re.M)[1],
        re.search(r'CMD \["make", "(\w+)"', read("Dockerfile"))[1],
    )
    created = json.loads(read(".devcontainer/devcontainer.json"))["postCreateCommand"].removeprefix("make ")
    assert {"study", "test"} <= targets
    assert {word for words in named for word in words.split()} | {run, command, created} <= targets


def test_the_citation_is_of_this_version_and_names_the_paper_of_the_readme():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["version"] == tomllib.loads(read("pyproject.toml"))["project"]["version"]
    assert citation["references"][0]["doi"] in read("README.md")


def imports(path):
    """Full names of all modules that a file imports, at any depth; `from a import b` gives `a.b`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms_of(path):
    return {name.split(".")[1] for name in imports(path) if name.startswith("fedlib.")} & set(FLOORS)


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_from_lower_floors_only(path):
    room = path.relative_to(ROOT / "fedlib").parts[0].removesuffix(".py")
    if room not in ("__init__", "__main__"):
        assert room in FLOORS, "a new room needs its floor"
        assert {other for other in rooms_of(path) - {room} if FLOORS[other] >= FLOORS[room]} == set()
    if room != "cli":  # the roof: predicting needs both, and nothing imports the roof
        assert not any(name.startswith("data_prep") for name in imports(path)), "preparation comes before, not below"


def test_the_house_has_at_most_ten_rooms_and_eight_floors():
    rooms = {path.relative_to(ROOT / "fedlib").parts[0].removesuffix(".py") for path in MODULES} - {"__init__", "__main__"}
    assert rooms == set(FLOORS)
    assert len(rooms) <= 10
    assert max(FLOORS.values()) <= 8


def test_no_module_imports_itself_through_others():
    names = {module_name(path) for path in MODULES}
    graph = {}
    for path in MODULES:
        parts = [name for name in imports(path) if name.startswith("fedlib")]
        graph[module_name(path)] = {name if name in names else name.rpartition(".")[0] for name in parts} & names
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("path", sorted((ROOT / "data_prep").glob("*.py")), ids=lambda path: path.name)
def test_data_preparation_stands_on_config_and_data_alone(path):
    assert rooms_of(path) <= {"config", "data"}


@pytest.mark.parametrize("module", ["fedlib.cli", "fedlib.config"])
def test_the_command_line_answers_without_torch(module):
    done = python("-c", f"import sys, {module}; print(sorted({{'torch', 'monai', 'flwr', 'pandas'}} & set(sys.modules)))")
    assert done.stdout.strip() == "[]"


WAITING = "GOMP_SPINCOUNT"
ORDER = f"print([name for name in sys.modules if name in ('fedlib', 'torch')], os.environ['{WAITING}'])"
WITHOUT = {name: value for name, value in os.environ.items() if name not in (WAITING, "OMP_NUM_THREADS")}
COUNTS = "print(torch.get_num_threads(), fedlib.training.loop.cores())"


def test_what_importing_all_of_fedlib_does():
    """How threads wait is set before torch is there to read it; two cores stay free for others; Ray stays out."""
    names = ", ".join(module_name(path) for path in MODULES if path.stem != "__main__")
    last = f"import {names}; print(sorted({{'ray', 'torch'}} & set(sys.modules)))"
    done = python("-c", f"import os, sys, fedlib.training.loop; {ORDER}; import torch; {COUNTS}; {last}", env=WITHOUT)
    order, counts, there = done.stdout.splitlines()
    assert order == "['fedlib', 'torch'] 2000"
    threads, cores = map(int, counts.split())
    assert cores == os.cpu_count()
    assert 1 <= threads <= max(1, cores - 2)
    assert there == "['torch']"


def test_the_user_says_how_many_threads():
    done = python("-c", f"import torch, fedlib.training.loop; {COUNTS}", env=WITHOUT | {"OMP_NUM_THREADS": "2"})
    assert done.stdout == "2 2\n"


IMPORT = """
import os, signal, sys, threading
import ctypes, json, logging  # what is here already is no effect of fedlib
before, modules, environment = (signal.getsignal(signal.SIGINT), os.getcwd()), set(sys.modules), dict(os.environ)
import fedlib
assert set(os.environ) - set(environment) <= {SET}, "only these are set"
assert environment.items() <= os.environ.items(), "and nothing that was set is changed"
assert set(sys.modules) - modules == {"fedlib"}, set(sys.modules) - modules
assert (signal.getsignal(signal.SIGINT), os.getcwd()) == before
assert threading.active_count() == 1
"""
DEFAULTS = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "FLWR_TELEMETRY_ENABLED", "FLWR_DISABLE_UPDATE_CHECK"}
DEFAULTS |= {"RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"}


@pytest.mark.parametrize("given", [{}, dict.fromkeys(DEFAULTS, "own")], ids=["unset", "set"])
def test_importing_fedlib_sets_defaults_of_the_environment_and_does_nothing_else(given):
    environment = {name: value for name, value in os.environ.items() if name not in DEFAULTS} | given
    done = python("-c", IMPORT.replace("SET", str(DEFAULTS)[1:-1]), env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_data_preparation_sets_how_threads_wait_before_torch_is_there_too():
    done = python("-c", f"import os, sys, data_prep.cardiac; {ORDER}", env=WITHOUT)
    assert done.stdout == "['fedlib', 'torch'] 2000\n"


def test_tests_that_share_what_is_costly_stay_in_one_process(request):
    """pytest-xdist writes the group behind a test's name, and deals whole groups."""
    assert request.node.nodeid.endswith("@tests.test_environment") == ("PYTEST_XDIST_WORKER" in os.environ)


def test_only_one_file_uses_a_private_name_of_flower():
    private = [path.name for path in MODULES if any(name.startswith("flwr.supercore") for name in imports(path))]
    assert private == ["in_process.py"]
