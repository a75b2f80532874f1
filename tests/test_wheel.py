"""The built wheel, installed away from the checkout, selects: the artifact and all data files are in it."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

CODE = """
import json, sys
from pathlib import Path
import torch, autoopt
from autoopt.meta import artifact

model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
optimizer = autoopt.select(model, total_steps=40)
for _ in range(40):
    optimizer.zero_grad()
    model(torch.randn(16, 6)).square().mean().backward()
    optimizer.step()
recommendation = optimizer.recommendation
print(json.dumps({
    "package": autoopt.__file__,
    "artifact": str(artifact.shipped_path()),
    "sha256": recommendation.provenance["artifact_sha256"],
    "version": recommendation.provenance["autoopt"],
    "phase": optimizer.phase,
    "html": len(recommendation.to_html()),
}))
"""


def run(arguments, **options):
    done = subprocess.run([str(a) for a in arguments], capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel built from the checkout, without another environment for the build."""
    folder = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT])
    (path,) = folder.glob("autoopt-*.whl")
    return path


def test_the_wheel_holds_the_package_its_data_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        shipped = archive.read("autoopt/data/selector.npz")
        learned = archive.read("autoopt/data/extrapolation.json")
        metadata = archive.read(next(name for name in names if name.endswith("/METADATA"))).decode()
    assert shipped == (ROOT / "meta_data" / "selector.npz").read_bytes()
    assert learned == (ROOT / "meta_data" / "extrapolation.json").read_bytes()
    assert "autoopt/py.typed" in names
    package = ROOT / "autoopt"
    data = [p for p in package.rglob("*") if p.is_file() and p.suffix not in (".pyc",)]
    missing = {p.relative_to(ROOT).as_posix() for p in data} - names
    assert not missing
    roots = {name.split("/")[0] for name in names}
    assert len(roots) == 2 and "autoopt" in roots and any(r.endswith(".dist-info") for r in roots)
    assert "License-Expression: Apache-2.0" in metadata
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_the_installed_wheel_selects_outside_the_checkout(wheel, tmp_path):
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    run([sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet", wheel])
    # What autoopt depends on comes from here; an editable autoopt does not, since the .pth files of
    # a folder that is only on the path are not read.
    packages = next(environment.glob("lib/python*/site-packages"))
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    environ = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    found = json.loads(run([python, "-I", "-c", CODE], cwd=tmp_path, env=environ | {"OMP_NUM_THREADS": "1"}))
    assert Path(found["package"]).is_relative_to(packages)
    assert Path(found["artifact"]).is_relative_to(packages)
    assert found["phase"] == "selected" and found["sha256"] and found["html"] > 1000
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert any(name.startswith(f"autoopt-{found['version']}.dist-info/") for name in names)
    command = environment / "bin" / "autoopt"
    assert run([command, "--version"], cwd=tmp_path, env=environ) == f"autoopt {found['version']}\n"
    refused = subprocess.run([command, "train"], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert refused.returncode == 1 and "not in the installed package" in refused.stderr
