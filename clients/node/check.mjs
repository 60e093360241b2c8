// node check.mjs ENDPOINT: talks to a server and prints what came back as one JSON line (the test compares it with the Python client's).
import { DeadlineMissed, RemotePolicy, ServerError } from "./client.mjs";

const policy = await RemotePolicy.connect(process.argv[2]);
const observation = Object.fromEntries(
  policy.contract.plant.fields.map((f) => [f.name, Float32Array.from({ length: f.shape.reduce((a, b) => a * b, 1) }, (_, i) => i / 8)]),
);
const decision = await policy.act(observation, { seed: 7, value: true });
const failures = {};
try {
  await policy.act({});
} catch (error) {
  failures.missing = error instanceof ServerError ? error.code : String(error);
}
try {
  await policy.act(observation, { deadlineMs: 0.001 });
} catch (error) {
  failures.late = error instanceof DeadlineMissed ? "deadline" : String(error);
}
const after = await policy.act(observation, { seed: 7 });
console.log(
  JSON.stringify({
    contractId: policy.contractId,
    actions: [...decision.actions],
    shape: decision.shape,
    value: decision.value,
    stepsUsed: decision.stepsUsed,
    repeated: decision.actions.every((a, i) => a === after.actions[i]),
    failures,
  }),
);
policy.close();
