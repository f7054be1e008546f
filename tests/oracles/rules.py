"""`rules.transform`: an expression, read by Python itself and computed by NumPy."""

import numpy as np

from tests.oracles.trajectories import cases

FORMULA = """
    The expression with ^ as Python's power. m, v, gamma: averages of g, g^2, g^3 with
    decays 0.9, 0.999, 0.999, corrected; adam = m / (sqrt(v) + 1e-8), rmsprop = g /
    (sqrt(v) + 1e-8). BELLO: a quotient adds 1e-8 to its divisor (here written out); log
    and sqrt are of |x|. ema(x, b) = b ema + (1 - b) x, prev: before this step; norm
    over all entries, norm_leaf and rms over those of a leaf; ld = 1 - t / T, cd(n) =
    (1 + cos(2 pi n t / T)) / 2 and rd(n) = (1 + cos(pi (t n mod T) / T)) / 2, t from 0.
"""
DECAYS = {"m": 0.9, "v": 0.999, "gamma": 0.999}


class _Leaves(dict):
    """A dict of arrays with the operators of arrays, entry by entry."""

    def _with(self, other, function):
        return _Leaves(
            {
                leaf: function(x, other[leaf] if isinstance(other, dict) else other)
                for leaf, x in self.items()
            }
        )

    def __add__(self, other):
        return self._with(other, lambda x, y: x + y)

    def __sub__(self, other):
        return self._with(other, lambda x, y: x - y)

    def __mul__(self, other):
        return self._with(other, lambda x, y: x * y)

    def __rmul__(self, other):
        return self._with(other, lambda x, y: y * x)

    def __radd__(self, other):
        return self._with(other, lambda x, y: y + x)

    def __rsub__(self, other):
        return self._with(other, lambda x, y: y - x)

    def __truediv__(self, other):
        return self._with(other, lambda x, y: x / y)

    def __pow__(self, other):
        return self._with(other, lambda x, y: x**y)

    def __neg__(self):
        return self._with(0, lambda x, y: -x)


def _each(function):
    def apply(x, *others):
        if isinstance(x, dict):
            return _Leaves({leaf: function(a, *others) for leaf, a in x.items()})
        return function(x, *others)

    return apply


ELEMENTWISE = {
    "exp": _each(np.exp),
    "log": _each(lambda x: np.log(np.abs(x))),
    "sqrt": _each(lambda x: np.sqrt(np.abs(x))),
    "sign": _each(np.sign),
    "abs": _each(np.abs),
    "tanh": _each(np.tanh),
    "clip": _each(lambda x, limit: np.clip(x, -limit, limit)),
    "min": _each(np.minimum),
    "max": _each(np.maximum),
    "norm_leaf": _each(lambda x: np.sqrt(np.sum(x**2))),
    "rms": _each(lambda x: np.sqrt(np.mean(x**2))),
    "norm": lambda x: np.sqrt(sum(np.sum(a**2) for a in x.values())),
}


def rule(rule, vocabulary="BELLO", total_steps=None):
    del vocabulary  # the texts below spell out what differs
    code = compile(rule.replace("^", "**"), "rule", "eval")
    means, averages, t = {}, {}, 0

    def corrected(name, x):
        decay = DECAYS[name]
        zero = _Leaves({leaf: 0 * a for leaf, a in x.items()})
        means[name] = means.get(name, zero) * decay + x * (1 - decay)
        return means[name] / (1 - decay ** np.longdouble(t + 1))

    def step(g, w):
        nonlocal t
        g, w = _Leaves(g), _Leaves(w)
        place, before = 0, {}

        def ema(x, decay):
            nonlocal place
            place += 1  # its order in the expression is its name
            old = averages.get(place, 0 * x)
            averages[place] = old * decay + x * (1 - decay)
            before[id(averages[place])] = old
            return averages[place]

        def narrow(x):
            dtype = next(iter(g.values())).dtype
            return _Leaves({leaf: np.asarray(a, dtype) for leaf, a in x.items()})

        m, v, gamma = (
            narrow(corrected(name, g**power))
            for name, power in (("m", 1), ("v", 2), ("gamma", 3))
        )
        root = ELEMENTWISE["sqrt"](v) + 1e-8
        names = ELEMENTWISE | {"g": g, "w": w, "m": m, "v": v, "gamma": gamma}
        names |= {"g2": g**2, "g3": g**3, "adam": m / root, "rmsprop": g / root}
        names |= {"ema": ema, "prev": lambda x: before[id(x)]}
        if total_steps is not None:
            names["ld"] = 1 - t / total_steps
            names["cd"] = lambda n: (1 + np.cos(2 * np.pi * n * t / total_steps)) / 2
            names["rd"] = lambda n: (
                (1 + np.cos(np.pi * ((t * n) % total_steps) / total_steps)) / 2
            )
        u = eval(code, {"__builtins__": {}}, names)
        t += 1
        return dict(u), {}

    return step


ORACLES = {"rules.transform": rule}
CASES = [
    case._replace(algorithm="rule")
    for case in cases(
        "rules.transform",
        FORMULA,
        {
            "sign_power": (
                {"rule": "adam * exp(sign(g) * sign(m)) + clip(g, 1e-3)"},
                "normal heavy",
            ),
            "averages": (
                {"rule": "g3 + gamma - -sqrt(v) * m^2 + 1e-2 * w + 2 * rmsprop"},
                "normal",
            ),
            "scheduled": (
                {"rule": "ld * g + cd(2) * m + rd(3) * sign(g)", "total_steps": 40},
                "normal",
            ),
            "norms": (
                {
                    "rule": "ema(g, 0.9) * min(1 / (norm(g) + 1), norm(w))"
                    " + tanh(prev(ema(abs(g), 0.99)) + 0.25) / (rms(g) + 0.5)^2",
                    "vocabulary": "EXTENDED",
                },
                "normal heavy",
            ),
        },
    )
]
