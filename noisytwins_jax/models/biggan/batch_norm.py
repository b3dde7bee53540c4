"""Batch normalisation of the generator, with a learned gain and bias or conditional ones.

In training activations are normalised by the mean and the biased variance of the whole batch: plain means over an array,
which span all devices when the array is split among them. Otherwise stored statistics are used. Statistics are float32.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from noisytwins_jax.models.biggan.layers import Dense, Embedding, at_least_float32

Array = jax.Array


def batch_statistics(x: Array) -> tuple[Array, Array]:
    """Compute mean and biased variance ``[C]`` of each channel over the other axes of ``[N, H, W, C]``, in two passes."""
    mean = jnp.mean(x, axis=(0, 1, 2))
    return mean, jnp.mean(jnp.square(x - mean), axis=(0, 1, 2))


class _BatchNorm(nn.Module):
    """Common base of the two kinds.

    Attributes:
      epsilon: added to the variance.
      decay: of the stored statistics; 0 stores the batch's own.
    """

    epsilon: float
    decay: float

    def standardize(self, x: Array, train: bool, update_stats: bool) -> Array:
        """Compute ``(x - mean) / √(var + epsilon)``, at least float32; in training with batch statistics."""
        mean = self.variable("batch_stats", "mean", jnp.zeros, (x.shape[-1],))
        var = self.variable("batch_stats", "var", jnp.ones, (x.shape[-1],))
        x = x.astype(at_least_float32(x.dtype))
        if not train:
            return (x - mean.value) * jax.lax.rsqrt(var.value + self.epsilon)
        statistics = batch_statistics(x)
        if update_stats:
            for stored, batch in zip((mean, var), statistics, strict=True):
                stored.value = self.decay * stored.value + (1.0 - self.decay) * jax.lax.stop_gradient(batch)
        return (x - statistics[0]) * jax.lax.rsqrt(statistics[1] + self.epsilon)


class BatchNorm(_BatchNorm):
    """Batch normalisation ``gain · standardized + bias``."""

    @nn.compact
    def __call__(self, x: Array, train: bool, update_stats: bool) -> Array:
        """Map ``[N, H, W, C] → [N, H, W, C]``."""
        gain = self.param("gain", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return (self.standardize(x, train, update_stats) * gain + bias).astype(x.dtype)


class ConditionalBatchNorm(_BatchNorm):
    """Conditional batch normalisation ``(1 + gain(condition)) · standardized + bias(condition)``.

    The condition is an embedding of the class and latents. Gain and bias are spectrally normalised linear maps of both,
    without bias; or, with `class_tables`, the class's rows in this layer's own tables, which are not normalised, plus such
    a map of the latents if there are any.

    Attributes:
      sn_epsilon: see `layers`.
      class_tables: whether embeddings are one-hot and the layer has tables (as in SA-GAN).
    """

    sn_epsilon: float | None
    class_tables: bool

    @nn.compact
    def __call__(self, x: Array, embedding: Array, latents: Array, train: bool, update_stats: bool) -> Array:
        """Map ``[N, H, W, C]``, embeddings ``[N, E]`` and latents ``[N, L]``, L from 0 → ``[N, H, W, C]``."""

        def affine(name: str) -> Array:
            condition = latents if self.class_tables else jnp.concatenate([embedding, latents], axis=-1)
            value = 0.0
            if condition.shape[-1]:
                value = Dense(x.shape[-1], self.sn_epsilon, use_bias=False, name=name)(condition, update_stats)
            if self.class_tables:
                value = value + Embedding(embedding.shape[-1], x.shape[-1], name=f"{name}_table")(embedding)
            return value[:, None, None, :]

        gain, bias = affine("gain"), affine("bias")
        return (self.standardize(x, train, update_stats) * (1.0 + gain) + bias).astype(x.dtype)
