"""The metrics of a server: read over HTTP, and parsed by prometheus_client's own parser."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from numba_adam.cli import main
from numba_adam.client import ParameterClient
from numba_adam.errors import (
    AccessDeniedError,
    ConfigurationError,
    ModelNotFoundError,
    NonFiniteError,
    SessionFencedError,
    UnauthenticatedError,
)
from numba_adam.server.config import ServerConfig
from numba_adam.server.embedded import Server
from numba_adam.server.metrics import catalogue
from numba_adam.server.runtime.tally import Refusals

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/metrics.md"
LONG = 800.0
GRADS = {"w": np.ones(1000, np.float32)}
HOST_NAMES = ["example.org", "example.org:9464", "127.0.0.1.example.org", "[2001:db8::1]:80", "localhost.example.org"]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.delenv("NUMBA_ADAM_TOKEN", raising=False)


@pytest.fixture
def server(make_server):
    return make_server(metrics_listen="127.0.0.1:0")


@pytest.fixture
def client(server):
    with ParameterClient(server.address, timeout_seconds=LONG) as found:
        yield found


@pytest.fixture
def make_token(tmp_path, capsys):
    """Return a function that makes a token with the command; returns its text."""

    def make(name, *words):
        capsys.readouterr()
        assert main(["token", "make", name, *words, "--data-dir", str(tmp_path / "data")]) == 0
        return capsys.readouterr().out.strip()

    return make


def answer_of(address, path="/metrics", *, context=None, method="GET", **headers):
    """Return the status and the text of an answer."""
    host, _, port = address.rpartition(":")
    kind = http.client.HTTPConnection if context is None else http.client.HTTPSConnection
    options = {} if context is None else {"context": context}
    with contextlib.closing(kind(host.strip("[]"), int(port), timeout=LONG, **options)) as connection:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read().decode()


def families_of(address, **options):
    status, text = answer_of(address, **options)
    assert status == 200, text
    return {family.name: family for family in text_string_to_metric_families(text)}


def values_of(address, **options):
    """Return every sample: {(name, values of the labels in the order of the labels' names): number}."""
    families = families_of(address, **options).values()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def rows_of_the_document():
    """Return {metric: (kind, labels)} of both tables."""
    rows = re.findall(r"^\| `(numba_adam_\w+)` \| (\w+) \| (.*?) ?\| .* \|$", DOCUMENT.read_text(), re.MULTILINE)
    return {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def test_the_documented_metrics_are_those_that_a_server_exports(server, client):
    model = client.create_model("m", {"w": np.ones(1000, np.float32)})
    model.push(GRADS)
    model.pull()
    with pytest.raises(ModelNotFoundError):
        client.open_model("none")
    exported = {}
    for family in families_of(server.metrics_address).values():
        if family.name.startswith("numba_adam_"):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels = {tuple(label for label in sample.labels if label != "le") for sample in family.samples}
            assert len(labels) == 1, name
            exported[name] = (family.type, *labels)
    assert exported == rows_of_the_document()
    assert len(exported) == len(catalogue.OF_SERVER + catalogue.OF_MODELS)


def test_pushes_are_counted_by_outcome_with_bytes_staleness_and_time(server, client):
    model = client.create_model("m", {"w": np.ones(1000, np.float32)})
    with ParameterClient(server.address, "other", timeout_seconds=LONG) as second:
        stale = second.open_model("m")
        for _ in range(3):
            model.push(GRADS)
        assert stale.push(GRADS).staleness == 3
    with pytest.raises(NonFiniteError):
        model.push({"w": np.full(1000, np.nan, np.float32)})
    model.pull()
    found = values_of(server.metrics_address)
    outcomes = {key[2]: value for key, value in found.items() if key[0] == "numba_adam_pushes_total"}
    assert outcomes == {"applied": 4, "repeated": 0, "rejected": 1, "failed": 0}
    assert found["numba_adam_received_bytes_total", "m"] == 5 * 4000
    assert found["numba_adam_sent_bytes_total", "m"] == 4000
    assert found["numba_adam_push_seconds_count", "m"] == 5
    assert found["numba_adam_push_seconds_sum", "m"] > 0
    assert found["numba_adam_push_staleness_sum", "m"] == 0 + 1 + 2 + 3
    buckets = {bound: found["numba_adam_push_staleness_bucket", bound, "m"] for bound in ("0.0", "2.0", "4.0", "+Inf")}
    assert buckets == {"0.0": 1, "2.0": 3, "4.0": 4, "+Inf": 4}
    assert found["numba_adam_pull_seconds_count", "m"] == 1
    assert found["numba_adam_model_version", "m"] == 4
    assert found["numba_adam_sessions", "m"] == 2
    assert found["numba_adam_refusals_total", "non_finite", ""] == 1
    assert 4000 <= found["numba_adam_memory_used_bytes",] < found["numba_adam_memory_budget_bytes",]
    assert found["process_resident_memory_bytes",] > 10_000_000


def test_a_push_and_pull_counts_as_both(server, client):
    client.create_model("m", {"w": np.ones(1000, np.float32)}).push_pull(GRADS)
    found = values_of(server.metrics_address)
    assert found["numba_adam_pushes_total", "m", "applied"] == found["numba_adam_pull_seconds_count", "m"] == 1
    assert found["numba_adam_sent_bytes_total", "m"] == found["numba_adam_received_bytes_total", "m"] == 4000


def test_a_push_without_an_answer_that_is_kept_counts_as_failed(server, client):
    client.create_model("m", {"w": np.ones(1000, np.float32)})
    with ParameterClient(server.address, "fenced", timeout_seconds=LONG) as first:
        old = first.open_model("m")
        old.push(GRADS)
        with ParameterClient(server.address, "fenced", timeout_seconds=LONG) as newer:
            newer.open_model("m").push(GRADS)
            with pytest.raises(SessionFencedError):
                old.push(GRADS)
    found = values_of(server.metrics_address)
    assert found["numba_adam_pushes_total", "m", "failed"] == 1
    assert found["numba_adam_refusals_total", "session_fenced", ""] == 2  # the newer one's first OpenSession too


def test_snapshots_are_counted_with_their_time_and_size(server, client):
    model = client.create_model("m", {"w": np.ones(1000, np.float32)})
    model.push(GRADS)
    (saved,) = client.snapshot("m")
    found = values_of(server.metrics_address)
    assert found["numba_adam_snapshot_seconds_count", "m"] == 2  # the first one is written with the model
    assert found["numba_adam_snapshot_bytes", "m"] == saved.size_bytes
    assert found["numba_adam_snapshot_version", "m"] == 1
    assert found["numba_adam_snapshot_timestamp_seconds", "m"] >= found["process_start_time_seconds",]
    assert found["numba_adam_snapshot_failures_total", "m"] == 0


def test_changes_of_the_settings_are_counted(server, client):
    model = client.create_model("m", {"w": np.ones(1000, np.float32)})
    assert values_of(server.metrics_address)["numba_adam_setting_changes_total", "m"] == 0
    model.set(lr=0.5)
    assert values_of(server.metrics_address)["numba_adam_setting_changes_total", "m"] == 1


def test_a_deleted_model_has_no_series(server, client):
    for name in ("kept", "gone"):
        client.create_model(name, {"w": np.ones(1000, np.float32)}).push(GRADS)
    assert 'model="gone"' in answer_of(server.metrics_address)[1]
    client.delete_model("gone")
    text = answer_of(server.metrics_address)[1]
    assert 'model="gone"' not in text
    assert 'model="kept"' in text
    client.create_model("gone", {"w": np.ones(1000, np.float32)})
    assert values_of(server.metrics_address)["numba_adam_pushes_total", "gone", "applied"] == 0


def test_only_so_many_models_have_series(server, client, monkeypatch):
    monkeypatch.setattr(catalogue, "MOST_MODELS", 2)
    for name in ("c", "a", "b"):
        client.create_model(name, {"w": np.ones(10, np.float32)})
    found = values_of(server.metrics_address)
    assert {key[1] for key in found if key[0] == "numba_adam_sessions"} == {"a", "b"}
    assert found["numba_adam_models",] == 3


def test_renamed_tokens_cannot_make_series_without_end():
    refusals = Refusals()
    for number in range(3000):
        refusals.note("unauthenticated", f"token-{number}")
    refusals.note("unauthenticated", "token-7")
    counts = refusals.read()
    assert len(counts) <= 1025
    assert counts["unauthenticated", "token-7"] == 2
    assert counts["others", ""] == 3000 - 1024
    assert sum(counts.values()) == 3001


def test_refusals_have_the_name_of_the_token_and_never_the_token(make_server, make_token):
    admin, weak = make_token("admin", "--admin", "*"), make_token("weak", "--pull", "m")
    server = make_server(loopback_token="required", metrics_listen="127.0.0.1:0")
    options = {"timeout_seconds": LONG, "tls": False}
    with ParameterClient(server.address, token=admin, **options) as client:
        client.create_model("m", {"w": np.ones(1000, np.float32)})
    with ParameterClient(server.address, token=weak, **options) as client:
        for _ in range(2):
            with pytest.raises(AccessDeniedError):
                client.delete_model("m")
    with ParameterClient(server.address, token=admin[:-2], **options) as client, pytest.raises(UnauthenticatedError):
        client.list_models()
    headers = {"Authorization": f"Bearer {admin}"}
    found = values_of(server.metrics_address, **headers)
    assert found["numba_adam_refusals_total", "permission_denied", "weak"] == 2
    assert found["numba_adam_refusals_total", "unauthenticated", ""] >= 1
    text = answer_of(server.metrics_address, **headers)[1]
    assert not [secret for secret in (admin, weak, admin[:-2], "nat_") if secret in text]


def test_where_calls_need_a_token_scrapes_need_one_that_may_pull_every_model(make_server, make_token):
    admin, one = make_token("admin", "--admin", "*"), make_token("one", "--admin", "m")
    probe = make_token("prometheus", "--pull", "*")
    address = make_server(loopback_token="required", metrics_listen="127.0.0.1:0").metrics_address
    assert answer_of(address)[0] == 401
    for wrong in ("", probe, f"Basic {probe}", f"Bearer {probe[:-1]}", f"Bearer {probe}x", "Bearer " + "x" * 5000):
        assert answer_of(address, Authorization=wrong)[0] == 401, wrong
        assert answer_of(address, "/", Authorization=wrong)[0] == 401, wrong
    status, text = answer_of(address, Authorization=f"Bearer {one}")
    assert (status, "--pull '*'" in text) == (403, True)
    for right in (admin, probe):
        assert answer_of(address, Authorization=f"Bearer {right}")[0] == 200


@pytest.mark.parametrize("listen", ["0.0.0.0:9464", "[::]:9464", "192.0.2.1:1", "example.org:9464"])
def test_off_loopback_metrics_need_tls(listen):
    with pytest.raises(ConfigurationError, match=r"metrics_listen=.*TLS .*--tls-certificate.*tokens.*127\.0\.0\.1"):
        ServerConfig(metrics_listen=listen)


@pytest.mark.parametrize("listen", ["127.0.0.1", "", ":9464", "::1:9464", "127.0.0.1:70000"])
def test_an_address_that_is_none_is_refused_by_its_own_name(listen):
    with pytest.raises(ConfigurationError, match=r"^metrics_listen="):
        ServerConfig(metrics_listen=listen)


def test_off_loopback_metrics_need_a_token_that_exists(tmp_path, authority):
    files = authority.write("server")
    config = ServerConfig(
        listen="127.0.0.1:0",
        metrics_listen="0.0.0.0:0",
        data_dir=tmp_path / "data",
        tls_certificate=files.certificate,
        tls_key=files.key,
    )
    with pytest.raises(ConfigurationError, match=r"0\.0\.0\.0:0.*there is no valid one.*numba-adam token make"):
        Server(config).start()
    with pytest.raises(ConfigurationError, match="there is no valid one"):  # the first one has released the folder
        Server(config).start()


def test_off_loopback_metrics_are_encrypted_and_follow_renewed_certificates(make_server, make_token, authority):
    token = make_token("prometheus", "--pull", "*")
    files = authority.write("server")
    server = make_server(files, listen="127.0.0.1:0", metrics_listen="0.0.0.0:0")
    address = f"127.0.0.1:{server.metrics_address.rpartition(':')[2]}"
    context = ssl.create_default_context(cafile=str(authority.file))
    assert answer_of(address, context=context, Authorization=f"Bearer {token}")[0] == 200
    assert answer_of(address, context=context)[0] == 401
    with pytest.raises((ConnectionError, http.client.BadStatusLine)):
        answer_of(address)
    first = serial_of(address, context)
    authority.write("server")
    assert serial_of(address, context) != first
    files.certificate.write_text("damaged")
    assert answer_of(address, context=context, Authorization=f"Bearer {token}")[0] == 200


def serial_of(address, context):
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), LONG) as plain,
        context.wrap_socket(plain, server_hostname=host) as encrypted,
    ):
        return encrypted.getpeercert()["serialNumber"]


@pytest.mark.parametrize("name", HOST_NAMES)
def test_a_web_page_whose_name_resolves_to_loopback_reads_nothing(server, name):
    status, text = answer_of(server.metrics_address, Host=name)
    assert status == 403
    assert "numba_adam_" not in text


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST:1", "127.0.0.1:9464", "[::1]:9464", "[::1]", "127.9.9.9"])
def test_names_of_loopback_are_served(server, name):
    assert answer_of(server.metrics_address, Host=name)[0] == 200


def test_other_paths_and_methods_are_refused(server):
    assert answer_of(server.metrics_address, "/")[0] == 404
    assert answer_of(server.metrics_address, "/metrics/x")[0] == 404
    assert answer_of(server.metrics_address, "/metrics?name[]=x")[0] == 200
    assert answer_of(server.metrics_address, method="POST")[0] == 501


def test_peers_that_stay_silent_neither_block_the_server_nor_take_more_than_their_places(server, client):
    model = client.create_model("m", {"w": np.ones(1000, np.float32)})
    host, _, port = server.metrics_address.rpartition(":")
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection((host, int(port)), LONG)) for _ in range(8)]
        assert model.push(GRADS).version == 1
        with socket.create_connection((host, int(port)), LONG) as ninth:
            assert ninth.recv(1) == b""  # closed at once
        for each in silent:
            assert each.recv(1) == b""  # closed after the limit, though they sent nothing
    assert answer_of(server.metrics_address)[0] == 200


def test_a_taken_port_is_an_error_and_releases_the_data_folder(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        config = ServerConfig(listen="127.0.0.1:0", data_dir=tmp_path / "data", metrics_listen=listen, threads=2)
        with pytest.raises(ConfigurationError, match=rf"metrics_listen='{listen}'.*take another"):
            Server(config).start()
    with Server(config) as server:
        assert answer_of(server.metrics_address)[0] == 200
    with pytest.raises(ConnectionError):
        answer_of(server.metrics_address)


def test_without_prometheus_client_the_message_says_how_to_install_it(tmp_path):
    program = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from numba_adam.cli import main\n"
        "sys.exit(main(['serve', '--listen', '127.0.0.1:0', '--metrics-listen', '127.0.0.1:0', '--data-dir', 'data']))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=LONG
    )
    assert run.returncode != 0
    assert "prometheus_client, which is not installed" in run.stderr
    assert "pip install -e '.[metrics]'" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_server_without_the_setting_has_no_metrics_and_loads_no_prometheus_client(tmp_path):
    program = (
        "import sys; from pathlib import Path\n"
        "from numba_adam.server.config import ServerConfig; from numba_adam.server.embedded import Server\n"
        "with Server(ServerConfig(listen='127.0.0.1:0', data_dir=Path(sys.argv[1]), threads=2)) as server:\n"
        "    print(repr(server.metrics_address), 'prometheus_client' in sys.modules)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "data")]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=LONG).stdout == "'' False\n"
