"""Rules as text: reading, printing, computing, and which are the same."""

import functools
import random

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from experiments.rule_search import examples
from optax_heavytail import rules
from optax_heavytail.rules import BELLO, EXTENDED, Call, Name, Number
from optax_heavytail.rules._check import kind
from optax_heavytail.rules._expression import walk
from tests.compare import as_float64, types

STEPS = 3
# That are only the same up to rounding, and why.
ROUNDED = {
    "powersign_cd": "optax multiplies pi and the count first",
    "normalized_acclip": "both of its corrections, which cancel",
    "gclip": "the transform splits its factor, which cannot underflow then",
}


@functools.cache
def _problem():
    rng = np.random.default_rng(0)
    # Alike, as without jit each shape compiles; many, as Lion shows signs alone.
    shapes = {"a": (300,), "b": (300,)}

    def tree():
        return {
            name: jnp.asarray(rng.standard_t(1.5, size=shape), jnp.float32)
            for name, shape in shapes.items()
        }

    return tree(), [tree() for _ in range(STEPS)]


def _run(update, state):
    params, gradients = _problem()
    made = []
    for grads in gradients:
        updates, state = update(grads, state, params)
        made.append(updates)
    return made, state


def _made(rule, **kwargs):
    tx = rules.transform(rule, **kwargs)
    return _run(tx.update, tx.init(_problem()[0]))


@functools.cache
def _pairs():
    """Each known rule, and the transform that it is to be."""
    found = {"oht": oht, "optax": optax, "T": 8}
    return {
        name: (
            rules.transform(known.text, vocabulary=known.vocabulary, total_steps=8),
            optax.with_extra_args_support(eval(known.twin, found)),
        )
        for name, known in rules.KNOWN.items()
    }


def _off(got, want):
    """The largest difference, relative to the largest entry of each array."""
    pairs = zip(*map(jax.tree.leaves, (got, want)), strict=True)
    return max(
        np.max(np.abs(as_float64(a) - as_float64(b))) / np.max(np.abs(as_float64(b)))
        for a, b in pairs
    )


@pytest.mark.parametrize("name", rules.KNOWN)
def test_known_rules_are_their_transforms(name):
    made, wanted = (_run(tx.update, tx.init(_problem()[0]))[0] for tx in _pairs()[name])
    off = _off(made, wanted)
    assert off <= 1e-6 if name in ROUNDED else off == 0


def test_known_rules_are_their_transforms_in_one_program():
    """XLA contracts products and sums of two graphs in two ways."""
    params, gradients = _problem()
    states = jax.tree.map(
        lambda tx: tx.init(params), _pairs(), is_leaf=lambda x: hasattr(x, "init")
    )

    @jax.jit
    def update(grads, states):
        found = {
            name: tuple(
                tx.update(grads, state, params)
                for tx, state in zip(pair, states[name], strict=True)
            )
            for name, pair in _pairs().items()
        }
        made = {name: [u for u, _ in pair] for name, pair in found.items()}
        return made, {name: tuple(s for _, s in pair) for name, pair in found.items()}

    for grads in gradients:
        made, states = update(grads, states)
        for name, (got, want) in made.items():
            assert _off(got, want) <= 2e-6, name


def test_adam_written_out():
    text = "ema_hat(g, 0.9) / (sqrt(ema_hat(g^2, 0.999)) + 1e-8)"
    got, _ = _made(text, vocabulary=EXTENDED)
    assert _off(got, _made("adam")[0]) <= 2e-6


@pytest.mark.parametrize("text", examples.PUBLISHED)
def test_rules_of_the_paper_are_read_and_printed(text):
    rule = rules.parse(text)
    assert rules.parse(str(rule)) == rule
    assert rules.parse(text, vocabulary=EXTENDED) == rule
    tx = rules.transform(rule)
    params, (grads, *_) = _problem()
    updates, _ = jax.eval_shape(tx.update, grads, tx.init(params), params)
    assert types(updates) == types(grads)


def _random_rule(rng, depth):
    if depth == 0 or rng.random() < 0.15:
        if rng.random() < 0.4:
            value = rng.choice([1, 2, 0.5, 1e-4, 1e20, 3.4e38, rng.random()])
            return Number(value)
        return Name(rng.choice(sorted(EXTENDED.operands)))
    name = rng.choice(sorted(EXTENDED.functions))
    function = EXTENDED.functions[name]
    args = [_random_rule(rng, depth - 1) for _ in range(function.arity)]
    if function.literal:
        args[-1] = Number(rng.choice([0, 0.5, 0.999]))
    return Call(name, tuple(args))


def _kinds_fit(rule):
    """Whether what asks for an array has no number in it."""
    calls = (node for node in walk(rule) if isinstance(node, Call))
    return all(
        kind(call.args[0]) == "array"
        for call in calls
        if EXTENDED.functions[call.function].wants_array
    )


@pytest.mark.parametrize(
    "number", [1000, pytest.param(10_000, marks=pytest.mark.nightly)]
)
def test_every_tree_is_printed_and_read_back(number):
    rng, seen = random.Random(0), set()
    for _ in range(number):
        rule = _random_rule(rng, rng.randrange(6))
        text = str(rule)
        if text.count("prev(") or not _kinds_fit(rule):  # norm(1) is refused
            continue
        again = rules.parse(text, vocabulary=EXTENDED)
        assert again == rule
        assert str(again) == text
        seen.add(text)
    assert len(seen) > number / 3


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("m+g", "g + m"),
        ("g+(m+v)", "m + v + g"),  # still the sum of m and v first
        ("g - (m - v)", "g - (m - v)"),
        ("(g - m) - v", "g - m - v"),
        ("g*(m/v)", "m / v * g"),
        ("-g^2", "-g^2"),
        ("(-g)^2", "(-g)^2"),
        ("g^m^v", "g^m^v"),
        ("(g^m)^v", "(g^m)^v"),
        ("g^-1", "g^-1"),
        ("2 * -g", "2 * -g"),
        ("- - g", "--g"),
        ("1e-4*w", "0.0001 * w"),
        ("  ( ( g ) ) ", "g"),
        ("clip(g,.001)", "clip(g, 0.001)"),
    ],
)
def test_canonical_text(text, printed):
    assert str(rules.parse(text)) == printed


ERRORS = {
    "g * sgn(m)": (5, "unknown name 'sgn'; did you mean 'sign'?"),
    "foo": (1, "unknown name 'foo'; known: adam, anneal, g, g2"),
    "": (1, "the rule is empty"),
    "   ": (1, "the rule is empty"),
    "g +": (4, "expected a number, a name or (, found the end"),
    "g g": (3, "expected an operator or the end, found 'g'"),
    "(g": (3, "expected an operator, a comma or ), found the end"),
    "g)": (2, "expected an operator or the end, found ')'"),
    "g * * m": (5, "expected a number, a name or (, found '*'"),
    "g ** 2": (3, "a power is written ^"),
    "g $ m": (3, "unexpected character '$'"),
    "g; m": (2, "unexpected character ';'"),
    "\u03b3 + g": (1, "unexpected character"),
    "g + exp(g, m)": (5, "'exp' takes 1 argument, got 2"),
    "exp()": (1, "'exp' takes 1 argument, got 0"),
    "left(g)": (1, "'left' takes 2 arguments, got 1"),
    "exp": (1, "'exp' is a function, and has no arguments here"),
    "m + g(2)": (5, "'g' is no function, and takes no arguments"),
    "g * 1e999": (5, "1e999 is not finite in float32, at most 3.4028234e+38"),
    "g * 1e39": (5, "1e39 is not finite"),
    "g + 0.3": (5, "0.3 is no constant of the vocabulary BELLO"),
    "1e-4 * g": (1, "0.0001 is no constant of the vocabulary BELLO"),
    "ema(g, 0.9)": (1, "'ema' is in the vocabulary EXTENDED, and not in BELLO"),
    "clip(g, m)": (1, "the limit must be a number in [0, inf], got m"),
    "clip(g, -1)": (1, "the limit must be a number in [0, inf], got -1"),
    "drop(g, 1.5)": (9, "the probability must be in [0, 1], got 1.5"),
    "g + drop(ld, 0.1)": (5, "'drop' is of an array, and ld is a number"),
    "(" * 100 + "g" + ")" * 100: (65, "a rule may be 64 levels deep, not more"),
    "-" * 100 + "g": (65, "a rule may be 64 levels deep, not more"),
    "g" + "^g" * 100: (130, "a rule may be 64 levels deep, not more"),
    "+".join("g" * 100): (128, "a rule may be 64 levels deep, not more"),
}


@pytest.mark.parametrize("text", ERRORS)
def test_errors_point_at_the_character(text):
    column, problem = ERRORS[text]
    for make in (rules.parse, rules.transform, rules.fingerprint):
        with pytest.raises(rules.RuleError) as error:
            make(text)
        assert error.value.column == column
        assert str(error.value).startswith(f"column {column}: {problem}")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("ema(g, 1)", "column 8: the decay must be in [0, 1), got 1"),
        ("ema(g, norm(g))", "column 1: the decay must be a number in [0, 1)"),
        ("g * norm(2)", "column 5: 'norm' is of an array, and 2 is a number"),
        ("prev(g)", "column 1: 'prev' is of an ema, got g"),
        ("tail", "column 1: unknown name 'tail'"),
    ],
)
def test_errors_of_the_extended_vocabulary(text, problem):
    with pytest.raises(rules.RuleError) as error:
        rules.parse(text, vocabulary=EXTENDED)
    assert str(error.value).startswith(problem)


def test_trees_are_checked_too():
    for value in (-1.0, -0.0, np.nan, np.inf, 1e39):
        with pytest.raises(ValueError, match="a number must be in"):
            Number(value)
    with pytest.raises(ValueError, match=r"^foo: unknown name 'foo'"):
        rules.transform(Call("exp", (Name("foo"),)))
    grown = Name("g")
    for _ in range(63):
        grown = Call("exp", (grown,))
    with pytest.raises(ValueError, match="64 levels deep"):
        Call("exp", (grown,))
    grown = Name("g")
    for _ in range(8):
        grown = Call("*", (grown, grown))
    with pytest.raises(ValueError, match="1000 nodes"):
        Call("*", (grown, grown))
    for odd in (None, 3, b"g"):
        with pytest.raises(TypeError, match="a rule must be a string, got"):
            rules.transform(odd)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"rule": "g * ld"}, ValueError, "total_steps must be given, .* has ld"),
        ({"rule": "cd(2)*g"}, ValueError, "total_steps must be given"),
        ({"total_steps": 0}, ValueError, r"total_steps must be in \[1.0, inf\), got 0"),
        ({"b1": 1.0}, ValueError, r"b1 must be in \[0.0, 1.0\), got 1.0"),
        ({"b2": -0.1}, ValueError, r"b2 must be in \[0.0, 1.0\), got -0.1"),
        ({"b3": np.nan}, ValueError, r"b3 must be in \[0.0, 1.0\), got nan"),
        ({"delta": -1}, ValueError, r"delta must be in \[0.0, inf\), got -1"),
        ({"seed": -1}, ValueError, "seed must be an integer of at least 0"),
        ({"operands": {"m": oht.trace(0.9)}}, ValueError, "m has a meaning in BELLO"),
        ({"operands": {"a b": oht.trace(0.9)}}, ValueError, "must be a word"),
        ({"operands": {"a": 3}}, TypeError, "must be a gradient transformation, got 3"),
    ],
)
def test_wrong_arguments(kwargs, error, message):
    with pytest.raises(error, match=message):
        rules.transform(**{"rule": "g"} | kwargs)


def test_a_power_is_a_number_for_negative_numbers():
    x = jnp.array([-2.0, 2.0])
    for text, want in (
        ("g^2", [4, 4]),
        ("g^3", [-8, 8]),
        ("g^-1", [-0.5, 0.5]),
        ("g^0.5", [-(2**0.5), 2**0.5]),
        ("g^(2 * ema(1, 0))", [4, 4]),  # no constant: by the same meaning
        ("g^(3 * ema(1, 0))", [-8, 8]),
        ("2^g", [0.25, 4]),
    ):
        tx = rules.transform(text, vocabulary=EXTENDED)
        np.testing.assert_allclose(tx.update(x, tx.init(x))[0], want, rtol=1e-6)


def test_quotients_are_damped_in_one_vocabulary_and_exact_in_the_other():
    x = jnp.array([0.0, 1e-8, 1.0])
    for vocabulary, want in ((BELLO, [0, 0.5, 1]), (EXTENDED, [0, 1, 1])):
        tx = rules.transform("g / g", vocabulary=vocabulary)
        np.testing.assert_allclose(tx.update(x, tx.init(x))[0], want, rtol=1e-6)


def test_numbers_fill_their_leaves():
    made, _ = _made("norm_leaf(g) / rms(g) + norm(g) * 2", vocabulary=EXTENDED)
    _, gradients = _problem()
    norm = optax.tree.norm(gradients[0])
    for name, g in gradients[0].items():
        want = np.full(g.shape, np.sqrt(g.size) + 2 * norm)
        np.testing.assert_allclose(made[0][name], want, rtol=1e-6)


def test_a_state_has_what_the_rule_needs():
    for text, vocabulary, names in (
        ("g * w", BELLO, set()),
        ("adam + rmsprop + v", BELLO, {"m", "v"}),
        ("gamma", BELLO, {"gamma"}),
        (
            "ema(m*g, 0.9) + ema_hat(g*m, 0.9) + prev(ema(g, 0.5))",
            EXTENDED,
            {"m", "ema(g * m, 0.9)", "ema(g, 0.5)"},
        ),
    ):
        state = rules.transform(text, vocabulary=vocabulary).init(jnp.ones(2))
        assert set(state.memory) == names
        assert state.key is None
    state = rules.transform("ema(norm(g), 0.9)*g", vocabulary=EXTENDED).init(
        jnp.ones(2)
    )
    assert state.memory["ema(norm(g), 0.9)"].shape == ()
    tx = rules.transform("m")
    with pytest.raises(ValueError, match="the average m and updates must be trees"):
        tx.update({"a": jnp.ones(2)}, tx.init(jnp.ones(2)))


def test_operands_are_transforms():
    lion = optax.scale_by_lion()
    got, state = _made(
        "2 * lion + g", operands={"lion": lion, "unused": oht.trace(0.9)}
    )
    wanted, inner = _run(lion.update, lion.init(_problem()[0]))
    want = [
        jax.tree.map(lambda u, g: 2 * u + g, updates, grads)
        for updates, grads in zip(wanted, _problem()[1], strict=True)
    ]
    assert _off(got, want) == 0
    assert set(state.memory) == {"lion"}
    assert _off(state.memory["lion"].mu, inner.mu) == 0


def test_noise_is_new_in_each_update_leaf_and_place():
    zeros = {"a": jnp.zeros(4000), "b": jnp.zeros(4000)}

    @functools.partial(jax.jit, static_argnums=0)
    def run(text, key):
        tx = rules.transform(text)
        state, made = tx.init(zeros)._replace(key=key), []
        for _ in range(2):
            updates, state = tx.update(zeros, state, zeros)
            made += [updates["a"], updates["b"]]
        return jnp.stack(made)

    def drawn(text, seed=0):
        key = rules.transform("noise", seed=seed).init(zeros).key
        return np.asarray(run(text, key))

    noise = drawn("noise + g")
    assert np.max(np.abs(np.corrcoef(noise) - np.eye(4))) < 0.06  # 4 standard errors
    np.testing.assert_allclose(noise.std(axis=1), 0.01, rtol=0.05)
    np.testing.assert_array_equal(noise, drawn("noise + g"))
    assert abs(np.corrcoef(noise[0], drawn("noise", seed=1)[0])[0, 1]) < 0.06
    assert not drawn("noise - noise").any()  # one name, one draw
    anneal = drawn("anneal")
    wanted = [1, 1, 2**-0.275, 2**-0.275]  # roots of variances
    np.testing.assert_allclose(anneal.std(axis=1), wanted, rtol=0.05)


def test_drop_sets_a_share_of_the_entries_to_zero():
    ones = jnp.ones(4000)
    tx = rules.transform("drop(g, 0.3) - drop(2 * g, 0.3)")
    update = jax.jit(tx.update)
    updates, state = update(ones, tx.init(ones))
    share = {value: np.mean(updates == value) for value in (0, 1, -1, -2)}
    wanted = {0: 0.09, 1: 0.21, -1: 0.49, -2: 0.21}  # the two are independent
    for value, probability in wanted.items():
        assert share[value] == pytest.approx(probability, abs=0.03)
    assert np.any(update(ones, state)[0] != updates)


def test_schedules_against_their_formulas():
    T, t = 8, np.arange(12)
    over = np.minimum(t / T, 1)
    for text, want in (
        ("ld", 1 - over),
        ("cd(0.5)", (1 + np.cos(np.pi * over)) / 2),
        ("cd(2)", (1 + np.cos(4 * np.pi * over)) / 2),
        ("rd(2)", (1 + np.cos(np.pi * (2 * t % T) / T)) / 2),
    ):
        tx = rules.transform(text, total_steps=T)
        counts = [tx.init(jnp.ones(()))._replace(count=jnp.int32(k)) for k in t]
        states = jax.tree.map(lambda *x: jnp.stack(x), *counts)
        made, _ = jax.vmap(functools.partial(tx.update, jnp.ones(())))(states)
        np.testing.assert_allclose(made, want, atol=1e-6)


@pytest.mark.nightly
def test_fingerprints_tell_rules_apart_by_what_they_do():
    word = rules.fingerprint
    same = ("g", "g + g", "left(g, m)", "g * 2 - g", "g * exp(sign(g) - sign(g))")
    assert len({word(text) for text in same}) == 1
    differ = ("g", "-g", "m", "sign(m)", "adam", "rmsprop", "g3", "drop(g, 0.3)", "w")
    assert len({word(text) for text in differ}) == len(differ)
    assert word("sign(m)") == word("sign(2 * m)", up_to_scale=False)
    assert word("g") != word("2 * g", up_to_scale=False)
    for text in ("g - g", "log(g - g)", "exp(exp(exp(g + 2)))"):
        assert word(text) is None
    known = {
        name: word(rule.text, vocabulary=rule.vocabulary)
        for name, rule in rules.KNOWN.items()
    }
    assert None not in known.values()
    assert known.pop("gclip") == known["momentum"]  # the norm stays below its bound
    assert len(set(known.values())) == len(known)


def test_costs():
    assert rules.cost(rules.parse("g")) == (1, 0)
    assert rules.cost(rules.parse("adam * exp(m)")) == (4, 2)
    text = "ema(g, 0.9) + ema_hat(g, 0.9) + ema(norm(g), 0.9)"
    assert rules.cost(rules.parse(text, vocabulary=EXTENDED)) == (12, 1)


PROGRAMS = (
    "g",
    "adam",
    "-sign(g)",
    "sqrt(log(exp(g)))",
    "g * exp(sign(g) * sign(m))",
    "clip(m, 1e-4) * exp(g)",
    "(1 + sign(g) * sign(m)) * g",
    "sqrt(sign(g)) / (clip(1e-1 * w, 1e-4) + 2)",
    "rmsprop^sqrt(m) - 1e-3 * w",
    "left(g, m) + gamma / v",
)


@pytest.mark.parametrize("text", PROGRAMS)
def test_rules_are_arrays_and_back(text):
    rule = rules.parse(text)
    program = rules.encode(rule, slots=5)
    assert program.dtype == np.int32
    assert program.shape == (5, 5)
    want = rules.parse(text.replace("left(g, m)", "g"))
    assert rules.decode(program) in (rule, want)


def _random_programs(number, slots=3):
    rng = np.random.default_rng(0)
    limits = [len(rules.PROGRAM_OPERANDS) + np.arange(slots)] * 2
    limits += [np.full(slots, len(x)) for x in (rules.PROGRAM_UNARY,) * 2]
    limits += [np.full(slots, len(rules.PROGRAM_BINARY))]
    return rng.integers(0, np.stack(limits, axis=1), size=(number, slots, 5))


def test_random_arrays_are_rules_and_back():
    for program in _random_programs(200):
        rule = rules.decode(program)
        again = rules.decode(rules.encode(rule, slots=7))
        assert str(again) == str(rule) or rule.nodes > again.nodes


@functools.cache
def _interpreted():
    """Updates of all random programs, each with what `transform` makes of its rule."""
    programs = _random_programs(40)
    params = jnp.linspace(-2.0, 2.0, 7)
    gradients = jnp.asarray(np.random.default_rng(1).standard_t(3, (3, 7)), jnp.float32)

    def run(tx):
        def step(state, grads):
            updates, state = tx.update(grads, state, params)
            return state, updates

        return jax.lax.scan(step, tx.init(params), gradients)[1]

    programs = jnp.asarray(programs, jnp.int32)
    got = jax.jit(lambda p: jax.lax.map(lambda one: run(rules.interpret(one)), p))
    texts = [rules.decode(np.asarray(program)) for program in programs]
    want = jax.jit(lambda: [run(rules.transform(rule)) for rule in texts])
    return texts, got(programs), want()


def test_one_program_runs_any_rule():
    for rule, got, want in zip(*_interpreted(), strict=True):
        finite = np.isfinite(want)
        np.testing.assert_array_equal(np.isfinite(got), finite, err_msg=str(rule))
        got, want = np.where(finite, got, 0), np.where(finite, want, 0)
        np.testing.assert_allclose(got, want, 1e-4, 1e-6, err_msg=str(rule))


def test_what_is_no_program():
    for bad in ([[0, 0, 0, 0]], np.zeros((0, 5), int), np.zeros((1, 5)), 3):
        with pytest.raises(ValueError, match="a program is"):
            rules.decode(bad)
    with pytest.raises(ValueError, match=r"row .* must be below"):
        rules.decode([[16, 0, 0, 0, 0]])
    with pytest.raises(ValueError, match="takes 2 rows, and slots is 1"):
        rules.encode("g * exp(sign(g) * sign(m))", slots=1)
    with pytest.raises(ValueError, match="noise: is not among the operands"):
        rules.encode("g + noise", slots=3)


def test_programs_have_the_fingerprints_of_their_rules():
    texts = ("g", "adam", "m * exp(sign(g))", "log(g - g)", "g - g", "rmsprop^sqrt(m)")
    programs = np.stack([rules.encode(text, slots=2) for text in texts])
    assert rules.fingerprints(programs) == [rules.fingerprint(text) for text in texts]


def test_noise_is_one_program_whose_state_keeps_its_types():
    tx, (params, (grads, *_)) = rules.transform("drop(m, 0.3) + noise"), _problem()
    state = tx.init(params)
    updates, new_state = jax.eval_shape(tx.update, grads, state, params)
    assert types(updates) == types(grads)
    assert types(new_state) == types(state)
