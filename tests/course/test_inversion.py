"""What a gradient gives away: an exact statement about one image, a weighted sum of several, and a step against it."""

import numpy as np
import pytest
import torch

from fedlib.course import inversion
from fedlib.course.exercises import check_recovered


@pytest.fixture(scope="module")
def images():
    return torch.rand((80, 1, inversion.SIZE, inversion.SIZE), generator=torch.Generator().manual_seed(1))


LABELS = torch.arange(80) % inversion.CLASSES


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_first_layer_s_gradient_of_one_image_is_that_image_in_every_neuron(images, seed):
    dense, _ = inversion.networks(seed)
    found = inversion.from_first_layer(inversion.gradient(dense, images[:1], LABELS[:1]))
    assert len(found) > 1
    assert torch.allclose(found, images[:1].expand_as(found), rtol=1e-3, atol=1e-4)


def test_of_eight_images_each_neuron_tells_a_sum_whose_weights_add_up_to_one(images):
    dense, _ = inversion.networks(1)
    found = inversion.from_first_layer(inversion.gradient(dense.double(), images[:8].double(), LABELS[:8]))
    columns = images[:8].double().reshape(8, -1).T
    weights = torch.linalg.lstsq(columns, found.reshape(len(found), -1).T).solution
    assert torch.allclose(columns @ weights, found.reshape(len(found), -1).T)
    assert torch.allclose(weights.sum(0), torch.ones(len(found), dtype=torch.double))
    strongest = torch.zeros(8, dtype=torch.double).scatter(0, weights.abs().amax(1).argmax()[None], 1)
    assert not torch.allclose(weights, strongest[:, None].expand_as(weights), atol=0.1)


def test_the_mean_of_eight_clients_is_the_gradient_of_a_batch_of_eight(images):
    for network in inversion.networks(1):
        mean, batch = (inversion.shared(network, images, LABELS, *how, 0.0) for how in ((8, 1), (1, 8)))
        assert torch.allclose(mean, batch, rtol=1e-4, atol=1e-6)


def test_noise_comes_after_clipping_to_norm_one(images):
    dense, _ = inversion.networks(1)
    plain, noisy, weak = (inversion.shared(dense, images, LABELS, 1, 1, noise) for noise in (0.0, 1.0, 1e-9))
    assert plain.norm() > 1
    assert weak.norm() == pytest.approx(1, rel=1e-3)
    assert (noisy - plain / plain.norm()).std() == pytest.approx(1, rel=0.02)


def step(images, rate):
    """Weight and bias of the dense network's first layer before and after one step of SGD."""
    dense, _ = inversion.networks(1)
    sent = {name: weights.detach().numpy().copy() for name, weights in dense[1].named_parameters()}
    torch.nn.functional.cross_entropy(dense(images), LABELS[: len(images)]).backward()
    torch.optim.SGD(dense.parameters(), rate).step()
    return sent, {name: weights.detach().numpy() for name, weights in dense[1].named_parameters()}


def test_what_a_step_changed_gives_the_image_away_whatever_the_learning_rate(images):
    for rate in (0.01, 0.5):
        sent, returned = step(images[:1], rate)
        feedback = check_recovered(images[0].flatten(), sent, returned)
        assert feedback.right, feedback
    sent, returned = step(images[:8], 0.1)
    assert not check_recovered(images[0].flatten(), sent, returned).right


def test_the_same_seed_gives_the_same_networks_and_leaves_torch_s_generator_alone():
    state = torch.random.get_rng_state()
    for one, again in zip(inversion.networks(4), inversion.networks(4), strict=True):
        for weights, same in zip(one.parameters(), again.parameters(), strict=True):
            assert torch.equal(weights, same)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_search_lowers_the_angle_between_the_gradients(images):
    _, smooth = inversion.networks(1)
    target = inversion.gradient(smooth, images[:1], LABELS[:1])
    few, many = (inversion.by_optimisation(smooth, target, LABELS[:1], steps) for steps in (1, 30))
    angles = [torch.cosine_similarity(inversion.gradient(smooth, each, LABELS[:1]), target, dim=0) for each in (few, many)]
    assert angles[1] > angles[0]
    assert many.shape == (1, 1, inversion.SIZE, inversion.SIZE)
    assert 0 <= many.min() <= many.max() <= 1


def test_similarity_is_one_for_the_image_itself_and_not_for_the_average(images):
    assert inversion.similarity(images[0], images) == pytest.approx(1)
    assert abs(inversion.similarity(images[1], images)) < 0.2


def test_every_condition_has_its_picture_and_number(images):
    found = inversion.attacks(images, LABELS, 1, steps=2)
    figure = inversion.attacks_figure(found, images)
    table = figure.table.set_index("condition")
    assert [*table.index] == [*inversion.CONDITIONS]
    assert table.loc["one client, one image", "first layer"] == pytest.approx(1, abs=1e-3)
    assert np.allclose(table.loc["mean of 8 clients"], table.loc["one client, batch of 8"], atol=0.01)
    assert len(figure.figure.axes) == 2 * (1 + len(table))
    assert all(condition in figure.alt for condition in table.index)
    assert figure.table.shape == (len(table), 3)
