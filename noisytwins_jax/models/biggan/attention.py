"""Self-attention over pixels (Zhang et al., "Self-Attention Generative Adversarial Networks", ICML 2019)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from noisytwins_jax.models.biggan.layers import Conv, at_least_float32
from noisytwins_jax.models.fir import UpImpl
from noisytwins_jax.utils.errors import UserError

Array = jax.Array


class SelfAttention(nn.Module):
    """Self-attention ``x + gamma · o(attention)``: each pixel attends to all, max-pooled by 2×2.

    Queries ``theta`` and keys ``phi`` have an eighth of the channels, values ``g`` half; no scaling by the width. Gamma
    starts at 0. The softmax is float32.
    """

    sn_epsilon: float | None
    up_impl: UpImpl = "conv"

    @nn.compact
    def __call__(self, x: Array, update_stats: bool) -> Array:
        """Map ``[N, H, W, C] → [N, H, W, C]``; C at least 8, H and W even.

        Raises:
          UserError: there are fewer than 8 channels.
        """
        n, height, width, channels = x.shape
        if channels < 8:
            raise UserError(
                f"Attention at {height} px needs at least 8 channels, not {channels}; give a larger width, or "
                "attention elsewhere or nowhere."
            )

        def project(inputs: Array, features: int, name: str) -> Array:
            conv = Conv(features, 1, self.sn_epsilon, use_bias=False, up_impl=self.up_impl, name=name)
            return conv(inputs, update_stats)

        def pool(projected: Array) -> Array:
            return nn.max_pool(projected, (2, 2), strides=(2, 2)).reshape(n, height * width // 4, -1)

        queries = project(x, channels // 8, "theta").reshape(n, height * width, -1)
        keys = pool(project(x, channels // 8, "phi"))
        values = pool(project(x, channels // 2, "g"))
        scores = jnp.einsum("nqc,nkc->nqk", queries, keys, preferred_element_type=at_least_float32(x.dtype))
        weights = nn.softmax(scores, axis=-1).astype(x.dtype)
        attention = jnp.einsum("nqk,nkc->nqc", weights, values).reshape(n, height, width, channels // 2)
        gamma = self.param("gamma", nn.initializers.zeros, ())
        return (x + gamma * project(attention, channels, "o")).astype(x.dtype)
