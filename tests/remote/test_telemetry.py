"""OpenTelemetry: a server sends its calls' metrics by OTLP to a receiver of the test, measured by gRPC's own plugin.

Each release of the plugin needs exactly its own release of grpcio, so it is installed into a folder beside the others.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from numba_adam.client import ParameterClient
from numba_adam.errors import ConfigurationError
from numba_adam.server.config import ServerConfig
from numba_adam.server.embedded import Server

ROOT = Path(__file__).resolve().parents[2]
GRADS = {"w": np.ones(4, np.float32)}
LONG = 800.0
# Prints "METRIC METHOD STATUS COUNT" for each data point of the requests whose files are its arguments.
READ = """
import sys
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
for path in sys.argv[1:]:
    request = ExportMetricsServiceRequest.FromString(open(path, "rb").read())
    for resource in request.resource_metrics:
        about = {each.key: each.value.string_value for each in resource.resource.attributes}
        print("resource", about["service.name"], about["service.version"])
        for metric in (each for scope in resource.scope_metrics for each in scope.metrics):
            for point in [*metric.histogram.data_points, *metric.sum.data_points]:
                labels = {each.key: each.value.string_value for each in point.attributes}
                count = getattr(point, "count", None) or getattr(point, "as_int", 0)
                print(metric.name, labels.get("grpc.method", "-"), labels.get("grpc.status", "-"), count)
"""


class Receiver:
    """Takes what an exporter posts, and keeps it in files."""

    def __init__(self, folder: Path) -> None:
        self._lock, self.paths = threading.Lock(), []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with receiver._lock:
                    path = folder / f"{len(receiver.paths)}.otlp"
                    path.write_bytes(body)
                    receiver.paths.append((self.path, str(path)))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    found = Receiver(tmp_path)
    yield found
    found.close()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the extra `opentelemetry` adds, and the grpcio that belongs to it."""
    folder = tmp_path_factory.mktemp("packages")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    packages = [each for each in extras["opentelemetry"] if not each.startswith("numba-adam")]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LONG)
    if done.returncode:
        pytest.skip(f"{' '.join(packages)} cannot be installed here: {done.stderr[-500:]}")
    return folder


@pytest.mark.campaign
def test_calls_are_exported_with_their_methods_and_statuses(installed, receiver, tmp_path) -> None:
    port = receiver.server.server_address[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "NUMBA_ADAM_"))}
    environment |= {
        "PYTHONPATH": str(installed),
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        "NUMBA_ADAM_OPENTELEMETRY": "on",
        "no_proxy": "127.0.0.1",
    }
    command = [sys.executable, "-m", "numba_adam", "serve", "--listen", "127.0.0.1:0", "--data-dir", "data"]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    with server:
        try:
            line = server.stdout.readline()
            assert line.startswith("numba-adam: serving on"), (tmp_path / "log").read_text()
            with ParameterClient(line.split()[-1], timeout_seconds=LONG) as client:
                model = client.create_model("model", GRADS, durability="memory")
                for _ in range(3):
                    model.push(GRADS)
                with pytest.raises(LookupError):
                    client.open_model("unknown")
            server.terminate()
            assert server.wait(LONG) == 0, (tmp_path / "log").read_text()
        finally:
            server.kill()
    assert {path for path, _ in receiver.paths} == {"/v1/metrics"}
    files = [path for _, path in receiver.paths]
    words = subprocess.run(
        [sys.executable, "-c", READ, *files], env=environment, capture_output=True, text=True, check=True, timeout=LONG
    ).stdout.splitlines()
    service = "numba_adam.ps.v1.ParameterService"
    assert "resource numba-adam 0.1.0" in words
    assert f"grpc.server.call.duration {service}/Push OK 3" in words
    assert f"grpc.server.call.duration {service}/CreateModel OK 1" in words
    assert f"grpc.server.call.duration {service}/GetModel NOT_FOUND 1" in words
    assert any(word.startswith(f"grpc.server.call.rcvd_total_compressed_message_size {service}/Push") for word in words)


def test_without_its_packages_the_server_says_what_to_install(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "grpc_observability", None)
    monkeypatch.delitem(sys.modules, "numba_adam.server.metrics.telemetry", raising=False)
    config = ServerConfig(listen="127.0.0.1:0", data_dir=tmp_path / "data", opentelemetry="on")
    with pytest.raises(ConfigurationError, match=r"needs the module 'grpc_observability'.*\[opentelemetry\]"):
        Server(config)
    with Server(ServerConfig(listen="127.0.0.1:0", data_dir=tmp_path / "data")):  # the data folder is free
        assert "opentelemetry" not in sys.modules
