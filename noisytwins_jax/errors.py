"""The one exception type whose message is meant for the person at the keyboard."""


class UserError(ValueError):
    """Something the user can mend: the message is one sentence that says what is wrong and what to do.

    ``noisytwins_jax.main`` prints the message without a traceback and exits with status 2.
    """
