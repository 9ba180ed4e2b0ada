"""A timm model of the Hugging Face Hub as a teacher, against a hub of our own."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import timm
import torch
from timm.models import save_for_hf

SCRIPT = """
import sys, torch
from kdcache.teachers import load_teacher
teacher = load_teacher(sys.argv[1])
print(teacher.image_size, teacher.backbone.mean, teacher.description()["weights"]["source"])
print(teacher(torch.full((1, 64, 64, 3), 77, dtype=torch.uint8))[0].sum().item())
"""


@pytest.fixture
def hub(tmp_path):
    """Serves tmp_path/<org>/<model>/<file> as the hub does; its address."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self, body: bool) -> None:
            name, _, file = self.path.strip("/").partition("/resolve/main/")
            path = tmp_path / "hub" / name / file
            if not path.is_file():
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            data = path.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.end_headers()
            if body:
                self.wfile.write(data)

        def do_GET(self) -> None:
            self.answer(body=True)

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def load(name, hub, home) -> subprocess.CompletedProcess[str]:
    # The hub's library reads its settings once, when it is imported.
    settings = {"HF_ENDPOINT": hub, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", SCRIPT, name]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **settings}, timeout=120
    )


@pytest.mark.slow
def test_a_model_of_the_hub_is_loaded_by_its_name(hub, tmp_path):
    torch.manual_seed(2)
    model = timm.create_model("test_resnet", num_classes=10).eval()
    own = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5), "input_size": (3, 64, 64)}
    save_for_hf(
        model, tmp_path / "hub" / "lab" / "strong", model_config={"pretrained_cfg": {**own}}
    )
    done = load("timm:hf-hub:lab/strong", hub, tmp_path / "home")
    assert done.returncode == 0, done.stderr
    described, total = done.stdout.splitlines()
    assert described == "64 (0.1, 0.2, 0.3) hf-hub:lab/strong"
    pixel = (torch.tensor([77 / 255] * 3) - torch.tensor(own["mean"])) / 0.5
    pixels = pixel.reshape(1, 3, 1, 1).expand(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(pixels), pre_logits=True).sum().item()
    assert float(total) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_a_model_that_is_not_timms_or_not_there_is_refused(hub, tmp_path):
    folder = tmp_path / "hub" / "lab" / "other"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    done = load("timm:hf-hub:lab/other", hub, tmp_path / "home")
    assert "its config.json is not timm's" in done.stderr
    done = load("timm:hf-hub:lab/nothing", hub, tmp_path / "home")
    assert "`hf-hub:lab/nothing` cannot be had as a timm model" in done.stderr
