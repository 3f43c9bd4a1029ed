"""A third task is a module and its values, put beside the others: nothing else of fedlib knows its name."""

import json
import shutil
from pathlib import Path

from fedlib.config import ROOT
from fedlib.data.dataset import describe
from tests.helpers import python

STUDY = """
import sys
from fedlib import analysis, cli
from fedlib.config import StudyConfig
from fedlib.data.dataset import open_prepared
from fedlib.study import experiment, report
from fedlib.study.record import remember_study
from fedlib.training.run_store import RunStore

study = StudyConfig.make(task="screening", profile="smoke", data_dir=sys.argv[1], out_dir=sys.argv[2])
data = open_prepared(study.prepared_dir, study.task)
runs = experiment.run_all(study.runs(data.fingerprint), data, RunStore(study.out_dir), report=print)
remember_study(study, data)
report.write_index(study.out_dir)
print(*analysis.answer(analysis.compare(runs, study)))
sys.argv[1:] = ["runs", sys.argv[2]]
cli.main()
"""


def test_a_third_task_is_two_files(images, tmp_path):
    shutil.copytree(ROOT / "fedlib", tmp_path / "fedlib")
    for path in (Path(__file__).parent / "screening").glob("screening.*"):
        shutil.copy(path, tmp_path / "fedlib" / "tasks")
    data = shutil.copytree(images.folder, tmp_path / "data")
    names = images.manifest["files"]
    own = {name: value for name, value in images.manifest.items() if name not in ("files", "fingerprint")}
    manifest = describe({name: data / name for name in names}, own | {"task": "screening"})
    (data / "manifest.json").write_text(json.dumps(manifest))
    done = python("-c", STUDY, data, tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "**Accuracy, normal or not**: federated training is" in done.stdout
    assert done.stdout.count("\ndone     screening-") == 3, "centralized, local, federated"
    assert "Chest X-rays: screening" in (tmp_path / "out" / "index.html").read_text()
