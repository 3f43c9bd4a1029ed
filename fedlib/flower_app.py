"""The ServerApp of this project as a Flower app: `flwr run . FEDERATION --run-config '...'`, and the engine `deployment`."""

import json
from pathlib import Path

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedlib import federation
from fedlib.data import write_atomically

server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Serve one run."""
    told = context.run_config
    torch.set_num_threads(int(told["threads"]))
    outcome = ["", ""]
    try:
        federation.serve(grid, context)
    except Exception as error:
        outcome = [type(error).__name__, str(error)]
        raise
    finally:
        write_atomically(Path(str(told["outcome"])), json.dumps(outcome))
