// The step graph of an exported model: one frame of sound in, the rates of all neurons out.

const VERSION = "1.30.0";
// A local copy (see docs/exported-models.md), else the copy of a public CDN.
const PLACES = ["./node_modules/onnxruntime-web/dist/", `https://cdn.jsdelivr.net/npm/onnxruntime-web@${VERSION}/dist/`];
const FILE = "ort.wasm.bundle.min.mjs";

const ARRAYS = {
  float32: Float32Array, float64: Float64Array, float16: Uint16Array, bool: Uint8Array,
  int8: Int8Array, uint8: Uint8Array, int32: Int32Array, int64: BigInt64Array,
};

export async function loadRuntime() {
  let problem;
  for (const place of PLACES) {
    try {
      const runtime = await import(new URL(place + FILE, import.meta.url).href);
      runtime.env.wasm.numThreads = 1; // a step is small: threads would cost more than they give
      return runtime;
    } catch (error) {
      problem = error;
    }
  }
  throw new Error(`onnxruntime-web was found neither beside this page nor on the network: ${problem.message}`);
}

export class StepModel {
  // `folder` is what model.export(folder) wrote: step.onnx and metadata.json.
  static async load(folder) {
    const here = new URL(folder.endsWith("/") ? folder : folder + "/", document.baseURI);
    const [runtime, metadata, graph] = await Promise.all([
      loadRuntime(), fetched(new URL("metadata.json", here), "json"), fetched(new URL("step.onnx", here), "arrayBuffer"),
    ]);
    return new StepModel(runtime, metadata.step, await runtime.InferenceSession.create(graph, { executionProviders: ["wasm"] }));
  }

  constructor(runtime, metadata, session) {
    Object.assign(this, { runtime, metadata, session });
    this.sound = session.inputMetadata.find((input) => input.name === "sound");
    if (!this.sound) throw new Error("this graph takes spectrograms: export a model with a front-end to give it sound");
    this.states = session.inputMetadata.filter((input) => input.name.startsWith("state."));
    this.reset();
  }

  // Forget the sound so far: every part of the state begins at zero.
  reset() {
    this.state = {};
    for (const { name, type, shape } of this.states) {
      const sizes = shape.map((size) => (typeof size === "number" ? size : 1)); // the batch has a name, not a size
      const zeros = new ARRAYS[type](sizes.reduce((product, size) => product * size, 1));
      this.state[name] = new this.runtime.Tensor(type, zeros, sizes);
    }
  }

  // Rates (N,) in response to the next frame: Float32Array of hop samples.
  async step(frame) {
    const samples = this.sound.type === "float32" ? frame : ARRAYS[this.sound.type].from(frame);
    const sound = new this.runtime.Tensor(this.sound.type, samples, [1, 1, frame.length]);
    const results = await this.session.run({ sound, ...this.state });
    for (const { name } of this.states) this.state[name] = results[name.replace("state.", "next.")];
    return results.rates.data;
  }
}

async function fetched(url, kind) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url.pathname}: ${response.status} ${response.statusText}`);
  return response[kind]();
}
