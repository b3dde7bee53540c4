"""The guard of the page: without the token nothing passes, and only this machine's names lead to it."""

import asyncio

import pytest

from noisytwins_jax.app.access import Guard, is_loopback

TOKEN = "a-token-of-the-page"


def ask(token=None, local=False, path="/", query="", kind="http", **headers):
    """Ask a guarded application that always answers; returns its messages."""
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in ({"host": "127.0.0.1:7860"} | headers).items()]
    scope = {"type": kind, "path": path, "query_string": query.encode(), "headers": raw}
    asyncio.run(Guard(app, token, local)(scope, None, send))
    return sent


def status(**arguments):
    return ask(**arguments)[0]["status"]


@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/queue/join", "/gradio_api/upload", "/assets/index.js"])
def test_nothing_passes_without_the_token(path):
    assert status(token=TOKEN, path=path) == 401
    assert status(token=TOKEN, path=path, query="token=another-token-here") == 401
    assert status(token=TOKEN, path=path, cookie="noisytwins_jax_token=wrong") == 401
    assert status(token=TOKEN, path=path, authorization="Bearer wrong") == 401
    assert status(token=TOKEN, path=path, authorization=f"Bearer {TOKEN}") == 200
    assert status(token=None, path=path) == 200


def test_no_connection_is_opened_without_the_token():
    assert ask(token=TOKEN, kind="websocket")[0]["type"] == "websocket.close"


def test_the_token_becomes_a_cookie():
    (start, _) = ask(token=TOKEN, path="//evil.example/", query=f"a=1&token={TOKEN}")
    headers = dict(start["headers"])
    assert start["status"] == 303 and headers[b"location"] == b"/evil.example/?a=1"
    cookie = headers[b"set-cookie"].decode()
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert status(token=TOKEN, cookie=cookie.split(";")[0]) == 200


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1:7860", 200), ("localhost:7860", 200), ("[::1]:7860", 200), ("evil.example", 403), ("", 403)],
)
def test_names_that_lead_to_this_machine(host, expected):
    assert status(local=True, host=host) == expected
    assert status(local=False, host=host) == 200


def test_browsers_are_told_to_ask_no_other_machine():
    assert b"default-src 'self'" in dict(ask()[0]["headers"])[b"content-security-policy"]


def test_loopback():
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "evil.example")))
