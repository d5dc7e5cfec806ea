"""What the README and the docs tell a newcomer to type works as it stands there."""

import re
from pathlib import Path

import pytest

from aludel.train import check_loss, load_loss

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("page", ["README.md", "docs/losses.md"])
def test_the_loss_that_the_page_shows_keeps_the_contract(page, tmp_path):
    text = (ROOT / page).read_text()
    code = re.search(r"```python\n# focal\.py\n(.*?)```", text, re.S).group(1)
    assert len(code.strip().splitlines()) <= 15
    (tmp_path / "focal.py").write_text(code)
    check_loss(load_loss(f"{tmp_path / 'focal.py'}:focal"))


@pytest.mark.parametrize("page", ["README.md", "docs/losses.md", "docs/log.md", "docs/scaling.md"])
def test_links_lead_somewhere(page):
    path = ROOT / page
    for link in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if "://" not in link:
            assert (path.parent / link).exists(), f"{page}: {link}"
