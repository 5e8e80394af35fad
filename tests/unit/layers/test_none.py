import copy
import pickle

import pytest
import torch

from mednorm.errors import ConfigError, ShapeError
from mednorm.layers import NoNorm

SHAPES = pytest.mark.parametrize("shape", [(9, 4), (5, 4, 11), (4, 4, 5, 6), (2, 4, 3, 4, 5)], ids=str)


def shifted(dtype=torch.float32):
    layer = NoNorm(4, bias=True, dtype=dtype)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([1.0, -2.0, 0.5, 8.0]))
    return layer


@SHAPES
def test_without_a_shift_the_input_comes_back_and_its_gradient_too(shape):
    x = torch.randn(shape, requires_grad=True)
    y = NoNorm(4)(x)
    assert y is x
    assert list(NoNorm(4).parameters()) == []
    assert NoNorm(4).state_dict() == {}


@SHAPES
def test_a_fresh_shift_changes_nothing_yet_gives_new_memory(shape):
    x = torch.randn(shape)
    y = NoNorm(4, bias=True)(x)
    assert torch.equal(y, x)
    assert y.data_ptr() != x.data_ptr()


@SHAPES
@pytest.mark.parametrize("training", [True, False])
def test_each_channel_moves_by_its_own_number_in_training_and_evaluation(shape, training):
    x = torch.randn(shape, dtype=torch.float64)
    y = shifted(torch.float64).train(training)(x)
    for channel, shift in enumerate([1.0, -2.0, 0.5, 8.0]):
        torch.testing.assert_close(y[:, channel], x[:, channel] + shift, rtol=0, atol=0)


@SHAPES
def test_the_gradient_of_the_shift_is_the_sum_over_images_and_space(shape):
    layer, grad = shifted(torch.float64), torch.randn(shape, dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    layer(x).backward(grad)
    torch.testing.assert_close(x.grad, grad)
    torch.testing.assert_close(layer.bias.grad, grad.sum([axis for axis in range(grad.dim()) if axis != 1]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_the_output_has_the_inputs_type_whatever_the_shifts(dtype):
    x = torch.randn(3, 4, 2).to(dtype)
    y = shifted()(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y[:, 3], x[:, 3] + 8)


def test_device_and_dtype_are_those_asked_for():
    bias = NoNorm(3, bias=True, device="meta", dtype=torch.float16).bias
    assert (bias.device.type, bias.dtype, tuple(bias.shape)) == ("meta", torch.float16, (3,))


def test_copies_and_pickles_and_state_keep_the_shift():
    layer = shifted()
    loaded = NoNorm(4, bias=True)
    loaded.load_state_dict(layer.state_dict(), strict=True)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert torch.equal(other.bias, layer.bias)
        assert other.bias is not layer.bias


def test_the_wrong_number_of_channels_is_named_with_the_shape():
    with pytest.raises(ShapeError, match=r"NoNorm\(num_features=4\): expected 4 .* got 3 \(input shape \(2, 3, 5\)\)"):
        NoNorm(4, bias=True)(torch.randn(2, 3, 5))


def test_an_input_without_channels_is_named_by_its_shape():
    with pytest.raises(ShapeError, match=r"got shape \(4,\)\. Add the missing batch axis"):
        NoNorm(4, bias=True)(torch.randn(4))


def test_whole_numbers_are_refused_rather_than_the_shift_rounded():
    with pytest.raises(ShapeError, match=r"got torch\.uint8"):
        NoNorm(4, bias=True)(torch.zeros(2, 4, dtype=torch.uint8))


@pytest.mark.parametrize("channels", [0, -1, 2.0, "4"])
def test_a_number_of_channels_that_is_none_is_named(channels):
    with pytest.raises(ConfigError, match=rf"num_features .* got {channels!r}"):
        NoNorm(channels, bias=True)


def test_what_is_printed_says_whether_there_is_a_shift():
    assert (repr(NoNorm(4)), repr(NoNorm(4, bias=True))) == ("NoNorm(4, bias=False)", "NoNorm(4, bias=True)")
