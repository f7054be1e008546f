"""The methods once more, in plain NumPy, each written from its formula alone.

``python -m tests.oracles`` makes the trajectories in ``tests/golden/oracles/`` again.
One module per method; nothing here imports JAX or the package. An oracle is a function
of the transform's own keyword arguments that returns ``step(g, w, **extra)``, which
gives the update and what else can be read after the step. Trees are flat dicts of
arrays; all arithmetic is in the arrays' own dtype, so that one program serves for the
run, for its 80-bit rerun and for the one in float32.
"""
