"""A real Prometheus (Debian's package) scrapes a server, with the configuration and the dashboard of examples/."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import threading
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from numba_adam.client import ParameterClient
from numba_adam.server.metrics import catalogue

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
DASHBOARD = json.loads((EXAMPLES / "grafana.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
TARGET = "127.0.0.1:9464"  # of the example
LONG = 800.0
HISTOGRAM_ENDS = ("_bucket", "_sum", "_count")
OF_PROCESS = {"process_resident_memory_bytes"}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def exported_names():
    names = set(OF_PROCESS)
    for metric in catalogue.OF_SERVER + catalogue.OF_MODELS:
        is_histogram = metric.kind is catalogue.Kind.HISTOGRAM
        names |= {metric.name + end for end in HISTOGRAM_ENDS} if is_histogram else {metric.name}
    return names


def names_in(query):
    return set(re.findall(r"\b(?:numba_adam|process)_\w+", query))


def test_every_query_of_the_dashboard_names_metrics_that_exist():
    variables = [each["query"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query"]
    assert len(QUERIES) >= 13
    for query in [*QUERIES, *variables]:
        assert names_in(query), query
        assert names_in(query) <= exported_names(), query


def test_the_dashboard_shows_every_metric_but_the_version_of_the_package():
    shown = {re.sub("(_bucket|_sum|_count)$", "", name) for query in QUERIES for name in names_in(query)}
    every = {metric.name for metric in catalogue.OF_SERVER + catalogue.OF_MODELS}
    assert every - shown == {"numba_adam_info"}


class Prometheus:
    """A Prometheus with the configuration of examples/, but for its target and its interval."""

    def __init__(self, folder: Path, target: str) -> None:
        text = (EXAMPLES / "prometheus.yml").read_text()
        assert text.count(f'"{TARGET}"') == 1
        assert "15s" in text
        file = folder / "prometheus.yml"
        file.write_text(text.replace(f'"{TARGET}"', f'"{target}"').replace("15s", "1s"))
        self.port = free_port()
        self._log = folder / "log"
        command = [shutil.which("prometheus"), f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}"]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [*command, f"--web.listen-address=127.0.0.1:{self.port}"], stdout=log, stderr=subprocess.STDOUT
            )

    def ask(self, query: str):
        """Return the samples that a query finds: [(labels, number)]; None while Prometheus does not answer."""
        address = f"http://127.0.0.1:{self.port}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        assert self._process.poll() is None, self._log.read_text()
        try:
            with urllib.request.urlopen(address, timeout=LONG) as answer:
                found = json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{query}: {error.read().decode()}") from error
        except (ConnectionError, urllib.error.URLError):
            return None
        assert found["status"] == "success"
        return [(each["metric"], float(each["value"][1])) for each in found["data"]["result"]]

    def wait_for(self, query: str):
        """Return the samples of a query once there are any."""
        pause = threading.Event()
        for _ in range(int(LONG / 0.2)):
            if found := self.ask(query):
                return found
            pause.wait(0.2)
        raise AssertionError(f"no answer to {query}: {self._log.read_text()[-3000:]}")

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(60)
        finally:
            self._process.kill()
            self._process.wait()


@pytest.mark.campaign
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="Debian's package prometheus is not installed")
def test_a_real_prometheus_scrapes_a_server_and_answers_the_queries_of_the_dashboard(make_server, tmp_path):
    server = make_server(metrics_listen="127.0.0.1:0")
    gradient = {"w": np.ones(1000, np.float32)}
    with ParameterClient(server.address, timeout_seconds=LONG) as client:
        model = client.create_model("m", {"w": np.ones(1000, np.float32)}, durability="memory")
        for _ in range(7):
            model.push(gradient)
        model.pull()
    folder = tmp_path / "prometheus"
    folder.mkdir()
    with contextlib.closing(Prometheus(folder, server.metrics_address)) as prometheus:
        ((labels, value),) = prometheus.wait_for('numba_adam_pushes_total{outcome="applied"} == 7')
        assert (labels["job"], labels["model"], value) == ("numba-adam", "m", 7)
        assert prometheus.ask("numba_adam_push_seconds_count")[0][1] == 7
        assert prometheus.ask("numba_adam_sent_bytes_total")[0][1] == 4000
        assert prometheus.ask("up")[0][1] == 1
        for query in QUERIES:  # Prometheus's own parser reads each of them
            filled = query.replace("$__rate_interval", "1m").replace("$model", ".*")
            assert prometheus.ask(filled) is not None, query
