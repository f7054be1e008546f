"""Rules with a name."""

from types import MappingProxyType
from typing import NamedTuple

from optax_heavytail.rules._vocabulary import BELLO, EXTENDED, Vocabulary


class Known(NamedTuple):
    """A rule that is a transform of this package or of Optax."""

    text: str
    vocabulary: Vocabulary
    twin: str  #: the transform


#: Rules by name, and which transform each is.
KNOWN = MappingProxyType(
    {
        "sgd": Known("g", BELLO, "optax.identity()"),
        "momentum": Known("ema(g, 0.9)", EXTENDED, "oht.ema(0.9, debias=False)"),
        "corrected_momentum": Known("m", BELLO, "oht.ema(0.9)"),
        "adam": Known("adam", BELLO, "oht.scale_by_adam()"),
        "rmsprop": Known("rmsprop", BELLO, "oht.scale_by_adam(b1=0.0)"),
        "powersign": Known(
            "g * exp(sign(g) * sign(m))", BELLO, "oht.scale_by_powersign()"
        ),
        "powersign_cd": Known(
            "g * exp(cd(0.5) * sign(g) * sign(m))",
            BELLO,
            "oht.scale_by_powersign(sign_decay=optax.cosine_decay_schedule(1.0, T))",
        ),
        "addsign": Known(
            "(1 + sign(g) * sign(m)) * g", BELLO, "oht.scale_by_addsign()"
        ),
        "lion": Known(
            "sign(0.1 * g + 0.9 * prev(ema(g, 0.99)))",
            EXTENDED,
            "optax.scale_by_lion()",
        ),
        "cclip": Known(
            "clip(ema(g, 0.9), 0.1)",
            EXTENDED,
            "optax.chain(oht.ema(0.9, debias=False), oht.clip_by_value(0.1))",
        ),
        "acclip": Known(
            "min(ema(abs(g), 0.99) / (abs(ema(g, 0.9)) + 1e-5), 1) * ema(g, 0.9)",
            EXTENDED,
            "oht.scale_by_acclip()",
        ),
        "normalized_acclip": Known(
            "ema(g, 0.9) / ema(abs(g), 0.9)",
            EXTENDED,
            "oht.scale_by_acclip(b2=0.9, eps=0.0, normalize=True)",
        ),
        "gclip": Known(
            "min(1 / norm(ema(g, 0.9)), 1) * ema(g, 0.9)",
            EXTENDED,
            "optax.chain(oht.ema(0.9, debias=False), oht.clip_by_norm(1.0))",
        ),
        "decayed_sgd": Known("g + 1e-4 * w", BELLO, "oht.add_decayed_weights(1e-4)"),
        "decayed_adam": Known(
            "adam + 1e-2 * w",
            BELLO,
            "optax.chain(oht.scale_by_adam(), oht.add_decayed_weights(0.01))",
        ),
    }
)
