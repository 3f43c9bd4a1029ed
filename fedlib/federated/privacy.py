"""Differential privacy of what a client sends, by Flower's mechanisms, and what it costs: epsilon.

The unit is a client: whether a whole hospital took part must be hard to tell from the weights. `central`: the server
shortens every update to the clipping norm and adds Gaussian noise to their mean (McMahan et al., 2018); one trusts the
server. `local`: every client does so to its own update before it leaves; one trusts nobody, and it takes far more noise.

The noise comes from the run's seed, so that a run can be made again. That is for study only: who knows the seed can take the
noise away. A real federation must not seed it.
"""

from typing import Any

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp.mod import LocalDpMod
from flwr.clientapp.typing import ClientAppCallable
from flwr.serverapp import GaussianPrivacyEvent, NeighboringRelation, PrivacyConfig, RdpAccountant, SamplingMethod
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg

from fedlib.config import DELTA, RunConfig
from fedlib.training.loop import stream_seed


class CentralPrivacy(DifferentialPrivacyServerSideFixedClipping):
    """FedAvg under Flower's central differential privacy. All clients count alike, however many cases they have: the
    noise is measured for that."""

    def __init__(self, config: RunConfig, rounds_before: int, **options: Any):
        self.run_config, sampled, accountant = config, config.sampled(config.n_clients), _accountant(config.n_clients)
        if rounds_before:
            accountant.compose(_release(config), rounds_before)
        averaging = FedAvg(weighted_by_key=EQUAL, **options)
        super().__init__(averaging, config.noise_multiplier, config.clipping_norm, sampled, accountant=accountant)

    def aggregate_train(self, server_round: int, replies: list[Message]):
        """Flower's, with noise of this run and round."""
        for reply in replies:
            reply.content["metrics"][EQUAL] = 1.0
        _seed_noise(self.run_config, self.run_config.n_clients, server_round)
        return super().aggregate_train(server_round, replies)


EQUAL = "equal-weight"


def locally_private(config: RunConfig, client: int, round_number: int) -> LocalDpMod:
    """Flower's mod that shortens a client's update and adds noise, of this run, client and round.

    Two updates of the clipping norm C are at most 2 C apart: the sensitivity. Flower asks for an epsilon of one release and
    makes sigma = 2 C sqrt(2 ln(1.25 / delta)) / epsilon of it; the one asked for is that of sigma = 2 C noise_multiplier.
    """
    epsilon = float(np.sqrt(2 * np.log(1.25 / DELTA))) / config.noise_multiplier
    protect = LocalDpMod(config.clipping_norm, 2 * config.clipping_norm, epsilon, DELTA)

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        def seeded(message: Message, context: Context) -> Message:
            reply = call_next(message, context)
            _seed_noise(config, client, round_number)
            return reply

        return protect(message, context, seeded)

    return mod


def epsilon_after(config: RunConfig, rounds: int) -> float:
    """Epsilon (at DELTA) of that many rounds, by Renyi accounting (Mironov, 2017), no gain from sampling counted.

    A client that sat out some rounds has spent less.
    """
    accountant = _accountant(config.n_clients)
    accountant.compose(_release(config), rounds)
    return accountant.get_epsilon(DELTA)


def _release(config: RunConfig) -> GaussianPrivacyEvent:
    return GaussianPrivacyEvent(config.noise_multiplier, config.sampled(config.n_clients), config.n_clients)


def _accountant(n_clients: int) -> RdpAccountant:
    relation, sampling = NeighboringRelation.ADD_OR_REMOVE_ONE, SamplingMethod.NO_AMPLIFICATION
    return RdpAccountant(PrivacyConfig(DELTA, n_clients, relation, sampling))


def _seed_noise(config: RunConfig, client: int, round_number: int) -> None:
    np.random.seed(
        stream_seed(config.seed, client, round_number) % 2**32
    )  # Flower's mechanisms use NumPy's global generator
