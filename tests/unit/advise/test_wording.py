import pytest

from tests.unit.advise.made import advised


def test_a_batch_that_is_enough_and_fits_is_recommended():
    advice = advised(least=6, largest=41)
    assert (advice.action, advice.recommended) == ("batch", 6)
    assert advice.sentence == (
        "Train with batches of 6 images: batch statistics are good enough from 6 images on, and up to 41 images fit in "
        "512 MB."
    )


@pytest.mark.parametrize(("now", "expected"), [(8, 8), (2, 6), (64, 41), (6, 6), (41, 41)])
def test_the_size_in_use_is_kept_where_it_is_enough_and_fits_and_otherwise_the_nearest_taken(now, expected):
    advice = advised(least=6, largest=41, batch_size=now)
    assert advice.recommended == expected
    assert advice.sentence.startswith("Keep " if now == expected else "Train with ")


def test_lean_activations_are_recommended_where_they_make_a_sufficient_batch_fit():
    advice = advised(least=12, largest=8, lean_largest=15)
    assert (advice.action, advice.recommended) == ("lean", 12)
    assert advice.sentence == (
        'Train with batches of 12 images and lean activations, mednorm.convert(model, "batch", lean=True) or --lean: '
        "as it is, at most 8 fit in 512 MB, lean up to 15 images."
    )


def test_micro_batches_are_accumulated_where_one_is_not_much_too_noisy_and_it_is_said_what_that_does_not_give():
    advice = advised(least=12, largest=5, noise_at_one=1.2)
    assert (advice.action, advice.recommended, advice.micro_batches) == ("accumulate", 5, 3)
    assert advice.sentence == (
        "No batch that fits is enough, 5 of 12 images: accumulate 3 micro-batches of 5 with mednorm.accumulate, which "
        "gives the running statistics of a batch of 15, while each micro-batch is still normalized by its own."
    )


def test_another_layer_is_recommended_where_the_statistics_of_what_fits_say_too_little():
    advice = advised(least=40, largest=2, noise_at_one=2.0)
    assert (advice.action, advice.recommended) == ("convert", 2)
    assert advice.sentence == (
        'Take another layer, mednorm.convert(model, to="renorm"), and batches of 2 images: no batch that fits in 512 '
        "MB is enough for batch normalization, 40 images would be, and accumulating would still normalize each "
        "micro-batch by its own statistics."
    )


@pytest.mark.parametrize(("least", "largest"), [(40, 1), (None, 64)])
def test_group_normalization_is_recommended_for_one_image_or_where_no_batch_would_do(least, largest):
    advice = advised(least=least, largest=largest, noise_at_one=0.5)
    assert advice.action == "convert"
    assert 'to="group"' in advice.sentence
    assert ("none up to 4096 would be" in advice.sentence) == (least is None)


def test_smaller_images_are_recommended_where_not_even_one_fits():
    advice = advised(least=6, largest=0)
    assert (advice.action, advice.recommended) == ("smaller", 0)
    assert advice.sentence == (
        "Take smaller images or patches: a step of one image, the smallest there is, needs 110 MB, and 512 MB are "
        "given."
    )


def test_without_a_layer_that_takes_batch_statistics_noise_sets_no_least_size():
    advice = advised(least=1, largest=41, layers=(), batch_size=16)
    assert advice.recommended == 16
    assert advice.sentence == (
        "Train with batches of 16 images: no layer takes statistics over the batch, so noise sets no least size, and "
        "up to 41 fit in 512 MB."
    )
