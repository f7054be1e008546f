"""Many devices: meshes, shardings, and the three ways to run a step on them.

Arrays of a state are global. Only the step of "pmap" wants a copy for each device: it
is given by `Layout.enter` and taken back by `Layout.leave`.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.common.axes import DATA, FSDP
from experiments.common.errors import UserError
from experiments.common.types import Config
from experiments.data import stream
from experiments.training import plan, sharding_rules
from experiments.training.sharding_rules import Rule

PyTree = Any
ROWS = (DATA, FSDP)  # the rows of a batch are cut along both


@dataclasses.dataclass(frozen=True)
class Layout:
    """Devices of a run, and how its functions and arrays are spread over them."""

    mode: str
    mesh: Mesh
    rules: tuple[Rule, ...]

    @property
    def axis_name(self) -> str | None:
        """Name of the devices' axis inside a step, if it has one."""
        return None if self.mode == "jit" else DATA

    def gradients(self, its_plan: plan.Plan) -> set[int]:
        """How many gradients steps have: of each microbatch, on each device."""
        devices = 1 if self.axis_name is None else self.mesh.size
        return {int(count) * devices for count in its_plan.microbatches}

    @property
    def local_devices(self) -> list[Any]:
        """The devices of this process."""
        return list(self.mesh.local_devices)

    def sharding(self, *spec: Any) -> NamedSharding:
        """The sharding of a global array with these axes."""
        return NamedSharding(self.mesh, P(*spec))

    def state_shardings(self, state: PyTree) -> PyTree:
        """Shardings of a state with ``params``: by rule, or whole on each device.

        Whatever repeats a parameter's path and shape, as moments do, lies like it.
        """
        params = _paths(state.params)
        for pattern, _ in self.rules:
            if not any(re.search(pattern, path) for path, _ in params):
                raise UserError(
                    f"config.sharding_rules: {pattern!r} is in no parameter's path, "
                    f"such as {params[0][0]}"
                )
        specs = {
            (path, leaf.shape): self._spec(path, leaf.shape) for path, leaf in params
        }

        def sharding(path: Any, leaf: Any) -> NamedSharding:
            names = _names(path)
            for start in range(len(names)):
                spec = specs.get(("/".join(names[start:]), leaf.shape))
                if spec is not None:
                    return NamedSharding(self.mesh, spec)
            return self.sharding()

        return jax.tree_util.tree_map_with_path(sharding, state)

    def _spec(self, path: str, shape: tuple[int, ...]) -> P:
        for pattern, spec in self.rules:
            if re.search(pattern, path):
                self._check_spec(pattern, spec, path, shape)
                return P(*spec)
        return P()

    def _check_spec(self, pattern, spec, path: str, shape: tuple[int, ...]) -> None:
        fits = len(spec) <= len(shape) and all(
            name is None or size % self.mesh.shape[name] == 0
            for name, size in zip(spec, shape, strict=False)
        )
        if not fits:
            raise UserError(
                f"config.sharding_rules: {pattern!r} lays {path} of shape {shape} out "
                f"as {spec}, which does not divide it on a mesh of "
                f"{dict(self.mesh.shape)}"
            )

    def place(self, stacked: stream.Batch) -> Any:
        """This process's (microbatches, rows, ...) as the input of a step."""
        if self.mode == "pmap":
            return jax.tree.map(self._rows_of_devices, stacked)
        return self._global(stacked, self.sharding(None, ROWS))

    def place_rows(self, batch: stream.Batch) -> Any:
        """This process's rows (rows, ...) as the input of an evaluation."""
        return self._global(batch, self.sharding(ROWS))

    def _global(self, batch: stream.Batch, sharding: NamedSharding) -> Any:
        if jax.process_count() == 1:
            return jax.device_put(batch, sharding)
        return {
            name: jax.make_array_from_process_local_data(sharding, array)
            for name, array in batch.items()
        }

    def _rows_of_devices(self, array: np.ndarray) -> np.ndarray:
        count, rows, *rest = array.shape
        devices = len(self.local_devices)
        cut = array.reshape(count, devices, rows // devices, *rest)
        return np.moveaxis(cut, 1, 0)

    def enter(self, tree: PyTree) -> PyTree:
        """Global arrays as a step takes them."""
        if self.mode != "pmap":
            return tree
        one = jax.tree.map(lambda x: x.addressable_data(0), tree)
        copy = self._pmap(lambda tree, _: tree, in_axes=(None, 0))
        return copy(one, np.arange(len(self.local_devices)))

    def _pmap(self, function: Callable[..., Any], **kwargs: Any) -> Any:
        devices = self.local_devices if jax.process_count() == 1 else None
        return jax.pmap(function, DATA, devices=devices, **kwargs)

    def leave(self, tree: PyTree) -> PyTree:
        """What a step returns as global arrays."""
        if self.mode != "pmap":
            return tree
        return jax.tree.map(self._first_copy, tree)

    def _first_copy(self, x: jax.Array) -> jax.Array:
        copy = np.asarray(x.addressable_data(0)).reshape(x.shape[1:])
        return jax.make_array_from_process_local_data(self.sharding(), copy)

    def settle(self, results: PyTree) -> PyTree:
        """Waits for results on CPU devices that the host was cut into.

        There the collectives of two programs in flight share the threads of one pool,
        and can wait for each other for ever.
        """
        if self.mesh.size > 1 and self.mesh.devices.flat[0].platform == "cpu":
            return jax.block_until_ready(results)
        return results

    def _pmap_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Compiled at its first call: of several processes none can before."""
        mapped = self._pmap(step, donate_argnums=(0, 1))
        count = len(self.local_devices)
        return lambda state, window, batch, rate: mapped(
            state, window, batch, np.full(count, rate, np.float32)
        )

    def compile_step(
        self, step: Callable[..., Any], state: PyTree, window: PyTree, batch: PyTree
    ) -> Callable[..., Any]:
        """Compiles (state, window, batch, rate) -> (state, window) for many devices.

        Args:
          step: made with `axis_name`.
          state: shapes of the global state.
          window: shapes of what is read at records.
          batch: what `place` returns.
        """
        if self.mode == "pmap":
            return self._pmap_step(step)
        jitted = self.jit_step(step, state, window, batch)
        lowered = jitted.lower(state, window, batch, jnp.float32(0))
        return lowered.compile(compiler_options())

    def jit_step(
        self, step: Callable[..., Any], state: PyTree, window: PyTree, batch: PyTree
    ) -> Any:
        """What `compile_step` compiles; it can be traced on a mesh without devices."""
        if self.mode == "shard_map":
            specs = (P(), P(), P(None, DATA), P())
            # The step sums over the devices itself.
            step = jax.shard_map(
                step, mesh=self.mesh, in_specs=specs, out_specs=P(), check_vma=False
            )
        whole = self.sharding()
        kept = (self.state_shardings(state), jax.tree.map(lambda _: whole, window))
        rows = jax.tree.map(lambda _: self.sharding(None, ROWS), batch)
        return jax.jit(
            step,
            in_shardings=(*kept, rows, whole),
            out_shardings=kept,
            donate_argnums=(0, 1),
        )


@functools.cache
def compiler_options() -> dict[str, str | bool]:
    """What the programs of a run are compiled with; none on an accelerator.

    XLA hands groups of small operations to a library of kernels on CPUs, which makes
    the steps of small models longer; larger ones do not notice.
    """
    if jax.default_backend() != "cpu":
        return {}
    options: dict[str, str | bool] = {"xla_cpu_experimental_ynn_fusion_type": ""}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return {}  # a version of XLA without that library
    return options


def _paths(tree: PyTree) -> list[tuple[str, Any]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [("/".join(_names(path)), leaf) for path, leaf in leaves]


def _names(path: Any) -> list[str]:
    return [jax.tree_util.keystr((key,), simple=True) for key in path]


def devices(config: Config) -> list[Any]:
    """The devices that take part: the first ``config.num_devices``, or all.

    In the order of their processes, each of which has one part of a batch's rows.
    """
    found = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return found[: config.num_devices or None]


def check(config: Config) -> None:
    """Refuses what the devices at hand cannot do.

    Raises:
      UserError: no such way, or numbers that do not divide.
    """
    _check_devices(config)
    count, fsdp = len(devices(config)), config.fsdp
    if count % fsdp:
        raise UserError(f"config.fsdp={fsdp}: must divide the {count} device(s)")
    if fsdp > 1 and config.parallel != "jit":
        raise UserError(
            f"config.fsdp={fsdp}: parameters are sharded under config.parallel=jit "
            f"alone, not under {config.parallel}"
        )
    rows = stream.microbatch_size(config)
    if rows % count:
        raise UserError(
            f"config.batch_size={config.batch_size} in {config.accumulate} "
            f"microbatch(es): {rows} rows must be a multiple of the {count} device(s)"
        )
    sharding_rules.build(config)


def _check_devices(config: Config) -> None:
    chosen, there = config.num_devices, jax.device_count()
    if not 0 <= chosen <= there:
        raise UserError(
            f"config.num_devices={chosen}: must be 0 (all) or up to {there}"
        )
    if chosen not in (0, there) and jax.process_count() > 1:
        raise UserError(
            f"config.num_devices={chosen}: several processes use all {there} devices"
        )


def layout(config: Config) -> Layout:
    """The layout of a config on the devices at hand."""
    check(config)
    chosen = devices(config)
    # Not `jax.make_mesh`, which mixes the processes of a TPU pod: rows would come back
    # from an evaluation in another order.
    mesh = Mesh(
        np.array(chosen).reshape(-1, config.fsdp),
        (DATA, FSDP),
        axis_types=(AxisType.Auto,) * 2,
    )
    return Layout(config.parallel, mesh, sharding_rules.build(config))
