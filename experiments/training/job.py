"""What a run is to do: its config, checked once."""

import dataclasses
import json

import numpy as np
import optax
from ml_collections import ConfigDict, FrozenConfigDict

from experiments.common import fields
from experiments.common.types import Config
from experiments.configs import fields as tables
from experiments.runs import folders
from experiments.tasks import Source
from experiments.training import aggregate, optimizers, parallel
from experiments.training import plan as plans
from experiments.training.aggregate import Aggregate
from experiments.training.parallel import Layout
from experiments.training.plan import Plan


@dataclasses.dataclass(frozen=True)
class Job:
    """What a run is to do. `Job.of` makes one, and nothing checks it again.

    Attributes:
      config: of this run alone, frozen, with the optimizer that is chosen in place of
        all that could be. Where gradients are not summed, it has how many of them a
        step has, which depends on the devices and changes the result.
      learning_rate: the peak, which the steps, the records and the reports have.
      plan: what each step takes from the data, and the schedule.
      layout: the devices, and how arrays are spread over them.
      optimizer: the transform; its learning rate is in its state.
      aggregate: how the gradients of a step become one.
    """

    config: Config
    learning_rate: float
    plan: Plan
    layout: Layout
    optimizer: optax.GradientTransformationExtraArgs
    aggregate: Aggregate

    @classmethod
    def of(cls, config: Config) -> "Job":
        """The job of a config, which is left as it is.

        Raises:
          UserError: no run can have this config; it names the field.
        """
        fields.check(config, tables.RUN)
        fields.check(config, tables.of_task(config))
        entry = optimizers.settings(config)
        layout, plan = parallel.layout(config), plans.make(config)
        numbers = layout.gradients(plan)
        combine = aggregate.build(config, numbers)
        resolved = config.copy_and_resolve_references()
        with resolved.unlocked():
            resolved.optimizer.update(entry.copy_and_resolve_references())
            for name in {"optimizers", "compare", "sweep"} & set(resolved):
                del resolved[name]
            if resolved.aggregation.name != "mean":
                resolved.aggregation.num_gradients = sorted(numbers)
        return cls(
            config=FrozenConfigDict(resolved),
            learning_rate=float(entry.learning_rate),
            plan=plan,
            layout=layout,
            optimizer=optimizers.build(
                resolved.optimizer, 1 if config.monitor else None
            ),
            aggregate=combine,
        )

    def on(self, source: Source) -> "Job":
        """The same, on data that are known: their hash is part of the config."""
        config: Config = ConfigDict(self.config)
        config.data.sha256 = source.sha256
        return dataclasses.replace(self, config=FrozenConfigDict(config))

    @property
    def program_key(self) -> str:
        """The same of two jobs whose steps are one program: at another rate."""
        plain = folders.plain(self.config)
        del plain["optimizer"]["learning_rate"]
        return json.dumps(plain, sort_keys=True)

    def rate(self, step: int) -> float:
        """The learning rate that a step, counted from 1, uses."""
        return self.learning_rate * float(np.asarray(self.plan.factor(step - 1)))
