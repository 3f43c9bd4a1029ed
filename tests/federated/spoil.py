"""Let one client fail in one round."""

import torch

from fedlib.federated import client_app


def spoil_round(monkeypatch, client, round_number, how):
    """Let a client raise `how` before it trains, or reply with a weight of this value."""
    original = client_app.train_round

    def train_round(model, data, rows, config, own, number, *more):
        hit = (own, number) == (client, round_number)
        if hit and not isinstance(how, float):
            raise how
        done = original(model, data, rows, config, own, number, *more)
        if hit:
            torch.nn.init.constant_(next(model.parameters()), how)
        return done

    monkeypatch.setattr(client_app, "train_round", train_round)
