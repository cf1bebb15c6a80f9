"""A report on the hub: a static Space that holds the folder."""

import re
import warnings
from pathlib import Path

from batchgen.errors import InputError, StoreError, one_line

__all__ = ["push_report", "require_space"]

_CARD = """---
title: {title}
sdk: static
app_file: index.html
pinned: false
---

Images, scores and charts of {title}, as batchgen's `report` wrote them.
"""


def require_space(space: str) -> None:
    """Refuse a name that no Space has.

    Raises:
        InputError: it is none.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", space):
        raise InputError(f"--push {space!r}: wants OWNER/NAME, a Space of the hub; a bucket goes to --output")


def push_report(folder: Path, space: str) -> str:
    """Upload a report into a static Space, which is made, private, where there is none; returns its address.

    Who may is said as Hugging Face's own tools are told: by HF_TOKEN, or a login.

    Args:
        folder: the report.
        space: OWNER/NAME.

    Raises:
        StoreError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    (folder / "README.md").write_text(_CARD.format(title=space.split("/")[1]), encoding="utf-8")
    api = HfApi()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "It seems that you are about to commit a data file")  # the pivot is one
            made = api.create_repo(space, repo_type="space", space_sdk="static", private=True, exist_ok=True)
            api.upload_folder(
                repo_id=space, repo_type="space", folder_path=folder, commit_message="Report", delete_patterns="*"
            )
    except Exception as error:  # the hub's client raises errors of its HTTP library, which differ between versions
        raise StoreError(f"--push {space}: {one_line(error)}; is HF_TOKEN one that may write there?") from error
    return str(made)
