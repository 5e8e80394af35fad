"""Patches of volumes, drawn anew each epoch from (seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from mednorm.data import Arrays
from mednorm.training.batches import EpochBatches, Loader

Key = tuple[int, int]  # a volume, and the seed of a patch in it


class PatchKeys(Sampler[list[Key]]):
    """Choose the volumes of each batch as `EpochBatches` does, and a seed for each patch."""

    def __init__(self, volumes: int, batch_size: int, seed: int, steps: int) -> None:
        self.batches = EpochBatches(volumes, batch_size, seed, steps)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose patches come next; Lightning calls this."""
        self.batches.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Key]]:
        first = (self.batches.seed * 1_000_003 + self.batches.epoch) * 1_000_003
        drawn = 0
        for batch in self.batches:
            yield [(volume, (first + drawn + place) % 2**32) for place, volume in enumerate(batch)]
            drawn += len(batch)


class Patches(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Batches of patches, half of them centred in a structure, half in background (MONAI's RandCropByPosNegLabel).

    Volumes are scaled whole, before they are cut, so that a patch looks in training as it does in a sliding window.
    One that is smaller than the patch is padded with its mean, which is 0 after scaling.
    """

    def __init__(self, arrays: Arrays, scaling: nn.Module, patch_size: Sequence[int]) -> None:
        from monai.transforms.croppad.dictionary import RandCropByPosNegLabeld, SpatialPadd
        from monai.transforms.utility.dictionary import FgBgToIndicesd

        keys = ("image", "target")
        pad, indices = SpatialPadd(keys, tuple(patch_size)), FgBgToIndicesd("target")
        self.crop = RandCropByPosNegLabeld(
            keys, "target", tuple(patch_size), fg_indices_key="target_fg_indices", bg_indices_key="target_bg_indices"
        )
        self.volumes: list[Any] = []
        with torch.no_grad():
            for image, target in zip(arrays.images, arrays.targets, strict=True):
                volume: Any = {"image": scaling(image[None].cpu())[0], "target": target[None]}
                self.volumes.append(indices(pad(volume)))

    def __getitem__(self, keys: list[Key]) -> tuple[Tensor, Tensor, Tensor]:
        patches: list[Any] = []
        for volume, seed in keys:
            self.crop.set_random_state(seed=seed)
            patches += self.crop(self.volumes[volume])
        images, targets = (torch.stack([patch[key].as_tensor() for patch in patches]) for key in ("image", "target"))
        return images, targets[:, 0], torch.tensor([volume for volume, _ in keys])


def patch_loader(
    arrays: Arrays, scaling: nn.Module, patch_size: Sequence[int], batch_size: int, seed: int, steps: int
) -> Loader:
    """Return batches of scaled patches (N, C, *patch), their masks (N, *patch), and which volume each is of."""
    keys = PatchKeys(len(arrays.names), batch_size, seed, steps)
    return DataLoader(Patches(arrays, scaling, patch_size), sampler=keys, batch_size=None)
