"""The report: its numbers, its robustness and that it needs no other file."""

import html.parser
import io
import json
import re
import types

import matplotlib.image
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from experiments.common.errors import UserError
from experiments.reporting import figures, report
from experiments.reporting.page import title
from experiments.runs import reading

BASELINES = {"token frequencies": 5.671234567890123}
DATA = {
    "source": "pydoc_data.topics",
    "sha256": "0123456789abcdef" * 4,
    "vocabulary": 512,
    "train_documents": 70,
    "train_tokens": 201_234,
    "validation_documents": 12,
    "validation_tokens": 20_123,
}
SHARED = {
    "task": "mlm",
    "seed": 0,
    "steps": 2000,
    "batch_size": 64,
    "data": {"path": "", "sha256": DATA["sha256"], "sequence_length": 32},
    "model": {"num_layers": 2, "width": 64},
    "report": {
        "model": "BERT",
        "loss_unit": "nats per masked token",
        "loss_scale": "linear",
        "accuracy_name": "masked accuracy",
    },
}
# What a comparison has, and its runs have not.
COMPARISON = {**SHARED, "optimizers": {"acclip": {}, "adamw": {}, "nadam": {}}}


def config_of(name):
    optimizer = {
        "name": name,
        "transform": "acclip",
        "learning_rate": 0.003,
        "weight_decay": 0.01,
        "kwargs": {"eps": 1e-8, "normalize": True},
    }
    return {**SHARED, "optimizer": optimizer}


def records_of(end_loss, *, steps=2000, status="complete"):
    """Losses that fall from 6.3 to ``end_loss``, and what ends the run, if it ends."""

    def loss(step):
        return 6.3 + (end_loss - 6.3) * (step / 2000) ** 0.7

    for step in range(20, steps + 1, 20):
        wave = 0.05 * ((step // 20 * 7) % 11 - 5) / 5
        yield {
            "kind": "train",
            "step": step,
            "loss": loss(step) + wave,
            "learning_rate": 0.003,
            "steps_per_second": 33.3,
        }
        if step % 200 == 0:
            accuracy = 0.3 - loss(step) / 30
            yield {
                "kind": "eval",
                "step": step,
                "loss": loss(step),
                "accuracy": accuracy,
            }
    if status:
        done = {"loss": loss(steps), "accuracy": 0.3 - loss(steps) / 30}
        yield {
            "kind": "final",
            "step": steps,
            **(done if status == "complete" else {"loss": None}),
            "status": status,
            "learning_rate": 0.003,
            "train_seconds": 61.23456789,
            "compile_seconds": 7.654321,
            "parameters": 148_352,
            "baselines": BASELINES,
            "data": DATA,
            "versions": {"python": "3.11.9", "jax": "0.10.2", "optax_heavytail": "0.1"},
            "hardware": "2-core x86_64 CPU",
            "command": "python -m experiments.compare --config=a.py --workdir=b",
        }


def write_run(workdir, name, records, config=None):
    folder = workdir / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config or config_of(name)))
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(lines)


def write_comparison(workdir, **end_losses):
    """One complete run per name, with its final validation loss."""
    workdir.mkdir(exist_ok=True)
    (workdir / "config.json").write_text(json.dumps(COMPARISON))
    for name, loss in end_losses.items():
        write_run(workdir, name, records_of(loss))
    return list(end_losses)


def metrics_of(workdir, name, kind):
    lines = (workdir / name / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["kind"] == kind]


class Page(html.parser.HTMLParser):
    """Tags with their attributes, texts, and the numbers of the table."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.numbers = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "data":
            self.numbers.append(float(dict(attrs)["value"]))

    def handle_data(self, data):
        self.texts.append(data)


def page_of(workdir):
    return Page((workdir / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("comparison")
    names = write_comparison(workdir, adamw=4.4, acclip=4.341234567890123, gclip=5.7)
    return workdir, names, report.write_report(workdir, names)


def test_results_are_the_final_records(comparison):
    workdir, _, _ = comparison
    results = json.loads((workdir / "results.json").read_text())
    assert [row["optimizer"] for row in results["runs"]] == ["acclip", "adamw", "gclip"]
    assert results["baselines"] == BASELINES
    keys = ["loss", "accuracy", "train_seconds", "compile_seconds", "step"]
    for row in results["runs"]:
        (final,) = metrics_of(workdir, row["optimizer"], "final")
        assert [row[key] for key in keys] == [final[key] for key in keys]
        assert row["learning_rate"] == final["learning_rate"]
        expected = final["loss"] - BASELINES["token frequencies"]
        assert row["differences"] == {"token frequencies": expected}
        assert row["steps_per_second"] == final["step"] / final["train_seconds"]


def test_page_has_the_numbers_of_the_final_records(comparison):
    workdir, _, _ = comparison
    expected = []
    for name in ("acclip", "adamw", "gclip"):
        (final,) = metrics_of(workdir, name, "final")
        seconds = final["train_seconds"]
        difference = final["loss"] - BASELINES["token frequencies"]
        expected += [final["learning_rate"], final["loss"], difference]
        expected += [final["accuracy"], seconds, final["step"] / seconds]
    assert page_of(workdir).numbers == expected


def test_page_tells_what_was_run_on_what(comparison):
    workdir, _, _ = comparison
    text = "".join(page_of(workdir).texts)
    for fact in (
        "acclip(weight_decay=0.01, eps=1e-08, normalize=True)",
        DATA["sha256"],
        "pydoc_data.topics",
        "201,234",
        "148,352",
        "batch size 64",
        "sequence length 32",
        "2-core x86_64 CPU",
        "python 3.11.9, jax 0.10.2, optax_heavytail 0.1",
        "python -m experiments.compare --config=a.py --workdir=b",
        json.dumps(COMPARISON, indent=2, sort_keys=True),
    ):
        assert fact in text


def test_console_table_and_summary(comparison):
    _, _, text = comparison
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    (acclip,) = [line for line in lines if line.startswith("acclip ") and "|" in line]
    cells = [cell.strip() for cell in acclip.split("|")]
    numbers = ["0.003", "4.341", "-1.330", "15.5%", "61.2", "32.7"]
    assert cells == ["acclip", *numbers, "complete"]
    words = " ".join(text.split())
    assert "acclip ends with the lowest validation loss, 4.341 nats" in words
    assert "1.330 below what always predicting the token frequencies gives" in words
    assert "next is adamw at 4.400." in words


def test_a_best_run_above_the_baseline_is_said_to_be(tmp_path):
    names = write_comparison(tmp_path, momentum=5.9)
    words = " ".join(report.write_report(tmp_path, names).split())
    assert "5.900 nats per masked token, 0.229 above what always" in words


def test_unfinished_runs_are_shown_last_with_where_they_ended(tmp_path):
    names = write_comparison(tmp_path, adamw=4.4)
    write_run(tmp_path, "wild", records_of(9.0, steps=700, status="diverged"))
    write_run(tmp_path, "killed", records_of(4.8, steps=1100, status=None))
    with (tmp_path / "killed/metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    write_run(tmp_path, "empty", [])
    text = report.write_report(tmp_path, ["wild", "killed", "empty", *names])
    statuses = {
        "wild": "diverged at step 700",
        "killed": "interrupted at step 1,100 (last record cut short)",
        "empty": "interrupted at step 0",
    }
    rows = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert {row["optimizer"]: row["status"] for row in rows[1:]} == statuses
    assert [row["loss"] for row in rows[1:]] == [None] * 3
    assert rows[0]["optimizer"] == "adamw"
    page = " ".join(page_of(tmp_path).texts)
    for name, status in statuses.items():
        assert f"{name} {status}" in " ".join(text.split())
        assert page.count(status) == 2  # in the summary and in the table
    assert "wild (diverged)" in page
    assert "killed (interrupted)" in page


def test_only_unfinished_runs(tmp_path):
    write_comparison(tmp_path)
    write_run(tmp_path, "killed", records_of(4.8, steps=100, status=None))
    text = report.write_report(tmp_path, ["killed"])
    assert "No run reached its last step." in text
    assert "not recorded" in " ".join(page_of(tmp_path).texts)


def test_texts_are_escaped(tmp_path):
    name = "<script>alert(1)& $x$"
    names = write_comparison(tmp_path, **{name: 4.4})
    config = {"optimizers": {}, "path": "</pre><img src=x>"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    report.write_report(tmp_path, names)
    page = page_of(tmp_path)
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    # In both figures, the table and the summary.
    assert " ".join(page.texts).count(name) == 4
    assert "</pre><img src=x>" in " ".join(page.texts)


def test_page_needs_no_other_file(comparison):
    workdir, _, _ = comparison
    page = page_of(workdir)
    tags = {tag for tag, _ in page.tags}
    assert not {"script", "link", "img", "iframe", "object", "base"} & tags
    assert "http" not in (workdir / "report.html").read_text()
    places = [
        value
        for _, attributes in page.tags
        for key, value in attributes.items()
        if key in ("src", "href", "xlink:href", "data", "poster", "action")
    ]
    assert places
    assert all(place.startswith("#") for place in places)
    text = (workdir / "report.html").read_text()
    assert "@import" not in text
    assert all(url.startswith("#") for url in re.findall(r"url\((.*?)\)", text))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {place[1:] for place in places} <= set(ids)


def test_colours_of_the_table_are_those_of_the_curves(comparison):
    workdir, names, _ = comparison
    text = (workdir / "report.html").read_text()
    dots = re.findall(r'background: var\(--series-(\d)\)"></span>(\w+)<', text)
    assert dots == [("1", "acclip"), ("0", "adamw"), ("2", "gclip")]
    axes = Figure().subplots()
    figures.draw(axes, [reading.read_run(workdir / name) for name in names], "eval", {})
    colors = [line.get_color() for line in axes.lines]
    variables = [figures.PAGE_COLORS[str(color)] for color in colors]
    assert variables == [f"var(--series-{i})" for i in range(len(names))]


def test_page_follows_the_colour_scheme(comparison):
    workdir, _, _ = comparison
    text = (workdir / "report.html").read_text()
    svg = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert not re.search(r"(fill|stroke): #", svg)
    used = set(re.findall(r"var\((--[\w-]+)\)", text))
    light, dark = text.split("@media (prefers-color-scheme: dark)")[:2]
    dark = dark.split("\n}\n")[0]
    for variable in used:
        assert f"{variable}:" in light
        assert f"{variable}:" in dark


def test_picture_shows_every_curve(comparison):
    workdir, names, _ = comparison
    image = matplotlib.image.imread(io.BytesIO((workdir / "loss.png").read_bytes()))
    assert image.shape[1] > 1000
    assert image.shape[0] > 500
    for i in range(len(names)):
        is_color = np.all(abs(image[..., :3] - to_rgb(figures.color(i))) < 0.01, axis=2)
        assert is_color.sum() > 200
    border = np.concatenate([image[[0, -1]].ravel(), image[:, [0, -1]].ravel()])
    assert np.all(border == 1.0)  # nothing touches the edge


def test_curves_are_the_records(comparison):
    workdir, names, _ = comparison
    axes = Figure().subplots()
    found = [reading.read_run(workdir / name) for name in names]
    figures.draw(axes, found, "eval", BASELINES)
    for line, name in zip(axes.lines, names, strict=False):
        records = metrics_of(workdir, name, "eval")
        expected = [(record["step"], record["loss"]) for record in records]
        np.testing.assert_array_equal(line.get_xydata(), expected)
    dashed = axes.lines[len(names)]
    assert set(dashed.get_ydata()) == set(BASELINES.values())


def test_training_curve_is_a_mean_of_neighbours(comparison):
    workdir, names, _ = comparison
    axes = Figure().subplots()
    figures.draw(axes, [reading.read_run(workdir / names[0])], "train", {})
    records = metrics_of(workdir, names[0], "train")
    losses = [record["loss"] for record in records]
    points = axes.lines[0].get_xydata()
    np.testing.assert_array_equal(points[:, 0], [r["step"] for r in records])
    # 100 records: three neighbours; at the ends there are two.
    np.testing.assert_allclose(points[50, 1], np.mean(losses[49:52]), rtol=1e-12)
    np.testing.assert_allclose(points[0, 1], np.mean(losses[:2]), rtol=1e-12)


def test_one_bad_run_does_not_flatten_the_others(tmp_path):
    write_comparison(tmp_path, adamw=4.4, wild=4000.0)
    axes = Figure().subplots()
    found = [reading.read_run(tmp_path / name) for name in ("adamw", "wild")]
    figures.draw(axes, found, "eval", BASELINES)
    low, high = axes.get_ylim()
    assert 4.0 < low < 4.4
    assert 6.0 < high < 7.5
    assert "\N{UPWARDS ARROW} wild, 4000" in [text.get_text() for text in axes.texts]


def test_labels_do_not_overlap(tmp_path):
    ends = {f"run{i}": 5.6 + 0.001 * i for i in range(6)}
    write_comparison(tmp_path, **ends, adamw=4.4)
    figure = Figure()
    axes = figure.subplots()
    found = [reading.read_run(tmp_path / name) for name in [*ends, "adamw"]]
    figures.draw(axes, found, "eval", BASELINES)
    figure.draw_without_rendering()
    extents = [Text.get_window_extent(text) for text in axes.texts]  # no leaders
    boxes = np.array(sorted((box.y0, box.y1) for box in extents))
    assert len(boxes) == len(ends) + 2
    assert np.all(boxes[1:, 0] >= boxes[:-1, 1])


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_many_labels_stay_beside_the_frame(tmp_path, monkeypatch, scale):
    """24 curves that end in one point, at the bottom of the frame."""
    names = write_comparison(
        tmp_path, **{f"run{i}": 0.03 + 1e-5 * i for i in range(24)}
    )
    found = [reading.read_run(tmp_path / name) for name in names]
    for run in found:
        run.config["report"] = {**SHARED["report"], "loss_scale": scale}
    drawn = []
    monkeypatch.setattr(figures, "_save", lambda figure, kind: drawn.append(figure))
    figures.loss_png("24 runs", found, BASELINES)
    (figure,) = drawn
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert axes.get_yscale() == scale
    frame = axes.get_window_extent()
    texts = [text for text in axes.texts if isinstance(text, Annotation)]
    extents = [Text.get_window_extent(text) for text in texts]
    boxes = np.array(sorted((box.y0, box.y1) for box in extents))
    assert len(boxes) == 25
    assert np.all(boxes[1:, 0] >= boxes[:-1, 1])
    middles = boxes.mean(axis=1)
    assert frame.y0 - 1 < middles[0]
    assert middles[-1] < frame.y1 + 1


def test_a_log_scale_shows_every_positive_loss(tmp_path):
    (name,) = write_comparison(tmp_path, adamw=0.0)
    run = reading.read_run(tmp_path / name)
    run.config["report"] = {**SHARED["report"], "loss_scale": "log"}
    axes = Figure().subplots()
    figures.draw(axes, [run], "eval", BASELINES)
    low, high = axes.get_ylim()
    positive = [record["loss"] for record in run.eval if record["loss"] > 0]
    assert 0 < low < min(positive)
    assert max(positive) < high < 10


@pytest.mark.parametrize("spread", [1.005, 1.5, 8.0, 100.0])
def test_a_log_scale_has_numbers_whatever_it_shows(tmp_path, spread):
    (name,) = write_comparison(tmp_path, adamw=0.031)
    run = reading.read_run(tmp_path / name)
    run.config["report"] = {**SHARED["report"], "loss_scale": "log"}
    for record, loss in zip(run.eval, (0.031 * spread, 0.031), strict=False):
        record["loss"] = loss
    del run.eval[2:]
    figure = Figure()
    axes = figure.subplots()
    figures.draw(axes, [run], "eval", {})
    FigureCanvasAgg(figure).draw()
    low, high = axes.get_ylim()
    ticks = axes.yaxis.get_major_ticks()
    shown = [t.label1.get_text() for t in ticks if low <= t.get_loc() <= high]
    assert len(set(filter(None, shown))) == len(shown) >= 2


def test_runs_on_other_devices_are_comparable(tmp_path):
    names = write_comparison(tmp_path, adamw=4.4, momentum=4.5)
    path = tmp_path / names[1] / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "num_devices": 8, "parallel": "pmap"}))
    report.write_report(tmp_path, names)
    path.write_text(json.dumps({**config, "seed": 1}))
    with pytest.raises(UserError, match=r"differ in more than .*seed was 0, now 1"):
        report.write_report(tmp_path, names)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", "metrics.jsonl:1: not JSON ("),
        ("[1]", "metrics.jsonl:1: a JSON object is needed, found [1]"),
        (
            '{"kind": "train", "step": 1}',
            "record.loss: is missing; must be",
        ),
        (
            '{"kind": "eval", "step": "1", "loss": 2.0}',
            "record.step='1': must be",
        ),
        (
            '{"kind": "x", "step": 1, "loss": 2.0}',
            "record.kind=x: must be one of",
        ),
        ('{"kind": "train", "step": 1, "loss": NaN}', "NaN is not a JSON number"),
    ],
)
def test_a_corrupt_record_is_one_error_and_writes_nothing(tmp_path, line, message):
    names = write_comparison(tmp_path, adamw=4.4)
    metrics = tmp_path / "adamw/metrics.jsonl"
    metrics.write_text(f"{line}\n{metrics.read_text()}")
    (tmp_path / "report.html").write_text("earlier")
    with pytest.raises(UserError) as error:
        report.write_report(tmp_path, names)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert (tmp_path / "report.html").read_text() == "earlier"
    assert not (tmp_path / "results.json").exists()


def test_no_runs(tmp_path):
    write_comparison(tmp_path)
    with pytest.raises(UserError, match="no runs to report"):
        report.write_report(tmp_path, [])


def test_a_run_without_metrics(tmp_path):
    names = write_comparison(tmp_path, adamw=4.4)
    (tmp_path / "adamw/metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"adamw/metrics.jsonl: No such file"):
        report.write_report(tmp_path, names)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_corrupt_config(tmp_path, text):
    names = write_comparison(tmp_path, adamw=4.4)
    (tmp_path / "adamw/config.json").write_text(text)
    with pytest.raises(UserError, match=r"adamw/config.json: "):
        report.write_report(tmp_path, names)


def test_runs_that_differ_in_more_than_the_optimizer(tmp_path):
    names = write_comparison(tmp_path, adamw=4.4)
    write_run(tmp_path, "acclip", records_of(4.3), {**config_of("acclip"), "seed": 1})
    with pytest.raises(UserError, match=r"config\.seed was 0, now 1"):
        report.write_report(tmp_path, [*names, "acclip"])


def test_title_has_the_layers_of_models_that_count_them():
    config = config_of("acclip")
    run = types.SimpleNamespace(config=config)
    assert title([run, run]) == "BERT with 2 layers of width 64 under 2 optimizers"
    config["model"] = {"name": "resnet", "stages": [2, 2], "width": 16}
    config["report"] = {**config["report"], "model": "ResNet-18"}
    assert title([run]) == "ResNet-18 of width 16 under 1 optimizer"
