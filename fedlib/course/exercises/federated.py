"""Exercises of the notebooks 03 and 05: averaging, traffic, masks and noise."""

import numpy as np

from fedlib.course.exercises.feedback import EXACT, Feedback, array, check, number


@check
def check_average(answer: np.ndarray, sent: list[np.ndarray], cases: list[int]) -> Feedback:
    """Check the FedAvg mean of one weight array, sent by several clients."""
    stacked, n = np.stack(sent).astype(float), np.asarray(cases, float)  # (K, ...), (K,)
    total = np.tensordot(n, stacked, axes=1)
    mistakes = {
        "that is the plain mean. Weight every client by its cases.": stacked.mean(axis=0),
        "that is the weighted sum. Divide it by the number of all cases.": total,
        "that is the plain sum of the clients' arrays.": stacked.sum(axis=0),
        "the weights belong to other clients: their order is reversed.": np.tensordot(n[::-1], stacked, axes=1) / n.sum(),
    }
    praise = "the mean over the clients, weighted by their cases."
    return array(answer, total / n.sum(), mistakes, praise, "the sum over the clients of n_k / n times w_k")


@check
def check_megabytes(answer: float, n_weights: int, n_clients: int, rounds: int) -> Feedback:
    """Check the traffic of a federation in MB, both ways, with 4 bytes a weight."""
    right = 2 * 4 * n_weights * n_clients * rounds / 1e6
    mistakes = {
        "weights go down to the clients and up again: twice that.": right / 2,
        "every client sends and receives them.": right / n_clients,
        "that is one round.": right / rounds,
        "a weight of 32 bits has 4 bytes.": right * 8,
        "that counts one byte for a weight, which has 4.": right / 4,
        "expected MB, not bytes.": right * 1e6,
    }
    return number(answer, right, mistakes, "both ways, every client, every round.", 0.02)


@check
def check_rounds(answer: float, central_steps: int, client_steps: int, rounds: int) -> Feedback:
    """Check how many rounds give a client, who took `client_steps` in `rounds`, the steps of the centralized run."""
    right = -(-central_steps * rounds // client_steps)
    mistakes = {
        "that is how many times as many rounds it takes.": central_steps / client_steps,
        "so many rounds leave a client some steps short: round up.": central_steps * rounds // client_steps,
        "that is how many steps are wanted; a round has several.": central_steps,
    }
    return number(answer, right, mistakes, f"a client takes {client_steps / rounds:g} steps in a round.", EXACT)


@check
def check_pull(answer: np.ndarray, weights: np.ndarray, sent: np.ndarray, mu: float) -> Feedback:
    """Check the term that FedProx adds to the gradient at `weights`, when the server sent `sent`."""
    right = mu * (weights - sent)
    mistakes = {
        "that points away from the server's weights: an optimizer steps against the gradient.": -right,
        "μ is missing.": weights - sent,
        "that is half of it: the derivative of ½ x² is x.": right / 2,
        "that is twice as much: the loss has μ/2, not μ.": right * 2,
    }
    praise = "the further a client has moved, the harder it is pulled back."
    return array(answer, right, mistakes, praise, "the derivative of μ/2 · |w − w_sent|² by w")


@check
def check_leftover(answer: np.ndarray, sent: np.ndarray, updates: np.ndarray) -> Feedback:
    """Check the masks that remain in the server's sum when the last client drops out."""
    right, total = (sent[:-1] - updates[:-1]).sum(axis=0), sent[:-1].sum(axis=0)
    mistakes = {
        "that is the server's sum. Subtract the updates of the clients that remain.": total,
        "the update of the client that dropped out is not in the sum.": total - updates.sum(axis=0),
        "with all clients nothing remains. Without the last one, the masks shared with it do.": 0 * right,
        "those are the masks that the lost client would have added. The others hold the opposite sign.": -right,
    }
    praise = "the sum is useless until somebody reveals the lost client's masks."
    return array(answer, right, mistakes, praise, "what the others sent minus their updates, summed over them")


@check
def check_clients_needed(answer: float, noise_multiplier: float, clipping_norm: float, wanted: float) -> Feedback:
    """Check how many clients bring the noise in their mean down to the standard deviation `wanted`."""
    right = noise_multiplier * clipping_norm / wanted
    mistakes = {
        "the noise is added once to the sum: it falls with the number of clients, not with its square.": right**0.5,
        "that would be so if the noise fell with the square root of the number of clients.": right**2,
        "the clipping norm is missing.": noise_multiplier / wanted,
        "the noise multiplier is missing.": clipping_norm / wanted,
    }
    return number(answer, right, mistakes, "z C / K: it takes many clients to drown the noise.", 0.02)
