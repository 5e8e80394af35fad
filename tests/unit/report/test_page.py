"""The page: whole, alone, and deaf to what the data says."""

import base64
import hashlib
import itertools
import json
import pathlib
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from plotly.offline import get_plotlyjs

from mednorm.errors import RunError
from mednorm.report import write_report
from mednorm.results import read_results
from tests.report_fixture import HOSTILE, make_results, write_samples

RECORDED = sorted((pathlib.Path(__file__).parents[3] / "docs" / "results").glob("*.json"))
assert RECORDED


class _Reader(HTMLParser):
    """Collects tags, scripts and visible text, as a browser's parser would see them."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.tags, self.scripts, self.styles, self.words, self._in = [], [], [], [], None

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in = tag
        if tag in ("script", "style"):
            (self.scripts if tag == "script" else self.styles).append("")

    def handle_endtag(self, tag):
        self._in = None

    def handle_data(self, data):
        if self._in == "script":
            self.scripts[-1] += data
        elif self._in == "style":
            self.styles[-1] += data
        else:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def _read(path):
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    results = make_results(more=True)
    write_samples(results, folder)
    return _read(write_report(results, folder))


def test_nothing_is_fetched_from_anywhere(page):
    for tag, attributes in page.tags:
        assert tag not in ("base", "iframe", "object", "embed")
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            assert re.match(r"data:|#|$", attributes.get(name) or ""), (tag, attributes)
    assert not re.search(r"url\(|@import|https?:", page.styles[0])
    assert len(page.styles) == 1


def test_plotly_is_there_once_and_unchanged(page):
    assert [script == get_plotlyjs() for script in page.scripts] == [False, True, False]


def test_only_the_two_scripts_of_the_page_may_run(page):
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in page.scripts[1:]]
    assert rules["default-src"] == "'none'"
    assert rules["script-src"].split() == [f"'sha256-{digest}'" for digest in hashes]


def test_hostile_text_is_shown_as_text_and_makes_no_tag(page):
    assert f"Site {' '.join(HOSTILE.split())} gave most of the images." in page.text
    assert not [attributes for _, attributes in page.tags if any(name.startswith("on") for name in attributes)]
    assert [attributes.get("type") for tag, attributes in page.tags if tag == "script"] == [
        "application/json",
        None,
        None,
    ]


def test_the_data_in_the_script_can_neither_end_it_nor_break_its_lines(page):
    assert not re.search("[<>&\u2028\u2029]", page.scripts[0])
    assert [drawing["key"] for drawing in json.loads(page.scripts[0])] == [
        "batch-size", "modes", "learning", "gap", "shares", "regularizers", "gradients", "layers", "sites", "cost",
    ]  # fmt: skip


def test_sections_come_in_their_order_and_no_heading_level_is_skipped(page):
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    sections = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    assert sections == ["findings", "arms", "charts-section", "samples", "made"]


def test_sentences_are_grouped_by_topic_in_the_fixed_order(page):
    findings = page.text[page.text.index("Quality ▲") : page.text.index("One row for each combination")]
    places = [
        findings.index(topic)
        for topic in ("Quality ", "Speed ", "Batch size ", "Evaluation modes ", "Sites ", "Cost ", "Data ", "Caution ")
    ]
    assert places == sorted(places)
    assert "▲ better With batch normalization the test Dice was higher than without" in findings
    assert "≈ not distinguishable Group and batch normalization could not be told apart" in findings


def test_a_sentence_is_shown_as_it_is_and_nothing_is_added(page):
    """A sentence holds its own numbers; the page once repeated the difference behind it."""
    findings = page.text[page.text.index("Quality ▲") : page.text.index("One row for each combination")]
    assert "could not be told apart at batch size 8. Speed ▲ better Batch normalization reached" in findings
    assert "Difference" not in findings


def test_every_image_has_a_text_and_every_table_a_caption(page):
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 4 * 6 * 3
    assert all(image["alt"] for image in images)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("caption") == tags.count("table") == 4


def test_the_second_table_is_folded_away_and_shows_hostile_names_as_they_are(page):
    assert [attributes for tag, attributes in page.tags if tag == "details"] == [{"class": "more"}]
    assert "test dice <i>fluid</i>" in page.text
    assert not [tag for tag, _ in page.tags if tag == "i"]


@pytest.mark.parametrize(
    "part",
    [
        "Interval over seeds The mean over seeds and its 95 % Student t interval",
        "Interval over patients A 95 % bootstrap interval",
        "only if every interval it has leaves out zero, on the same side: that over seeds and that over patients.",
        "Evaluation modes Batch normalization is judged with running statistics",
        "HD95 The 95 % Hausdorff distance",
        "A patient counts once",
    ],
)
def test_the_page_explains_what_it_shows(page, part):
    assert part in page.text


def test_the_page_explains_nothing_that_it_does_not_show(tmp_path):
    text = _read(write_report(make_results().model_copy(update={"runs": []}), tmp_path)).text
    for part in ("bootstrap", "Folds", "Evaluation modes", "Calibration error", "A patient counts once"):
        assert part not in text
    assert "Each image counts once." in text


def test_folds_are_said_at_the_top_and_explained(tmp_path):
    results = make_results(more=True, seeds=[0], folds=3, kind="classification")
    metrics = [
        arm.model_copy(update={"metrics": arm.metrics | {"test_calibration_error": arm.metrics["test_auc"]}})
        for arm in results.summary
    ]
    write_samples(results, tmp_path)
    text = _read(write_report(results.model_copy(update={"summary": metrics}), tmp_path)).text
    assert "75 runs, seed 0, 3 folds, 12 epochs." in text
    assert "in BasicUNet and in deeper_unet" in text
    assert "Each seed trained 3 networks, each tested on another part of the data." in text
    assert "seed 0, first fold." in text
    assert "Calibration error How far the stated probability" in text


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_recorded_results_make_a_page(tmp_path, path):
    results = read_results(path)
    runs = [run.model_copy(update={"samples": None}) for run in results.runs]
    page = _read(write_report(results.model_copy(update={"runs": runs}), tmp_path))
    drawn = [drawing["key"] for drawing in json.loads(page.scripts[0])]
    assert {"learning", "gap", "gradients", "cost"} <= set(drawn)
    for arm in results.summary:
        assert f"{arm.metrics[f'test_{results.study.main_metric}'].mean:.3f}" in page.text


def test_identifiers_are_unique_and_references_lead_somewhere(page):
    found = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(found) == len(set(found))
    for _, attributes in page.tags:
        for name in ("aria-labelledby", "href"):
            target = attributes.get(name, "")
            if name == "aria-labelledby" or target.startswith("#"):
                assert target.lstrip("#") in {*found, ""}


def test_the_page_says_how_it_was_made(page):
    for part in (
        "mednorm study tissue --out results --seeds 0,1,2 && echo '<done>'",
        "torch 2.13.0",
        "Example CPU",
        "AdamW, learning rate 0.001",
        "batch_sizes [8, 2, 32]",
        "The first epoch in which val dice reached 0.800.",
        "Target: 95 % of what the arm without normalization reached.",
    ):
        assert part in page.text


def test_a_sentence_that_holds_its_interval_is_not_given_it_again(tmp_path):
    results = make_results().model_copy(update={"runs": []})
    said = results.statements[1].model_copy(
        update={"text": "Dice 0.9 against 0.8, difference +0.051 [+0.041, +0.061]."}
    )
    text = _read(write_report(results.model_copy(update={"statements": [said]}), tmp_path)).text
    assert "difference +0.051 [+0.041, +0.061]." in text
    assert "Difference +" not in text


def test_one_seed_is_said_in_the_table(tmp_path):
    results = make_results("classification", seeds=[0])
    write_samples(results, tmp_path)
    text = _read(write_report(results, tmp_path)).text
    assert "one seed" in text
    assert "✗ wrong" in text
    assert "predicted: pneumonia (probability 0.875)" in text


def test_a_study_with_nothing_in_it_still_makes_a_page(tmp_path):
    results = make_results().model_copy(update={"runs": [], "summary": [], "statements": []})
    page = _read(write_report(results, tmp_path))
    assert "This study holds no statements." in page.text
    assert [a["id"] for tag, a in page.tags if tag == "section"] == ["findings", "arms", "made"]


def test_the_page_goes_where_it_is_told(tmp_path):
    results = make_results().model_copy(update={"runs": []})
    assert write_report(results, tmp_path) == tmp_path / "report.html"
    out = tmp_path / "new" / "page.html"
    assert write_report(results, tmp_path, out) == out
    assert out.read_bytes() == (tmp_path / "report.html").read_bytes()
    assert sorted(path.name for path in out.parent.iterdir()) == ["page.html"]


def test_a_failed_write_leaves_the_old_page_and_no_remains(tmp_path):
    results = make_results()
    (tmp_path / "report.html").write_text("the old page")
    with pytest.raises(RunError, match="found none"):
        write_report(results, tmp_path)
    assert (tmp_path / "report.html").read_text() == "the old page"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(RunError, match="expected a place to write the report") as caught:
        write_report(make_results().model_copy(update={"runs": []}), tmp_path, tmp_path / "taken")
    assert str(tmp_path / "taken") in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_the_report_imports_nothing_heavy_and_nothing_else_of_the_package():
    code = (
        "import sys, mednorm.report\n"
        "heavy = {'torch', 'lightning', 'monai', 'numba', 'scipy', 'keras'}\n"
        "ours = ('mednorm.report', 'mednorm.results', 'mednorm.errors', 'mednorm.files', 'mednorm._version')\n"
        "sys.exit(' '.join(name for name in sys.modules if name.split('.')[0] in heavy\n"
        "    or (name.startswith('mednorm.') and not name.startswith(ours))) or None)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("kept")
    results = make_results().model_copy(update={"runs": []})
    with pytest.raises(RunError, match=r"file: expected a folder, or room for one, got: File exists"):
        write_report(results, tmp_path, tmp_path / "file" / "page.html")
    assert (tmp_path / "file").read_text() == "kept"


def test_a_full_disk_leaves_the_old_page_and_no_part_of_the_new(tmp_path, monkeypatch):
    (tmp_path / "report.html").write_text("the old page")

    def full(path, content):
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    with pytest.raises(RunError, match=r"report\.html: expected a place to write the report, got: .*No space left"):
        write_report(make_results().model_copy(update={"runs": []}), tmp_path)
    assert (tmp_path / "report.html").read_text() == "the old page"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_study_that_names_no_regularizer_still_makes_a_page(tmp_path):
    """The page once ended in an IndexError: the schema allows the list to be empty."""
    results = make_results().model_copy(update={"runs": []})
    study = results.study.model_copy(update={"regularizers": []})
    page = _read(write_report(results.model_copy(update={"study": study}), tmp_path))
    assert "findings" in [a.get("id") for tag, a in page.tags if tag == "section"]
