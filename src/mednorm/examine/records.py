"""What a pass over data shows of a network's normalization: plain values that the rules judge.

Every statistic is a `Moments` in float64 on the CPU, also those *of* statistics: `Seen.of_means` are the moments of the
images' means, an image's mean being one value. So everything merges, and nothing grows with the data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mednorm.moments import Moments


@dataclass(frozen=True)
class Patients:
    """Whose images some are; one of no patient that is named counts as a patient of its own.

    Attributes:
        count: how many patients there are.
        images: of all of them.
        squares: sum over the patients of the squared number of their images.

    Example:
        >>> Patients.of([8, 8]).effective, Patients.of([15, 1]).merge(Patients.of([8, 8])).count
        (2.0, 4)

    """

    count: int
    images: int
    squares: int

    @staticmethod
    def of(sizes: Iterable[int]) -> Patients:
        """Count patients with so many images each."""
        sizes = tuple(sizes)
        return Patients(len(sizes), sum(sizes), sum(size * size for size in sizes))

    @staticmethod
    def alone(images: int) -> Patients:
        """Count so many images as a patient each."""
        return Patients(images, images, images)

    @property
    def effective(self) -> float:
        r"""As many patients, with as many images each, would know their mean as well: :math:`n^2/\sum n_k^2` (Kish)."""
        return self.images**2 / self.squares

    def merge(self, other: Patients) -> Patients:
        """Count them with others, of whom none is among them."""
        return Patients(self.count + other.count, self.images + other.images, self.squares + other.squares)


@dataclass(frozen=True)
class Seen:
    """What reached a layer, over some images.

    An image that is not finite in some channel of the layer is left out.

    Attributes:
        moments: of all values, ``(C,)``.
        of_means: of each image's mean, ``(C,)``; its count is the number of images.
        of_variances: of each image's biased variance, ``(C,)``.
        patients: whose the images are; None where no patient is named.

    """

    moments: Moments
    of_means: Moments
    of_variances: Moments
    patients: Patients | None = None

    @property
    def images(self) -> int:
        """How many images there were."""
        return int(self.of_means.count.max())

    @property
    def draws(self) -> float:
        """How many independent draws the images are: patients where they are known, otherwise images."""
        return self.images if self.patients is None else min(self.images, self.patients.effective)

    def merge(self, other: Seen) -> Seen:
        """Pool with what other images of other patients showed."""
        known = self.patients is not None or other.patients is not None
        return Seen(
            self.moments.merge(other.moments),
            self.of_means.merge(other.of_means),
            self.of_variances.merge(other.of_variances),
            self._whose().merge(other._whose()) if known else None,
        )

    def _whose(self) -> Patients:
        return self.patients or Patients.alone(self.images)

    def by_patient(self) -> Seen:
        r"""Return the same as if each of the `draws`, two at least, were an image; itself where no patient is named.

        Slices of one patient are taken to repeat one another, which errs on the wide side where they differ. Then n
        images of K patients, as `Patients.effective` counts them, hold :math:`1-1/K` of the variance between patients:
        that is :math:`K/(K-1)` times the mean square :math:`M_2/n`. With an image a patient it is the unbiased variance
        between images.
        """
        if self.patients is None:
            return self
        # `Moments` counts whole values: the spread is what is scaled, so that dividing by n − 1 gives this.
        scale = self.draws * (self.images - 1) / (self.images * (self.draws - 1))
        means, variances = (replace(each, m2=each.m2 * scale) for each in (self.of_means, self.of_variances))
        return replace(self, of_means=means, of_variances=variances)

    def effective_samples(self, batch_size: float) -> Tensor:
        r"""Return as how many independent values a batch's values count for its mean, ``(C,)``.

        Values of one image are correlated: the mean of n images varies by :math:`s^2_b/n`, with :math:`s^2_b` the
        variance between the images' means, and as the mean of :math:`n\sigma^2/s^2_b` independent values would.
        NaN below two images.
        """
        between = self.of_means.unbiased_variance
        return batch_size * self.moments.variance / between.clamp(min=torch.finfo(between.dtype).tiny)

    def noise_of_mean(self, batch_size: float) -> Tensor:
        """Return the standard deviation of a batch's mean, in standard deviations of the values, ``(C,)``."""
        return self.effective_samples(batch_size).rsqrt()

    def noise_of_variance(self, batch_size: float) -> Tensor:
        r"""Return the standard deviation of a batch's variance, as a share of the variance, ``(C,)``.

        :math:`\operatorname{Var}(v)/n + 2 s_b^4/(n-1)`, with v the images' own variances: the first for what differs
        within images, the second for their means, as if these were Gaussian; of one image, the first alone.
        """
        within = self.of_variances.unbiased_variance / batch_size
        between = 2 * self.of_means.unbiased_variance.square() / (batch_size - 1) if batch_size > 1 else 0
        return (within + between).sqrt() / self.moments.variance


@dataclass(frozen=True)
class BatchesSeen:
    """What reached a layer, batch by batch; of a layer that is called several times, each call is a batch.

    Attributes:
        of_means: of each batch's mean, ``(C,)``; its count is the number of batches.
        of_variances: of each batch's unbiased variance, ``(C,)``: what running variances are averages of.
        not_finite: batches whose mean or variance was no number; they are in neither.

    """

    of_means: Moments
    of_variances: Moments
    not_finite: int = 0


@dataclass(frozen=True)
class State:
    """What a layer holds; vectors ``(C,)`` in float64 on the CPU, or None where it has none.

    Attributes:
        training: its own mode when the network was handed in.
        frozen: held by `mednorm.freeze`, or a frozen layer by its type.
        synchronized: takes its statistics over several processes.
        updates: batches that moved the running statistics, as the layer counted; None where it does not count.
        skipped: batches that were kept out of them, as our layers count.
        learns: whether γ or β requires a gradient.

    """

    eps: float
    momentum: float | None
    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    training: bool
    frozen: bool = False
    synchronized: bool = False
    updates: int | None = None
    skipped: int = 0
    learns: bool = True

    @property
    def initial_share(self) -> float | None:
        r"""Share of the initial 0 and 1 that is left in the running statistics, :math:`(1-m)^t`; None if unknown."""
        if self.updates is None or self.running_mean is None:
            return None
        if self.momentum is None:
            return 1.0 if self.updates == 0 else 0.0
        return float((1 - self.momentum) ** self.updates)


@dataclass(frozen=True)
class Surroundings:
    """What precedes and follows a layer, where that is certain.

    Attributes:
        before: name of the convolution or linear layer whose output it normalizes; None where there is none.
        before_has_bias: whether that adds a bias.
        before_learns: whether that one's weight requires a gradient; None where there is no such layer.
        dropout_before: name of a dropout layer of a rate above 0 between that, or the layer before, and this one.
        dropout_rate: of it.
        activation: class name of the module, or function, that follows; None where none does.
        decay: weight decay on γ and β, by the optimizer; None where no optimizer is known.
        decay_before: weight decay on the weights of `before`.
        calls: in one forward pass.
        updates_a_step: how often its running statistics moved in one training step; None where that was not tried.

    """

    before: str | None = None
    before_has_bias: bool = False
    before_learns: bool | None = None
    dropout_before: str | None = None
    dropout_rate: float = 0.0
    activation: str | None = None
    decay: float | None = None
    decay_before: float | None = None
    calls: int = 1
    updates_a_step: int | None = None


@dataclass(frozen=True)
class Layer:
    """One normalization layer.

    Attributes:
        name: in ``named_modules``.
        kind: name of its class.
        place: in the order of the first calls, from 0.
        channels: C.
        dtype: of its input, such as ``"float16"``; None where it was not called.
        state: what it holds.
        around: what is around it.
        seen: what reached it in evaluation mode, over all images; None where it was not called.
        sites: the same for each site that is named.
        batches: the same batch by batch.

    """

    name: str
    kind: str
    place: int
    channels: int
    dtype: str | None
    state: State
    around: Surroundings
    seen: Seen | None
    sites: Mapping[str, Seen] = field(default_factory=dict)
    batches: BatchesSeen | None = None


@dataclass(frozen=True)
class Gap:
    """How outputs on the same images differ between running statistics and the batch's own.

    Layers whose statistics hold still in training, see `mednorm.freeze`, keep their running ones in both.

    Attributes:
        batches: how many were compared.
        divergence: root mean square difference of the outputs over the standard deviation of those with batch
            statistics, within each output channel; infinite where one of them is not finite.
        metric: of each mode, where labels and a metric were given: with running, with batch statistics.
        by_layer: share of the squared difference that goes when this layer alone, or all up to it, take the batch's;
            filled in where the gap is worth a finding.

    """

    batches: int
    divergence: float
    metric: tuple[float, float] | None = None
    by_layer: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Probed:
    """What a pass over data showed of a network.

    Attributes:
        network: name of its class.
        layers: its normalization layers, in the order of their first calls.
        images: that were seen.
        batch_size: of the training, as far as known; otherwise the largest batch seen.
        devices: that a training batch is spread over, each with so many images.
        sites: images of each named site.
        gap: None where no layer has running statistics, or no batch has statistics of its own.
        patients: of each named site; of those alone where a patient is named.
        own_statistics: whether each batch was normalized with its own statistics, as in training, when this was seen.

    """

    network: str
    layers: tuple[Layer, ...]
    images: int
    batch_size: int
    devices: int
    sites: Mapping[str, int]
    gap: Gap | None
    patients: Mapping[str, int] = field(default_factory=dict)
    own_statistics: bool = False
