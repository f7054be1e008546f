"""Optimizers whose update is a small network that was trained to optimize.

.. code-block:: python

    from optax_heavytail import learned

    weights = learned.load("lstm_quadratic")
    tx = learned.scale_by_lstm(weights, preprocess="none", output_scale=1.0)

`scale_by_lstm` is the optimizer of Andrychowicz et al. 2016, `scale_by_mlp` a network
of 170 weights on features that no scale of the loss changes. Both take their weights as
an argument, so that these can be trained: `init_lstm` and `init_mlp` make some to start
from, `save` and `load` keep them in files, `names` are those that come with the package
and `about` tells what such weights were trained on.
"""

from optax_heavytail.learned._lstm import (
    LSTMWeights,
    ScaleByLSTMState,
    init_lstm,
    scale_by_lstm,
)
from optax_heavytail.learned._mlp import (
    MLPWeights,
    ScaleByMLPState,
    init_mlp,
    scale_by_mlp,
)
from optax_heavytail.learned._weights import (
    WeightsError,
    about,
    load,
    names,
    save,
)

__all__ = [
    "LSTMWeights",
    "MLPWeights",
    "ScaleByLSTMState",
    "ScaleByMLPState",
    "WeightsError",
    "about",
    "init_lstm",
    "init_mlp",
    "load",
    "names",
    "save",
    "scale_by_lstm",
    "scale_by_mlp",
]
