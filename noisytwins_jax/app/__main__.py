"""Entry point of the command; see `noisytwins_jax.app.command`."""

import sys

from noisytwins_jax.app.command import main

if __name__ == "__main__":
    sys.exit(main())
