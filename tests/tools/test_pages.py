"""Pages that are made from the code are what the code would make now, and the links of all pages lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_generated_pages_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "tools/pages.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\nrun: python tools/pages.py"


def anchors(text: str) -> set[str]:
    """The headings of a page as links name them."""
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        found = page.parent / name if name else page
        assert found.exists(), f"{page.name}: {target} is missing"
        if anchor:
            assert anchor in anchors(found.read_text(encoding="utf-8")), f"{page.name}: no heading for {target}"


def test_no_page_names_what_is_not_there() -> None:
    """Source files in back quotes exist."""
    for page in PAGES:
        for name in re.findall(r"`((?:src/argosy/|[a-z_]+/)[a-z_/]+\.py)", page.read_text(encoding="utf-8")):
            places = (ROOT / name, ROOT / "src" / "argosy" / name)
            assert any(place.exists() for place in places), f"{page.name}: {name}"
