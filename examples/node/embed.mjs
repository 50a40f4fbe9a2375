// node embed.mjs [--model NAME] [--timeout SECONDS] HOST:PORT FILE…
// One JSON line a file. Exit code: 0 every image worked, 3 some failed, 1 none worked or a call failed, 2 usage.
import { readFile } from "node:fs/promises";
import { parseArgs } from "node:util";

import { Pixvec, PixvecError } from "./pixvec.mjs";

const USAGE = "usage: node embed.mjs [--model NAME] [--timeout SECONDS] HOST:PORT FILE…";

function parse() {
  try {
    const { values, positionals } = parseArgs({
      allowPositionals: true,
      options: { model: { type: "string", default: "" }, timeout: { type: "string", default: "30" } },
    });
    const [target, ...paths] = positionals;
    const timeoutMs = Number(values.timeout) * 1000;
    return paths.length && timeoutMs > 0 ? { target, paths, model: values.model, timeoutMs } : undefined;
  } catch {
    return undefined;
  }
}

// Read as requests fill, never all at once: memory holds one request's images.
async function* read(paths) {
  for (const path of paths) {
    yield await readFile(path).catch((error) => new PixvecError(error.message, { reason: "UNREADABLE" }));
  }
}

function line(path, outcome) {
  if (outcome instanceof Error) {
    const { reason, message, retryAfterMs } = outcome;
    return { path, ok: false, error: { reason, message, retry_after_ms: retryAfterMs } };
  }
  const { model, space, build } = outcome.origin;
  return { path, ok: true, vector: Array.from(outcome.vector), origin: { model, space, build } };
}

async function main({ target, paths, model, timeoutMs }) {
  const client = new Pixvec(target, { timeoutMs });
  let done = 0;
  let failed = 0;
  try {
    for await (const outcome of client.embedEach(read(paths), { model })) {
      const said = line(paths[done++], outcome);
      if (!said.ok) failed++;
      console.log(JSON.stringify(said));
    }
  } catch (error) {
    if (!(error instanceof PixvecError)) throw error;
    console.error(`pixvec: ${error.describe()}`);
    return 1;
  } finally {
    client.close();
  }
  return failed === 0 ? 0 : failed < done ? 3 : 1;
}

const options = parse();
if (options) {
  process.exitCode = await main(options);
} else {
  console.error(USAGE);
  process.exitCode = 2;
}
