"""The page in a headless browser: every tab draws, bad uploads get a message, and no request leaves this machine."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import tiny_run
from PIL import Image
from waiting import TIMEOUT

pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
TOKEN = "a-token-of-the-tests"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "tiny"
    tiny_run.finish(tiny_run.start(path, total_kimg=0.08))
    return path


def serve(workdir, *options):
    """Start the page on a free port; return the process and its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "noisytwins_jax.app", f"--workdir={workdir}", f"--port={port}", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    printed = ""
    while not (found := re.search(r"Open (\S+)", printed)):
        line = process.stdout.readline()
        assert line, printed
        printed += line
    address = re.sub(r"//[^:/]+:", "//127.0.0.1:", found[1])
    while True:
        try:
            urllib.request.urlopen(address)
        except urllib.error.HTTPError:
            break
        except OSError:
            assert process.poll() is None
            time.sleep(0.1)
        else:
            break
    return process, address


@pytest.fixture(scope="module")
def address(workdir):
    process, address = serve(workdir)
    yield address
    process.terminate()
    process.wait(TIMEOUT)


@pytest.fixture
def page(address):
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(1000 * TIMEOUT)
        requests = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address)
        yield page
        assert requests and all(url.startswith((address, "data:", "blob:")) for url in requests), requests
        browser.close()


def pictures(page):
    return page.locator(".picture img:visible")


def open_tab(page, name):
    page.get_by_role("tab", name=name).click()


def wait_for_another(page, old):
    page.wait_for_function(
        "old => [...document.querySelectorAll('.picture img')].some(x => x.offsetParent && x.src && x.src !== old)",
        arg=old,
    )


def test_every_tab_draws(page, tmp_path):
    pictures(page).first.wait_for()
    old = pictures(page).first.evaluate("x => x.src")
    page.get_by_role("button", name="New seed").click()
    wait_for_another(page, old)
    for name in ("Style mixing", "Directions", "W map"):
        open_tab(page, name)
        pictures(page).first.wait_for()
    old = pictures(page).first.evaluate("x => x.src")
    pictures(page).first.click()
    page.get_by_text("Its nearest sample is of class").wait_for()
    wait_for_another(page, old)
    open_tab(page, "Interpolation")
    page.get_by_role("button", name="Animate").click()
    pictures(page).first.wait_for()
    with page.expect_download() as download:
        page.locator(".picture:visible").get_by_label("Download").click()
    with Image.open(download.value.path()) as animation:
        assert animation.n_frames > 1


def test_a_message_is_shown_once(page):
    """What cannot be drawn leaves the picture and is not tried again and again."""
    pictures(page).first.wait_for()
    for number in range(4):
        page.locator("#classes input").nth(number).uncheck()
    page.get_by_text("No class is chosen").first.wait_for()
    joined = []
    page.on("request", lambda request: joined.append(request.url) if "queue/join" in request.url else None)
    page.wait_for_timeout(2000)
    assert len(joined) <= 1 and pictures(page).count() == 1
    old = pictures(page).first.evaluate("x => x.src")
    page.get_by_role("button", name="All", exact=True).click()
    wait_for_another(page, old)


def test_uploads(page, tmp_path):
    """What is no picture gets a message, and the next picture is projected."""
    bad, good = tmp_path / "bad.png", tmp_path / "good.png"
    bad.write_bytes(b"no picture")
    Image.fromarray(np.full((40, 40), 128, np.uint8)).save(good)
    pictures(page).first.wait_for()
    open_tab(page, "Projection")
    page.get_by_label("number input for Steps").fill("50")
    page.locator("input[type=file]").set_input_files(bad)
    page.get_by_text("This is no picture that can be read").wait_for()
    page.get_by_label("Remove").or_(page.get_by_label("Clear")).first.click()
    page.locator("input[type=file]").set_input_files(good)
    page.get_by_text("mean square difference").wait_for()
    pictures(page).first.wait_for()


def test_no_other_file_can_be_read(address, workdir, tmp_path):
    """Neither by its address nor as what somebody claims to have uploaded; nor is an address fetched."""
    picture = tmp_path / "mine.png"
    Image.new("L", (8, 8)).save(picture)
    for path in (picture, workdir / "config.json", "/etc/passwd"):
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(f"{address}gradio_api/file={path}")
        assert error.value.code in (403, 404)
    config = json.load(urllib.request.urlopen(f"{address}config"))
    file = next(c["id"] for c in config["components"] if c["type"] == "file")
    event = next(d["id"] for d in config["dependencies"] if file in d["inputs"])
    for number, path in enumerate((str(picture), "/etc/passwd", "http://192.0.2.1/picture.png")):
        data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, -1, 50, False]
        body = json.dumps({"data": data, "fn_index": event, "session_hash": f"session{number}"}).encode()
        headers = {"content-type": "application/json"}
        urllib.request.urlopen(urllib.request.Request(f"{address}gradio_api/queue/join", body, headers)).read()
        with urllib.request.urlopen(f"{address}gradio_api/queue/data?session_hash=session{number}") as stream:
            last = next(line for line in stream if b"process_completed" in line).decode()
        assert "not uploaded by a user" in last or "not fetched from an address" in last


def test_the_token_is_needed(workdir):
    process, address = serve(workdir, "--host=0.0.0.0", f"--token={TOKEN}")
    try:
        plain, _, query = address.partition("?")
        assert query == f"token={TOKEN}"
        for path in ("", "config", "gradio_api/info", "gradio_api/queue/data?session_hash=a", "theme.css"):
            with pytest.raises(urllib.error.HTTPError) as error:
                urllib.request.urlopen(plain + path)
            assert error.value.code == 401
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            page = browser.new_page()
            page.set_default_timeout(1000 * TIMEOUT)
            page.goto(address)
            pictures(page).first.wait_for()
            assert TOKEN not in page.url
            browser.close()
    finally:
        process.terminate()
        process.wait(TIMEOUT)
