// Why no policy server answers at an address, for the error of `RemotePolicy.connect`.
import { once } from "node:events";
import net from "node:net";

const PATIENCE = "it does not answer in time: it is overloaded, or another program listens there";
// Signature and major version of ZMTP: what a ZeroMQ peer must see before it sends its whole greeting.
const OPENING = Buffer.concat([Buffer.from([0xff]), Buffer.alloc(8), Buffer.from([0x7f, 3])]);

/** Host and port of `tcp://HOST:PORT` or `tcp://[IPV6]:PORT`; throws a RangeError for what is neither. */
export function parseAddress(endpoint) {
  const found = /^tcp:\/\/(?:\[([^\]]+)\]|([^:[\]]+)):(\d{1,5})$/.exec(endpoint);
  const port = Number(found?.[3]);
  if (!(port >= 1 && port <= 65535)) {
    throw new RangeError(
      `'${endpoint}' is not an address to connect to: try tcp://127.0.0.1:5555 or tcp://[::1]:5555`,
    );
  }
  return { host: found[1] ?? found[2], port };
}

/** A sentence that says what was found at the address, after at most `limitMs`. */
export async function findReason(endpoint, limitMs = 1000) {
  const { host, port } = parseAddress(endpoint);
  const signal = AbortSignal.timeout(limitMs);
  const socket = net.connect({ host, port });
  socket.on("error", () => {});
  try {
    await once(socket, "connect", { signal });
    socket.write(OPENING);
    let greeting = Buffer.alloc(0);
    while (greeting.length < 32) {
      const [chunk] = await once(socket, "data", { signal });
      greeting = Buffer.concat([greeting, chunk]);
    }
    if (greeting[0] !== 0xff || greeting[9] !== 0x7f) return "what listens there is no policy server";
    const mechanism = greeting.subarray(12, 32).toString("latin1").replaceAll("\0", "");
    return mechanism === "CURVE" ? "the server asks for keys, which this client does not have" : PATIENCE;
  } catch (error) {
    if (error.code === "ENOTFOUND" || error.code === "EAI_AGAIN") {
      return `the name '${host}' does not resolve: check its spelling, or use the server's address`;
    }
    if (error.code === "ECONNREFUSED") return "nothing listens there: start a server with `rql-deploy serve`";
    return error.name === "AbortError" ? PATIENCE : `it cannot be reached (${error.code ?? error.message})`;
  } finally {
    socket.destroy();
  }
}
