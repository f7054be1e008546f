"""Which entries share one norm, and clips that decide by it."""

import numpy as np


def norm(x):
    """The Euclidean norm; neither it nor its squares over- or underflow on the way."""
    largest = np.max(np.abs(x), initial=0)
    if largest == 0 or not np.isfinite(largest):
        return largest
    return largest * np.sqrt(np.sum((x / largest) ** 2))


def is_good(n):
    """Whether a norm counts: finite and not 0."""
    return bool(np.isfinite(n) and n > 0)


def units(tree, scope="global", layer_axis=None):
    """For each unit the places ``(leaf, index)`` of its entries.

    ``layer_axis`` is an axis, or a dict of one (or None) for each leaf.
    """
    if scope == "global":
        return {"": [(leaf, ...) for leaf in tree]}
    found = {}
    for leaf, x in tree.items():
        axis = layer_axis[leaf] if isinstance(layer_axis, dict) else layer_axis
        if scope == "coordinate":
            found.update({(leaf, i): [(leaf, i)] for i in np.ndindex(x.shape)})
        elif axis is None:
            found[leaf] = [(leaf, ...)]
        else:
            before = (slice(None),) * axis
            for i in range(x.shape[axis]):
                found[leaf, i] = [(leaf, (*before, i))]
    return found


def take(tree, places):
    """The entries of a unit, in a row."""
    return np.concatenate([np.ravel(tree[leaf][index]) for leaf, index in places])


def put(tree, places, change):
    """Replaces each part ``x`` of a unit by ``change(x)``."""
    for leaf, index in places:
        tree[leaf][index] = change(tree[leaf][index])


def copy(tree):
    return {leaf: x.copy() for leaf, x in tree.items()}


def readings(records):
    """What each unit has to read, as keys ``name`` or ``name/leaf``; layers stacked."""
    found = {}
    for unit, record in records.items():
        for name, value in record.items():
            if unit == "":
                found[name] = value
            elif isinstance(unit, tuple):
                found.setdefault(f"{name}/{unit[0]}", []).append(value)
            else:
                found[f"{name}/{unit}"] = value
    return {key: np.asarray(value) for key, value in found.items()}


def clip_by_rule(
    new_unit, unseen, scope="global", layer_axis=None, nonfinite="propagate", mask=None
):
    """A clip whose length of a unit is ``new_unit()(n)``, for good norms in turn.

    That function returns the length of the output and what can be read thereafter;
    before the first good norm that is ``unseen``. ``nonfinite`` has a third word,
    "zero unit", where one bad entry makes all of its unit 0.
    """
    rules, records = {}, {}

    def step(g, w):
        del w
        u = copy(g)
        inside = {leaf: x for leaf, x in u.items() if mask is None or mask[leaf]}
        if nonfinite == "zero":
            for x in inside.values():
                x[~np.isfinite(x)] = 0
        for unit, places in units(inside, scope, layer_axis).items():
            rule = rules.setdefault(unit, new_unit())
            records.setdefault(unit, dict(unseen))
            n = norm(take(inside, places))
            if not np.isfinite(n):
                bad = 0 if nonfinite == "zero unit" else np.nan
                put(inside, places, lambda x, bad=bad: np.full_like(x, bad))
            elif n > 0:
                length, records[unit] = rule(n)
                put(inside, places, lambda x, h=length / n: h * x)
        return u, readings(records)

    return step
