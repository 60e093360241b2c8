// node check.mjs ENDPOINT: asks a server and prints the replies as one JSON line; the test compares them with
// those of the Python client.
import { DeadlineMissed, RemotePolicy, ServerError } from "./client.mjs";

const policy = await RemotePolicy.connect(process.argv[2]);
const observation = Object.fromEntries(
  policy.inputs.map((f) => {
    const length = f.shape.reduce((a, b) => a * b, 1);
    if (f.dtype === "uint8") return [f.name, Uint8Array.from({ length }, (_, i) => 255 - i)];
    return [f.name, Float32Array.from({ length }, (_, i) => i / 8)];
  }),
);
const decision = await policy.act(observation, { seed: 7, value: true });
const failures = {};
try {
  await policy.act({});
} catch (error) {
  failures.missing = error instanceof ServerError ? error.code : String(error);
}
try {
  const halves = {};
  for (const [name, values] of Object.entries(observation)) halves[name] = Array.from(values, (v) => v + 0.5);
  await policy.act(halves);
} catch (error) {
  failures.halves = error instanceof ServerError ? error.message : String(error);
}
try {
  await policy.act(observation, { deadlineMs: 0.001 });
} catch (error) {
  failures.late = error instanceof DeadlineMissed ? "deadline" : String(error);
}
try {
  await policy.act(observation, { seed: 2 ** 53 });
} catch (error) {
  failures.seed = error instanceof RangeError ? "range" : String(error);
}
for (const [name, endpoint] of Object.entries(JSON.parse(process.argv[3] ?? "{}"))) {
  try {
    await RemotePolicy.connect(endpoint, { timeoutMs: 300 });
  } catch (error) {
    failures[name] = error.message;
  }
}
const drawn = await policy.act(observation);
const after = await policy.act(observation, { seed: 7 });
const many = await policy.actMany([observation, observation], { seeds: [7, drawn.seed], value: true });
const zeros = new Float32Array(policy.contract.plant.actions.length);
const continued = await policy.act(observation, { seed: 7, prefix: [zeros], candidates: 2, pessimism: 1 });
console.log(
  JSON.stringify({
    contractId: policy.contractId,
    actions: [...decision.actions],
    shape: decision.shape,
    value: decision.value,
    stepsUsed: decision.stepsUsed,
    repeated: decision.actions.every((a, i) => a === after.actions[i]),
    many: many.map(({ actions, seed, value }) => ({ actions: [...actions], seed, value })),
    drawn: { seed: drawn.seed, actions: [...drawn.actions] },
    continued: [...continued.actions],
    failures,
  }),
);
policy.close();
