"""BERT encoder with a head for masked tokens or for answers to questions.

Architecture of Devlin et al., `BERT <https://arxiv.org/abs/1810.04805>`_, 2019:
learned positions, token types, layer normalisation after each residual sum, GELU,
and an output layer tied to the token embedding.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.common.errors import UserError

SIZES = {
    "tiny": {"num_layers": 2, "width": 64, "num_heads": 2, "mlp_width": 256},
    "base6": {"num_layers": 6, "width": 768, "num_heads": 12, "mlp_width": 3072},
    "base": {"num_layers": 12, "width": 768, "num_heads": 12, "mlp_width": 3072},
    "large": {"num_layers": 24, "width": 1024, "num_heads": 16, "mlp_width": 4096},
}
NUM_TOKEN_TYPES = 2
LAYER_NORM_EPS = 1e-12
INPUTS = ("tokens", "gaussian")


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Sizes of the model; parameters are float32, ``dtype`` is for computing."""

    vocab_size: int
    max_length: int
    num_layers: int
    width: int
    num_heads: int
    mlp_width: int
    dropout: float = 0.1
    init_stddev: float = 0.02
    dtype: str = "float32"
    attention: bool = True  # False: layers are their perceptrons alone
    inputs: str = "tokens"  # or "gaussian": noise in place of the tokens' embeddings

    def __post_init__(self):
        """Refuses heads that do not divide the width."""
        if self.width % self.num_heads:
            raise UserError(
                f"config.model.num_heads={self.num_heads}: must divide "
                f"config.model.width={self.width}"
            )


def _init(config: BertConfig) -> nnx.Initializer:
    return nnx.initializers.truncated_normal(config.init_stddev)


def _linear(config: BertConfig, n_in: int, n_out: int, rngs: nnx.Rngs) -> nnx.Linear:
    dtype = jnp.dtype(config.dtype)
    return nnx.Linear(n_in, n_out, dtype=dtype, kernel_init=_init(config), rngs=rngs)


def _layer_norm(config: BertConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    dtype = jnp.dtype(config.dtype)
    return nnx.LayerNorm(config.width, epsilon=LAYER_NORM_EPS, dtype=dtype, rngs=rngs)


def _embed(config: BertConfig, rows: int, rngs: nnx.Rngs) -> nnx.Embed:
    dtype = jnp.dtype(config.dtype)
    return nnx.Embed(
        rows, config.width, dtype=dtype, embedding_init=_init(config), rngs=rngs
    )


def _gaussian_inputs(config: BertConfig, tokens: jax.Array) -> jax.Array:
    """Noise as large as new embeddings, the same for the same row of tokens.

    It tells nothing of the tokens: another one in a row changes all of it.
    """
    key = jax.random.key(0)

    def row(tokens: jax.Array) -> jax.Array:
        of_row, _ = jax.lax.scan(
            lambda key, token: (jax.random.fold_in(key, token), None), key, tokens
        )
        return jax.random.normal(of_row, (len(tokens), config.width))

    noise = config.init_stddev * jax.vmap(row)(tokens)
    return noise.astype(jnp.dtype(config.dtype))


class Embeddings(nnx.Module):
    """Sum of token, position and token-type embeddings, normalised."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.token = _embed(config, config.vocab_size, rngs)
        self.position = _embed(config, config.max_length, rngs)
        self.token_type = _embed(config, NUM_TOKEN_TYPES, rngs)
        self.norm = _layer_norm(config, rngs)
        self.dropout = nnx.Dropout(config.dropout)

    def __call__(
        self,
        tokens: jax.Array,
        token_types: jax.Array,
        *,
        deterministic: bool,
        rngs: nnx.Rngs | None,
    ) -> jax.Array:
        """Embeds ``tokens`` (batch, length) as (batch, length, width)."""
        positions = jnp.arange(tokens.shape[1])[None]
        if self.config.inputs == "gaussian":
            x = _gaussian_inputs(self.config, tokens)
        else:
            x = self.token(tokens)
        x = x + self.position(positions)
        x = self.norm(x + self.token_type(token_types))
        return self.dropout(x, deterministic=deterministic, rngs=rngs)


class EncoderLayer(nnx.Module):
    """Self-attention and a two-layer perceptron, each followed by a norm.

    Without ``config.attention`` the perceptron and its norm are all there is.
    """

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        self.has_attention = config.attention
        if config.attention:
            self.attention = nnx.MultiHeadAttention(
                config.num_heads,
                config.width,
                dtype=jnp.dtype(config.dtype),
                dropout_rate=config.dropout,
                broadcast_dropout=False,
                kernel_init=_init(config),
                decode=False,
                keep_rngs=False,
                rngs=rngs,
            )
            self.attention_norm = _layer_norm(config, rngs)
        self.mlp_in = _linear(config, config.width, config.mlp_width, rngs)
        self.mlp_out = _linear(config, config.mlp_width, config.width, rngs)
        self.mlp_norm = _layer_norm(config, rngs)
        self.dropout = nnx.Dropout(config.dropout)

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array,
        *,
        deterministic: bool,
        rngs: nnx.Rngs | None,
    ) -> jax.Array:
        """Maps ``x`` (batch, length, width); ``mask`` is (batch, 1, 1, length)."""

        def drop(value: jax.Array) -> jax.Array:
            return self.dropout(value, deterministic=deterministic, rngs=rngs)

        if self.has_attention:
            attended = self.attention(
                x, mask=mask, deterministic=deterministic, rngs=rngs
            )
            x = self.attention_norm(x + drop(attended))
        hidden = nnx.gelu(self.mlp_in(x), approximate=False)
        return self.mlp_norm(x + drop(self.mlp_out(hidden)))


class BertEncoder(nnx.Module):
    """Embeddings and a stack of encoder layers."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        self.embeddings = Embeddings(config, rngs=rngs)
        self.layers = nnx.List(
            EncoderLayer(config, rngs=rngs) for _ in range(config.num_layers)
        )

    def __call__(
        self,
        tokens: jax.Array,
        padding_mask: jax.Array,
        token_types: jax.Array | None = None,
        *,
        deterministic: bool = True,
        rngs: nnx.Rngs | None = None,
    ) -> jax.Array:
        """Encodes a batch of token sequences.

        Args:
          tokens: (batch, length) token ids.
          padding_mask: (batch, length), True at tokens, False at padding.
          token_types: (batch, length) segment ids; zeros when ``None``.
          deterministic: True switches dropout off.
          rngs: stream for dropout, needed unless ``deterministic``.

        Returns:
          (batch, length, width) in the compute dtype.
        """
        if token_types is None:
            token_types = jnp.zeros_like(tokens)
        x = self.embeddings(tokens, token_types, deterministic=deterministic, rngs=rngs)
        mask = padding_mask[:, None, None, :]
        for layer in self.layers:
            x = layer(x, mask, deterministic=deterministic, rngs=rngs)
        return x


class BertForMaskedLM(nnx.Module):
    """Encoder plus dense, GELU, norm and the tied output layer."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        self.encoder = BertEncoder(config, rngs=rngs)
        self.head = _linear(config, config.width, config.width, rngs)
        self.head_norm = _layer_norm(config, rngs)
        self.output_bias = nnx.Param(jnp.zeros(config.vocab_size))

    def __call__(
        self,
        tokens: jax.Array,
        padding_mask: jax.Array,
        positions: jax.Array,
        *,
        deterministic: bool = True,
        rngs: nnx.Rngs | None = None,
    ) -> jax.Array:
        """Scores the vocabulary at the masked ``positions`` (batch, masked) only.

        Returns:
          (batch, masked, vocabulary) float32 logits.
        """
        x = self.encoder(tokens, padding_mask, deterministic=deterministic, rngs=rngs)
        x = jnp.take_along_axis(x, positions[..., None], axis=1)
        x = self.head_norm(nnx.gelu(self.head(x), approximate=False))
        logits = self.encoder.embeddings.token.attend(x)
        return logits.astype(jnp.float32) + self.output_bias[None, None]


class BertForQuestionAnswering(nnx.Module):
    """Encoder plus one dense layer: scores of each place as the answer's two ends."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        self.encoder = BertEncoder(config, rngs=rngs)
        self.head = _linear(config, config.width, 2, rngs)

    def __call__(
        self,
        tokens: jax.Array,
        padding_mask: jax.Array,
        token_types: jax.Array,
        *,
        deterministic: bool = True,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Scores every place; the arguments are those of `BertEncoder`.

        Returns:
          Two times (batch, length) float32 logits, of the first and the last place.
        """
        x = self.encoder(
            tokens, padding_mask, token_types, deterministic=deterministic, rngs=rngs
        )
        logits = self.head(x).astype(jnp.float32)
        return logits[..., 0], logits[..., 1]
