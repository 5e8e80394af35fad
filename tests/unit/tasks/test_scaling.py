import numpy as np
import torch
from torch import nn

from mednorm.tasks.scaling import StandardizeByTraining, StandardizeEach, fit_input_scaling


def test_each_channel_of_each_image_is_standardized_by_itself():
    images = torch.randn(4, 2, 9, 7) * torch.tensor([0.1, 5.0, 90.0, 700.0]).view(4, 1, 1, 1) + 300
    scaled = StandardizeEach()(images).numpy().astype(np.float64)
    np.testing.assert_allclose(scaled.mean((2, 3)), 0, atol=2e-3)  # float32 around 300
    np.testing.assert_allclose(scaled.std((2, 3)), 1, rtol=1e-4)
    torch.testing.assert_close(StandardizeEach()(images[2:3])[0], StandardizeEach()(images)[2])


def test_a_constant_image_becomes_zero_and_not_nan():
    assert torch.equal(StandardizeEach()(torch.full((1, 1, 8, 8), 40.0)), torch.zeros(1, 1, 8, 8))


def test_standardizing_by_training_images_uses_their_mean_and_std_for_all_others():
    train, other = torch.rand(50, 3, 6, 6) * 255, torch.rand(2, 3, 6, 6) * 255
    network = nn.Sequential(StandardizeByTraining(3), nn.Conv2d(3, 4, 3))
    fit_input_scaling(network, train)
    values = train.double().numpy()
    expected = (other.numpy() - values.mean((0, 2, 3))[:, None, None]) / values.std((0, 2, 3))[:, None, None]
    np.testing.assert_allclose(network[0](other).numpy(), expected, rtol=1e-4, atol=1e-5)
    network.eval()
    np.testing.assert_allclose(network[0](other).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_the_scaling_by_training_images_travels_with_the_weights():
    fitted, fresh = StandardizeByTraining(1), StandardizeByTraining(1)
    fitted.fit(torch.rand(9, 1, 4, 4) * 60 + 20)
    fresh.load_state_dict(fitted.state_dict())
    images = torch.rand(2, 1, 4, 4)
    assert torch.equal(fresh(images), fitted(images))
    assert not torch.equal(fresh(images), StandardizeByTraining(1)(images))
