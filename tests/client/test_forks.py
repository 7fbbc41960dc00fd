"""A forked child cannot use its parent's clients: it creates its own, or every call is refused at once.

The clients of these programs would wait for more than a day: whatever does not end at once ends as a failure.
"""

from __future__ import annotations

import sys

import programs
import pytest

pytestmark = [pytest.mark.campaign, pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")]

EVERY_CALL = """
def every_call_is_refused():
    for call in (
        lambda: model.push(grads), lambda: model.push_async(grads), lambda: model.push_pull(grads), model.pull,
        lambda: model.pull(out=dict(zeros)), lambda: model.pull(min_version=1), lambda: model.on_rewind(print),
        client.status, client.list_models, client.snapshot, lambda: client.snapshot("m"),
        lambda: client.open_model("m"), lambda: client.delete_model("m"),
        lambda: client.create_model("n", zeros), lambda: client.create_model("m", zeros, exist_ok=True),
    ):
        refused(call)
    assert repr(model) and repr(client) and model.name == "m" and model.version >= 0 and model.state_id
    assert model.last_ack is None or model.last_ack.applied
    model.close(FOR_EVER)
    client.close()
    client.close(wait=False)
    with client:
        pass
    refused(lambda: model.push(grads))
"""


@pytest.fixture
def address(server_process) -> str:
    return server_process.address


@pytest.mark.parametrize("form", ["push", "push_pull", "push_async", "push after push_async"])
def test_a_forked_child_is_refused_and_the_parent_continues(address, form):
    """Before the first push, between two, and after the last."""
    program = """
    client = ParameterClient(address, "w0", timeout_seconds=FOR_EVER)
    model = client.create_model("m", zeros)
    if FORM == "push after push_async":
        model.push_async(grads).result()
    def push():
        if FORM == "push_async":
            ack = model.push_async(grads).result()
        elif FORM == "push_pull":
            model.push_pull(grads)
            ack = model.last_ack
        else:
            ack = model.push(grads)
        return ack.version, ack.applied, ack.duplicate
    first = 1 + (FORM == "push after push_async")
    for version in range(first, first + 5):
        forked(every_call_is_refused)()
        assert push() == (version, True, False)
    forked(every_call_is_refused)()
    assert client.status().models[0].pushes_applied == first + 4
    client.close()
    """
    assert programs.run(EVERY_CALL + f"FORM = {form!r}\nif True:\n" + program, address) == ""


@pytest.mark.parametrize("start", ["os.fork", "multiprocessing", "a thread of the parent"])
def test_every_acknowledged_gradient_of_forked_workers_is_applied(address, start):
    """Four workers with their own clients, while the parent continues: 1 + 4 * 5 + 4 pushes and versions."""
    program = """
    client = ParameterClient(address, "w0", timeout_seconds=FOR_EVER)
    model = client.create_model("m", zeros)
    versions = [model.push(grads).version]
    pending = [model.push_async(grads) for _ in range(2)]
    read, write = os.pipe()
    def work():
        with ParameterClient(address, timeout_seconds=FOR_EVER) as mine:
            own = mine.open_model("m")
            own.pull()
            acks = [own.push(grads) if n % 2 else own.push_async(grads).result() for n in range(5)]
            assert all(ack.applied and not ack.duplicate for ack in acks)
            os.write(write, "".join(f"{ack.version} " for ack in acks).encode())
    if START == "os.fork":
        workers = [forked(work) for _ in range(4)]
    elif START == "multiprocessing":
        import multiprocessing
        processes = [multiprocessing.get_context("fork").Process(target=work) for _ in range(4)]
        for process in processes:
            process.start()
        def join(process):
            process.join()
            assert process.exitcode == 0
        workers = [lambda process=process: join(process) for process in processes]
    else:
        workers = []
        forker = threading.Thread(target=lambda: workers.extend(forked(work) for _ in range(4)))
        forker.start()
        forker.join()
    versions += [model.push(grads).version for _ in range(2)]
    for join_worker in workers:
        join_worker()
    versions += [push.result().version for push in pending]
    os.close(write)
    versions += map(int, os.read(read, 10_000).split())
    assert sorted(versions) == list(range(1, 26)), versions
    assert client.status().models[0].pushes_applied == 25
    client.close()
    """
    assert programs.run(f"START = {start!r}\nif True:\n" + program, address) == ""


def test_a_fork_during_pushes_loses_none_of_them(address):
    """Large pushes of two threads, one in the background; every fork happens during some of them."""
    program = """
    size = 2_000_000
    grads, zeros = {"w": np.ones(size, np.float32)}, {"w": np.zeros(size, np.float32)}
    client = ParameterClient(address, "w0", timeout_seconds=FOR_EVER)
    model = client.create_model("m", zeros)
    going, done, versions = threading.Semaphore(0), threading.Event(), []
    client._connection.report = lambda what: lambda so_far, total: going.release()
    def push_on():
        while not done.is_set():
            versions.append(model.push_async(grads).result().version)
    pusher = threading.Thread(target=push_on)
    pusher.start()
    def work():
        every_call_is_refused()
        with ParameterClient(address, timeout_seconds=FOR_EVER) as mine:
            assert mine.open_model("m").push(grads).applied
    for number in range(10):
        for _ in range(1 + number):
            going.acquire()
        forked(work)()
    done.set()
    pusher.join()
    applied = client.status().models[0].pushes_applied
    assert applied == len(versions) + 10 and len(set(versions)) == len(versions), (applied, versions)
    client.close()
    """
    assert programs.run(EVERY_CALL + "if True:\n" + program, address) == ""


def test_the_parents_futures_are_settled_in_the_child(server_process):
    """One is done before the fork; the others wait for a server that does not answer."""
    program = """
    from concurrent.futures import as_completed, wait
    client = ParameterClient(address, "w0", timeout_seconds=FOR_EVER)
    model = client.create_model("m", zeros)
    done = model.push_async(grads)
    assert done.result().version == 1
    os.kill(int(sys.argv[2]), signal.SIGSTOP)
    pending = [model.push_async(grads) for _ in range(4)]
    heard = []
    pending[0].add_done_callback(heard.append)
    def work():
        assert done.result().version == 1
        assert wait(pending).not_done == set() and len(list(as_completed([done, *pending]))) == 5
        for push in pending:
            assert push.done() and not push.cancel()
            refused(push.result, "forked from it, does not")
            assert isinstance(push.exception(), ServiceError)
        assert heard == [], "callbacks are the parent's"
        every_call_is_refused()
    forked(work)()
    os.kill(int(sys.argv[2]), signal.SIGCONT)
    assert [push.result().version for push in pending] == [2, 3, 4, 5] and heard == pending[:1]
    client.close()
    """
    assert (
        programs.run(EVERY_CALL + "if True:\n" + program, server_process.address, str(server_process.process_id)) == ""
    )


def test_a_child_is_refused_at_once_whatever_lock_its_parent_held(address):
    program = """
    client = ParameterClient(address, "w0", timeout_seconds=FOR_EVER)
    model = client.create_model("m", zeros)
    last = model.push_async(grads)
    last.result()
    session, sender = model._session, model._sender
    locks = [client._models_lock, client._connection._channel_lock, model._sender_lock, session.push_lock,
             session._state_lock, sender._changed, last._condition]
    for lock in locks[:1] + locks[2:]:  # the second is held by the fork itself when it closes the channel
        held, go_on = threading.Event(), threading.Event()
        def hold():
            with lock:
                held.set()
                go_on.wait()
        holder = threading.Thread(target=hold)
        holder.start()
        held.wait()
        def work():
            every_call_is_refused()
            assert last.result().version == 1
            with ParameterClient(address, timeout_seconds=FOR_EVER) as mine:
                assert mine.status().models
        forked(work)()
        go_on.set()
        holder.join()
    assert model.push(grads).version == 2
    client.close()
    """
    assert programs.run(EVERY_CALL + "if True:\n" + program, address) == ""


def test_a_client_in_a_child_of_a_process_that_uses_grpc_is_refused_with_advice(address):
    """A server in the parent has threads that gRPC cannot end, and the child's calls would wait for them forever."""
    program = """
    import grpc
    from concurrent.futures import ThreadPoolExecutor
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_insecure_port("127.0.0.1:0")
    server.start()
    client = ParameterClient(address, "w0", timeout_seconds=FOR_EVER)
    model = client.create_model("m", zeros)
    assert model.push(grads).version == 1
    def work():
        every_call_is_refused()
        refused(lambda: ParameterClient(address), "get_context('spawn')")
        forked(lambda: refused(lambda: ParameterClient(address), "get_context('spawn')"))()
    forked(work)()
    assert model.push(grads).version == 2
    client.close()
    server.stop(None).wait()
    """
    assert programs.run(EVERY_CALL + "if True:\n" + program, address) == ""


def test_a_child_exits_normally_with_the_parents_open_clients(address):
    """Not by os._exit: all objects are destroyed; another thread was in a pull at the fork."""
    program = """
    client = ParameterClient(address, "w0", timeout_seconds=FOR_EVER)
    model = client.create_model("m", zeros)
    model.push_async(grads).result()
    waiting = threading.Thread(target=lambda: model.pull(min_version=2))
    waiting.start()
    child = os.fork()
    if child == 0:
        grandchild = os.fork()
        if grandchild:
            assert os.waitpid(grandchild, 0)[1] == 0
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert model.push(grads).version == 2
    waiting.join()
    client.close()
    """
    assert programs.run("if True:\n" + program, address) == ""


def test_a_child_can_be_the_first_to_use_grpc_and_can_fork(address):
    program = """
    client = ParameterClient(address, "w0", timeout_seconds=FOR_EVER)
    def grandchild():
        with ParameterClient(address, timeout_seconds=FOR_EVER) as mine:
            assert mine.open_model("m").push(grads).version == 2
    def child():
        with ParameterClient(address, timeout_seconds=FOR_EVER) as mine:
            assert mine.create_model("m", zeros).push(grads).version == 1
            forked(grandchild)()
            assert mine.open_model("m").push(grads).version == 3
    forked(child)()
    assert client.open_model("m").push(grads).version == 4
    client.close()
    """
    assert programs.run("if True:\n" + program, address) == ""
