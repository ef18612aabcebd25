"""Makes the picture of the README: `python tools/pictures.py [RUN]`. Needs Chromium; without RUN it trains the laptop job.

The picture is of the real page of a real run, in light colours: docs/pictures/report.png.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "pictures" / "report.png"
SIZE = (1100, 1160)  # the header, the curve and the first sample


def browser() -> str:
    """The path of a Chromium."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        found = shutil.which(name)
        if found:
            return found
    sys.exit("no Chromium: install it (Debian: apt install chromium)")


def trained(folder: Path) -> Path:
    """The laptop job, trained into `folder`."""
    run = folder / "laptop"
    subprocess.run([Path(sys.executable).parent / "argosy", "train", "laptop", "--run", run], check=True)
    return run


def picture(page: Path, path: Path) -> None:
    """Draw the upper part of `page`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]
        size = f"--window-size={SIZE[0]},{SIZE[1]}"
        command = [
            browser(),
            *flags,
            f"--user-data-dir={profile}",
            size,
            f"--screenshot={path}",
            page.resolve().as_uri(),
        ]
        subprocess.run(command, check=True, capture_output=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(sys.argv[1]) if len(sys.argv) > 1 else trained(Path(folder))
        picture(run / "report.html", PICTURE)
    print(f"{PICTURE.relative_to(ROOT)} is the page of {run.name}")


if __name__ == "__main__":
    main()
