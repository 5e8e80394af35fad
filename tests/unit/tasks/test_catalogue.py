import pytest

from mednorm.errors import ConfigError
from mednorm.study.settings import resolve
from mednorm.tasks import TASKS, find_task
from mednorm.tasks.networks import find_network

CLINICAL = ["lung", "heart", "heart-lv", "brain", "brain3d"]


def test_a_task_is_found_by_its_name():
    assert [find_task(name).name for name in TASKS] == list(TASKS) == ["tissue", *CLINICAL]


def test_an_unknown_task_names_the_nearest():
    known = "tissue, lung, heart, heart-lv, brain, brain3d"
    with pytest.raises(ConfigError, match=rf"task: expected one of {known}, got 'lungs'\. Did you mean 'lung'\?"):
        find_task("lungs")


def test_a_task_nothing_is_near_to_gets_no_guess():
    with pytest.raises(ConfigError, match=r"got 'xyz'\.$"):
        find_task("xyz")


@pytest.mark.parametrize("name", TASKS)
def test_the_network_of_every_task_is_of_its_kind(name):
    task = find_task(name)
    assert find_network(task.network, task.kind).kind == task.kind


@pytest.mark.parametrize("name", CLINICAL)
def test_the_claims_of_every_clinical_task_ask_more_than_the_article(name):
    claims = resolve(name, "claims", {}, {"data": "somewhere"})
    assert claims.norms == ["none", "batch", "group"]
    assert len(claims.batch_sizes) >= 3
    assert min(claims.batch_sizes) == 1
    assert claims.base_batch_size in claims.batch_sizes
    assert claims.train_shares == [0.1, 0.3, 1.0]
    assert {"none", "l1", "l2", "dropout_before", "dropout_last"} == set(claims.regularizers)
    assert (claims.deeper, claims.scale_learning_rate, len(claims.seeds)) == (True, "sqrt", 3)
    assert len(claims.networks()) == 2


@pytest.mark.parametrize("name", CLINICAL)
def test_the_batch_sizes_alone_are_a_part_of_the_claims(name):
    alone, claims = (resolve(name, preset, {}, {"data": "somewhere"}) for preset in ("batch-size", "claims"))
    assert set(alone.arms()) <= set(claims.arms())
    assert {arm.batch_size for arm in alone.arms()} == set(claims.batch_sizes)
    assert {arm.norm for arm in alone.arms()} == {"batch", "group"}


@pytest.mark.parametrize(("name", "unit"), [("lung", "image"), ("heart", "patient"), ("brain", "patient")])
def test_a_task_counts_images_or_patients(name, unit):
    assert find_task(name).unit == unit
