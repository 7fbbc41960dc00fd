"""Certificates that are renewed while clients connect. The server has a process of its own, because it may crash."""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import subprocess
import sys
import threading

import pytest

from numba_adam.client import ParameterClient, Tls

RENEWALS, CLIENTS = 800, 6
PROGRAM = """
import pathlib, sys
import numba_adam.server.transport.tls as tls
from numba_adam.server.config import ServerConfig
from numba_adam.server.main import serve
tls._GRACE_SECONDS = 0.004  # so that there are many renewals; without any, the server crashed within some hundreds
data, certificate, key, client_ca = map(pathlib.Path, sys.argv[1:])
files = dict(tls_certificate=certificate, tls_key=key, client_ca=client_ca)
sys.exit(serve(ServerConfig(listen="127.0.0.1:0", data_dir=data, snapshot_interval_seconds=0, **files)))
"""


def replace(path, content):
    """Replace a file at once, as programs that renew certificates do."""
    new = path.with_suffix(".new")
    new.touch(mode=0o600)
    new.write_bytes(content)
    new.replace(path)


@pytest.mark.campaign
def test_a_server_whose_certificate_is_renewed_during_handshakes_does_not_crash(authority, tmp_path, campaign):
    """GRPC has a use after free there (grpc/grpc#36693), which the server avoids."""
    files, worker = authority.write("server"), authority.worker()
    made = [authority.write(f"renewed-{number}") for number in range(8)]
    pairs = [(each.key.read_bytes(), each.certificate.read_bytes()) for each in made]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(worker.certificate, worker.key)
    words = [sys.executable, "-c", PROGRAM, tmp_path / "data", files.certificate, files.key, authority.file]
    rng, is_over, connected = random.Random(campaign.seed(29)), threading.Event(), threading.Semaphore(0)

    def connect():
        while not is_over.is_set():
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 800) as raw:
                context.wrap_socket(raw).close()
            connected.release()

    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            address = process.stdout.readline().split()[-1]
            host, _, port = address.rpartition(":")
            threads = [threading.Thread(target=connect) for _ in range(CLIENTS)]
            for thread in threads:
                thread.start()
            for _ in range(RENEWALS):
                key, certificate = rng.choice(pairs)
                replace(files.key, key)
                replace(files.certificate, certificate)
                for _ in range(rng.randrange(8)):
                    assert connected.acquire(timeout=800)
                if process.poll() is not None:
                    break
            is_over.set()
            for thread in threads:
                thread.join(800)
            assert process.poll() is None
            tls = Tls(server_ca=authority.file, worker_certificate=worker.certificate, worker_key=worker.key)
            with ParameterClient(address, tls=tls, timeout_seconds=800) as client:
                assert client.list_models() == []
        finally:
            is_over.set()
            process.kill()
    campaign.did(renewals=RENEWALS)
