"""Traces of steps."""

from types import SimpleNamespace

import jax.numpy as jnp
import pytest
import tiny_run

from noisytwins_jax.config.groups import traced_steps
from noisytwins_jax.training.hooks.base import StepEvent
from noisytwins_jax.training.hooks.profile import ProfileHook
from noisytwins_jax.utils.errors import UserError


@pytest.mark.parametrize(("text", "steps"), [("", None), ("7", (7, 7)), ("100-104", (100, 104))])
def test_steps_of_a_trace(text, steps):
    assert traced_steps(text) == steps


@pytest.mark.parametrize("text", ["a", "5-4", "0-3", "1,2", "-3"])
def test_wrong_steps_give_one_error_message(text):
    with pytest.raises(UserError, match=r"config\.profile\.steps=.*as 100-104"):
        traced_steps(text)


def test_a_trace_is_written_once(tmp_path):
    messages = []
    progress = SimpleNamespace(write=messages.append)
    config = tiny_run.tiny_config(**{"profile.steps": "3-4"})
    hook = ProfileHook(SimpleNamespace(config=config, workdir=tmp_path, progress=progress))
    for step in range(1, 8):
        hook.before_step(step, step)
        hook.after_step(StepEvent(step - 1, step, [], last=False, stopping=False), {"x": jnp.ones(3) * step})
    hook.close()
    assert messages == [f"A trace up to step 4 is in {tmp_path / 'profile'}."]
    assert len(list(tmp_path.glob("profile/**/*.xplane.pb"))) == 1
