"""Entry point of the command; see `noisytwins_jax.data.prepare.command`."""

from noisytwins_jax.data.prepare.command import main

if __name__ == "__main__":  # worker processes import this module too
    main()
