"""The page as a Space of Hugging Face, without a token: what is in a Space is public.

The files of the Space: this one as ``app.py``; a run in the folder ``run`` (``config.json``, ``classes.json``,
``evaluation.json`` and ``checkpoints``); ``requirements.txt`` with ``noisytwins_jax[app]`` and the address of its repository;
and ``README.md``, which begins with ``sdk: gradio`` and ``app_file: app.py``.
"""

from pathlib import Path

from noisytwins_jax.app.command import open_page

if __name__ == "__main__":
    open_page(Path(__file__).with_name("run"), host="0.0.0.0", port=7860)
