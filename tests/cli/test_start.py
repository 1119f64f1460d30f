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
anonymize in out --solver none
anonymize in out --device none
anonymize in out --device abacus:1
anonymize in out --prompt words
anonymize in out --guidance 2
anonymize in out --label 3
anonymize in out --sigma -1
anonymize in full
anonymize in in/out
enhance in out --model nowhere
enhance in out --solver none
calibrate in --target none=1
calibrate in --target rank1=2
calibrate in --target rank1=.2 --report in/page.html
audit in in
audit in full --report in/page.html
augment in full
reconstruct in out --model nowhere
invert in full
invert in out --solver bdia
domain fit in full/file
domain fit in new.safetensors --strength 2
domain fit in new.safetensors --symmetry round
domain survey in --model nowhere
domain survey in --report in/page.html
domain inspect nowhere
domain inspect full/file
domain sample nowhere out --count 1
models convert nowhere.pt folder
models convert full/file folder
models convert empty.ckpt folder
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
    (tmp_path / "empty.ckpt").touch()
    lines = REFUSED.split("\n")[1:-1]
    command = [sys.executable, "-c", RUN, json.dumps(lines)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert json.loads(done.stdout) == [[line, 2, 1, False] for line in lines]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.ckpt", "full", "in"]
