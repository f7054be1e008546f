import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.common.errors import UserError
from experiments.models import bert

SMALL = bert.BertConfig(
    vocab_size=40, max_length=10, num_layers=2, width=16, num_heads=2, mlp_width=32
)


def build(config=SMALL):
    return bert.BertForMaskedLM(config, rngs=nnx.Rngs(0))


@functools.cache
def count(size):
    config = bert.BertConfig(vocab_size=30522, max_length=512, **bert.SIZES[size])
    state = nnx.eval_shape(lambda: nnx.state(build(config)))
    return sum(leaf.size for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize(
    ("size", "published"),
    [
        ("base", 110_000_000),
        pytest.param("large", 340_000_000, marks=pytest.mark.nightly),
    ],
)
def test_sizes_are_those_of_devlin(size, published):
    # The paper rounds; its count has a pooler and no masked-language-model head.
    assert count(size) == pytest.approx(published, rel=0.02)


def test_base_has_every_parameter_of_the_published_layer_list():
    width, mlp, vocabulary = 768, 3072, 30522
    embeddings = (vocabulary + 512 + 2) * width + 2 * width
    attention = 4 * (width * width + width)
    layer = attention + 2 * width * mlp + mlp + width + 4 * width
    head = width * width + width + 2 * width + vocabulary
    assert count("base") == embeddings + 12 * layer + head
    assert count("base6") == embeddings + 6 * layer + head


def random_tokens(batch=3, length=10):
    return jax.random.randint(jax.random.key(1), (batch, length), 5, 40)


@functools.partial(nnx.jit, static_argnames="deterministic")
def _scores(model, *args, **kwargs):  # one program, where each operation would be one
    return model(*args, **kwargs)


def scores(model, tokens, mask, positions, **kwargs):
    return _scores(model, tokens, mask, jnp.asarray(positions), **kwargs)


def test_padding_changes_nothing():
    model = build()
    tokens = random_tokens(1)
    positions = [[1, 4]]
    short = scores(model, tokens[:, :6], jnp.ones((1, 6), bool), positions)
    for filler in (0, 17):
        padded = tokens.at[:, 6:].set(filler)
        mask = jnp.arange(10)[None] < 6
        # Sums over 10 instead of 6 keys round differently.
        np.testing.assert_allclose(
            scores(model, padded, mask, positions), short, rtol=1e-4, atol=1e-5
        )


def test_tokens_see_both_sides():
    model = build()
    tokens = random_tokens(1)
    mask = jnp.ones((1, 10), bool)
    plain = scores(model, tokens, mask, [[4]])
    for position in (0, 9):
        changed = tokens.at[0, position].set((tokens[0, position] - 4) % 35 + 5)
        assert not np.allclose(scores(model, changed, mask, [[4]]), plain, atol=1e-6)


def test_order_of_tokens_matters():
    model = build()
    tokens = jnp.array([[5, 6, 7, 8]])
    swapped = jnp.array([[5, 7, 6, 8]])
    mask = jnp.ones((1, 4), bool)
    first = scores(model, tokens, mask, [[0]])
    assert not np.allclose(first, scores(model, swapped, mask, [[0]]), atol=1e-6)


def test_head_scores_the_positions_asked_for():
    model = build()
    tokens, mask = random_tokens(), jnp.ones((3, 10), bool)
    everywhere = scores(model, tokens, mask, np.tile(np.arange(10), (3, 1)))
    some = np.array([[1, 8], [0, 3], [9, 9]])
    np.testing.assert_allclose(
        scores(model, tokens, mask, some),
        np.take_along_axis(np.asarray(everywhere), some[..., None], axis=1),
        rtol=1e-5,
        atol=1e-6,
    )


def test_output_layer_is_the_token_embedding():
    model = build()
    hidden = jax.random.normal(jax.random.key(0), (1, 1, SMALL.width))
    table = model.encoder.embeddings.token.embedding[...]
    tokens, mask = random_tokens(), jnp.ones((3, 10), bool)
    before = scores(model, tokens, mask, [[0]] * 3)
    bias = np.zeros(40)
    bias[7] = 3
    model.output_bias[...] = jnp.asarray(bias)
    after = scores(model, tokens, mask, [[0]] * 3)
    np.testing.assert_allclose(after, np.asarray(before) + bias, atol=1e-6)
    np.testing.assert_allclose(
        model.encoder.embeddings.token.attend(hidden), hidden @ table.T, rtol=1e-5
    )
    shapes = [leaf.shape for leaf in jax.tree.leaves(nnx.state(model))]
    assert shapes.count((SMALL.vocab_size, SMALL.width)) == 1
    assert (SMALL.width, SMALL.vocab_size) not in shapes


@pytest.mark.nightly
def test_layers_end_with_a_norm():
    model = build()
    out = model.encoder(random_tokens(), jnp.ones((3, 10), bool))
    np.testing.assert_allclose(out.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(out.std(-1), 1, atol=1e-3)


def test_dropout_follows_its_key():
    model = build()
    tokens, mask = random_tokens(), jnp.ones((3, 10), bool)

    def dropped(seed):
        rngs = nnx.Rngs(dropout=seed)
        return scores(model, tokens, mask, [[0]] * 3, deterministic=False, rngs=rngs)

    plain = scores(model, tokens, mask, [[0]] * 3)
    np.testing.assert_array_equal(dropped(0), dropped(0))
    assert not np.allclose(dropped(0), dropped(1), atol=1e-4)
    assert not np.allclose(dropped(0), plain, atol=1e-4)


@pytest.mark.nightly
def test_weights_start_as_a_truncated_normal():
    config = bert.BertConfig(1000, 128, 1, 256, 4, 1024, init_stddev=0.05)
    params = nnx.to_pure_dict(nnx.state(build(config)))
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.size >= 128 * 256]
    assert len(kernels) == 9  # two embeddings, four of attention, two of mlp, head
    for kernel in kernels:
        # Cut at two deviations, which leaves 0.88 of the deviation.
        assert float(jnp.std(kernel)) == pytest.approx(0.88 * 0.05, rel=0.02)
        assert float(jnp.abs(kernel).max()) <= 2 * 0.05


def test_half_precision_computes_in_bfloat16_with_float32_parameters():
    config = bert.BertConfig(40, 10, 2, 16, 2, 32, dtype="bfloat16")
    model = build(config)
    leaves = jax.tree.leaves(nnx.state(model))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
    tokens, mask = random_tokens(), jnp.ones((3, 10), bool)
    assert model.encoder(tokens, mask).dtype == jnp.bfloat16
    logits = scores(model, tokens, mask, [[0]] * 3)
    assert logits.dtype == jnp.float32
    reference = scores(build(), tokens, mask, [[0]] * 3)
    # bfloat16 has 8 bits: logits of size 0.1 to 0.001 or so, through two layers.
    np.testing.assert_allclose(logits, reference, atol=0.01)


def test_without_attention_tokens_see_themselves_alone():
    config = dataclasses.replace(SMALL, attention=False)
    model = build(config)
    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(
            nnx.to_pure_dict(nnx.state(model))
        )
    ]
    assert paths
    assert not any("attention" in path for path in paths)
    tokens, mask = random_tokens(1), jnp.ones((1, 10), bool)
    plain = scores(model, tokens, mask, [[4]])
    other = tokens.at[0, 7].set((tokens[0, 7] - 4) % 35 + 5)
    np.testing.assert_array_equal(scores(model, other, mask, [[4]]), plain)
    same = tokens.at[0, 4].set((tokens[0, 4] - 4) % 35 + 5)
    assert not np.allclose(scores(model, same, mask, [[4]]), plain, atol=1e-6)


@pytest.mark.nightly
def test_gaussian_inputs_are_noise_as_large_as_embeddings():
    config = dataclasses.replace(SMALL, inputs="gaussian", width=64, init_stddev=0.07)
    tokens = random_tokens(50)
    gaussian_inputs = jax.jit(functools.partial(bert._gaussian_inputs, config))
    noise = gaussian_inputs(tokens)
    # 32,000 numbers: the mean and the deviation are known to 1%.
    assert float(jnp.std(noise)) == pytest.approx(0.07, rel=0.02)
    assert abs(float(jnp.mean(noise))) < 0.002
    np.testing.assert_array_equal(noise, gaussian_inputs(tokens))
    other = tokens.at[0, 3].set((tokens[0, 3] - 4) % 35 + 5)
    changed = gaussian_inputs(other)
    np.testing.assert_array_equal(changed[1:], noise[1:])
    correlation = jnp.corrcoef(changed[0].ravel(), noise[0].ravel())[0, 1]
    assert abs(float(correlation)) < 0.15  # of 640 independent pairs: 0.04


@pytest.mark.nightly
def test_with_gaussian_inputs_no_gradient_reaches_the_tokens_embeddings():
    config = dataclasses.replace(SMALL, inputs="gaussian")
    tokens, mask = random_tokens(1), jnp.ones((1, 10), bool)
    model = build(config)

    def total(model):
        return jnp.sum(model.encoder(tokens, mask) ** 3)

    grads = nnx.jit(nnx.grad(total))(model)
    assert not np.any(grads.encoder.embeddings.token.embedding.get_value())
    assert np.any(grads.encoder.embeddings.position.embedding.get_value())


def test_heads_must_divide_the_width():
    with pytest.raises(UserError, match=r"num_heads=3: must divide .*width=16"):
        dataclasses.replace(SMALL, num_heads=3)
