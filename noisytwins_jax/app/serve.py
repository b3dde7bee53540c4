"""The server of the page."""

import os
import signal
import sys
import tempfile
from pathlib import Path

from noisytwins_jax.app.access import Guard, is_loopback
from noisytwins_jax.app.painter import Painter
from noisytwins_jax.app.style import page_css, page_theme
from noisytwins_jax.app.uploads import MAX_BYTES
from noisytwins_jax.utils.errors import UserError


def check_installed() -> None:
    """Check that Gradio is installed, and import it such that it asks no other machine for anything.

    Raises:
      UserError: it is not.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise UserError("The page needs Gradio, which is not installed: pip install 'noisytwins_jax[app]'.") from None


def serve(painter: Painter, title: str, seconds: float, host: str, port: int, token: str | None) -> None:
    """Serve the page until the process is interrupted.

    Args:
      painter: draws its pictures.
      title: the run's name.
      seconds: see `build_page`.
      host: address to listen on.
      port: to listen on.
      token: that every request needs; None for none.
    """
    check_installed()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # the folder is removed then too
    with tempfile.TemporaryDirectory(prefix="noisytwins_jax_app_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # uploads and pictures, removed at the end
        import fastapi
        import gradio as gr
        import uvicorn
        from gradio import processing_utils

        from noisytwins_jax.app.page import build_page

        processing_utils.async_ssrf_protected_download = _refuse_address
        page = build_page(painter, title, seconds, Path(folder))
        app = gr.mount_gradio_app(
            fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
            page,
            path="/",
            server_name=host,
            server_port=port,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            enable_monitoring=False,
            mcp_server=False,
            pwa=False,
            max_file_size=MAX_BYTES,
            theme=page_theme(),
            css=page_css(painter.classes),
            js="() => document.body.classList.remove('dark')",  # pictures are on white
        )
        page.has_launched = True  # without it a mounted page takes any file of this machine for an uploaded one
        guarded = Guard(app, token, local=is_loopback(host))
        # A proxy in front of the page, as of a Space, says by which address it is reached.
        options = {} if is_loopback(host) else {"forwarded_allow_ips": "*"}
        uvicorn.run(guarded, host=host, port=port, log_level="warning", timeout_graceful_shutdown=2, **options)


async def _refuse_address(*_: str, **__: str) -> str:
    """Stand in for Gradio's download of an address given in place of an uploaded file."""
    raise UserError("Pictures are uploaded, not fetched from an address.")
