"""Differential privacy of what a client sends, by Flower's mechanisms, and its cost: epsilon.

The unit is a client: the weights hardly show whether a whole hospital took part. `central`: the server clips every update
to the clipping norm and adds Gaussian noise to their mean (McMahan et al., 2018); clients trust the server. `local`: every
client does so to its update before it leaves; clients trust nobody, and it takes far more noise.

Epsilon covers the weights. Under `local` nothing else leaves a client but the seconds of its round; how many cases it has
is known to the server, since the mean is weighted by them. Under `central` the tables of a run hold the clients' exact
losses and scores: epsilon protects the model, not the tables.

The noise comes from the run's seed, so that a run can be repeated. Whoever knows the seed can remove the noise: a real
federation must not seed it.
"""

import numpy as np
from flwr.clientapp.mod import LocalDpMod
from flwr.serverapp import GaussianPrivacyEvent, NeighboringRelation, PrivacyConfig, RdpAccountant, SamplingMethod
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg

from fedlib.config import DELTA, RunConfig
from fedlib.training.loop import derive_seed


def central_privacy(config: RunConfig, strategy: FedAvg) -> DifferentialPrivacyServerSideFixedClipping:
    """Wrap a strategy in Flower's central differential privacy. All clients must count alike in its mean."""
    sampled = config.clients_per_round(config.n_clients)
    return DifferentialPrivacyServerSideFixedClipping(strategy, config.noise_multiplier, config.clipping_norm, sampled)


def local_privacy(config: RunConfig) -> LocalDpMod:
    """Return Flower's mod that clips a client's update and adds noise.

    Two updates of the clipping norm C are at most 2 C apart: the sensitivity. Flower asks for an epsilon of one release and
    makes sigma = 2 C sqrt(2 ln(1.25 / delta)) / epsilon of it; the one given here yields sigma = 2 C noise_multiplier.
    """
    epsilon = float(np.sqrt(2 * np.log(1.25 / DELTA))) / config.noise_multiplier
    return LocalDpMod(config.clipping_norm, 2 * config.clipping_norm, epsilon, DELTA)


def epsilon_after(config: RunConfig, rounds: int) -> float:
    """Return epsilon (at DELTA) of that many rounds, by Renyi accounting (Mironov, 2017), without gain from sampling.

    A client that sat out some rounds has spent less.
    """
    relation, sampling = NeighboringRelation.ADD_OR_REMOVE_ONE, SamplingMethod.NO_AMPLIFICATION
    accountant = RdpAccountant(PrivacyConfig(DELTA, config.n_clients, relation, sampling))
    event = GaussianPrivacyEvent(config.noise_multiplier, config.clients_per_round(config.n_clients), config.n_clients)
    accountant.compose(event, rounds)
    return accountant.get_epsilon(DELTA)


def seed_noise(config: RunConfig, client: int, round_number: int) -> None:
    """Seed NumPy's global generator, which Flower's mechanisms use and training does not.

    The server counts as client `n_clients`.
    """
    np.random.seed(derive_seed(config.seed, client, round_number) % 2**32)
