"""BigGAN on one device and on all, in float64; prints JSON. See `test_biggan_devices`."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from biggan_networks import random_variables
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from noisytwins_jax.models.biggan import Discriminator, Generator

BATCH, CLASSES, Z = 16, 3, 6
SHARED = {"resolution": 8, "channels": 1, "num_classes": CLASSES, "width": 4, "attention": (4, 8), "dtype": jnp.float64}


def run(deep: bool, devices: list[jax.Device]) -> dict:
    """A training pass through both networks, with the batch split among `devices`: whatever comes out of it."""
    generator = Generator(**SHARED, deep=deep, z_dim=Z, embedding_dim=4)
    discriminator = Discriminator(**SHARED | {"width": 8}, deep=deep)
    rng = np.random.default_rng(0)
    z, labels = rng.standard_normal((BATCH, Z)), rng.integers(0, CLASSES, BATCH)
    g = random_variables(generator, z[:1], labels[:1])
    d = random_variables(discriminator, np.zeros((1, 8, 8, 1)), labels[:1])

    def loss(params, d_params, z, labels):
        variables = {**g, "params": params}
        moved = ["spectral", "batch_stats"]
        images, g_moved = generator.apply(variables, z, labels, train=True, update_stats=True, mutable=moved)
        variables = {**d, "params": d_params}
        found, d_moved = discriminator.apply(variables, images, labels, update_stats=True, mutable=["spectral"])
        return jnp.square(found.logits).mean(), (images, found.logits, g_moved, d_moved)

    mesh = Mesh(np.array(devices), ("data",))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), in_shardings=(whole, whole, split, split))
    (value, (images, logits, *moved)), gradients = program(g["params"], d["params"], z, labels)
    assert len(images.sharding.device_set) == len(devices)
    found = {"loss": value, "images": images, "logits": logits, "moved": moved, "gradients": gradients}
    return jax.device_get(found)


def main() -> None:
    """Largest differences between one device and all, relative to the largest entry of each array."""
    devices, report = jax.devices(), {"devices": jax.device_count()}
    for deep in (False, True):
        one, many = run(deep, devices[:1]), run(deep, devices)
        # A bias before batch normalisation has a gradient of zero, of which only rounding is seen: hence the floor.
        largest = max(np.abs(x).max() for x in jax.tree.leaves(one["gradients"]))
        differences = jax.tree.map(
            lambda a, b, floor=1e-6 * largest: np.abs(a - b).max() / max(np.abs(a).max(), floor), one, many
        )
        dtypes = {str(x.dtype) for x in jax.tree.leaves(many)}
        report["deep" if deep else "plain"] = {
            "dtypes": sorted(dtypes),
            "largest_gradient": largest,
            "differences": {name: max(jax.tree.leaves(tree)) for name, tree in differences.items()},
        }
    print(json.dumps(report, default=float))


if __name__ == "__main__":
    main()
