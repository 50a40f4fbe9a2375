// A client of pixvec for Node in one file. It reads embedding.proto when it is loaded: no stubs to generate.
import { fileURLToPath } from "node:url";

import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const SERVICE = "pixvec.v1.EmbeddingService";
const MAX_MESSAGE_BYTES = 64 << 20;
// An input's tag and length, and the request's other fields: generous.
const INPUT_OVERHEAD_BYTES = 32;
const REQUEST_OVERHEAD_BYTES = 4096;

const contract = protoLoader.loadSync("pixvec/v1/embedding.proto", {
  includeDirs: [process.env.PIXVEC_PROTO ?? fileURLToPath(new URL("../../proto", import.meta.url))],
  longs: Number,
  enums: String,
  defaults: true,
  oneofs: true,
});
const EmbeddingClient = grpc.makeClientConstructor(contract[SERVICE], SERVICE);

// As in the Python SDK: two codes are tried again, on whichever server is next in turn.
const SERVICE_CONFIG = {
  loadBalancingConfig: [{ round_robin: {} }],
  methodConfig: [
    {
      name: [{ service: SERVICE }],
      retryPolicy: {
        maxAttempts: 4,
        initialBackoff: "0.05s",
        maxBackoff: "1s",
        backoffMultiplier: 2,
        retryableStatusCodes: ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
      },
    },
  ],
  // Ten failures in a row end all retries until calls succeed again.
  retryThrottling: { maxTokens: 10, tokenRatio: 0.1 },
};

const CHANNEL_OPTIONS = {
  "grpc.service_config": JSON.stringify(SERVICE_CONFIG),
  "grpc.service_config_disable_resolution": 1,
  "grpc.max_send_message_length": MAX_MESSAGE_BYTES,
  "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
  // At its default of 256 KiB a larger request is silently never retried.
  "grpc.per_rpc_retry_buffer_size": MAX_MESSAGE_BYTES + (1 << 20),
  "grpc.retry_buffer_size": 4 * MAX_MESSAGE_BYTES,
  "grpc.keepalive_time_ms": 30_000,
  "grpc.keepalive_timeout_ms": 10_000,
  "grpc.enable_http_proxy": 0,
};

/**
 * Why an image or a call failed. reason: the contract's word, such as "UNDECODABLE", or "". code: the gRPC
 * status. retryAfterMs: trying again may help after so long; undefined: it will not, or nobody knows.
 */
export class PixvecError extends Error {
  constructor(message, { reason = "", code = "", retryAfterMs, requestId } = {}) {
    super(message || "the server gave no message");
    Object.assign(this, { name: "PixvecError", reason, code, retryAfterMs, requestId });
  }

  /** All of it in one line, for people. */
  describe() {
    const retry = this.retryAfterMs === undefined ? "" : ` (try again after ${this.retryAfterMs} ms)`;
    const request = this.requestId ? ` (request ${this.requestId})` : "";
    return `${this.reason || this.code || "FAILED"}: ${this.message}${retry}${request}`;
  }
}

/** A client of one server, or with a `dns:///` target of all its replicas. timeoutMs: for each request. */
export class Pixvec {
  #client;
  #timeoutMs;
  #limits;

  constructor(target, { credentials = grpc.credentials.createInsecure(), timeoutMs = 30_000 } = {}) {
    this.#client = new EmbeddingClient(target, credentials, CHANNEL_OPTIONS);
    this.#timeoutMs = timeoutMs;
  }

  /** The outcomes of embedEach as an array. */
  async embed(images, options) {
    const outcomes = [];
    for await (const outcome of this.embedEach(images, options)) outcomes.push(outcome);
    return outcomes;
  }

  /**
   * Yields {vector: Float32Array, origin} or a PixvecError for each image, in order. images: any iterable, or
   * async iterable, of bytes; an Error among them comes back in its place. Throws when a whole call fails.
   */
  async *embedEach(images, { model = "" } = {}) {
    const limits = await this.limits();
    const mostImages = Math.min(limits.inputs, limits.vectors);
    const mostBytes = Math.min(limits.requestBytes, MAX_MESSAGE_BYTES) - REQUEST_OVERHEAD_BYTES;
    let chunk = [];
    let bytes = 0;
    for await (const image of images) {
      const item = tooLarge(image, Math.min(limits.imageBytes, mostBytes - INPUT_OVERHEAD_BYTES)) ?? image;
      const size = item instanceof Error ? 0 : item.length + INPUT_OVERHEAD_BYTES;
      if (chunk.length === mostImages || bytes + size > mostBytes) {
        yield* await this.#embedChunk(chunk, model);
        chunk = [];
        bytes = 0;
      }
      chunk.push(item);
      bytes += size;
    }
    if (chunk.length) yield* await this.#embedChunk(chunk, model);
  }

  /** What a request may hold, asked once. */
  async limits() {
    this.#limits ??= (await this.#call("ListModels", {})).limits;
    return this.#limits;
  }

  close() {
    this.#client.close();
  }

  async #embedChunk(chunk, model) {
    const inputs = chunk.filter((item) => !(item instanceof Error)).map((image) => ({ image }));
    if (!inputs.length) return chunk;
    const { results, report } = await this.#call("EmbedBatch", { inputs, targets: [{ model }] }, model);
    const answers = results.values();
    return chunk.map((item) => (item instanceof Error ? item : outcomeOf(answers.next().value, report.origins[0])));
  }

  #call(method, request, model = "") {
    const metadata = new grpc.Metadata();
    // For routing only: a name that no header can hold goes in the message alone.
    if (/^[\x20-\x7e]+$/.test(model)) metadata.set("pixvec-model", model);
    const options = { deadline: Date.now() + this.#timeoutMs };
    return new Promise((resolve, reject) => {
      this.#client[method](request, metadata, options, (error, response) =>
        error ? reject(errorOfCall(error)) : resolve(response),
      );
    });
  }
}

function tooLarge(image, most) {
  if (image instanceof Error || image.length <= most) return undefined;
  const message = `the image has ${image.length} bytes and the server's limit is ${most}; it was not sent`;
  return new PixvecError(message, { reason: "TOO_LARGE", code: "INVALID_ARGUMENT" });
}

function outcomeOf(result, origin) {
  if (result.outcome === "error") return errorOf(result.error);
  const [embedding] = result.embedded.embeddings; // one region, one target: one embedding
  if (embedding.outcome === "error") return errorOf(embedding.error);
  return { vector: floatsOf(embedding.vector), origin };
}

function floatsOf(tensor) {
  if (tensor.encoding !== "ENCODING_FLOAT32") throw new PixvecError(`not float32 but ${tensor.encoding}`);
  // The bytes lie anywhere in the message, so no Float32Array can be laid over them, and its byte order would
  // be the machine's: a DataView reads little-endian from any offset.
  const view = new DataView(tensor.data.buffer, tensor.data.byteOffset, tensor.data.byteLength);
  return Float32Array.from({ length: view.byteLength / 4 }, (_, i) => view.getFloat32(4 * i, true));
}

function errorOf(error, requestId) {
  return new PixvecError(error.message, {
    // A reason newer than this proto is a bare number.
    reason: String(error.reason).replace(/^REASON_(UNSPECIFIED)?/, ""),
    code: grpc.status[error.code],
    retryAfterMs: error.retryAfter ? error.retryAfter.seconds * 1000 + error.retryAfter.nanos / 1e6 : undefined,
    requestId,
  });
}

function errorOfCall(error) {
  const [requestId] = error.metadata?.get("x-request-id") ?? [];
  const [said] = error.metadata?.get("pixvec-error-bin") ?? [];
  if (said) return errorOf(contract["pixvec.v1.Error"].deserialize(said), requestId);
  // No word of the server's own: the transport's, or a proxy's.
  return new PixvecError(error.details, { code: grpc.status[error.code], requestId });
}
