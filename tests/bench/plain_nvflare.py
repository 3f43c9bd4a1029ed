"""The plain client in NVFlare's simulation, by its FedAvg recipe: FOLDER/job.json, client<K>.npz; writes nvflare.npz there.

PYTHONPATH=. .venv-nvflare/bin/python -m tests.bench.plain_nvflare FOLDER          `make bench` makes that environment
"""

import json
import sys
from pathlib import Path

import torch

from tests.bench.plain import save, site


def main(folder: Path) -> None:
    """All rounds, two clients at a time, a core each."""
    from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
    from nvflare.recipe import SimEnv

    job = json.loads((folder / "job.json").read_text())
    sizes = {"min_clients": job["clients"], "num_rounds": job["rounds"]}
    script = {"train_script": __file__, "train_args": f"--site {folder}"}
    recipe = FedAvgRecipe(name="plain", model=job["model"], key_metric="", **sizes, **script)
    recipe.execute(SimEnv(num_clients=job["clients"], num_threads=2, workspace_root=str(folder)))
    (final,) = folder.rglob("FL_global_model.pt")
    save(folder / "nvflare.npz", torch.load(final, weights_only=True)["model"])


def train_at_site(folder: Path) -> None:
    """What NVFlare starts at each site: takes weights, trains, sends weights, until the server has enough."""
    import nvflare.client as flare

    flare.init()
    own = site(folder, int(flare.get_site_name().removeprefix("site-")) - 1)
    while flare.is_running():
        received = flare.receive()
        state = own.round(received.params, received.current_round)
        steps = own.job["local_epochs"] * len(own.loader)
        flare.send(flare.FLModel(params=state, meta={"NUM_STEPS_CURRENT_ROUND": steps}))


if __name__ == "__main__":
    if sys.argv[1] == "--site":
        train_at_site(Path(sys.argv[2]))
    else:
        main(Path(sys.argv[1]))
