"""Faults of the trainer of the examples."""

from tests.planted_faults.fault import Fault

FAULTS = [
    Fault(
        "trainer: the optimizer is not told the loss",
        "experiments/training/steps.py",
        "            value=gradients.loss,\n",
        "",
        ("tests/test_experiments_train.py", "-k", "told_the_loss"),
    ),
    Fault(
        "trainer: the config before the records are cut",
        "experiments/runs/folders.py",
        "    try:\n        if step is None:\n            _set_aside",
        "    write_config(workdir, config)\n"
        "    try:\n        if step is None:\n            _set_aside",
        ("tests/test_resuming.py", "-k", "interrupted"),
    ),
    Fault(
        "trainer: a run that has ended takes a new config",
        "experiments/training/trainer.py",
        "    if changes and at.step == num_steps:",
        "    if False:",
        ("tests/test_resuming.py", "-k", "need"),
    ),
    Fault(
        "trainer: a new config without a checkpoint",
        "experiments/training/trainer.py",
        "        if changes:\n            raise",
        "        if False:\n            raise",
        ("tests/test_resuming.py", "-k", "need"),
    ),
    Fault(
        "trainer: an aggregation without gradients of its own",
        "experiments/training/job.py",
        'if resolved.aggregation.name != "mean":',
        "if False:",
        ("tests/test_resuming.py", "-k", "gradients"),
    ),
    Fault(
        "report: runs on other devices are other runs",
        "experiments/reporting/report.py",
        "**folders.without_free(run.config)",
        "**run.config",
        ("tests/test_report.py", "-k", "other_devices"),
    ),
    Fault(
        "checkpoints: a failed last save hides why the run ended",
        "experiments/training/checkpoints.py",
        "with contextlib.suppress(Exception):",
        "if True:",
        ("tests/test_checkpoints.py", "-k", "at_the_end"),
    ),
    Fault(
        "checkpoints: only the own damage counts",
        "experiments/training/checkpoint_files.py",
        "distributed.gather(own)",
        "[own]",
        ("tests/test_checkpoints.py", "-k", "another_process"),
    ),
    Fault(
        "checkpoints: no memory is damage",
        "experiments/training/checkpoint_files.py",
        "return isinstance(error, MemoryError) or any(",
        "return False and any(",
        ("tests/test_checkpoints.py", "-k", "cannot_be_read"),
    ),
    Fault(
        "trainer: a stop is not told",
        "experiments/training/trainer.py",
        "    if outcome.is_stopped:",
        "    if False:",
        ("tests/test_checkpoints.py", "-k", "sigterm"),
    ),
    Fault(
        "loop: a stopped run evaluates first",
        "experiments/training/loop.py",
        "evaluate=evaluate and (is_last or not wants_stop)",
        "evaluate=evaluate",
        ("tests/test_checkpoints.py", "-k", "sigterm"),
    ),
    Fault(
        "loop: the evaluation that the stop left out stays out",
        "experiments/training/loop.py",
        "todo = Todo(evaluate=missed)",
        "todo = Todo()",
        ("tests/test_checkpoints.py", "-k", "sigterm"),
    ),
    Fault(
        "figures: logarithms of a narrow range",
        "experiments/reporting/figures.py",
        "high < 10 * low:",
        "False:",
        ("tests/test_report.py", "-k", "log_scale"),
    ),
    Fault(
        "sharding: parameters over the axis of the batch",
        "experiments/training/sharding_rules.py",
        "and DATA in rule.spec",
        "and False",
        ("tests/test_parallel.py", "-k", "cannot_be"),
    ),
    Fault(
        "trainer: old records stay",
        "experiments/runs/folders.py",
        "            shutil.rmtree(workdir / name)",
        "            pass",
        ("tests/test_resuming.py", "-k", "made_longer or interrupted"),
    ),
]
