import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, roc_auc_score
from torchmetrics.functional.classification import multiclass_calibration_error

from mednorm.errors import DataError, RunError
from mednorm.tasks.bootstrap import interval, resampled
from mednorm.tasks.outcomes import ClassificationOutcomes, SegmentationOutcomes, read_outcomes

TISSUE = ("outside", "grey matter", "white, deep")


def classified(classes, targets, probabilities, patients=None):
    count = len(targets)
    names = tuple(f"image {number}" for number in range(count))
    who = names, tuple(patients or [None] * count), (None,) * count
    return ClassificationOutcomes(classes, *who, np.array(targets), np.array(probabilities, dtype=float))


def segmented(hits, false_alarms, misses, patients, distances=None, classes=TISSUE):
    counts = [np.array(values, dtype=float) for values in (hits, false_alarms, misses)]
    count = len(hits)
    distances = None if distances is None else np.array(distances, dtype=float)
    names = tuple(f"slice {number}" for number in range(count))
    return SegmentationOutcomes(
        classes, names, tuple(patients), (None,) * count, *counts, distances, np.ones(count, dtype=bool)
    )


def two_patients():
    """Two slices of Ann, one of Bob; the second slice of Ann holds no grey matter, Bob has no white."""
    return segmented(
        hits=[[6, 2], [0, 5], [4, 0]],
        false_alarms=[[1, 0], [3, 2], [0, 7]],
        misses=[[2, 2], [0, 1], [4, 0]],
        patients=["ann", "ann", "bob"],
        distances=[[2.0, 3.0], [np.nan, 4.0], [8.0, np.nan]],
    )


def columns_of(rows):
    values = {field.name: getattr(rows, field.name) for field in dataclasses.fields(rows)}
    return {
        name: (value.dtype, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value
        for name, value in values.items()
    }


def test_the_metrics_of_three_classes_are_means_of_one_against_rest():
    random = np.random.default_rng(0)
    probabilities, targets = random.dirichlet([0.7] * 3, 90), random.integers(0, 3, 90)
    scores = classified(("a", "b", "c"), targets, probabilities).metrics("image")
    said = probabilities.argmax(1)
    table = [confusion_matrix(targets == k, said == k) for k in range(3)]
    assert scores == pytest.approx(
        {
            "auc": roc_auc_score(targets, probabilities, multi_class="ovr"),
            "accuracy": (targets == said).mean(),
            "balanced_accuracy": balanced_accuracy_score(targets, said),
            "sensitivity": np.mean([counts[1, 1] / counts[1].sum() for counts in table]),
            "specificity": np.mean([counts[0, 0] / counts[0].sum() for counts in table]),
            "calibration_error": multiclass_calibration_error(
                torch.from_numpy(probabilities), torch.from_numpy(targets), 3, n_bins=15
            ).item(),
        },
        abs=1e-6,
    )


def test_metrics_that_need_every_class_are_not_defined_where_one_of_three_is_missing():
    scores = classified(("a", "b", "c"), [0, 1, 1], [[0.6, 0.2, 0.2], [0.3, 0.4, 0.3], [0.5, 0.1, 0.4]]).metrics(
        "image"
    )
    assert [name for name, value in scores.items() if value is None] == ["auc", "balanced_accuracy", "sensitivity"]
    assert scores["specificity"] == pytest.approx((1 / 2 + 1 + 1) / 3)


def test_classification_by_patient_is_that_of_mean_probabilities():
    """Ann (0.2, 0.9) → 0.55, Bob (0.5, 0.1) → 0.3, Cid 0.45, ill; Dan 0.6, well. Ill: Ann and Cid."""
    chances = np.array([0.2, 0.5, 0.9, 0.1, 0.45, 0.6])
    targets = [1, 0, 1, 0, 1, 0]
    patients = ["ann", "bob", "ann", "bob", "cid", "dan"]
    rows = classified(("well", "ill"), targets, np.stack([1 - chances, chances], 1), patients)
    assert rows.metrics("patient") == pytest.approx(
        {
            "auc": 2 / 4,  # Ann and Cid above Bob, below Dan
            "accuracy": 2 / 4,
            "balanced_accuracy": 0.5,
            "sensitivity": 1 / 2,
            "specificity": 1 / 2,
            # bins of 1/15: 0.55 (Ann, right; Cid, wrong: confidence 0.55), 0.7 (Bob), 0.6 (Dan, wrong: (8/15, 9/15])
            "calibration_error": (abs(1 + 0 + 0 - 0.55 - 0.55 - 0.6) + abs(1 - 0.7)) / 4,
        },
        abs=1e-6,
    )


def test_a_patient_with_two_labels_is_named():
    rows = classified(("well", "ill"), [0, 1, 1], [[0.5, 0.5]] * 3, ["ann", "bob", "ann"])
    with pytest.raises(DataError, match=r"patient 'ann': .* got well and ill"):
        rows.metrics("patient")
    assert rows.metrics("image")["accuracy"] == pytest.approx(1 / 3)


def test_by_image_dice_and_distance_are_means_over_the_images_that_hold_the_class():
    grey, white = (12 / 15 + 8 / 12) / 2, (4 / 6 + 10 / 13) / 2
    expected = {"dice": (grey + white) / 2, "dice_grey matter": grey, "dice_white, deep": white}
    expected |= {"hd95": (5 + 3.5) / 2, "hd95_grey matter": 5, "hd95_white, deep": 3.5}
    assert two_patients().metrics("image") == pytest.approx(expected)
    assert list(two_patients().metrics("image")) == list(expected)


def test_by_patient_voxels_are_pooled_and_distances_averaged_before_the_mean_over_patients():
    grey, white = (12 / (12 + 4 + 2) + 8 / 12) / 2, 14 / (14 + 2 + 3)
    expected = {"dice": (grey + white) / 2, "dice_grey matter": grey, "dice_white, deep": white}
    expected |= {"hd95": (5 + 3.5) / 2, "hd95_grey matter": (2 + 8) / 2, "hd95_white, deep": 3.5}
    assert two_patients().metrics("patient") == pytest.approx(expected)


def test_one_class_in_the_foreground_is_not_named_twice():
    rows = segmented([[3]], [[1]], [[1]], ["ann"], [[2.0]], classes=("background", "tumour"))
    assert rows.metrics("patient") == pytest.approx({"dice": 6 / 8, "hd95": 2.0})


def test_an_output_that_is_no_number_takes_every_metric_of_the_segmentation():
    rows = dataclasses.replace(two_patients(), finite=np.array([True, False, True]))
    assert set(rows.metrics("image").values()) == set(rows.metrics("patient").values()) == {None}


@pytest.mark.parametrize("unit", ["image", "patient"])
def test_a_replicate_of_dice_is_that_of_the_patients_drawn(unit):
    random = np.random.default_rng(0)
    patients = [f"patient {number // 2}" for number in range(12)]
    hits, false_alarms, misses = random.integers(0, 9, (3, 12, 2))
    hits[:2, 1] = misses[:2, 1] = 0  # patient 0 has no white matter
    rows = segmented(hits, false_alarms, misses, patients)
    found = rows.replicates(unit, 20)
    (draws,) = resampled(sorted(set(patients)), 20, 0)
    for number, drawn in enumerate(draws):
        values = [[], []]
        for patient, times in enumerate(drawn.astype(int)):
            for part in [[2 * patient, 2 * patient + 1]] if unit == "patient" else [[2 * patient], [2 * patient + 1]]:
                for k in range(2):
                    right, extra, lost = (counts[part, k].sum() for counts in (hits, false_alarms, misses))
                    if right + lost:
                        values[k] += [2 * right / (2 * right + extra + lost)] * times
        grey, white = np.mean(values[0]), np.mean(values[1])
        assert found["dice_white, deep"][number] == pytest.approx(white)
        assert found["dice"][number] == pytest.approx((grey + white) / 2)


def test_the_mean_dice_of_a_resample_without_a_class_is_not_that_of_the_others():
    """Only one of six images holds white matter: a third of the resamples lack it."""
    rows = segmented([[5, 0]] * 5 + [[5, 1]], [[0, 0]] * 6, [[0, 0]] * 5 + [[0, 9]], [None] * 6)
    found = rows.replicates("image", 300)
    lacking = np.isnan(found["dice_white, deep"])
    assert lacking.mean() == pytest.approx((5 / 6) ** 6, abs=0.1)
    assert (np.isnan(found["dice"]) == lacking).all()
    assert found["dice"][~lacking] == pytest.approx(np.full((~lacking).sum(), (1 + 2 / 11) / 2))
    assert interval(found["dice"]) is None
    assert interval(found["dice_grey matter"]) == (1.0, 1.0)


WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@given(
    st.lists(WORDS, min_size=2, max_size=4, unique=True),
    st.lists(st.tuples(WORDS, st.none() | WORDS, st.none() | WORDS, st.integers(0, 99)), max_size=6),
)
def test_a_table_of_classification_reads_back_exactly(tmp_path_factory, classes, rows):
    probabilities = np.array([np.random.default_rng(seed).dirichlet([0.3] * len(classes)) for *_, seed in rows])
    probabilities = probabilities.reshape(len(rows), len(classes))
    probabilities[:1] = np.nan
    targets = np.array([seed % len(classes) for *_, seed in rows], dtype=np.int64)
    who = [tuple(row[column] for row in rows) for column in range(3)]
    written = ClassificationOutcomes(tuple(classes), *who, targets, probabilities)
    path = tmp_path_factory.mktemp("table") / "outcomes.csv"
    path.write_bytes(written.to_csv().encode())
    assert columns_of(read_outcomes(path)) == columns_of(written)


@pytest.mark.parametrize("near", [True, False])
def test_a_table_of_segmentation_reads_back_exactly(tmp_path, near):
    written = dataclasses.replace(two_patients(), sites=("oslo", None, 'the "old" one'), finite=np.array([1, 0, 1]) > 0)
    written.distances[0, 0] = 1 / 3
    written = written if near else dataclasses.replace(written, distances=None)
    path = tmp_path / "outcomes.csv"
    path.write_text(written.to_csv(), encoding="utf-8")
    assert columns_of(read_outcomes(path)) == columns_of(written)


def test_a_table_can_be_read_by_a_person(tmp_path):
    rows = classified(("well", "ill"), [1], [[0.25, 0.75]], ["ann"])
    assert rows.to_csv() == '"name","patient","site","target","p_well","p_ill"\n"image 0","ann","",1,0.25,0.75\n'
    header, first, *_ = two_patients().to_csv().splitlines()
    assert header.replace('"', "").startswith("name,patient,site,background,hits_grey matter,false_alarms_grey matter,")
    assert first.endswith("2.0,0.0,2.0,3.0,True")


GOOD = classified(("well", "ill"), [1, 0], [[0.25, 0.75], [0.5, 0.5]], ["ann", "bob"]).to_csv()
MASKS = two_patients().to_csv()


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("", "an empty file"),
        (GOOD[:-4], "a last line that breaks off"),
        (GOOD.replace(",0.5,0.5", ",0.5"), "5 cells in row 3 under 6 names"),
        (GOOD.replace("0.75", "o.75"), "'o.75'"),
        (GOOD.replace("0.75", "0.85"), "do not add up to 1"),
        (GOOD.replace("0.25,0.75", "-0.25,1.25"), "negative"),
        (GOOD.replace(",1,0.25", ",2,0.25"), "targets from 0 to 2 for 2 classes"),
        (GOOD.replace(",1,0.25", ",1.5,0.25"), "'1.5'"),
        (GOOD.replace(",1,0.25", f",{10**30},0.25"), "too large"),
        (GOOD.replace('"target"', '"truth"'), "no column target"),
        (GOOD.replace('"patient"', '"who"'), "no column patient"),
        (GOOD.replace('"patient","site"', '"site","patient"'), "the columns name, site, patient"),
        (GOOD.replace('"p_ill"', '"p_well"'), "p_well, p_well"),
        (MASKS.replace('"misses_grey matter"', '"missed"'), "no column misses_grey matter"),
        (MASKS.replace('"hd95_grey matter"', '"hd95"'), "no column hd95_grey matter"),
        (MASKS.replace("True", "Tru"), "finite of Tru"),
        (MASKS.replace(",6.0,", ",-6.0,"), "counts that are negative"),
        (MASKS.replace(",6.0,", ",nan,"), "counts that are negative or no numbers"),
        (MASKS.replace('"outside"', '"inside"', 1), "2 names of the background"),
        (MASKS.replace("hits_", "hit_"), "0 columns of hits"),
        (GOOD.replace('"ann"', '"ann'), ""),
    ],
)
def test_a_damaged_table_is_named_with_what_is_wrong(tmp_path, text, got):
    path = tmp_path / "outcomes.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RunError, match=r"outcomes\.csv: expected a table of outcomes") as caught:
        read_outcomes(path)
    assert got in str(caught.value)


def test_a_table_that_is_missing_or_no_text_is_named(tmp_path):
    with pytest.raises(RunError, match=r"none\.csv.*No such file"):
        read_outcomes(tmp_path / "none.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunError, match=r"bytes\.csv.*can't decode"):
        read_outcomes(tmp_path / "bytes.csv")
