"""What can be seen to be wrong without computing is refused before torch is loaded."""

import json
import subprocess
import sys

import pytest
from PIL import Image

REFUSED = """
anonymize nowhere out
anonymize in out --model nowhere
anonymize in out --model owner/nothing
anonymize in out --model in
anonymize in out --strength 2
anonymize in out --steps 0
anonymize in out --batch-size 0
anonymize in out --fit stretch
anonymize in out --calibration nowhere
anonymize in full
anonymize in in/out
enhance in out --model nowhere
augment in full
reconstruct in out --model nowhere
invert in full
domain fit in full/file
domain fit in new.safetensors --strength 2
domain survey in --model nowhere
domain sample full/file out --count 0
"""
RUN = """
import json, sys
from typer.testing import CliRunner
from nearfar.cli.app import app
found = []
for line in json.loads(sys.argv[1]):
    result = CliRunner().invoke(app, line.split())
    found.append([line, result.exit_code, result.stderr.count("nearfar: "), "torch" in sys.modules])
print(json.dumps(found))
"""


@pytest.mark.process
def test_what_can_be_seen_to_be_wrong_is_refused_before_torch_is_loaded(tmp_path):
    for folder in ("in", "full"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "in/a.png")
    (tmp_path / "full/file").write_text("mine")
    lines = REFUSED.split("\n")[1:-1]
    command = [sys.executable, "-c", RUN, json.dumps(lines)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert json.loads(done.stdout) == [[line, 2, 1, False] for line in lines]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "in"]
