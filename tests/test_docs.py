"""What the README and the docs tell a newcomer to type works as it stands there."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from aludel.train import check_loss, load_loss
from aludel.train.processes import place_of

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("page", ["README.md", "docs/losses.md"])
def test_the_loss_that_the_page_shows_keeps_the_contract(page, tmp_path):
    text = (ROOT / page).read_text()
    code = re.search(r"```python\n# focal\.py\n(.*?)```", text, re.S).group(1)
    assert len(code.strip().splitlines()) <= 15
    (tmp_path / "focal.py").write_text(code)
    check_loss(load_loss(f"{tmp_path / 'focal.py'}:focal"))


PAGES = [
    "README.md",
    *(f"docs/{name}.md" for name in ("losses", "log", "planning", "pods", "scaling")),
]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    path = ROOT / page
    for link in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if "://" not in link:
            assert (path.parent / link).exists(), f"{page}: {link}"


LAUNCH = sorted((ROOT / "docs/launch").iterdir())


@pytest.mark.parametrize(
    "script", [path for path in LAUNCH if path.suffix == ".sh"], ids=lambda path: path.name
)
def test_launch_scripts_are_scripts(script):
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True).returncode == 0


@pytest.mark.parametrize(
    "manifest", [path for path in LAUNCH if path.suffix == ".yaml"], ids=lambda path: path.name
)
def test_manifests_start_a_process_for_each_place(manifest):
    service, job = yaml.safe_load_all(manifest.read_text())
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"]
    assert spec["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    (container,) = spec["template"]["spec"]["containers"]
    env = container.get("env", ())
    told = {one["name"]: one.get("value") for one in env if one["name"].startswith("ALUDEL_")}
    if told:  # GKE's TPU machines find each other
        name = job["metadata"]["name"]
        told["ALUDEL_PROCESS"] = "0"  # the index of a pod
        place = place_of({}, told)
        assert place.coordinator.startswith(f"{name}-0.{service['metadata']['name']}:")
        assert place.processes == spec["completions"]
