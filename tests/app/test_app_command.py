"""The command: one error message for what is wrong, and a token where others can reach the page."""

import socket
import sys

import pytest

from noisytwins_jax.app.command import choose_token, main
from noisytwins_jax.utils.errors import UserError


def test_no_token_for_this_machine_alone():
    assert choose_token("127.0.0.1", None) is None and choose_token("localhost", None) is None


def test_a_new_token_for_others():
    tokens = {choose_token("0.0.0.0", None) for _ in range(5)}
    assert len(tokens) == 5 and min(map(len, tokens)) >= 32
    assert choose_token("0.0.0.0", "a-token-of-my-own") == choose_token("127.0.0.1", "a-token-of-my-own")


@pytest.mark.parametrize("token", ["", "short", "with spaces in it", "with;semicolons", "ünicode-letters"])
def test_tokens_that_are_none(token):
    with pytest.raises(UserError, match="--token needs at least 12"):
        choose_token("0.0.0.0", token)


def run(capsys, *arguments):
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith("Error: ") and output.err.count("\n") == 1
    return output.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir={}"], "holds no checkpoints"),
        (["--workdir={}/absent"], "holds no checkpoints"),
        (["--workdir={}", "--checkpoint=newest"], "--checkpoint=newest is no checkpoint"),
        (["--workdir={}", "--port=70000"], "--port=70000 is no port"),
        (["--workdir={}", "--host=no.such.host.invalid"], "cannot be listened on"),
    ],
)
def test_wrong_arguments(arguments, message, capsys, tmp_path):
    assert message in run(capsys, *(word.format(tmp_path) for word in arguments))


def test_a_port_in_use(capsys, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert f"Port {port} is in use" in run(capsys, f"--workdir={tmp_path}", f"--port={port}")


def test_without_gradio(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    (tmp_path / "checkpoints").mkdir()
    assert "pip install 'noisytwins_jax[app]'" in run(capsys, f"--workdir={tmp_path}")
