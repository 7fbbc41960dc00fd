// Train a network that reads handwritten digits, with the parameter server of numba-adam.
//
//   pip install -e '.[demo]'                                   the server, and the digits
//   python examples/node/digits_json.py > digits.json
//   numba-adam serve --listen 127.0.0.1:50051 --data-dir checkpoints --snapshot-every-pushes 100
//   npm ci --prefix examples/node
//   node examples/node/digits.js 127.0.0.1:50051 digits.json
//
// For a server with TLS and tokens, set NUMBA_ADAM_SERVER_CA (a file) and NUMBA_ADAM_TOKEN: see docs/remote.md.
//
// Kill the server with kill -9, even the process that supervises it, and start it again: no acknowledged push is lost.

import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { Worker } from './worker.js';

const PIXELS = 64, HIDDEN = 32, DIGITS = 10, BATCH = 64;

const spec = {
  name: 'digits-node',
  dtype: 'DTYPE_FLOAT32',
  durability: 'DURABILITY_PROCESS', // an acknowledged push survives kill -9 of the server
  tensors: [ // their order is the order of their bytes
    { name: 'w1', shape: [PIXELS, HIDDEN] },
    { name: 'b1', shape: [HIDDEN] },
    { name: 'w2', shape: [HIDDEN, DIGITS] },
    { name: 'b2', shape: [DIGITS] },
  ],
  hyperparameters: { lr: 2e-3 },
};

/** Return random initial weights. */
function initial() {
  const uniform = (size, limit) => Float32Array.from({ length: size }, () => limit * (2 * Math.random() - 1));
  return {
    w1: uniform(PIXELS * HIDDEN, Math.sqrt(6 / PIXELS)),
    b1: new Float32Array(HIDDEN),
    w2: uniform(HIDDEN * DIGITS, Math.sqrt(6 / HIDDEN)),
    b2: new Float32Array(DIGITS),
  };
}

/** Return x @ w + b for one vector x; w has a row for each element of x. */
function layer(x, w, b) {
  const y = Float64Array.from(b);
  for (let i = 0; i < x.length; i++) {
    for (let j = 0; j < y.length; j++) y[j] += x[i] * w[i * y.length + j];
  }
  return y;
}

/** Return the hidden units and the probabilities of the ten digits for one image. */
function forward({ w1, b1, w2, b2 }, pixels) {
  const hidden = layer(pixels, w1, b1).map((value) => Math.max(value, 0));
  const scores = layer(hidden, w2, b2);
  const largest = Math.max(...scores);
  const powers = scores.map((score) => Math.exp(score - largest));
  const sum = powers.reduce((a, b) => a + b);
  return { hidden, probabilities: powers.map((power) => power / sum) };
}

/** Return the mean cross-entropy of a batch and its gradient. */
function gradientsOf(params, batch) {
  const gradients = Object.fromEntries(Object.entries(params).map(([name, a]) => [name, new Float32Array(a.length)]));
  let loss = 0;
  for (const { pixels, digit } of batch) {
    const { hidden, probabilities } = forward(params, pixels);
    loss -= Math.log(probabilities[digit]) / batch.length;
    const byScore = probabilities.map((p, k) => (p - (k === digit)) / batch.length);
    for (let j = 0; j < HIDDEN; j++) {
      if (hidden[j] === 0) continue;
      let byHidden = 0;
      for (let k = 0; k < DIGITS; k++) {
        byHidden += byScore[k] * params.w2[j * DIGITS + k];
        gradients.w2[j * DIGITS + k] += hidden[j] * byScore[k];
      }
      gradients.b1[j] += byHidden;
      for (let i = 0; i < PIXELS; i++) gradients.w1[i * HIDDEN + j] += pixels[i] * byHidden;
    }
    for (let k = 0; k < DIGITS; k++) gradients.b2[k] += byScore[k];
  }
  return { loss, gradients };
}

function accuracy(params, images) {
  const isRight = ({ pixels, digit }) => {
    const { probabilities } = forward(params, pixels);
    return probabilities.indexOf(Math.max(...probabilities)) === digit;
  };
  return images.filter(isRight).length / images.length;
}

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    steps: { type: 'string', default: '2000' },
    'worker-id': { type: 'string', default: `node-${process.pid}` },
    'timeout-seconds': { type: 'string', default: '60' },
  },
});
const [address = '127.0.0.1:50051', file = 'digits.json'] = positionals;
const images = JSON.parse(readFileSync(file, 'utf8'));
const training = images.filter((_, index) => index % 5 !== 0);
const worker = new Worker(address, spec, {
  workerId: options['worker-id'],
  timeoutSeconds: Number(options['timeout-seconds']),
  onRewind: (version) => console.log(`the server is back, at version ${version}`),
});

await worker.create(initial());
let params = await worker.pull();
while (BigInt(worker.state.version) < BigInt(options.steps)) {
  const batch = Array.from({ length: BATCH }, () => training[Math.floor(Math.random() * training.length)]);
  const { loss, gradients } = gradientsOf(params, batch);
  const ack = await worker.push(gradients);
  if (ack && BigInt(ack.version) % 10n === 0n) {
    console.log(`version ${ack.version}: loss ${loss.toFixed(3)}, newest snapshot ${ack.state.snapshot_version}`);
  }
  params = await worker.pull();
}
const share = accuracy(params, images.filter((_, index) => index % 5 === 0));
console.log(`version ${worker.state.version}: ${(100 * share).toFixed(1)}% of the test images are read correctly`);
worker.close();
