"""Rules that stand for others: published ones, and ones that only look good."""

#: After Bello et al. 2017; "+ delta" is part of their quotient.
PUBLISHED = (
    "g * exp(sign(g) * sign(m))",
    "(exp(sign(g) * sign(m)) + clip(g, 1e-4)) * g",
    "drop(g, 0.3) * exp(sign(g) * sign(m))",
    "adam * exp(sign(g) * sign(m))",
    "m * exp(v)",
    "clip(m, 1e-4) * exp(v)",
    "m * exp(g^2)",
    "drop(m, 0.1) / exp(g^2)",
    "clip(rmsprop, 1e-5) + drop(m, 0.3)",
    "adam * exp(m)",
    "g + drop(m, 0.3)",
    "drop(m, 0.1) * exp(g^3)",
    "g - clip(g^2, 1e-4)",
    "exp(g) - exp(m)",
    "drop(m, 0.3) * exp(1e-3 * w)",
)

#: None is a rule to train with, and each has had, or could have, a good score.
CHEATING = {
    "logits of 1e8": "sqrt(sign(g)) / clip(1e-1 * w, 1e-4)",
    "overflow": "exp(exp(exp(2)))",
    "not a number": "log(g - g) * g",
    "nothing": "g - g",
    "weights go to 0": "1e-1 * w",
    "uphill": "-m",
    "all weights alike": "1",
    "divided by delta": "sign(g) / (m - m)",
}
