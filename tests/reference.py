"""The algorithms once more, in loops over plain Python floats.

Nothing is shared with the package: each function takes lists of dicts of numpy arrays
(one dict per step) and returns the list of what the transform must give.
"""

import math

import numpy as np


def ema(grads, decay, debias=False):
    moment, history = _zeros(grads[0]), []
    for k, g in enumerate(grads, 1):
        correction = 1 - decay**k if debias else 1
        for name, i in _entries(g):
            moment[name][i] = decay * moment[name][i] + (1 - decay) * g[name][i]
        history.append({name: m / correction for name, m in moment.items()})
    return history


def nesterov(grads, decay):
    """``optax.trace(decay, nesterov=True)``."""
    trace, history = _zeros(grads[0]), []
    for g in grads:
        update = _zeros(g)
        for name, i in _entries(g):
            trace[name][i] = g[name][i] + decay * trace[name][i]
            update[name][i] = g[name][i] + decay * trace[name][i]
        history.append(update)
    return history


def thresholds(grads, b2, alpha, scope="coordinate", bias_correction=False):
    """For each step the threshold of each group of entries that shares one."""
    powers, history = {}, []
    for k, g in enumerate(grads, 1):
        for group, size in _sizes(g, scope).items():
            powers[group] = b2 * powers.get(group, 0.0) + (1 - b2) * size**alpha
        weight = 1 - b2**k if bias_correction else 1
        history.append({g: (p / weight) ** (1 / alpha) for g, p in powers.items()})
    return history


def clip_by_moment(
    grads,
    moments,
    *,
    b2=0.99,
    alpha=1.0,
    eps=1e-5,
    scope="coordinate",
    bias_correction=False,
    normalize=False,
):
    """``moments`` is what the inner transform makes of ``grads``."""
    taus = thresholds(grads, b2, alpha, scope, bias_correction)
    history = []
    for m, tau in zip(moments, taus, strict=True):
        sizes, update = _sizes(m, scope), _zeros(m)
        for name, i in _entries(m):
            group = _group(scope, name, i)
            size, limit = sizes[group] + eps, tau[group]
            factor = 1.0 if size <= limit else limit / size
            if normalize:
                factor = 0.0 if limit + eps == 0 else factor / (limit + eps)
            update[name][i] = factor * m[name][i]
        history.append(update)
    return history


def clip_by_norm(moments, threshold, scope="global"):
    """``threshold`` is a function of the step, counted from 1."""
    history = []
    for k, m in enumerate(moments, 1):
        sizes, update = _sizes(m, scope), _zeros(m)
        for name, i in _entries(m):
            norm = sizes[_group(scope, name, i)]
            factor = 1.0 if norm <= threshold(k) else threshold(k) / norm
            update[name][i] = factor * m[name][i]
        history.append(update)
    return history


def clip_by_value(moments, threshold):
    """``threshold`` is a function of the step from 1, the leaf's name and the index."""
    history = []
    for k, m in enumerate(moments, 1):
        update = _zeros(m)
        for name, i in _entries(m):
            tau = threshold(k, name, i)
            update[name][i] = max(-tau, min(tau, m[name][i]))
        history.append(update)
    return history


def descend(params, directions, rate, weight_decay=lambda k: 0.0, decayed=None):
    """Updates and iterates of ``w - rate (u + weight_decay w)``, steps from 1."""
    params = {name: p.copy() for name, p in params.items()}
    updates, iterates = [], []
    for k, u in enumerate(directions, 1):
        update = _zeros(u)
        for name, i in _entries(u):
            decay = weight_decay(k) if decayed is None or name in decayed else 0.0
            update[name][i] = -rate(k) * (u[name][i] + decay * params[name][i])
        params = {name: p + update[name] for name, p in params.items()}
        updates.append(update)
        iterates.append(params)
    return updates, iterates


def trace(grads, decay, nesterov=False):
    total, history = _zeros(grads[0]), []
    for g in grads:
        update = _zeros(g)
        for name, i in _entries(g):
            total[name][i] = g[name][i] + decay * total[name][i]
            ahead = g[name][i] + decay * total[name][i]
            update[name][i] = ahead if nesterov else total[name][i]
        history.append(update)
    return history


def adam(grads, b1, b2, eps, debias=True, keep_largest=False):
    """Also AMSGrad, with ``keep_largest``."""
    mean, square, largest = (_zeros(grads[0]) for _ in range(3))
    history = []
    for k, g in enumerate(grads, 1):
        update = _zeros(g)
        for name, i in _entries(g):
            mean[name][i] = b1 * mean[name][i] + (1 - b1) * g[name][i]
            square[name][i] = b2 * square[name][i] + (1 - b2) * g[name][i] ** 2
            m, v = mean[name][i], square[name][i]
            if debias:
                m, v = m / (1 - b1**k), v / (1 - b2**k)
            largest[name][i] = max(largest[name][i], v)
            v = largest[name][i] if keep_largest else v
            update[name][i] = m / (math.sqrt(v) + eps)
        history.append(update)
    return history


def adashift(grads, b1, b2, eps, n):
    square, history = _zeros(grads[0]), []
    for k, g in enumerate(grads, 1):
        update = _zeros(g)
        for name, i in _entries(g) if k > n else ():
            old = grads[k - 1 - n][name][i]
            square[name][i] = b2 * square[name][i] + (1 - b2) * old**2
            weights = [b1**age for age in range(n)]
            newest = [grads[k - 1 - age][name][i] for age in range(n)]
            mean = sum(w * x for w, x in zip(weights, newest, strict=True))
            root = math.sqrt(square[name][i] / (1 - b2 ** (k - n)))
            update[name][i] = mean / sum(weights) / (root + eps)
        history.append(update)
    return history


def sign_agreement(grads, b1, factor):
    """``factor`` is a function of the step from 1 and of the agreement, -1, 0 or 1."""
    history = []
    for k, (g, m) in enumerate(zip(grads, ema(grads, b1), strict=True), 1):
        update = _zeros(g)
        for name, i in _entries(g):
            agreement = np.sign(g[name][i]) * np.sign(m[name][i])
            update[name][i] = factor(k, agreement) * g[name][i]
        history.append(update)
    return history


def trust_ratios(params, update, lower, upper, coefficient=1.0, eps=0.0):
    """Per leaf the ratio and what it was before the bounds."""
    ratios = {}
    for name, w in params.items():
        w_norm, u_norm = (
            math.sqrt(math.fsum(x.ravel() ** 2)) for x in (w, update[name])
        )
        raw = 1.0
        if w_norm > 0 and u_norm > 0:
            raw = coefficient * w_norm / (u_norm + eps)
        ratios[name] = (min(max(raw, lower), upper), raw)
    return ratios


def neumann(
    params,
    grads,
    *,
    rate,
    mu,
    cubic,
    repulsive,
    ema_decay,
    is_reset,
    burn_in=0,
    bounded=True,
):
    """For each step the parameters, m and v after it.

    ``rate`` and ``is_reset`` are functions of the step from 1, ``mu`` of the step after
    the burn-in. Not ``bounded`` is the force as published.
    """
    w = {name: p.copy() for name, p in params.items()}
    v, m, history = w, _zeros(w), []
    for k, g in enumerate(grads, 1):
        eta = rate(k)
        if k <= burn_in:
            w = v = {name: w[name] - eta * g[name] for name in w}
            m = _zeros(w)
        else:
            r = math.sqrt(math.fsum((w[n][i] - v[n][i]) ** 2 for n, i in _entries(w)))
            size = math.sqrt(math.fsum(g[n][i] ** 2 for n, i in _entries(w)))
            reset, force = is_reset(k), 0.0
            if r > 0 and not reset:
                away = repulsive / r**2
                force = (cubic * r**2 - (min(away, size) if bounded else away)) / r
            d = {name: g[name] + force * (w[name] - v[name]) for name in w}
            now = mu(k - burn_in)
            keep = 0.0 if reset else now
            m = {name: keep * m[name] - eta * d[name] for name in w}
            w = {name: w[name] + now * m[name] - eta * d[name] for name in w}
            v = {name: w[name] + ema_decay * (v[name] - w[name]) for name in w}
        history.append((w, m, v))
    return history


def weighted_average(iterates):
    """``sum_j j x_{j-1} / sum_j j`` of the iterates from x_0 on."""
    total = sum(range(1, len(iterates) + 1))
    return {
        name: sum(j * x[name] for j, x in enumerate(iterates, 1)) / total
        for name in iterates[0]
    }


def _zeros(tree):
    return {name: np.zeros(np.shape(x)) for name, x in tree.items()}


def _entries(tree):
    return [(name, i) for name, x in tree.items() for i in np.ndindex(np.shape(x))]


def _group(scope, name, i):
    return {"coordinate": (name, i), "leaf": name, "global": None}[scope]


def _sizes(tree, scope):
    """The Euclidean norm of each group of entries that shares a threshold."""
    squares = {}
    for name, i in _entries(tree):
        squares.setdefault(_group(scope, name, i), []).append(float(tree[name][i]) ** 2)
    return {group: math.sqrt(math.fsum(s)) for group, s in squares.items()}
