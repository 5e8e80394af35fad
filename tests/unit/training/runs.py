"""Finished runs whose network is known by hand, for the tests of prediction: no training, and an answer to compare."""

import nibabel
import numpy as np
import tomli_w
import torch
from torch import nn

from mednorm.tasks import find_task
from mednorm.tasks.networks import Shape
from mednorm.training.settings import RunSettings

HERE = "tests.unit.training.runs"
REACH = 3
OWN = ("bright", "ahead", "classifier")


def bright(spatial_dims, in_channels, out_channels, norm):
    """Class k where the first channel less the others, standardized, is above k - 0.5, and no more than k + 0.5."""
    return _net(spatial_dims, in_channels, out_channels, norm, 1, 0)


def ahead(spatial_dims, in_channels, out_channels, norm):
    """The same, of the voxel that is `REACH` further along the first axis; beyond the border there is background."""
    return _net(spatial_dims, in_channels, out_channels, norm, 2 * REACH + 1, REACH)


def classifier(spatial_dims, in_channels, out_channels, norm):
    """Logits k times the mean of the left half less that of the right, as `bright` weighs the channels."""
    return nn.Sequential(bright(spatial_dims, in_channels, out_channels, norm), Halves())


class Halves(nn.Module):
    def forward(self, images):
        middle = images.shape[3] // 2
        left, right = images[:, :, :, :middle], images[:, :, :, middle:]
        return left.flatten(2).mean(2) - right.flatten(2).mean(2)


def _net(dims, channels, classes, norm, size, reach):
    from monai.networks.layers.factories import Conv
    from monai.networks.layers.utils import get_norm_layer

    conv = Conv[Conv.CONV, dims](channels, classes, size, padding=size // 2)
    weight, bias = torch.zeros_like(conv.weight), torch.zeros(classes)
    at = [size // 2 + reach] + [size // 2] * (dims - 1)
    for k in range(classes):
        for channel in range(channels):
            weight[(k, channel, *at)] = 8.0 * k * (1 if channel == 0 else -1)
        bias[k] = -8.0 * sum(j - 0.5 for j in range(1, k + 1))
    conv.load_state_dict({"weight": weight, "bias": bias})
    return nn.Sequential(get_norm_layer(norm, spatial_dims=dims, channels=channels), conv)


def write_run(folder, *, network="bright", axes=2, channels=1, classes=("background", "1"), **changed):
    """Write a finished run as training leaves it: settings, which for slices always have a size, and weights."""
    values = {
        "task": "tissue",
        "network": f"{HERE}:{network}" if network in OWN else network,
        "classes": list(classes),
        "norm": "batch",
        "regularizer": "none",
        "batch_size": 2,
        "epochs": 1,
        "seed": 0,
        "device": "cpu",
        "image_size": [16, 16] if axes == 2 else None,
    }
    settings = RunSettings.model_validate(values | changed)
    size = tuple(settings.patch_size or settings.image_size or [16] * axes)
    shape = Shape(channels, size, len(classes), tuple(settings.sites or ()))
    built = find_task(settings.task).network_for(
        shape, settings.network, settings.norm, settings.dropout_rate, settings.placement
    )
    weights = {f"network.{name}": value for name, value in built.state_dict().items()}
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(tomli_w.dumps(settings.model_dump(exclude_none=True)))
    torch.save({"state_dict": weights, "epoch": 0}, folder / "best.ckpt")
    return folder


def volume_run(folder, *, network="ahead", **changed):
    """Write a run on volumes, which are seen in windows."""
    return write_run(folder, network=network, axes=3, **{"task": "brain3d", "patch_size": [16, 16, 16]} | changed)


def ball(size=(20, 18, 16), centre=None, radius=5.0):
    """A bright ball, off the middle, on 0; no flip or swap of axes leaves it where it is."""
    centre = np.array(centre or [side * 0.4 for side in size]).reshape(-1, *[1] * len(size))
    return (np.linalg.norm(np.indices(size) - centre, axis=0) < radius).astype(np.float32) * 100


def nifti(path, values, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return str(path)


def seen_ahead(values):
    """The mask that `ahead` must give: what stands `REACH` further along the first axis is bright."""
    mask = np.zeros(values.shape, np.uint8)
    mask[:-REACH] = values[REACH:] > 50
    return mask
