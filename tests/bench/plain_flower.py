"""The plain client in Flower's simulation, as in its quick start: FOLDER/job.json, client<K>.npz; writes flower.npz there.

PYTHONPATH=. python -m tests.bench.plain_flower FOLDER
"""

import json
import sys
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from tests.bench.plain import model_of, save, site

client_app = ClientApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """A client's turn."""
    told, state = message.content["config"], message.content["arrays"].to_torch_state_dict()
    own = site(Path(told["folder"]), context.node_config["partition-id"])
    weights = ArrayRecord(own.round(state, told["server-round"] - 1))
    content = {"arrays": weights, "metrics": MetricRecord({"num-examples": own.n})}
    return Message(RecordDict(content), reply_to=message)


def main(folder: Path) -> None:
    """All rounds, two clients at a time, a core each."""
    job, server_app = json.loads((folder / "job.json").read_text()), ServerApp()

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        initial, told = ArrayRecord(model_of(job).state_dict()), ConfigRecord({"folder": str(folder)})
        result = FedAvg(fraction_evaluate=0.0).start(grid, initial, num_rounds=job["rounds"], train_config=told)
        save(folder / "flower.npz", result.arrays.to_torch_state_dict())

    run_simulation(server_app, client_app, job["clients"], backend_config={"client_resources": {"num_cpus": 1}})


if __name__ == "__main__":
    from tests.bench import plain_flower  # by its name, so that Ray's workers import it instead of taking it in each message

    plain_flower.main(Path(sys.argv[1]))
