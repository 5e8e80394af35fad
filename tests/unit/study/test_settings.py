import pytest

from mednorm.errors import ConfigError
from mednorm.study.settings import resolve
from mednorm.tasks import TASKS
from mednorm.training.settings import read_toml
from tests.unit.study.made import settings

PRESETS = [(task.name, preset) for task in TASKS.values() for preset in task.presets]


def refused(file=None, flags=None, task="lung", preset=None):
    with pytest.raises(ConfigError) as raised:
        resolve(task, preset, file or {}, flags or {}, "my.toml")
    message = str(raised.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(("task", "preset"), PRESETS)
def test_every_preset_resolves_to_what_it_says(task, preset):
    resolved = resolve(task, preset, {}, {"data": "somewhere"})
    given = TASKS[task].presets[preset]
    assert {key: getattr(resolved, key) for key in given} == dict(given)
    assert (resolved.task, resolved.preset) == (task, preset)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_quick_and_a_default_preset(task):
    assert {"quick", "default"} <= set(TASKS[task].presets)
    quick, default = (resolve(task, preset, {}, {}) for preset in ("quick", "default"))
    work = [len(each.arms()) * len(each.seeds) * each.epochs * max(1, each.folds) for each in (quick, default)]
    assert work[0] < work[1]


def test_a_file_lies_over_the_preset_and_flags_over_the_file():
    file = {"epochs": 5, "learning_rate": 0.5, "norms": ["batch"]}
    resolved = resolve("lung", "quick", file, {"epochs": 7, "l1": 0.25, "optimizer": None})
    assert (resolved.epochs, resolved.learning_rate, resolved.norms, resolved.l1) == (7, 0.5, ["batch"], 0.25)
    assert resolved.seeds == TASKS["lung"].presets["quick"]["seeds"]
    assert resolved.optimizer == "adam"


def test_a_flag_of_zero_or_false_is_a_flag():
    resolved = resolve("lung", None, {"l2": 0.5, "tensorboard": True}, {"l2": 0.0, "tensorboard": False})
    assert (resolved.l2, resolved.tensorboard) == (0.0, False)


def test_the_preset_on_the_command_line_is_stronger_than_the_files():
    assert resolve("lung", "quick", {"preset": "default"}, {}).preset == "quick"
    assert resolve("lung", "quick", {"preset": "default"}, {}).epochs == TASKS["lung"].presets["quick"]["epochs"]
    assert resolve("lung", None, {"preset": "quick"}, {}).preset == "quick"
    assert resolve("lung", None, {}, {}).preset == "default"


def test_the_task_is_the_files_where_none_is_named():
    assert resolve(None, None, {"task": "lung"}, {}).task == "lung"
    assert resolve(None, None, {}, {}).task == "tissue"


def test_a_study_on_disk_resolves_to_itself(tmp_path):
    import tomli_w

    before = settings(grid="full", target=0.75, classes=["a", "b"], seeds=[3], learning_rate=0.1 + 0.2)
    (tmp_path / "study.toml").write_text(tomli_w.dumps(before.model_dump(exclude_none=True)), encoding="utf-8")
    assert resolve(None, None, read_toml(tmp_path / "study.toml"), {}) == before


def test_an_unknown_key_in_the_file_names_the_file_and_the_nearest_key():
    assert refused({"epoch": 5}) == "my.toml: unknown key 'epoch'. Did you mean 'epochs'?"


def test_a_file_for_another_task_is_refused():
    assert refused({"task": "tissue"}) == "my.toml: task: expected 'lung', as on the command line, got 'tissue'."


def test_an_unknown_task_names_the_nearest():
    known = "tissue, lung, heart, heart-lv, brain, brain3d"
    assert refused(task="tisue") == f"task: expected one of {known}, got 'tisue'. Did you mean 'tissue'?"


def test_an_unknown_preset_lists_those_there_are():
    known = "quick, default, full, claims, batch-size, small-batch"
    assert refused(preset="fast") == f"preset: expected one of {known} for lung, got 'fast'."


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ({"seeds": [0, 1, 0]}, "my.toml: seeds: expected each value once, got 0 twice."),
        ({"norms": ["batch", "batch"]}, "my.toml: norms: expected each value once, got 'batch' twice."),
        ({"regularizers": ["l1+l2", "l2+l1"]}, "my.toml: regularizers: expected each value once, got 'l1+l2' twice."),
        ({"batch_sizes": [4, 4]}, "my.toml: batch_sizes: expected each value once, got 4 twice."),
        ({"seeds": [-1]}, "my.toml: seeds.0: input should be greater than or equal to 0, got -1."),
        ({"seeds": [2**31]}, "my.toml: seeds.0: input should be less than or equal to 2147483647, got 2147483648."),
        ({"batch_sizes": [0, 4]}, "my.toml: batch_sizes.0: input should be greater than or equal to 1, got 0."),
        ({"seeds": 3}, "my.toml: seeds: input should be a valid list, got 3."),
        ({"epochs": "many"}, "my.toml: epochs: input should be a valid integer"),
        (
            {"epochs": 1.5},
            "my.toml: epochs: input should be a valid integer, got a number with a fractional part, got 1.5",
        ),
        ({"norms": "batch"}, "my.toml: norms: input should be a valid list, got 'batch'."),
        (
            {"norms": ["evonorm"]},
            "my.toml: norms.0: input should be 'none', 'batch', 'renorm', 'ghost', 'moving', 'range', "
            "'domain', 'frozen', 'group', 'instance' or 'layer', got 'evonorm'.",
        ),
        ({"folds": 1}, "my.toml: expected folds to be 0 (the data's own splits) or at least 2, got 1."),
        ({"folds": 2, "holdout_site": "HT"}, "my.toml: expected either folds or holdout_site, got 2 and 'HT'."),
        ({"patch_size": [8, 8]}, "my.toml: expected no patch_size, as it trains on whole images, got [8, 8]."),
        ({"train_shares": [0.5]}, "my.toml: expected train_shares to hold 1.0, the whole training split, got [0.5]."),
        ({"train_shares": [0, 1]}, "my.toml: train_shares.0: input should be greater than 0, got 0."),
        ({"train_shares": [1, 1.0]}, "my.toml: train_shares: expected each value once, got 1.0 twice."),
        ({"scale_learning_rate": "log"}, "my.toml: scale_learning_rate: input should be 'none', 'sqrt' or 'linear'"),
        ({"batch_size_norms": []}, "my.toml: batch_size_norms: list should have at least 1 item"),
        ({"batch_size_norms": ["batch", "batch"]}, "my.toml: batch_size_norms: expected each value once, got 'batch'"),
        ({"norms": []}, "my.toml: norms: list should have at least 1 item"),
        ({"regularizers": ["l3"]}, "my.toml: regularizers.0: expected 'none' or a sum of"),
        ({"grid": "cross"}, "my.toml: grid: input should be 'star' or 'full', got 'cross'."),
        ({"target": float("nan")}, "my.toml: target: input should be a finite number, got nan."),
        ({"learning_rate": float("inf")}, "my.toml: learning_rate: input should be a finite number, got inf."),
    ],
)
def test_a_mistake_in_the_file_is_one_line_with_what_came(file, expected):
    assert refused(file).startswith(expected)


def test_a_mistake_in_a_flag_is_said_of_the_options_and_not_of_the_file():
    assert refused({"epochs": 5}, {"epochs": 0}).startswith("options: epochs: ")


def test_a_base_that_is_not_studied_is_refused_with_both_named():
    message = refused(flags={"batch_sizes": [4, 16], "base_batch_size": 8})
    assert message == "options: expected base_batch_size to be one of batch_sizes 4, 16, got 8."


@pytest.mark.parametrize(
    ("sizes", "base"), [([32], 32), ([16], 16), ([2, 4, 16], 4), ([16, 2, 4, 64], 4), ([2, 32, 128], 32)]
)
def test_batch_sizes_without_the_old_base_bring_the_middle_one_as_theirs(sizes, base):
    assert resolve("lung", None, {}, {"batch_sizes": sizes}).base_batch_size == base
    assert resolve("lung", None, {"batch_sizes": sizes}, {}).base_batch_size == base


def test_a_base_given_with_the_sizes_is_kept():
    assert resolve("lung", None, {}, {"batch_sizes": [2, 4, 16], "base_batch_size": 16}).base_batch_size == 16


def test_flags_for_the_sizes_replace_the_base_of_the_file_only_where_it_is_left_out():
    file = {"batch_sizes": [4, 8], "base_batch_size": 8}
    assert resolve("lung", None, file, {"batch_sizes": [2, 8, 16, 64]}).base_batch_size == 8
    assert resolve("lung", None, file, {"batch_sizes": [2, 64]}).base_batch_size == 2


def test_the_full_preset_of_lung_studies_every_norm_regularizer_and_batch_size_of_tissue():
    full, tissue = resolve("lung", "full", {}, {}), resolve("tissue", "default", {}, {})
    assert (full.norms, full.regularizers) == (tissue.norms, tissue.regularizers)
    assert (full.batch_sizes, full.seeds) == (tissue.batch_sizes, tissue.seeds)
    assert full.norms == ["none", "batch", "group", "instance"]
    assert full.base_batch_size == 32


def test_volumes_are_trained_on_in_patches():
    message = refused(task="brain3d", file={"patch_size": None})
    assert message.endswith("expected a patch_size, as its images are volumes, got None.")


def test_a_site_to_hold_out_ends_the_folds_of_a_preset_unless_both_are_given():
    assert resolve("heart", None, {}, {}).folds == 5
    assert resolve("heart", None, {}, {"holdout_site": "A"}).folds == 0
    with pytest.raises(ConfigError, match="expected either folds or holdout_site, got 3 and 'A'"):
        resolve("heart", None, {}, {"holdout_site": "A", "folds": 3})


def test_folds_end_a_site_held_out_in_the_file_below():
    settings = resolve("heart", None, {"holdout_site": "A"}, {"folds": 4})
    assert (settings.folds, settings.holdout_site) == (4, None)


def test_norms_leave_out_those_at_other_batch_sizes_that_are_not_among_them():
    assert resolve("brain", "claims", {}, {"norms": ["none", "batch"]}).batch_size_norms == ["batch"]
    assert resolve("brain", "claims", {}, {"norms": ["none"]}).batch_size_norms is None
    assert resolve("brain", "claims", {}, {}).batch_size_norms == ["batch", "group"]


@pytest.mark.parametrize("size", [[32, 32], [32, 32, 0], [8, 8, 8, 8]])
def test_a_patch_has_three_sides(size):
    with pytest.raises(ConfigError, match=f"expected patch_size to be three numbers of at least 1, got \\{size}"[:-1]):
        resolve("brain3d", None, {}, {"patch_size": size})
