"""The numeric contract of every transform, in one place.

A method states its mathematics on arrays of float32 or wider; what surrounds it is
here. `transform` is for mathematics of its own, `wrapper` for what has an inner
transform, which must see gradients and parameters as they come.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from optax_heavytail import _base, _tree
from optax_heavytail._stochastic_rounding import round_bfloat16_fields

#: A transform, or Optax's accumulation, which is called as one.
Inner = optax.GradientTransformation | optax.MultiSteps
Dtypes = Mapping[str, jax.typing.DTypeLike | None]


def transform(
    init: Callable[[Any], Any],
    update: Callable[..., tuple[Any, Any]],
    *,
    dtypes: Dtypes | None = None,
    needs_params: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """A transform from its mathematics.

    Args:
      init: from parameters, or their shapes, to the state.
      update: from updates and state, with ``needs_params`` also parameters, to new
        updates and state. It sees floats of float32 or wider, and may return any: the
        updates get the dtypes they came in, and the state those it had.
      dtypes: the fields of the state that are kept for each coordinate or leaf, with
        the dtype that was asked for, or ``None``. bfloat16 is rounded stochastically.
      needs_params: whether ``update`` takes the parameters.

    Extra arguments are ignored.
    """

    def wide_update(updates, state, params, **extra_args):
        del extra_args
        params = [_tree.at_least_float32(params)] if needs_params else []
        wide = _tree.at_least_float32(updates)
        new_updates, new_state = update(wide, state, *params)
        new_updates = _tree.cast_like(new_updates, updates)
        return new_updates, _tree.cast_like(new_state, state)

    return wrapper(init, wide_update, dtypes=dtypes, needs_params=needs_params)


def wrapper(
    init: Callable[[Any], Any],
    update: Callable[..., tuple[Any, Any]],
    *,
    dtypes: Dtypes | None = None,
    needs_params: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """A transform around another one: nothing but the fields in ``dtypes`` is cast.

    ``update`` takes updates, state, parameters (maybe ``None``) and all extra arguments
    as they come. The other arguments are those of `transform`.
    """
    dtypes = {} if dtypes is None else dtypes

    def init_fn(params):
        _base.check_floating(params, "parameters")
        return init(params)

    def update_fn(updates, state, params=None, **extra_args):
        _base.check_floating(updates, "updates")
        if needs_params:
            if params is None:
                raise ValueError(_base.NO_PARAMS)
            _base.check_alike(params, updates, "parameters")
        stored = {name: getattr(state, name) for name in dtypes}
        for name, field in stored.items():
            _check_field(name, field, updates)
        wide = {name: _tree.at_least_float32(field) for name, field in stored.items()}
        state = state._replace(**wide) if wide else state
        new_updates, new_state = update(updates, state, params, **extra_args)
        if wide:
            new = {name: getattr(new_state, name) for name in dtypes}
            new_state = new_state._replace(**_tree.cast_like(new, stored))
        return new_updates, new_state

    tx = optax.GradientTransformationExtraArgs(init_fn, update_fn)
    return round_bfloat16_fields(tx, **dtypes)


def as_transform(inner: Inner) -> optax.GradientTransformationExtraArgs:
    """``inner`` with extra arguments; ``optax.MultiSteps`` is no transform itself."""
    if isinstance(inner, optax.MultiSteps):
        update: Any = inner.update  # of its own state, and no other
        return optax.GradientTransformationExtraArgs(inner.init, update)
    return optax.with_extra_args_support(inner)


def _check_field(name: str, field: Any, updates: Any) -> None:
    """A field is like the updates, or one array for all of them."""
    if not jax.tree_util.all_leaves([field]):
        _base.check_alike(field, updates, f"the state's {name}")
