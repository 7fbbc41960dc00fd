"""Two PyTorch workers train one small transformer that continues text, character by character.

    pip install -e '.[server]' and PyTorch
    python examples/transformer.py

The text is the description of the Python language that ships with Python. The parameter server keeps the parameters and
Adam's state. Each worker is a PyTorch program with its own copy of the network. Read it from the bottom up.
"""

import argparse
import multiprocessing
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn

from numba_adam.client import ParameterClient

TEXT = "\n".join(text for _, text in sorted(topics.items())).encode("ascii", "replace")
CHARACTERS, CONTEXT, WIDTH, BATCH = 128, 64, 64, 32


class Transformer(nn.Module):  # type: ignore[misc]  # mypy does not know PyTorch
    """Maps characters (batch, length) to the scores of the character after each (batch, length, CHARACTERS)."""

    def __init__(self) -> None:
        super().__init__()
        self.character = nn.Embedding(CHARACTERS, WIDTH)
        self.position = nn.Embedding(CONTEXT, WIDTH)
        layer = nn.TransformerEncoderLayer(
            WIDTH, nhead=4, dim_feedforward=4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.scores = nn.Linear(WIDTH, CHARACTERS)

    def forward(self, characters: Tensor) -> Tensor:
        """Return the scores."""
        length = characters.shape[1]
        past = nn.Transformer.generate_square_subsequent_mask(length)
        hidden = self.character(characters) + self.position(torch.arange(length))
        scores: Tensor = self.scores(self.layers(hidden, mask=past, is_causal=True))
        return scores


def network() -> Transformer:
    """Return the network with its initial parameters."""
    torch.manual_seed(0)
    return Transformer()


def batches(count: int, first: int, last: int, seed: int) -> Iterator[Tensor]:
    """Yield random pieces (BATCH, CONTEXT + 1) of the text between two characters."""
    text = torch.frombuffer(bytearray(TEXT[first:last]), dtype=torch.uint8).long()
    random = torch.Generator().manual_seed(seed)
    for _ in range(count):
        starts = torch.randint(len(text) - CONTEXT, (BATCH, 1), generator=random)
        yield text[starts + torch.arange(CONTEXT + 1)]


def loss(net: Transformer, batch: Tensor) -> Tensor:
    """Return the mean cross-entropy of each next character, in nats."""
    return nn.functional.cross_entropy(net(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


def mean_loss(net: Transformer, pieces: list[Tensor]) -> float:
    """Return the mean loss of several batches."""
    with torch.no_grad():
        return sum(float(loss(net, batch)) for batch in pieces) / len(pieces)


def work(address: str, index: int, steps: int) -> None:
    """Run one worker."""
    torch.set_num_threads(1)
    net = network()
    with ParameterClient(address, worker_id=f"worker-{index}") as client:
        # Both workers run this line. The first creates the model, the other opens it.
        model = client.create_model("transformer", net.named_parameters(), lr=3e-3, exist_ok=True)
        training = batches(steps, 0, len(TEXT) * 9 // 10, seed=index)
        # The loop pulls the newest parameters into the network, and pushes the gradients that backward() left.
        for batch, step in model.worker(training, net.named_parameters()):
            value = loss(net, batch)
            value.backward()
            if step.version % 100 < 2:
                print(f"worker {index}, version {step.version}: loss {value.item():.2f}", flush=True)


def continued(net: Transformer, text: str, count: int) -> str:
    """Return text with more characters, each the most likely one."""
    characters = torch.tensor([list(text.encode("ascii"))])
    for _ in range(count):
        following = net(characters[:, -CONTEXT:])[:, -1:].argmax(dim=-1)
        characters = torch.cat([characters, following], dim=1)
    return bytes(characters[0].tolist()).decode("ascii")


def evaluate(address: str) -> None:
    """Print how well the trained network predicts text that the workers have not seen."""
    net = network()
    unseen = list(batches(10, len(TEXT) * 9 // 10, len(TEXT), seed=9))
    before = mean_loss(net, unseen)
    with ParameterClient(address) as client:
        model = client.open_model("transformer")
        model.pull(out=net.named_parameters())
    print(f"version {model.version}: loss {before:.2f} before, {mean_loss(net, unseen):.2f} after")
    print(continued(net, "The following ", 60))


def main(steps: int) -> None:
    """Start a server and two workers, wait for them, and evaluate."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        serve = [sys.executable, "-m", "numba_adam", "serve", "--listen", "127.0.0.1:0", "--data-dir", folder]
        with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                address = server.stdout.readline().split()[-1]  # "numba-adam: serving on 127.0.0.1:43210"
                workers = [spawn.Process(target=work, args=(address, index, steps), daemon=True) for index in (0, 1)]
                for worker in workers:
                    worker.start()
                for worker in workers:
                    worker.join()
                evaluate(address)
            finally:
                server.terminate()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=300, help="of each worker")
    main(parser.parse_args().steps)
