import json
import shutil

import pytest

from experiments import compare, sweep, tasks, train
from experiments.common.errors import UserError
from experiments.training import comparison, programs, sweeps
from tests import toy_task
from tests.commands import exit_code, python, refused
from tests.toy_runs import run_job

# ml_collections loads config files in a way that Python has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*load_module:DeprecationWarning")

TINY = "experiments/configs/bert_tiny.py"


def write(path, content):
    path.write_bytes(content)
    return path


RATE = "--config.optimizers.adamw.learning_rate"
ADAMW = "--config.optimizer.name=adamw"


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--config.optimizer.name=sgd"], ["sgd", "acclip, ", "adamw"]),
        (["--config.optimizers.acclip.transform=foo"], ["foo", "gclip", "momentum"]),
        (["--config.task=chess"], ["config.task=chess", "mlm"]),
        ([ADAMW, f"{RATE}=0"], ["adamw.learning_rate=0", "above 0"]),
        ([ADAMW, f"{RATE}=-1"], ["adamw.learning_rate=-1", "above 0"]),
        ([ADAMW, f"{RATE}=nan"], ["adamw.learning_rate=nan", "finite"]),
        ([ADAMW, f"{RATE}=inf"], ["adamw.learning_rate=inf", "finite"]),
        ([ADAMW, f"{RATE}=fast"], ["learning_rate=fast", "could not convert"]),
        (
            [ADAMW, "--config.optimizers.adamw.weight_decay=-1"],
            ["adamw.weight_decay=-1", "0 or more"],
        ),
        (
            [ADAMW, "--config.optimizers.adamw.kwargs.b2=1"],
            ["adamw.kwargs.b2=1", "[0, 1)"],
        ),
        (
            [ADAMW, "--config.optimizers.adamw.kwargs.eps=nan"],
            ["adamw.kwargs.eps=nan", "0 or more"],
        ),
        (
            ["--config.optimizers.acclip.kwargs.alpha=-2"],
            ["optimizers.acclip: alpha", "-2"],
        ),
        (["--config.steps=0"], ["config.steps=0", "an integer in [1, 10000000]"]),
        (["--config.steps=many"], ["config.steps=many", "int"]),
        (["--config.batch_size=-8"], ["config.batch_size=-8", "[1, 2147483647]"]),
        (["--config.log_every=0"], ["config.log_every=0", "[1, 2147483647]"]),
        (["--config.seed=-1"], ["config.seed=-1", "[0, 4294967295]"]),
        (["--config.seed=4294967296"], ["config.seed=4294967296", "4294967295]"]),
        (["--config.max_batch_size=2147483648"], ["max_batch_size=2147483648"]),
        (["--config.accumulate=300000000"], ["accumulate=300000000"]),
        (["--config.report.loss_scale=loga"], ["loss_scale=loga", "linear, log"]),
        (["--config.model.num_layers=1000000000"], ["num_layers=", "[1, 1000]"]),
        (
            ["--config.model.width=100000000"],
            ["needs", "bytes of memory", "which has", "config.model"],
        ),
        (["--config.warmup_fraction=2"], ["config.warmup_fraction=2", "[0, 1]"]),
        (["--config.data.sequence_length=2"], ["sequence_length=2", "[3, 1048576]"]),
        (["--config.data.vocab_size=5"], ["vocab_size=5", "[6, 1048576]"]),
        (["--config.data.split_seed=-1"], ["split_seed=-1", "[0, 4294967295]"]),
        (["--config.data.sha256=abc"], ["sha256=abc", "the data found has"]),
        (["--config.data.path=/no/such/text"], ["/no/such/text", "No such file"]),
        (["--config.model.num_heads=5"], ["num_heads=5", "width=64"]),
        (["--config.model.width=0"], ["width=0", "[1, 2147483647]"]),
        (["--config.model.dropout=1"], ["dropout=1", "[0, 1)"]),
        (["--config.model.dtype=int8"], ["dtype=int8", "bfloat16"]),
        (["--config.colour=red"], ["no field", "colour"]),
        (["--colour=red"], ["Unknown command line flag", "colour"]),
        (["red"], ["red", "unknown argument"]),
    ],
    ids=lambda value: value[-1].removeprefix("--config."),
)
def test_bad_input_is_refused_in_one_line(tmp_path, argv, parts):
    workdir = tmp_path / "run"
    flags_ = [f"--config={TINY}:smoke", f"--workdir={workdir}"]
    message = refused(train.main, *flags_, *argv)
    for part in parts:
        assert part in message
    assert not (workdir / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "no text"),
        (b"  \n \n", "no text"),
        (b"caf\xe9 au lait\n\nbread\n", "not UTF-8"),
        (b"one document only", "at least two different"),
        (b"a b c d\n\nd e f\n\ng", "one sequence needs 30"),
    ],
)
def test_bad_text_is_refused_in_one_line(tmp_path, content, part):
    text = write(tmp_path / "text.txt", content)
    message = refused(
        train.main,
        f"--config={TINY}:smoke",
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.path={text}",
    )
    assert part in message
    assert str(text) in message


def test_bad_config_file_and_variant_are_refused(tmp_path):
    workdir = f"--workdir={tmp_path}"
    message = refused(train.main, "--config=no/such.py:smoke", workdir)
    assert "--config=no/such.py: No such file or directory" in message
    message = refused(train.main, f"--config={TINY}:huge", workdir)
    assert "huge: must be full, smoke or quick" in message


def test_unwritable_work_directory_is_refused(tmp_path):
    file = write(tmp_path / "file", b"kept")
    message = refused(train.main, f"--config={TINY}:smoke", f"--workdir={file}/run")
    assert f"{file}/run: Not a directory" in message
    assert file.read_bytes() == b"kept"


def test_exit_status_and_stderr_of_the_real_command(tmp_path):
    done = python(
        "-m",
        "experiments.train",
        f"--config={TINY}:smoke",
        f"--workdir={tmp_path}",
        "--config.optimizer.name=sgd",
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: config.optimizer.name=sgd: ")
    assert done.stderr.count("\n") == 1


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """Puts the toy task behind the commands; returns what poisons it."""
    poison = {}
    monkeypatch.setitem(
        tasks.TASKS, "toy", lambda config: toy_task.source(poison.get("step"))
    )
    return poison


def toy_flags(tmp_path, *others):
    shared = [f"--config={TINY}:smoke", f"--workdir={tmp_path}"]
    return [*shared, "--config.task=toy", "--config.num_devices=1", *others]


def test_diverged_run_ends_with_the_step_and_keeps_its_metrics(tmp_path, toy):
    toy["step"] = 2
    for _ in range(2):  # the second time, from what the first one left
        message = refused(train.main, *toy_flags(tmp_path))
        assert "non-finite loss at step 2" in message
        assert str(tmp_path / "metrics.jsonl") in message
    kinds = [
        json.loads(line)["kind"]
        for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert kinds == ["train", "eval", "final"]


def test_train_says_how_it_ended(tmp_path, toy, capsys):
    assert exit_code(train.main, *toy_flags(tmp_path)) is None
    assert "validation loss" in capsys.readouterr().out


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """The real command on the embedded text."""
    workdir = tmp_path_factory.mktemp("compare")
    argv = [
        f"--config={TINY}:smoke",
        f"--workdir={workdir}",
        "--config.model.num_layers=1",
        f"--config.compare.optimizers={OPTIMIZERS}",
    ]
    return workdir, python("-m", "experiments.compare", *argv)


OPTIMIZERS = ("acclip", "gclip")


def test_compare_ends_with_table_and_report(compared):
    workdir, done = compared
    assert done.returncode == 0, done.stderr
    table = done.stdout[done.stdout.rindex("took ") :]
    for name in OPTIMIZERS:
        assert name in table
        assert (workdir / name / "tokenizer.json").is_file()
    for name in ("report.html", "loss.png", "config.json"):
        assert (workdir / name).stat().st_size > 100


def test_compare_gives_every_optimizer_the_same_start(compared):
    workdir, _ = compared
    first, final = set(), set()
    for name in OPTIMIZERS:
        lines = (workdir / name / "metrics.jsonl").read_text().splitlines()
        first.add(json.loads(lines[0])["loss"])
        final.add(json.loads(lines[-1])["loss"])
    assert len(first) == 1
    assert len(final) == len(OPTIMIZERS)


def test_compare_reuses_finished_runs(tmp_path, toy, capsys):
    config = toy_task.config(compare={"optimizers": ("adamw", "momentum")})
    comparison.compare(config, tmp_path)
    lines = (tmp_path / "adamw" / "metrics.jsonl").read_bytes()
    (tmp_path / "momentum" / "metrics.jsonl").write_bytes(b"")
    shutil.rmtree(tmp_path / "momentum" / "checkpoints")
    capsys.readouterr()
    comparison.compare(config, tmp_path)
    assert capsys.readouterr().out.count("already complete") == 1
    assert (tmp_path / "adamw" / "metrics.jsonl").read_bytes() == lines
    assert (tmp_path / "momentum" / "interrupted-1").is_dir()


def test_compare_of_another_config_is_refused(tmp_path, toy):
    config = toy_task.config(compare={"optimizers": ("adamw",)})
    comparison.compare(config, tmp_path)
    config.batch_size = 4
    with pytest.raises(UserError, match=r"config.batch_size was 8, now 4"):
        comparison.compare(config, tmp_path)


def test_diverged_rival_is_a_row_of_the_table(tmp_path, toy):
    config = toy_task.config(steps=3, compare={"optimizers": ("momentum", "adamw")})
    config.optimizers.momentum.learning_rate = 1e38
    table = comparison.compare(config, tmp_path)
    assert "diverged at step" in table
    assert "adamw" in table
    final = json.loads(
        (tmp_path / "adamw" / "metrics.jsonl").read_text().splitlines()[-1]
    )
    assert final["status"] == "complete"


def test_compare_fails_when_every_run_diverged(tmp_path, toy, capsys):
    toy["step"] = 1
    config = toy_task.config(compare={"optimizers": ("momentum", "adamw")})
    with pytest.raises(UserError, match="every run diverged") as caught:
        comparison.compare(config, tmp_path)
    assert "\n" not in str(caught.value)
    assert "diverged at step 1" in capsys.readouterr().out
    assert (tmp_path / "report.html").is_file()


def test_last_bad_optimizer_fails_before_the_first_run(tmp_path, toy):
    config = toy_task.config(compare={"optimizers": ("adamw", "nadam")})
    with pytest.raises(UserError, match="nadam"):
        comparison.compare(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def toy_sweep(**grids):
    return toy_task.config(sweep={"learning_rates": grids})


def test_sweep_compiles_once_per_optimizer(tmp_path, toy, monkeypatch):
    built = []
    build = programs.build
    monkeypatch.setattr(
        programs, "build", lambda *args: built.append(args) or build(*args)
    )
    config = toy_sweep(adamw=(0.1, 0.2, 0.4), momentum=(0.01, 0.02, 0.03))
    finals = sweeps.sweep(config, tmp_path, ("adamw", "momentum"))
    assert len(built) == 2
    assert [(final["optimizer"], final["learning_rate"]) for final in finals] == [
        ("adamw", 0.1),
        ("adamw", 0.2),
        ("adamw", 0.4),
        ("momentum", 0.01),
        ("momentum", 0.02),
        ("momentum", 0.03),
    ]
    assert len({final["loss"] for final in finals}) == 6


def test_sweep_reuses_points_when_its_grid_grows(tmp_path, toy, capsys):
    sweeps.sweep(toy_sweep(adamw=(0.1, 0.2, 0.4)), tmp_path, ("adamw",))
    capsys.readouterr()
    grown = toy_sweep(adamw=(0.1, 0.2, 0.4, 0.8))
    finals = sweeps.sweep(grown, tmp_path, ("adamw",))
    assert capsys.readouterr().out.count("already complete") == 3
    assert len(finals) == 4


@pytest.mark.nightly
def test_sweep_point_equals_a_run_of_its_own(tmp_path, toy):
    finals = sweeps.sweep(toy_sweep(adamw=(0.1, 0.2)), tmp_path / "sweep", ("adamw",))
    config = toy_task.config()
    config.optimizers.adamw.learning_rate = 0.2
    final, _ = run_job(config, tmp_path / "run", toy_task.source())
    assert final["loss"] == finals[1]["loss"]


def test_sweep_command_writes_its_tables(tmp_path, toy, capsys):
    results = tmp_path / "table"
    argv = ["--optimizers=adamw", f"--results={results}"]
    assert exit_code(sweep.main, *toy_flags(tmp_path / "work"), *argv) is None
    table = results.with_suffix(".md").read_text()
    assert table in capsys.readouterr().out
    points = results.with_suffix(".jsonl").read_text().splitlines()
    rates = [json.loads(point)["learning_rate"] for point in points]
    assert rates == list(toy_task.config().sweep.learning_rates.adamw)
    for rate in rates:
        assert f"{rate:g}" in table


def test_sweep_of_an_optimizer_without_grid_is_refused(tmp_path, toy):
    message = refused(sweep.main, *toy_flags(tmp_path), "--optimizers=nadam")
    assert "nadam" in message
    assert "adamw" in message


def final(name, rate, loss):
    return {
        "optimizer": name,
        "learning_rate": rate,
        "loss": loss,
        "status": "diverged" if loss is None else "complete",
        "step": 100,
        "accuracy": 0.25,
        "train_seconds": 12.0,
        "time": 0,
        "hardware": "2-core CPU",
        "command": "python",
        "versions": {"jax": "1"},
        "data": {"source": "some", "sha256": "abc"},
        "baselines": {"token frequencies": 5.0},
    }


POINTS = [
    final("adamw", 0.1, 3.0),
    final("adamw", 0.2, 2.0),
    final("adamw", 0.4, None),
    final("gclip", 1.0, 4.0),
    final("gclip", 2.0, 3.5),
]


def test_sweep_knows_the_best_and_the_edge():
    rates = {name: f["learning_rate"] for name, f in sweeps.best(POINTS).items()}
    assert rates == {"adamw": 0.2, "gclip": 2.0}
    assert sweeps.at_edge(POINTS) == ["gclip"]
    assert sweeps.at_edge(POINTS[:2]) == ["adamw"]


def test_sweep_table_shows_best_divergence_and_edge():
    config = toy_task.config()
    table = sweeps.page(POINTS, config)
    assert "| **adamw** | **0.2** | **2.000** |" in table
    assert "| adamw | 0.4 | diverged at step 100 |" in table
    assert "edge of the grid for: gclip." in table
    assert "edge of its grid" in sweeps.page(POINTS[:3], config)
    assert "nats per masked token after 100 steps" in table
    assert "| learning rate | validation loss | masked accuracy |" in table


SMOKE = f"--config={TINY}:smoke"


def test_a_workdir_that_is_empty_or_not_ours_is_refused(tmp_path):
    assert "--workdir=" in refused(train.main, SMOKE, "--workdir=")
    write(tmp_path / "metrics.jsonl", b'{"kind": "final"}\n')
    message = refused(train.main, SMOKE, f"--workdir={tmp_path}")
    assert "metrics.jsonl without config.json" in message
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_damaged_tokenizer_is_refused(tmp_path):
    write(tmp_path / "tokenizer.json", b"garbage")
    message = refused(train.main, SMOKE, f"--workdir={tmp_path}")
    assert "tokenizer.json: not a tokenizer" in message


def test_a_validation_part_shorter_than_a_sequence_is_refused(tmp_path):
    text = write(tmp_path / "two.txt", b"one long paragraph " * 200 + b"\n\nhi")
    flags_ = (SMOKE, f"--config.data.path={text}", "--config.data.split_seed=1")
    message = refused(train.main, *flags_, f"--workdir={tmp_path / 'run'}")
    assert "validation tokens" in message
    assert not (tmp_path / "run").exists()


def test_a_vocabulary_beyond_reason_is_refused(tmp_path):
    size = "--config.data.vocab_size=1000000000"
    message = refused(train.main, SMOKE, size, f"--workdir={tmp_path / 'run'}")
    assert "vocab_size=1000000000: must be an integer in [6, 1048576]" in message


def test_names_and_grids_are_checked_before_the_first_run(tmp_path):
    where = f"--workdir={tmp_path / 'run'}"
    twice = "--config.compare.optimizers=('adamw','adamw')"
    assert "adamw,adamw: must be" in refused(compare.main, SMOKE, where, twice)
    empty = "--config.sweep.learning_rates.adamw=()"
    message = refused(sweep.main, SMOKE, where, "--optimizers=adamw", empty)
    assert "learning_rates.adamw=(): must be 1 or more items" in message
    file = write(tmp_path / "file", b"")
    results = f"--results={file / 'x'}"
    assert "a writable folder" in refused(sweep.main, SMOKE, where, results)
