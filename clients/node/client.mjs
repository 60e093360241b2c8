// A policy served by rql-deploy, from Node.js. docs/protocol.md describes what goes over the wire.
//
//   const policy = await RemotePolicy.connect("tcp://127.0.0.1:5555");
//   const { actions, shape } = await policy.act({ position: new Float32Array(3) }, { deadlineMs: 20 });
import { createHash, randomInt } from "node:crypto";
import { decode, encode } from "@msgpack/msgpack";
import { Dealer } from "zeromq";
import { findReason, parseAddress } from "./reason.mjs";

const VERSION = 2;
const PREFIX = 24;
const KINDS = { hello: 1, act: 2, act_many: 9 };
const REFUSAL = 0xff;
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
  #sending = Promise.resolve();

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

  /**
   * An action chunk: { actions: Float32Array, shape: [h, A], stepsUsed, value, spread, seed, timing }.
   * `prefix` is a list of actions that play meanwhile; the chunk continues them (docs/control.md).
   */
  async act(observation, options = {}) {
    const { deadlineMs = 1000, candidates = 1, value = false, seed = null, pessimism = 0 } = options;
    const { prefix = [], committed = prefix.length, continuation = null } = options;
    if (seed !== null) checkSeed(seed);
    const width = this.contract.plant.actions.length;
    const header = { contract: this.contractId, budget: deadlineMs / 1000, candidates, value, seed, pessimism };
    const arrays = [];
    if (prefix.length) {
      if (prefix.some((action) => action.length !== width)) {
        throw new RangeError(`prefix needs actions of ${width} numbers`);
      }
      Object.assign(header, { committed, continuation, arrays: [["prefix", "float32", [prefix.length, width]]] });
      arrays.push(Buffer.from(Float32Array.from(prefix.flatMap((action) => [...action])).buffer));
    }
    const { reply, block } = await this.#call("act", header, this.#pack([observation]), deadlineMs, arrays);
    const { value: v, spread, steps_used: stepsUsed, seed: used, timing } = reply;
    const [chunk] = this.#chunks(block, 1);
    return { ...chunk, stepsUsed, value: v, spread, seed: used, timing };
  }

  /** What `act` returns, for each of several observations, asked for in one message. */
  async actMany(observations, { deadlineMs = 1000, candidates = 1, value = false, seeds = null } = {}) {
    seeds?.forEach(checkSeed);
    const rows = observations.length;
    const header = { contract: this.contractId, rows, budget: deadlineMs / 1000, candidates, value, seeds };
    const { reply, block } = await this.#call("act_many", header, this.#pack(observations), deadlineMs);
    return this.#chunks(block, rows).map((chunk, i) => ({
      ...chunk,
      stepsUsed: reply.steps_used[i],
      value: reply.value[i],
      spread: reply.spread[i],
      seed: reply.seed[i],
      timing: reply.timing,
    }));
  }

  close() {
    this.#socket.close();
  }

  // What an observation has: the contract's fields, then each camera's stacked frames as bytes, rows of pixels, of each pixel the colours
  // of the oldest frame first.
  get inputs() {
    const { fields, images = [], frame_stack: frames = 1 } = this.contract.plant;
    return [...fields, ...images.map(({ name, height, width }) => ({ name, dtype: "uint8", shape: [height, width, 3 * frames] }))];
  }

  // The block of observations: their float32 fields, then the uint8 ones, each in the contract's order, a
  // field's values of all observations together.
  #pack(observations) {
    const isFloat = (field) => field.dtype === "float32";
    const fields = this.inputs;
    const ordered = [...fields.filter(isFloat), ...fields.filter((field) => !isFloat(field))];
    return ordered.flatMap((field) => observations.map((observation) => bytesOf(field, observation)));
  }

  // The action chunks of a reply's block: { actions, shape } for each of the rows.
  #chunks(block, rows) {
    const shape = [this.contract.h, this.contract.plant.actions.length];
    const size = shape[0] * shape[1];
    const all = new Float32Array(block.buffer, 0, block.length >> 2);
    if (block.length !== 4 * rows * size || !all.every(Number.isFinite)) {
      const expected = `${rows} x [${shape.join(", ")}]`;
      throw new ServerError("bad_reply", `the server sent no finite action chunks: ${expected} expected`);
    }
    return Array.from({ length: rows }, (_, i) => ({ actions: all.slice(i * size, (i + 1) * size), shape }));
  }

  async #sayHello(timeoutMs) {
    const { reply, out } = await this.#call("hello", {}, [], timeoutMs);
    const text = Buffer.from(out.contract.values);
    if (createHash("sha256").update(text).digest("hex") !== reply.contract_id) {
      throw new ServerError("bad_reply", "the server sent a contract that does not match its id");
    }
    this.contract = JSON.parse(text.toString());
    this.contractId = reply.contract_id;
  }

  async #call(operation, header, parts, timeoutMs, arrays = []) {
    const id = ++this.#id;
    let timer;
    const answered = new Promise((resolve, reject) => {
      this.#waiting.set(id, { kind: KINDS[operation], resolve, reject });
      timer = setTimeout(() => reject(new DeadlineMissed(`no reply within ${timeoutMs} ms`)), timeoutMs);
    });
    const frame = message(KINDS[operation], id, this.#epoch, header, parts, arrays);
    this.#send(id, frame, performance.now() + timeoutMs);
    try {
      return await answered;
    } finally {
      clearTimeout(timer);
      this.#waiting.delete(id);
    }
  }

  // The socket takes one message at a time. Without a connection each waits until its deadline, and none that
  // nobody waits for any more is sent.
  #send(id, frame, expiry) {
    this.#sending = this.#sending.then(async () => {
      if (!this.#waiting.has(id)) return;
      this.#socket.sendTimeout = Math.max(0, Math.ceil(expiry - performance.now()));
      try {
        await this.#socket.send(frame);
      } catch (error) {
        if (error.code !== "EAGAIN") this.#waiting.get(id)?.reject(error);
      }
    });
  }

  async #read() {
    for await (const [frame, ...others] of this.#socket) {
      const prefix = others.length ? undefined : prefixOf(frame);
      if (!prefix) {
        const error = new ServerError("version", `the server does not answer in protocol ${VERSION}`);
        for (const { reject } of this.#waiting.values()) reject(error);
      }
      const waiting = prefix?.epoch === this.#epoch ? this.#waiting.get(prefix.id) : undefined;
      if (!waiting) {
        this.staleReplies += 1;
        continue;
      }
      try {
        waiting.resolve(read(frame, prefix, waiting.kind));
      } catch (error) {
        waiting.reject(error);
      }
    }
  }
}

function checkSeed(seed) {
  if (!(Number.isSafeInteger(seed) && seed >= 0)) {
    throw new RangeError(`seed is ${seed}: pass an integer from 0 to 2^53 - 1, or null`);
  }
}

function bytesOf({ name, dtype, shape }, observation) {
  const length = shape.reduce((a, b) => a * b, 1);
  if (observation[name]?.length !== length) {
    const given = name in observation ? `${observation[name].length}` : `${Object.keys(observation)}`;
    const text = `field '${name}' needs ${length} numbers; there is ${given || "nothing"}`;
    throw new ServerError("bad_observation", text);
  }
  const data = TYPES[dtype].from(observation[name]);
  // Images in [0, 1] would become black without a word.
  if (dtype === "uint8" && !data.every((value, i) => value === observation[name][i])) {
    throw new ServerError("bad_observation", `field '${name}' needs integers from 0 to 255`);
  }
  return Buffer.from(data.buffer, data.byteOffset, data.byteLength);
}

/** A message: prefix, header, and each from the next multiple of 16 bytes on, arrays and the block's parts. */
function message(kind, id, epoch, header, parts, arrays) {
  const head = encode(header);
  const prefix = Buffer.alloc(PREFIX);
  prefix.write("RQL");
  prefix[3] = VERSION;
  prefix[4] = kind;
  prefix.writeUInt16LE(head.length, 6);
  prefix.writeBigUInt64LE(BigInt(id), 8);
  prefix.writeBigUInt64LE(BigInt(epoch), 16);
  let frame = Buffer.concat([prefix, head]);
  const block = parts.length ? [Buffer.concat(parts)] : [];
  for (const piece of [...arrays, ...block]) {
    frame = Buffer.concat([frame, Buffer.alloc(aligned(frame.length) - frame.length), piece]);
  }
  return frame;
}

function prefixOf(frame) {
  if (frame.length < PREFIX || frame.toString("latin1", 0, 3) !== "RQL") return undefined;
  const [id, epoch] = [Number(frame.readBigUInt64LE(8)), Number(frame.readBigUInt64LE(16))];
  return { version: frame[3], kind: frame[4], length: frame.readUInt16LE(6), id, epoch };
}

function read(frame, { version, kind, length }, asked) {
  if (version !== VERSION) {
    const text = `the server speaks protocol ${version}, this client protocol ${VERSION}`;
    throw new ServerError("version", `${text}: update the older one`);
  }
  const reply = decode(frame.subarray(PREFIX, PREFIX + length));
  if (kind === REFUSAL) {
    if (reply.code === "expired") throw new DeadlineMissed(reply.error);
    throw new ServerError(reply.code, reply.error);
  }
  if (kind !== (asked | 0x80)) throw new ServerError("bad_reply", `a message of kind ${kind} is no reply`);
  const out = {};
  let place = PREFIX + length;
  for (const [name, dtype, shape] of reply.arrays ?? []) {
    const start = aligned(place);
    place = start + shape.reduce((a, b) => a * b, 1) * TYPES[dtype].BYTES_PER_ELEMENT;
    // Copied: a typed array needs its own alignment.
    const bytes = Uint8Array.from(frame.subarray(start, place));
    out[name] = { shape, values: new TYPES[dtype](bytes.buffer) };
  }
  return { reply, out, block: Uint8Array.from(frame.subarray(aligned(place))) };
}

function aligned(place) {
  return Math.ceil(place / 16) * 16;
}
