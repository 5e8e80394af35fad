"""A trained run, ready to be asked about one image after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mednorm.errors import ConfigError, RunError
from mednorm.guards import evaluation_mode
from mednorm.tasks import find_task
from mednorm.tasks.networks import Shape
from mednorm.tasks.scaling import StandardizeByTraining
from mednorm.training.disk import load_settings, read_weights
from mednorm.training.grids import Grid
from mednorm.training.inference import logits_of

_FAR = 5.0  # standard deviations of the training pixels; the mean of an image like those lies within two


class TrainedRun:
    """A run's settings, weights and network, which is built when the first image shows its size.

    Attributes:
        settings: what was trained.
        task: with which images, network and metrics.
        classes: names of the classes, in the order of their numbers.
        grid: what images are brought to before the network sees them.
        axes: spatial axes of the images that the network takes; None where its weights do not tell.

    Args:
        folder: the run's folder.
        device: "auto", "cpu" or "cuda".
        site: of the images, for a run with normalization by site; None where it is unknown.

    Raises:
        RunError: not a run, or one without usable weights.
        ConfigError: a device that is not there, or a site for a run that does not tell sites apart.
    """

    def __init__(self, folder: Path, device: str = "auto", site: str | None = None) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device: expected one that this machine has, got 'cuda'. Choose auto or cpu.")
        self.device = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
        self.folder, self.settings = folder, load_settings(folder)
        self.task = find_task(self.settings.task)
        self.site = site
        if site is not None and self.settings.norm != "domain":
            raise ConfigError(
                f"site: expected a run with norm 'domain', which tells sites apart, got {site!r} for one with "
                f"{self.settings.norm!r}. Leave it out."
            )
        if not self.settings.classes:
            raise RunError(f"{folder / 'config.toml'}: expected the names of the classes, got none. Train it again.")
        self.classes = tuple(self.settings.classes)
        self._weights, _ = read_weights(folder / "best.ckpt")
        kernels = [value for key, value in self._weights.items() if key.startswith("net.") and value.dim() > 2]
        first = max(kernels, key=lambda kernel: kernel.dim(), default=None)  # the first of those with most axes
        size = self.settings.patch_size or self.settings.image_size
        self.axes = len(size) if size else None if first is None else first.dim() - 2
        self._channels = None if first is None else first.shape[1]
        self.grid = Grid(self.settings.image_size, self.settings.orientation, self.settings.spacing)
        self._built: tuple[Shape, nn.Module] | None = None

    def check_axes(self, where: str, shape: tuple[int, ...] | None) -> None:
        """Pass if images of that spatial size have as many axes as the network takes, or either is unknown.

        Raises:
            RunError: they have not.
        """
        axes = None if shape is None else len(flat(shape))
        if None not in (axes, self.axes) and axes != self.axes:
            do = "Give one slice" if axes == 3 else "Give the volume, or the folder of its DICOM series"
            raise RunError(
                f"{where}: expected {self.axes}-D images, which the network of {self.folder} was trained on, got a "
                f"{axes}-D image of size {shape}. {do}."
            )

    def network_for(self, image: Tensor, where: str) -> nn.Module:
        """Build the network for an image ``(C, *spatial)`` on the grid of the training; the last one is kept.

        Raises:
            RunError: it takes other channels or another size.
        """
        channels, *size = image.shape
        sites = tuple(self.settings.sites or ())
        shape = Shape(channels, tuple(self.settings.patch_size or size), len(self.classes), sites)
        if self._built is not None and self._built[0] == shape:
            return self._built[1]
        settings, wanted = self.settings, self._channels
        try:
            with torch.random.fork_rng(devices=[]):  # initial weights are drawn, and replaced
                network = self.task.network_for(
                    shape,
                    settings.network,
                    settings.norm,
                    settings.dropout_rate,
                    settings.placement,
                    settings.scaling,
                )
            network.load_state_dict(self._weights)
        except ConfigError as error:
            raise RunError(f"{where}: {error}") from None
        except RuntimeError as error:
            if wanted not in (None, channels):
                raise RunError(
                    f"{where}: expected {wanted} channel{'s' * (wanted != 1)}, which the network of {self.folder} was "
                    f"trained on, got {channels}. Give one file a channel with ; between, or save it with as many."
                ) from None
            reason = " ".join(str(error).split())[:200]
            raise RunError(f"{where}: expected an image that the run's network fits, got {shape}: {reason}.") from None
        self._built = shape, network.to(self.device)
        return network

    def __call__(self, image: Tensor, where: str) -> Tensor:
        """Return the probabilities of the classes ``(K, *spatial)``, or ``(K,)``, on the CPU.

        Raises:
            RunError: the network does not take the image, or gives NaN or inf.
        """
        network = self.network_for(image, where)
        try:
            with evaluation_mode(network):
                images = image[None].to(self.device)
                patch, windows = self.settings.patch_size, self.settings.batch_size
                logits = logits_of(network, images, patch, windows, [self.site])[0].cpu()
        except torch.OutOfMemoryError:
            raise RunError(
                f"{where}: expected room in the memory of the GPU, got too little for {tuple(image.shape)}. "
                "Choose device cpu."
            ) from None
        if bad := int((~torch.isfinite(logits)).sum()):
            raise RunError(
                f"{where}: expected finite outputs, got NaN or inf in {bad} of {logits.numel()} numbers that the "
                f"network of {self.folder} gives. Did the run diverge?"
            )
        return logits.double().softmax(0) if logits.dim() == 1 else logits.softmax(0)

    def sites_told(self) -> tuple[str, ...]:
        """Say so where a run that tells sites apart does not know the one of the images."""
        known = self.settings.sites or []
        if self.settings.norm != "domain" or self.site in known:
            return ()
        what = "which site it is from is not said" if self.site is None else f"no image of {self.site!r} was trained on"
        return (f"{what}, so the statistics of all sites together serve; known are {', '.join(known)}",)

    def doubts(self, image: Tensor, where: str) -> tuple[str, ...]:
        """Say so where an image ``(C, *spatial)`` is far from the intensities of the training, which scale it.

        An 8-bit X-ray and the same in 12 bits look alike to a person; to a network scaled by 8-bit ones the second is
        white all over, and it names a class with great confidence.
        """
        scaling = self.network_for(image, where).get_submodule("scaling")
        if not isinstance(scaling, StandardizeByTraining):
            return ()
        with torch.no_grad():
            off = scaling(image[None].to(self.device))[0].flatten(1).mean(1).abs().max().item()
        if off < _FAR:
            return ()
        return (f"intensities {off:.0f} standard deviations from those of the training; is it stored in other units?",)


def flat(size: Sequence[int]) -> tuple[int, ...]:
    """Take the size of a volume of one slice for that of a slice.

    Example:
        >>> flat((256, 200, 1)), flat((256, 200, 40))
        ((256, 200), (256, 200, 40))
    """
    return tuple(size[:2] if len(size) == 3 and size[2] == 1 else size)
