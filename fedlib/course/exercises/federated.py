"""Notebooks 03 and 05: averaging, and what goes further."""

import numpy as np

from fedlib.course.exercises.feedback import Feedback, array, check, number


@check
def check_average(answer: np.ndarray, sent: list[np.ndarray], cases: list[int]) -> Feedback:
    """FedAvg of one weight array that several clients sent."""
    stacked = np.stack(sent).astype(float)  # (K, ...)
    weighted = np.tensordot(np.asarray(cases, float), stacked, axes=1)
    mistakes = {
        "that is the plain mean: every client counts by its cases.": stacked.mean(axis=0),
        "that is the weighted sum; divide by the number of all cases.": weighted,
        "that is the plain sum of what the clients sent.": stacked.sum(axis=0),
        "the counts are those of other clients: the order is reversed.": np.tensordot(cases[::-1], stacked, 1) / sum(cases),
    }
    praise = "the mean of what the clients sent, each counted by its cases."
    return array(answer, weighted / sum(cases), mistakes, praise, "the sum over the clients of n_k / n times w_k")


@check
def check_megabytes(answer: float, n_weights: int, n_clients: int, rounds: int) -> Feedback:
    """How many MB travel in a federation, both ways, at 4 bytes a weight?"""
    right = 2 * 4 * n_weights * n_clients * rounds / 1e6
    mistakes = {
        "weights go down to the clients and up again: twice that.": right / 2,
        "every client sends and receives them.": right / n_clients,
        "that is one round.": right / rounds,
        "a weight of 32 bits has 4 bytes.": right * 8,
        "that counts a weight as one byte; it has 4.": right / 4,
        "expected MB, not bytes.": right * 1e6,
    }
    return number(answer, right, mistakes, "both ways, every client, every round.", 0.02)


@check
def check_pull(answer: np.ndarray, weights: np.ndarray, sent: np.ndarray, mu: float) -> Feedback:
    """What FedProx adds to the gradient at `weights`, when the server had sent `sent`."""
    right = mu * (weights - sent)
    mistakes = {
        "that points away from the weights that were sent: a gradient is subtracted in a step.": -right,
        "μ is missing.": weights - sent,
        "that is half of it: the derivative of ½ x² is x.": right / 2,
        "that is twice as much: the loss has μ/2, not μ.": right * 2,
    }
    praise = "the further a client has gone, the harder it is pulled back."
    return array(answer, right, mistakes, praise, "the derivative of μ/2 · |w − w_sent|² by w")


@check
def check_leftover(answer: np.ndarray, sent: np.ndarray, updates: np.ndarray) -> Feedback:
    """What is left of the masks in the server's sum when the last client does not answer."""
    right = (sent[:-1] - updates[:-1]).sum(axis=0)
    mistakes = {
        "that is the server's sum; take away what the clients that are there truly wanted to say.": sent[:-1].sum(axis=0),
        "the update of the client that is gone is not in the sum.": sent[:-1].sum(axis=0) - updates.sum(axis=0),
        "with all clients there is nothing left; without the last one the masks shared with it stay.": 0 * right,
        "those are the masks of the client that is gone, as it would have added them: the others hold the opposite.": -right,
    }
    praise = "the sum is worthless until somebody tells the masks of the client that is gone."
    return array(answer, right, mistakes, praise, "what the others sent, minus what they wanted to say, summed over them")


@check
def check_clients_needed(answer: float, noise_multiplier: float, clipping_norm: float, wanted: float) -> Feedback:
    """How many clients does it take until the noise in their mean has the standard deviation `wanted`?"""
    right = noise_multiplier * clipping_norm / wanted
    mistakes = {
        "the noise is added once to the sum: it falls with the number of clients, not with its square.": right**0.5,
        "that would be so if the noise fell with the square root of the number of clients.": right**2,
        "the clipping norm is missing.": noise_multiplier / wanted,
        "the noise multiplier is missing.": clipping_norm / wanted,
    }
    return number(answer, right, mistakes, "z C / K: it takes many clients to drown the noise.", 0.02)
