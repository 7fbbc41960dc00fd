// A worker of a numba-adam parameter server: create or open a model, pull its parameters, push gradients.
//
// It is made from proto/ alone. docs/wire.md explains each step. All arrays are float32.

import { once } from 'node:events';
import { closeSync, constants, fstatSync, openSync, readFileSync } from 'node:fs';
import { homedir, hostname } from 'node:os';
import { join } from 'node:path';
import { randomBytes } from 'node:crypto';
import { setTimeout as wait } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import grpc from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { crc32c } from './crc32c.js';

const CHUNK_BYTES = 1 << 20;

// 64-bit fields become strings: a JavaScript number is exact up to 2**53 only.
const files = ['parameter_service', 'error'].map((name) => `numba_adam/ps/v1/${name}.proto`);
const proto = loadSync(files, {
  includeDirs: [fileURLToPath(new URL('../../proto', import.meta.url))],
  keepCase: true, longs: String, enums: String, defaults: true, oneofs: true,
});
const { ParameterService } = grpc.loadPackageDefinition(proto).numba_adam.ps.v1;

/** Return the server's ErrorDetail of a failed call; null: the error is gRPC's own, or this program's. */
function detailOf(error) {
  const [bytes] = error.metadata?.get('numba-adam-error-bin') ?? [];
  return bytes ? proto['numba_adam.ps.v1.ErrorDetail'].deserialize(bytes) : null;
}

/** Return whether the same call, sent again with the same content, may succeed. */
function isTransient(error, detail) {
  if (detail) {
    return ['REASON_CORRUPT_TRANSFER', 'REASON_BUDGET', 'REASON_IN_PROGRESS', 'REASON_STOPPING', 'REASON_RATE_LIMITED']
      .includes(detail.reason);
  }
  const { UNAVAILABLE, CANCELLED, INTERNAL, UNKNOWN, DATA_LOSS, RESOURCE_EXHAUSTED } = grpc.status;
  return [UNAVAILABLE, CANCELLED, INTERNAL, UNKNOWN, DATA_LOSS, RESOURCE_EXHAUSTED].includes(error.code);
}

/**
 * Return the credentials of a connection. NUMBA_ADAM_SERVER_CA, NUMBA_ADAM_WORKER_CERTIFICATE and NUMBA_ADAM_WORKER_KEY
 * name the files of TLS, as for our Python client. Without a CA the connection is plain.
 */
function credentialsOf(environment) {
  const names = ['NUMBA_ADAM_SERVER_CA', 'NUMBA_ADAM_WORKER_KEY', 'NUMBA_ADAM_WORKER_CERTIFICATE'];
  const [ca, key, certificate] = names.map((name) => (environment[name] ? readFileSync(environment[name]) : null));
  return ca ? grpc.credentials.createSsl(ca, key, certificate) : grpc.credentials.createInsecure();
}

/** Return the token that a server on loopback wrote for its own user; null: none, or other users may read the file. */
function loopbackToken(port, { XDG_CONFIG_HOME: configuration }) {
  const folder = configuration?.startsWith('/') ? configuration : join(homedir(), '.config');
  const path = join(folder, 'numba-adam', 'loopback', `${hostname()}-${port}.token`);
  let file;
  try {
    file = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
    const status = fstatSync(file);
    const isOursAlone = status.isFile() && !(status.mode & 0o077) && status.uid === process.geteuid();
    return isOursAlone ? readFileSync(file, 'ascii').trim() || null : null;
  } catch {
    return null;
  } finally {
    if (file !== undefined) closeSync(file);
  }
}

/**
 * Return the access token for an address; null: none. It is NUMBA_ADAM_TOKEN, or what a server on loopback wrote into its
 * file. Without TLS, others on the way could read it: it stays on this machine then.
 */
function tokenFor(address, environment) {
  const [, port] = /^(?:localhost|127\.0\.0\.1|\[::1\]):(\d+)$/.exec(address) ?? [];
  if (!port && !environment.NUMBA_ADAM_SERVER_CA) return null;
  return environment.NUMBA_ADAM_TOKEN || (port ? loopbackToken(port, environment) : null);
}

/** Return what every call sends along. */
function metadataOf(token) {
  const metadata = new grpc.Metadata();
  if (token) metadata.set('authorization', `Bearer ${token}`);
  return metadata;
}

const random = () => randomBytes(16).toString('hex');
const sizeOf = ({ shape }) => shape.reduce((size, extent) => size * extent, 1);

/** Yield the messages of a transfer: a header, chunks, a trailer. */
function* transfer(header, payload) {
  yield { header: { ...header, total_bytes: payload.length, checksum_kind: 'CHECKSUM_KIND_CRC32C' } };
  for (let offset = 0; offset < payload.length; offset += CHUNK_BYTES) {
    yield { chunk: { offset, data: payload.subarray(offset, offset + CHUNK_BYTES) } };
  }
  yield { trailer: { checksum: crc32c(payload) } };
}

export class Worker {
  /**
   * `spec`: the model as in model.proto. `onRewind(version)` is called when the server went back to a snapshot.
   * `workerId`: one live process at a time may use it.
   */
  constructor(address, spec, { workerId, timeoutSeconds = 60, onRewind = () => {} }) {
    Object.assign(this, { address, spec, workerId, timeoutSeconds, onRewind });
    this.token = tokenFor(address, process.env);
    this.metadata = metadataOf(this.token);
    this.stub = new ParameterService(address, credentialsOf(process.env), {
      // gRPC waits up to two minutes between tries to connect. A server restarts within seconds.
      'grpc.initial_reconnect_backoff_ms': 100, 'grpc.max_reconnect_backoff_ms': 1000,
    });
    this.state = null; // of the parameters pulled last
    this.session = null;
  }

  /** Create the model with these initial values (name -> Float32Array), or open it if it exists. */
  async create(values) {
    const header = { spec: this.spec, request_id: random(), exist_ok: true, after_state_id: '' };
    try {
      await this.#send('CreateModel', header, this.#bytesOf(values));
    } catch (error) {
      const detail = detailOf(error);
      if (detail?.reason !== 'REASON_REWOUND') throw error;
      // A model of this name was deleted. Say that this creation comes after it.
      const after = { ...header, request_id: random(), after_state_id: detail.state.state_id };
      await this.#send('CreateModel', after, this.#bytesOf(values));
    }
  }

  /** Return the parameters: name -> Float32Array. */
  async pull() {
    const request = { model: this.spec.name, checksum_kind: 'CHECKSUM_KIND_CRC32C' };
    const { header, payload } = await this.#retry((deadline) => this.#receive(request, deadline));
    this.#notice(header.state);
    this.state = header.state;
    let offset = 0;
    return Object.fromEntries(this.spec.tensors.map((tensor) => {
      const values = new Float32Array(payload.buffer, offset, sizeOf(tensor));
      offset += values.byteLength;
      return [tensor.name, values];
    }));
  }

  /** Push gradients (name -> Float32Array). Return the acknowledgement; null: the server went back, pull and go on. */
  async push(gradients) {
    const computedFrom = this.state;
    if (!this.session) await this.#openSession();
    if (this.state.state_id !== computedFrom.state_id) return null;
    const { epoch, sequence, state_id } = this.session;
    const header = {
      model: this.spec.name, state_id, worker_id: this.workerId, epoch, sequence: String(sequence),
      base_version: computedFrom.version, dtype: this.spec.dtype, tensors: this.spec.tensors,
    };
    try {
      // All tries have the same number and content, so the server applies the push once.
      const { ack } = await this.#send('Push', header, this.#bytesOf(gradients));
      this.session.sequence += 1n;
      return ack;
    } catch (error) {
      const detail = detailOf(error);
      if (detail?.sequence_recorded) this.session.sequence += 1n; // refused for good: the number is used
      else this.session = null; // the push may have arrived: its number must not get other content
      if (detail?.reason !== 'REASON_REWOUND') throw error;
      this.#notice(detail.state);
      return null;
    }
  }

  close() {
    this.stub.close();
  }

  /** Open a session for the current state. All tries have the same nonce. */
  async #openSession() {
    const request = {
      model: this.spec.name, worker_id: this.workerId, nonce: random(), state_id: this.state.state_id,
      seen_epoch: this.epochState === this.state.state_id ? this.epoch : '0',
    };
    let answer;
    try {
      answer = await this.#call('OpenSession', request);
    } catch (error) {
      const detail = detailOf(error);
      if (detail?.reason === 'REASON_REWOUND') return this.#notice(detail.state);
      // This process has had no session: it takes over from an earlier process of the same worker, once.
      const mayTakeOver = request.seen_epoch === '0' && detail && detail.epoch !== '0';
      if (!mayTakeOver) throw error;
      answer = await this.#call('OpenSession', { ...request, seen_epoch: detail.epoch });
    }
    const { epoch, first_sequence, state } = answer;
    this.epoch = epoch;
    this.epochState = state.state_id;
    this.session = { epoch, sequence: BigInt(first_sequence), state_id: state.state_id };
  }

  /** Look at a state that the server reported. Another id means that steps were lost. */
  #notice(state) {
    if (this.state && this.state.state_id !== state.state_id) {
      this.session = null;
      this.state = state;
      this.onRewind(state.first_version);
    }
  }

  #bytesOf(arrays) {
    return Buffer.concat(this.spec.tensors.map((tensor) => {
      const values = arrays[tensor.name];
      if (!(values instanceof Float32Array) || values.length !== sizeOf(tensor)) {
        throw new TypeError(`${tensor.name}: expected a Float32Array of ${sizeOf(tensor)} values`);
      }
      return Buffer.from(values.buffer, values.byteOffset, values.byteLength);
    }));
  }

  // --- calls ---------------------------------------------------------------------------------------------------

  /** Repeat an attempt until it succeeds, fails for good, or the time is over. */
  async #retry(attempt) {
    const end = Date.now() + 1000 * this.timeoutSeconds;
    for (let ceiling = 50; ; ceiling = Math.min(2 * ceiling, 2000)) {
      try {
        return await attempt(end);
      } catch (error) {
        const detail = detailOf(error);
        if (detail?.reason === 'REASON_UNAUTHENTICATED' && this.#hasNewToken()) continue;
        const pause = (detail?.retry_after_milliseconds ?? 0) + Math.random() * ceiling;
        if (!isTransient(error, detail) || Date.now() + pause >= end) throw error;
        await wait(pause);
      }
    }
  }

  /** Read the token again: a server on loopback that starts again has another. Return whether it changed. */
  #hasNewToken() {
    const token = tokenFor(this.address, process.env);
    if (token === this.token) return false;
    this.token = token;
    this.metadata = metadataOf(token);
    return true;
  }

  /** One request, one answer. */
  #call(method, request) {
    return this.#retry((deadline) => new Promise((resolve, reject) => {
      this.stub[method](request, this.metadata, { deadline }, (error, answer) => (error ? reject(error) : resolve(answer)));
    }));
  }

  /** A transfer to the server, one answer. The answer may come before the whole transfer was sent. */
  #send(method, header, payload) {
    return this.#retry((deadline) => new Promise((resolve, reject) => {
      let isAnswered = false;
      const call = this.stub[method](this.metadata, { deadline }, (error, answer) => {
        isAnswered = true;
        call.emit('drain'); // ends the wait below
        if (error) reject(error);
        else resolve(answer);
      });
      (async () => {
        for (const message of transfer(header, payload)) {
          if (isAnswered) return;
          if (!call.write(message)) await once(call, 'drain');
        }
        call.end();
      })().catch(reject);
    }));
  }

  /** A transfer from the server. */
  async #receive(request, deadline) {
    let header, trailer;
    let payload = new Uint8Array(0);
    let received = 0;
    for await (const message of this.stub.Pull(request, this.metadata, { deadline })) {
      if (message.part === 'header') {
        header = message.header;
        payload = new Uint8Array(Number(header.total_bytes)); // of its own, so that float32 views of it are aligned
      } else if (message.part === 'chunk') {
        payload.set(message.chunk.data, Number(message.chunk.offset));
        received += message.chunk.data.length;
      } else {
        trailer = message.trailer;
      }
    }
    const isComplete = header && trailer && received === payload.length;
    // The checksum is a string, as every 64-bit field.
    if (!isComplete || (payload.length && trailer.checksum !== String(crc32c(payload)))) {
      throw Object.assign(new Error('the pulled parameters are damaged'), { code: grpc.status.DATA_LOSS });
    }
    return { header, payload };
  }
}
