// Runs a policy bundle from JavaScript, with nothing of rql-deploy: onnxruntime compiled to WebAssembly, in Node.js or a browser.
//
//   node act.mjs BUNDLE [VARIANT] < requests.jsonl > actions.jsonl
//
// One request a line, {"observation": {field: numbers}, "noise": numbers}: every field of contract.json flattened, and h * A draws from
// N(0, 1). A camera's picture is base64 of its bytes [height, width, 3 * frame_stack], the oldest frame's colours first. One line of actions each, h times A numbers in the plant's units; for the same noise they are the ones that Python computes.

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import * as ort from "onnxruntime-web";

const [folder, variant = "fp32"] = process.argv.slice(2);
if (!folder) fail("usage: node act.mjs BUNDLE [VARIANT] < requests.jsonl");

const manifest = JSON.parse(readFileSync(join(folder, "manifest.json")));
const files = manifest.format === 1 ? { policy: "policy.onnx", encode: "encode.onnx" } : manifest.variants[variant];
if (!files) fail(`the bundle has no variant ${variant}: there is ${Object.keys(manifest.variants)}`);

// contract.json is stored in its canonical form, so its id is the hash of the file.
const contract = JSON.parse(verified("contract.json"));
if (manifest.contract_id !== manifest.files["contract.json"]) fail("the manifest names another contract");
const { plant, h } = contract;
const { images = [], frame_stack: frames = 1 } = plant;
const chunk = h * plant.actions.length;

ort.env.wasm.numThreads = 1;
ort.env.logLevel = "error";
const session = await ort.InferenceSession.create(verified(files.policy));
// Where the policy sees, its graph starts from features: pictures are encoded once, however many actions are made of them.
const encoder = images.length ? await ort.InferenceSession.create(verified(files.encode)) : null;

for await (const line of createInterface({ input: process.stdin })) {
  const request = JSON.parse(line);
  const inputs = {};
  for (const field of plant.fields) {
    inputs[field.name] = tensor(field.name, request.observation[field.name], [1, ...field.shape]);
  }
  for (const { name, height, width } of images) {
    inputs[name] = picture(name, request.observation[name], [1, height, width, 3 * frames]);
  }
  const noise = tensor("noise", request.noise, [1, chunk]);
  const seen = encoder ? await encoder.run(inputs) : inputs;
  const { actions } = await session.run({ noise, ...seen });
  console.log(JSON.stringify(Array.from({ length: h }, (_, i) => Array.from(actions.data.slice((i * chunk) / h, ((i + 1) * chunk) / h)))));
}

// A swapped, missing or misshapen field is an error with a name, not a wrong action.
function tensor(name, numbers, shape) {
  const size = shape.reduce((a, b) => a * b, 1);
  if (!Array.isArray(numbers) || numbers.length !== size) fail(`${name} needs ${size} numbers, got ${numbers?.length ?? "none"}`);
  if (!numbers.every(Number.isFinite)) fail(`${name} holds something that is not a finite number`);
  return new ort.Tensor("float32", Float32Array.from(numbers), shape);
}

function picture(name, text, shape) {
  const bytes = Uint8Array.from(Buffer.from(typeof text === "string" ? text : "", "base64"));
  const size = shape.reduce((a, b) => a * b, 1);
  if (bytes.length !== size) fail(`${name} needs base64 of ${size} bytes, got ${bytes.length}`);
  return new ort.Tensor("uint8", bytes, shape);
}

function verified(name) {
  const data = readFileSync(join(folder, name));
  if (createHash("sha256").update(data).digest("hex") !== manifest.files[name]) fail(`${name} is not the file its manifest describes`);
  return data;
}

function fail(sentence) {
  console.error(sentence);
  process.exit(2);
}
