"""Flower's simulation runtime, reached by the commands of docs/federate.md."""

import signal

import pytest
import torch

from tests.deployment.recipe import Machine, check_same_bits, free_port, sizes, the_run
from tests.helpers import no_ray_is_left

pytestmark = pytest.mark.xdist_group("ray")  # with all modules that look whether Ray is left


@pytest.mark.slow
def test_a_simulation_ends_with_the_weights_of_the_run_in_process(volumes, tmp_path):
    words = {"127.0.0.1:8010": f"127.0.0.1:{(port := free_port())}", "--port 8010": f"--port {port}"}
    machine = Machine(tmp_path / "home", words, start="")
    superlink = machine.start("Simulation: SuperLink (stays in the foreground)")
    try:
        superlink.wait_for("Uvicorn running")
        machine.run("Simulation: connection")
        places = {"/data/heart": str(volumes.folder), "/data/runs": str(tmp_path / "runs")}
        assert "done: dice_" in machine.run("Simulation: run", sizes(2) | places)
        superlink.signal(signal.SIGINT)
        no_ray_is_left()
    finally:
        machine.close()
    run = the_run(tmp_path / "runs")
    check_same_bits(run, volumes, tmp_path / "in-process")
    assert run.provenance["versions"]["torch"] == torch.__version__
    assert list(machine.home.glob("**/site-packages")) == [], "Flower installed the app's dependencies"
