from collections import OrderedDict

import pytest
import torch
from torch import nn

from mednorm.tasks.scaling import StandardizeEach
from mednorm.training.inference import logits_of


def voxelwise(classes=3):
    """A network whose every voxel is judged by itself, so that no window can matter."""
    return nn.Sequential(OrderedDict(scaling=StandardizeEach(), net=nn.Conv3d(2, classes, 1))).eval()


@pytest.mark.parametrize("size", [(12, 10, 9), (8, 8, 8), (5, 12, 6), (4, 4, 4)], ids=str)
@pytest.mark.parametrize("window_batch", [1, 3])
def test_windows_of_a_voxelwise_network_say_what_the_whole_volume_says(size, window_batch):
    """Only if the volume is scaled whole, before it is cut; smaller volumes than the window are padded and cut back."""
    network, volume = voxelwise(), 300 + 70 * torch.rand(1, 2, *size)
    with torch.no_grad():
        whole, windows = network(volume), logits_of(network, volume, [6, 6, 6], window_batch)
    assert windows.shape == whole.shape
    torch.testing.assert_close(windows, whole, rtol=1e-4, atol=1e-4)


def test_without_a_patch_size_the_network_sees_the_whole_image():
    network, images = nn.Sequential(nn.Flatten(), nn.Linear(8, 2)), torch.rand(3, 2, 2, 2)
    assert torch.equal(logits_of(network, images, None), network(images))


class WindowsSeen(nn.Module):
    """Keeps the sizes of the batches it is given."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, windows):
        self.sizes.append(tuple(windows.shape))
        return windows


def test_windows_come_in_batches_of_the_size_asked_for_and_overlap_by_a_quarter():
    network = nn.Sequential(OrderedDict(scaling=nn.Identity(), net=WindowsSeen()))
    logits_of(network, torch.rand(1, 1, 10, 4, 4), [4, 4, 4], 2)  # windows begin at 0, 3 and 6
    assert network.net.sizes == [(2, 1, 4, 4, 4), (1, 1, 4, 4, 4)]
