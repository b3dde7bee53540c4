"""The command; see `noisytwins_jax.data.prepare.command`."""

from noisytwins_jax.data.prepare.command import main

if __name__ == "__main__":  # the processes that prepare images import this module too
    main()
