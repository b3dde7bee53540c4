"""StyleGAN2's mapping network with three kinds of class conditioning, and truncation in W."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from noisytwins_jax.models.layers import FullyConnected, normalize_2nd_moment

Array = jax.Array
Conditioning = Literal["concat", "additive", "content_style"]


def truncate(ws: Array, w_avg: Array, psi: float | Array) -> Array:
    """Truncate w ``[..., w_dim]`` to ``w_avg + psi·(ws - w_avg)``."""
    return w_avg + psi * (ws - w_avg)


class MappingNetwork(nn.Module):
    """Mapping from latents and class to W: `num_layers` dense layers on normalised z and the normalised class embedding ĉ.

    The class is given in one of three ways:

    * ``"concat"``: ``fc0([ẑ, ĉ])``, as in StyleGAN2-ADA.
    * ``"additive"``: ``fc0(ẑ) + t · class_projection(ĉ)`` with the transition t in [0, 1] a variable of the ``buffers``
      collection (``"transition"``, initially 0) that training changes; at t = 0 the class has no effect (Shahbazi et
      al., "Collapse by Conditioning: Training Class-conditional GANs with Limited Data", ICLR 2022).
    * ``"content_style"``: ``fc0([content(ẑ_c), s])`` with the style ``s = style([style_latent(ẑ_s), ĉ])``; ẑ_s is the first
      half of ẑ and ẑ_c the second (Content–Style, see `losses.content_style`).

    Attributes:
      num_classes: 0 for none.
      w_dim: width of the embedding, of every layer and of the output.
      num_layers: leaky-ReLU layers with learning-rate multiplier 0.01.
      w_avg_decay: decay of the running mean of w, or ``None`` for no running mean.
      conditioning: see above.
      noise_after_normalization: whether class noise is added to ĉ itself rather than to the embedding before.
    """

    num_classes: int
    w_dim: int
    num_layers: int
    w_avg_decay: float | None = None
    conditioning: Conditioning = "concat"
    noise_after_normalization: bool = False

    @nn.compact
    def __call__(
        self,
        z: Array | None,
        labels: Array | None,
        class_noise: Array | None = None,
        update_w_avg: bool = False,
        unconditional: bool = False,
        style_only: bool = False,
    ) -> Array:
        """Map latents and class to w ``[N, w_dim]``.

        Args:
          z: ``[N, z_dim]`` standard normal latents, or ``None`` (the discriminator's mapping).
          labels: ``[N]`` int class ids, or ``None`` without classes.
          class_noise: ``[N, w_dim]`` added to the class embedding, before it is normalised (NoisyTwins eq. 3) or after.
          update_w_avg: whether to update the running mean of w; needs the ``"buffers"`` collection to be mutable.
          unconditional: whether to omit the class: zeros in place of the normalised embedding, or nothing added.
          style_only: whether to return the style s ``[N, z_dim/2 + w_dim]`` of ``"content_style"`` in place of w.
        """

        def dense(name: str) -> FullyConnected:
            return FullyConnected(self.w_dim, activation="lrelu", lr_multiplier=0.01, name=name)

        class_vector = None
        if self.num_classes > 0 and not unconditional:
            # As a matrix product with the one-hot label: row `weight[y]/√num_classes + bias`. The gain sets the scale
            # of class noise: coordinates start with standard deviation 1/√num_classes.
            embedding = FullyConnected(self.w_dim, name="embed")(jax.nn.one_hot(labels, self.num_classes))
            if class_noise is not None and not self.noise_after_normalization:
                embedding = embedding + class_noise
            class_vector = normalize_2nd_moment(embedding)
            if class_noise is not None and self.noise_after_normalization:
                class_vector = class_vector + class_noise

        inputs = [] if z is None else [normalize_2nd_moment(z)]
        if self.num_classes > 0 and self.conditioning != "additive":
            inputs.append(jnp.zeros((z.shape[0], self.w_dim), z.dtype) if class_vector is None else class_vector)
        if self.conditioning == "content_style":
            inputs = self._content_and_style(*inputs)
            if style_only:
                return inputs[1]
        w = jnp.concatenate(inputs, axis=-1)
        for i in range(self.num_layers):
            w = dense(f"fc{i}")(w)
            if i == 0 and self.conditioning == "additive" and class_vector is not None:
                transition = self.variable("buffers", "transition", jnp.zeros, ())
                w = w + transition.value * dense("class_projection")(class_vector)
        if self.w_avg_decay is not None:
            w_avg = self.variable("buffers", "w_avg", jnp.zeros, (self.w_dim,))
            if update_w_avg:
                w_avg.value = self.w_avg_decay * w_avg.value + (1.0 - self.w_avg_decay) * w.mean(axis=0)
        return w

    def _content_and_style(self, z: Array, class_vector: Array) -> list[Array]:
        """Return content ``[N, z_dim/2]`` and style ``[N, z_dim/2 + w_dim]`` of normalised latents and class vectors."""
        of_style, of_content = jnp.split(z, 2, axis=-1)
        half = of_style.shape[-1]
        content = FullyConnected(half, name="content")(of_content)
        style = jnp.concatenate([FullyConnected(half, name="style_latent")(of_style), class_vector], axis=-1)
        mix = FullyConnected(style.shape[-1], activation="lrelu", lr_multiplier=0.01, name="style")
        return [content, mix(style)]
