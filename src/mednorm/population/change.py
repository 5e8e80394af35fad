"""New values of tensors in a network, put in place together and taken back together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mednorm.errors import RunError

# Name of the layer, the layer, name of its buffer or parameter: tensors themselves are replaced when a network moves.
Place = tuple[str, nn.Module, str]


class Change:
    """The values that some tensors had, and those that they are to have.

    Args:
        places: of the tensors, which hold the old values now.

    Attributes:
        made: whether the new values are in place.

    """

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = list(places)
        self._old = self._values()
        self._new = self._old
        self.made = False

    def settle(self) -> None:
        """Take what the tensors hold now as the new values."""
        self._new = self._values()

    def make(self) -> None:
        """Put the new values in place: all of them or, should that be interrupted, none."""
        try:
            self._put(self._new)
        except BaseException:
            self._put(self._old)
            raise
        self.made = True

    def take_back(self) -> None:
        """Put the old values in place.

        Raises:
            RunError: the new ones are not in place any more.

        """
        if not self.made:
            raise RunError("rollback: expected a change that is in place, got one that was undone already.")
        for (name, module, key), new in zip(self._places, self._new, strict=True):
            now = getattr(module, key)
            if now.shape != new.shape or now.dtype != new.dtype or not torch.equal(now, new.to(now.device)):
                raise RunError(
                    f"rollback: expected {key} of layer {name!r} as it was left, got other values: something has moved "
                    "it since, such as training or another recalibration. Roll that one back first, or load a "
                    "checkpoint."
                )
        self._put(self._old)
        self.made = False

    def _values(self) -> list[Tensor]:
        return [getattr(module, key).detach().clone() for _, module, key in self._places]

    @torch.no_grad()
    def _put(self, values: list[Tensor]) -> None:
        for (_, module, key), value in zip(self._places, values, strict=True):
            getattr(module, key).copy_(value)
