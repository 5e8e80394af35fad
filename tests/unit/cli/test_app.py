import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import mednorm
from mednorm.cli.app import app, run

MEDNORM = Path(sys.executable).with_name("mednorm")
COMMANDS = [
    ["study"],
    ["train"],
    ["evaluate"],
    ["examine"],
    ["predict"],
    ["treat"],
    ["advise"],
    ["report"],
    ["bench"],
    ["data", "describe"],
    ["data", "manifest"],
]


def command_of(words):
    command = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]
    return command


def refused(capsys, *arguments):
    """Run a command that is a mistake; return what it said on stderr, one line, after the program's name."""
    assert run(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("mednorm: ")
    return lines[0].removeprefix("mednorm: ")


def test_the_commands_tested_here_are_all_there_are():
    top = command_of([])
    found = [[name] for name in top.commands if name != "data"] + [
        ["data", name] for name in command_of(["data"]).commands
    ]
    assert sorted(found) == sorted(COMMANDS)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_help_of_every_command_shows_an_example_that_calls_it(words, capsys):
    assert run([*words, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Example" in shown
    assert f"mednorm {' '.join(words)} " in shown.split("Example", 1)[1]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_option_and_argument_of_every_command_has_help(words):
    parameters = command_of(words).params
    assert parameters
    assert [parameter.name for parameter in parameters if not getattr(parameter, "help", None)] == []


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_example_in_the_help_is_a_command_the_parser_takes(words):
    """The examples are parsed and not run."""
    command = command_of(words)
    examples = [line.split() for line in (command.help or "").splitlines() if line.strip().startswith("mednorm ")]
    assert examples
    for example in examples:
        assert example[1 : 1 + len(words)] == words
        assert command.make_context("mednorm", example[1 + len(words) :]).params


def test_the_version_is_printed(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"mednorm {mednorm.__version__}\n"


def test_no_arguments_print_the_help_with_an_example(capsys):
    assert run([]) == 0
    shown = capsys.readouterr().out
    for text in ("Usage: mednorm", "study", "train", "evaluate", "report", "data", "Example: mednorm study tissue"):
        assert text in shown


def test_data_without_a_command_prints_its_help(capsys):
    assert run(["data"]) == 0
    assert "describe" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["stdy"], "No such command 'stdy'. Did you mean 'study'?"),
        (["--nope"], "No such option: --nope"),
        (["study", "--epoch", "3"], "No such option: --epoch"),
        (["study", "tissue", "lung"], "Got unexpected extra argument(s) (lung)"),
        (["train"], "Missing argument 'TASK'."),
        (["evaluate"], "Missing argument 'RUN'."),
        (["study", "--epochs", "three"], "Invalid value for '--epochs'"),
        (["study", "--learning-rate", "fast"], "Invalid value for '--learning-rate'"),
        (["study", "--out"], "Option '--out' requires an argument."),
        (["data", "describe", "tissue", "--kind", "mesh"], "Invalid value for '--kind': 'mesh'"),
        (["evaluate", "run", "--split", "dev"], "Invalid value for '--split': 'dev'"),
    ],
)
def test_a_mistake_in_the_arguments_is_one_line_on_stderr(capsys, arguments, expected):
    assert refused(capsys, *arguments).startswith(expected)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["lungs"],
            "task: expected one of tissue, lung, heart, heart-lv, brain, brain3d, got 'lungs'. Did you mean 'lung'?",
        ),
        (["--preset", "fast"], "preset: expected one of quick, default for tissue, got 'fast'."),
        (["--folds", "1"], "options: expected folds to be 0 (the data's own splits) or at least 2, got 1."),
        (["--folds", "-2"], "options: folds: input should be greater than or equal to 0, got -2."),
        (
            ["--folds", "5", "--holdout-site", "HT"],
            "options: expected either folds or holdout_site, got 5 and 'HT'.",
        ),
        (["--holdout-site", "HT"], "tissue: expected the site to hold out to be each or one of"),
        (["--train-shares", "a"], "--train-shares: expected numbers such as 0.1,0.3,1, got 'a'."),
        (["--train-shares", "0,1"], "options: train_shares.0: input should be greater than 0, got 0.0."),
        (["--train-shares", "0.5"], "options: expected train_shares to hold 1.0, the whole training split, got [0.5]."),
        (["--train-shares", "nan,1"], "options: train_shares.0: input should be"),
        (["--batch-size-norms", "evonorm"], "options: batch_size_norms.0: input should be 'none', 'batch', 'renorm'"),
        (["--scale-learning-rate", "log"], "options: scale_learning_rate: input should be 'none', 'sqrt' or 'linear'"),
        (["--patch-size", "8,8"], "options: expected no patch_size, as it trains on whole images, got [8, 8]."),
        (["--patch-size", "8x8"], "--patch-size: expected whole numbers such as 2,8,32 or 0..4, got '8x8'."),
        (
            ["--patches-per-volume", "0"],
            "options: patches_per_volume: input should be greater than or equal to 1, got 0",
        ),
        (["--network", "unett"], "network: expected one of basicunet, basicunet_deep, unet, unet_deep, segresnet"),
        (["--network", "nowhere:net"], "network nowhere:net: expected a module nowhere, got none of that name"),
        (
            ["--regularizers", "dropout+dropout_last"],
            "options: regularizers.0: expected dropout in one place, got dropout",
        ),
        (["--seeds", "0..x"], "--seeds: expected whole numbers such as 2,8,32 or 0..4, got '0..x'."),
        (["--batch-sizes", "2,,8"], "--batch-sizes: expected whole numbers such as 2,8,32 or 0..4, got '2,,8'."),
        (["--image-size", "32x32"], "--image-size: expected whole numbers such as 2,8,32 or 0..4, got '32x32'."),
        (["--epochs", "0"], "options: epochs: input should be greater than or equal to 1, got 0."),
        (["--dropout", "1.5"], "options: dropout: input should be less than 1, got 1.5."),
        (["--learning-rate", "inf"], "options: learning_rate: input should be a finite number, got inf."),
        (["--target", "nan"], "options: target: input should be a finite number, got nan."),
        (
            ["--norms", "batch,evonorm"],
            "options: norms.1: input should be 'none', 'batch', 'renorm', 'ghost'",
        ),
        (["--regularizers", "l3"], "options: regularizers.0: expected 'none' or a sum of dropout, dropout_before,"),
        (["--optimizer", "lion"], "options: optimizer: input should be 'adam', 'adamw' or 'sgd', got 'lion'."),
        (["--device", "tpu"], "options: device: input should be 'auto', 'cpu' or 'cuda', got 'tpu'."),
        (["--seeds", "0,0"], "options: seeds: expected each value once, got 0 twice."),
        (["--seeds", "99999999999999999999"], "options: seeds.0: input should be less than or equal to 2147483647"),
        (["--config", "nowhere.toml"], "nowhere.toml: no such file."),
        (["lung"], "lung: expected --data with a MedMNIST .npz or a manifest.csv, got none."),
        (["lung", "--data", "nowhere.npz"], "nowhere.npz: expected a .npz file, a .csv manifest or a folder"),
    ],
)
def test_a_mistake_in_a_setting_is_one_line_on_stderr(capsys, tmp_path, arguments, expected):
    task = [] if arguments[0].startswith("lung") else ["tissue"]
    # `--out` first, so that "Reading the images" is not said of a mistake found earlier.
    assert run(["study", *task, *arguments, "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"mednorm: {expected}")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.out + captured.err


@pytest.mark.parametrize("command", ["study", "train"])
def test_a_file_in_the_place_of_the_output_folder_is_named(capsys, tmp_path, lung_npz, command):
    taken = tmp_path / "taken"
    taken.write_text("mine")
    assert run([command, "lung", "--data", str(lung_npz), "--epochs", "1", "--out", str(taken)]) == 2
    said = capsys.readouterr().err
    assert said == f"mednorm: {taken}: expected a folder, or room for one, got: File exists. Choose another.\n" or (
        said.startswith(f"mednorm: {taken}") and "expected a folder" in said
    )
    assert taken.read_text() == "mine"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"no archive at all"])
def test_a_damaged_npz_is_one_line(capsys, tmp_path, content):
    (tmp_path / "bad.npz").write_bytes(content)
    said = refused(capsys, "data", "describe", str(tmp_path / "bad.npz"))
    assert said.startswith("bad.npz: expected")


def test_the_programs_real_entry_says_a_mistake_in_one_line_and_exits_2(tmp_path):
    done = subprocess.run([MEDNORM, "report", str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"mednorm: {tmp_path / 'results.json'}: no such file.")
    assert done.stderr.count("\n") == 1


def test_the_completion_script_of_a_shell_is_printed():
    done = subprocess.run(
        [MEDNORM], capture_output=True, text=True, timeout=120, env=os.environ | {"_MEDNORM_COMPLETE": "source_bash"}
    )
    assert done.returncode == 0
    assert "complete -o default -F _mednorm_completion mednorm" in done.stdout
    checked = subprocess.run(["bash", "-n"], input=done.stdout, text=True, timeout=60)
    assert checked.returncode == 0


def test_the_completion_knows_the_commands_and_options():
    def completed(line):
        environment = {"_MEDNORM_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
        done = subprocess.run([MEDNORM], capture_output=True, text=True, timeout=120, env=os.environ | environment)
        return done.stdout.split()

    assert completed("mednorm st") == ["study"]
    assert completed("mednorm study --lear") == ["--learning-rate"]


def test_the_options_offer_the_completion_script(capsys):
    run(["--help"])
    assert "--show-completion" in capsys.readouterr().out


def test_a_machine_without_the_packages_of_the_command_line_is_told_which_extra_to_install():
    code = """
import sys
sys.modules["typer"] = None
from mednorm.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr == 'mednorm: the command line needs typer. Run: pip install "mednorm[study]"\n'


def test_help_does_not_wait_for_torch():
    code = """
import sys
from mednorm.cli.app import run
run(["study", "--help"])
print([name for name in ("torch", "monai", "lightning", "plotly", "scipy") if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stderr == "[]\n"


def test_the_real_entry_imports_no_tensorflow_where_that_is_installed():
    pytest.importorskip("tensorboard")
    code = (
        "import sys, mednorm.cli\n"
        "sys.argv = ['mednorm', '--version']\n"
        "try:\n    mednorm.cli.main()\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "import torch.utils.tensorboard\n"
        "print('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["mednorm", done.stdout.split()[1], "False"], done.stderr
