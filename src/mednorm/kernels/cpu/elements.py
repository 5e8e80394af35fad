"""What is done to a single value, inlined into the loops over values, and how all of it is compiled."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from mednorm.kernels.cpu.arguments import LEAKY_RELU, NOTHING

# Sums may be taken in any order, which is what makes them fast; NaN and infinity keep their meaning.
jit: Any = njit(fastmath={"reassoc", "nsz", "contract"}, error_model="numpy", nogil=True)


@intrinsic
def pointer(typing: Any, address: Any, real: Any) -> Any:
    """Return an address as a pointer to values of a type."""
    found = types.CPointer(real.dtype)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], context.get_value_type(found))

    return found(types.int64, real), generate


@intrinsic
def ticket(typing: Any, address: Any) -> Any:
    """Return the integer at an address and add 1 to it, whatever other threads do."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        place = builder.inttoptr(values[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", place, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(types.int64), generate


@jit
def key_of(bits: Any, kind: Any, places: int) -> Any:
    """Map the bits of a float to an integer of the same order, whose extremes the compiler can vectorize.

    NaN lies outside the infinities. The mapping is its own inverse.
    """
    below_sign = kind((1 << places) - 1)
    return kind(bits ^ kind(kind(bits >> kind(places)) & below_sign))


@jit
def activated(value: Any, activation: int, slope: Any, zero: Any) -> Any:
    """Rectify. Slope 0 is a case of its own: 0 times infinity is not 0. NaN passes."""
    below = slope * value if activation == LEAKY_RELU else zero
    return value if activation == NOTHING or not value <= zero else below


@jit
def before_activation(grad: Any, value: Any, activation: int, slope: Any, zero: Any) -> Any:
    """Return the gradient before the activation, `value` being what it was applied to; NaN as PyTorch has it."""
    below = slope * grad if activation == LEAKY_RELU else zero
    passes = value > zero if activation == LEAKY_RELU else not value <= zero
    return grad if activation == NOTHING or passes else below
