// A policy served by rql-deploy, from Node.js. docs/protocol.md describes what goes over the wire.
//
//   const policy = await RemotePolicy.connect("tcp://127.0.0.1:5555");
//   const { actions, shape } = await policy.act({ position: new Float32Array(3) }, { deadlineMs: 20 });
import { createHash, randomInt } from "node:crypto";
import { decode, encode } from "@msgpack/msgpack";
import { Dealer } from "zeromq";
import { findReason, parseAddress } from "./reason.mjs";

const VERSION = 1;
const TYPES = { float32: Float32Array, float64: Float64Array, uint8: Uint8Array, int32: Int32Array };

export class DeadlineMissed extends Error {}

export class ServerError extends Error {
  constructor(code, text) {
    super(text);
    this.code = code;
  }
}

export class RemotePolicy {
  /** Replies that came after their deadline, and were dropped. */
  staleReplies = 0;
  #socket = new Dealer({ linger: 0, immediate: true, reconnectInterval: 20, reconnectMaxInterval: 200 });
  #epoch = randomInt(2 ** 31);
  #id = 0;
  #waiting = new Map();

  static async connect(endpoint, { timeoutMs = 5000 } = {}) {
    const { host } = parseAddress(endpoint);
    const policy = new RemotePolicy();
    // A name with addresses of both kinds is reached over IPv4.
    policy.#socket.ipv6 = host.includes(":");
    policy.#socket.connect(endpoint);
    policy.#read();
    try {
      await policy.#sayHello(timeoutMs);
    } catch (error) {
      policy.close();
      if (error instanceof DeadlineMissed) error.message += ` from ${endpoint}: ${await findReason(endpoint)}`;
      throw error;
    }
    return policy;
  }

  /** An action chunk: { actions: Float32Array, shape: [h, A], stepsUsed, value, spread, seed, timing }. */
  async act(observation, { deadlineMs = 1000, candidates = 1, value = false, seed = null } = {}) {
    if (seed !== null && !(Number.isSafeInteger(seed) && seed >= 0)) {
      throw new RangeError(`seed is ${seed}: pass an integer from 0 to 2^53 - 1, or null`);
    }
    const budget = deadlineMs / 1000;
    const header = { op: "act", contract: this.contractId, budget, candidates, value, seed };
    const arrays = this.contract.plant.fields
      .filter((field) => field.name in observation)
      .map(({ name, dtype, shape }) => [name, dtype, shape, TYPES[dtype].from(observation[name])]);
    const { reply, out } = await this.#call(header, arrays, deadlineMs);
    const { values, shape } = out.actions ?? {};
    const [h, dimensions] = [this.contract.h, this.contract.plant.actions.length];
    if (shape?.[0] !== h || shape?.[1] !== dimensions || !values.every(Number.isFinite)) {
      const expected = `[${h}, ${dimensions}]`;
      throw new ServerError("bad_reply", `the server sent no finite action chunk of shape ${expected}`);
    }
    const { value: v, spread, steps_used: stepsUsed, seed: used, timing } = reply;
    return { actions: values, shape, stepsUsed, value: v, spread, seed: used, timing };
  }

  close() {
    this.#socket.close();
  }

  async #sayHello(timeoutMs) {
    const { reply, out } = await this.#call({ op: "hello" }, [], timeoutMs);
    const text = Buffer.from(out.contract.values);
    if (createHash("sha256").update(text).digest("hex") !== reply.contract_id) {
      throw new ServerError("bad_reply", "the server sent a contract that does not match its id");
    }
    this.contract = JSON.parse(text.toString());
    this.contractId = reply.contract_id;
  }

  async #call(header, arrays, timeoutMs) {
    const id = ++this.#id;
    let timer;
    const answered = new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      timer = setTimeout(() => reject(new DeadlineMissed(`no reply within ${timeoutMs} ms`)), timeoutMs);
    });
    const described = arrays.map(([name, dtype, shape]) => [name, dtype, shape]);
    const head = Buffer.from(encode({ v: VERSION, id, epoch: this.#epoch, ...header, arrays: described }));
    const buffers = arrays.map(([, , , data]) => Buffer.from(data.buffer, data.byteOffset, data.byteLength));
    this.#socket.send([head, ...buffers]).catch((error) => this.#waiting.get(id)?.reject(error));
    try {
      return await answered;
    } finally {
      clearTimeout(timer);
      this.#waiting.delete(id);
    }
  }

  async #read() {
    for await (const [head, ...buffers] of this.#socket) {
      const reply = decode(head);
      const waiting = reply.epoch === this.#epoch ? this.#waiting.get(reply.id) : undefined;
      if (!waiting) this.staleReplies += 1;
      else if (reply.ok) waiting.resolve({ reply, out: arraysOf(reply.arrays, buffers) });
      else if (reply.code === "expired") waiting.reject(new DeadlineMissed(reply.error));
      else waiting.reject(new ServerError(reply.code, reply.error));
    }
  }
}

function arraysOf(described, buffers) {
  const out = {};
  described.forEach(([name, dtype, shape], i) => {
    // Copied: a typed array needs its own alignment.
    const bytes = Uint8Array.from(buffers[i]);
    out[name] = { shape, values: new TYPES[dtype](bytes.buffer) };
  });
  return out;
}
