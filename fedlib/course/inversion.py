"""What an update gives away: recover an image that a client trained on from the gradient it sends.

The networks and attacks are small, *chosen* for teaching. Images are (B, 1, SIZE, SIZE) in [0, 1]. A gradient is one vector
of all weights, in the order of `network.parameters()`. Who knows the weights before and after one step of SGD knows it.
"""

import textwrap

import pandas as pd
import torch
from torch import nn
from torch.nn.functional import cosine_similarity, cross_entropy
from torchmetrics.functional import pearson_corrcoef

from fedlib.views.plots.figure import AccessibleFigure, accessible_figure, grid, styled

SIZE, NEURONS, CHANNELS, CLASSES = 32, 64, 12, 4
CONDITIONS = {
    "one client, one image": (1, 1, 0.0),
    "mean of 2 clients": (2, 1, 0.0),
    "mean of 8 clients": (8, 1, 0.0),
    "one client, batch of 8": (1, 8, 0.0),
    "8 clients, batches of 8": (8, 8, 0.0),
    "noise 0.01": (1, 1, 0.01),
    "noise 1": (1, 1, 1.0),
}
"""Clients, images of each, and noise multiplier. The attacks look for the first image."""
USED = 64
"""Images that take part; the others make up the average image."""


def networks(seed: int) -> tuple[nn.Module, nn.Module]:
    """Return a network whose first layer sees all pixels, and a smooth one of convolutions; weights drawn from the seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        dense = nn.Sequential(nn.Flatten(), nn.Linear(SIZE**2, NEURONS), nn.ReLU(), nn.Linear(NEURONS, CLASSES))
        shapes = [(1, 2), (CHANNELS, 2), (CHANNELS, 1)]  # channels in, stride
        layers = [layer for n, stride in shapes for layer in (nn.Conv2d(n, CHANNELS, 5, stride, padding=2), nn.ELU())]
        return dense, nn.Sequential(*layers, nn.Flatten(), nn.Linear(CHANNELS * (SIZE // 4) ** 2, CLASSES))


def gradient(network: nn.Module, images: torch.Tensor, labels: torch.Tensor, again: bool = False) -> torch.Tensor:
    """Return the gradient of a batch's mean loss; `again`: it can itself be differentiated."""
    loss = cross_entropy(network(images), labels)
    return torch.cat([each.flatten() for each in torch.autograd.grad(loss, [*network.parameters()], create_graph=again)])


def shared(
    network: nn.Module, images: torch.Tensor, labels: torch.Tensor, n_clients: int, batch: int, noise: float
) -> torch.Tensor:
    """Return the mean of the clients' gradients; with noise, shortened to norm 1 at most, and that noise on every weight."""
    rows = torch.arange(n_clients * batch).reshape(n_clients, batch)
    mean = torch.stack([gradient(network, images[own], labels[own]) for own in rows]).mean(0)
    if noise:
        mean = mean / mean.norm().clamp(min=1) + noise * torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    return mean


def from_first_layer(target: torch.Tensor) -> torch.Tensor:
    """Return an image for each neuron of the dense network's first layer that has a gradient, (n, 1, SIZE, SIZE).

    A neuron's weights have the gradient error x image, its bias has error. Their quotient is the image, or a weighted sum
    of several images, with weights that add up to 1 (Phong et al., 2018).
    """
    weights, bias = target[: NEURONS * SIZE**2].reshape(NEURONS, 1, SIZE, SIZE), target[NEURONS * SIZE**2 :][:NEURONS]
    return (weights / bias[:, None, None, None])[bias != 0]


def by_optimisation(network: nn.Module, target: torch.Tensor, labels: torch.Tensor, steps: int) -> torch.Tensor:
    """Search images whose gradient points along `target`: cosine loss and total variation, Adam (Geiping et al., 2020).

    The labels are taken as known. Returns (B, 1, SIZE, SIZE).
    """
    grain = torch.randn((len(labels), 1, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
    images = (0.5 + 0.01 * grain).requires_grad_()
    optimizer = torch.optim.Adam([images], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        variation = images.diff(dim=2).abs().mean() + images.diff(dim=3).abs().mean()
        loss = 1 - cosine_similarity(gradient(network, images, labels, again=True), target, dim=0) + 0.01 * variation
        [images.grad] = torch.autograd.grad(loss, [images])
        optimizer.step()
        schedule.step()
        images.data.clamp_(0, 1)
    return images.detach()


def similarity(image: torch.Tensor, images: torch.Tensor) -> float:
    """Return the correlation with the first image, both less the average image. 1: the same; near 0: any other patient."""
    average = images[USED:].mean(0)
    return float(pearson_corrcoef((image - average).flatten(), (images[0] - average).flatten()))


def attacks(images: torch.Tensor, labels: torch.Tensor, seed: int, steps: int) -> pd.DataFrame:
    """Look for the first image: return what is found by condition (row) and attack (column), (1, SIZE, SIZE) each.

    The first layer tells an image for each neuron. The true image chooses the best; an attacker would look through them.
    """
    found, (dense, smooth) = {}, networks(seed)
    for condition, how in CONDITIONS.items():
        neurons = from_first_layer(shared(dense, images, labels, *how))
        target, n_images = shared(smooth, images, labels, *how), how[0] * how[1]
        found[condition] = {
            "first layer": max(neurons, key=lambda image: similarity(image, images)),
            "search": by_optimisation(smooth, target, labels[:n_images], steps)[0],
        }
    return pd.DataFrame.from_dict(found, "index")


@styled
def attacks_figure(found: pd.DataFrame, images: torch.Tensor) -> AccessibleFigure:
    """Draw the true image and what each attack found, a line per attack, with the similarity below each."""
    table = found.map(lambda image: similarity(image, images)).rename_axis("condition")
    titles = ["true image", *table.index]
    figure, axes = grid(found.shape[1], len(titles), 1.35)
    for line, attack in zip(axes, found, strict=True):
        line[0].set_ylabel(attack, fontsize=9)
        below = ["", *(f"{value:.2f}" for value in table[attack])]
        for axis, image, similar in zip(line, [images[0], *found[attack]], below, strict=True):
            axis.imshow(image[0].numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set_xlabel(similar, fontsize=9)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(textwrap.fill(title, 14), fontsize=9)
    words = "; ".join(f"{condition}: {', '.join(f'{value:.2f}' for value in row)}" for condition, *row in table.itertuples())
    return accessible_figure(figure, f"Images recovered. Similarity by {', '.join(table)}. {words}.", table.reset_index())
