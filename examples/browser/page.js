// Microphone or file in, rates drawn. The model is in the folder that ?model= names ("graph" without it).

import { StepModel } from "./model.js";
import { COLOURS, Plot } from "./plot.js";

const LIVE_SECONDS = 6; // what is kept, and drawn, of a microphone
const LONGEST_FILE_SECONDS = 300;
const LATE_SECONDS = 0.5; // sound that waits longer than this is left out

const $ = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
const model = await StepModel.load(query.get("model") ?? "graph").catch(fail);
const { audio_fs: rate, hop, neurons, latency_ms: latency, response_unit: unit } = model.metadata;
const dt = hop / rate;
let chosen = (query.get("neurons") ?? "0,1,2").split(",").map(Number).filter((n) => n in neurons).slice(0, COLOURS.length);
let trace = null; // what is drawn
let stop = () => {}; // ends what runs now
let played = null; // the samples of the file, as the page got them

// The rates (and the loudest and softest sample) of the last `kept` frames.
class Trace {
  constructor(kept, live) {
    Object.assign(this, { kept, live, dt, frames: 0, playhead: null });
    this.rates = new Float32Array(kept * neurons.length);
    this.low = new Float32Array(kept);
    this.high = new Float32Array(kept);
  }

  add(frame, rates) {
    const slot = this.frames++ % this.kept;
    this.rates.set(rates, slot * neurons.length);
    this.low[slot] = Math.min(...frame);
    this.high[slot] = Math.max(...frame);
  }

  get first() {
    return Math.max(0, this.frames - this.kept);
  }
}

const plot = new Plot($("plot"), neurons, (neuron) => choose(neuron));
const redraw = () => plot.draw(trace, chosen);
const amplify = (frame) => frame.map((sample) => sample * 10 ** ($("gain").value / 20));

function say(text, problem = false) {
  $("status").textContent = text;
  $("status").classList.toggle("problem", problem);
}

function fail(error) {
  say(error.message, true);
  $("about").textContent = "No model.";
  throw error;
}

async function timed(frame) {
  const start = performance.now();
  trace.add(frame, await model.step(frame));
  return performance.now() - start;
}

function speed(milliseconds) {
  const factor = (1000 * dt) / milliseconds;
  const verdict = factor >= 1 ? `${factor.toFixed(1)} times faster than real time` : "slower than real time";
  return `${milliseconds.toFixed(2)} ms per frame, ${verdict}`;
}

// -- A file: all its frames, as fast as they can be had ------------------------------------------------------

async function openFile(file) {
  stop();
  // decodeAudioData resamples to the rate of its context: the one that the model was made for
  const decoder = new OfflineAudioContext(1, 1, rate);
  const decoded = await decoder.decodeAudioData(await file.arrayBuffer());
  const channels = Array.from({ length: decoded.numberOfChannels }, (_, c) => decoded.getChannelData(c));
  played = channels[0].map((_, i) => channels.reduce((sum, channel) => sum + channel[i], 0) / channels.length);
  await computeFile(file.name);
}

async function computeFile(name) {
  let wanted = true;
  stop = () => (wanted = false);
  const frames = Math.min(Math.floor(played.length / hop), Math.floor(LONGEST_FILE_SECONDS / dt));
  if (!frames) return say(`${name} is shorter than one frame of ${1000 * dt} ms`, true);
  model.reset();
  trace = new Trace(frames, false);
  $("play").disabled = $("save").disabled = true;
  let spent = 0;
  let shown = performance.now();
  for (let t = 0; t < frames && wanted; t++) {
    spent += await timed(amplify(played.subarray(t * hop, (t + 1) * hop)));
    if (performance.now() - shown > 60) {
      redraw();
      say(`${name}: ${Math.round((100 * t) / frames)} %`);
      await new Promise((resume) => setTimeout(resume)); // lets the browser paint
      shown = performance.now();
    }
  }
  if (!wanted) return;
  redraw();
  const cut = frames * hop < played.length - hop ? `, the first ${LONGEST_FILE_SECONDS} s` : "";
  say(`${name}${cut}: ${(frames * dt).toFixed(1)} s of sound. ${speed(spent / frames)}`);
  $("play").disabled = $("save").disabled = false;
}

async function play() {
  stop();
  const context = new AudioContext({ sampleRate: rate });
  const source = context.createBufferSource();
  source.buffer = context.createBuffer(1, played.length, rate);
  source.buffer.copyToChannel(played, 0);
  source.connect(context.destination);
  source.start();
  const begin = context.currentTime;
  $("play").textContent = "Stop";
  source.onended = stop = () => {
    stop = () => {};
    $("play").textContent = "Play";
    trace.playhead = null;
    source.onended = null;
    context.close();
    redraw();
  };
  const follow = () => {
    if (context.state === "closed") return;
    trace.playhead = Math.max(0, context.currentTime - begin - (context.outputLatency || 0));
    redraw();
    requestAnimationFrame(follow);
  };
  follow();
}

// -- A microphone: frames as they come -----------------------------------------------------------------------

async function listen() {
  stop();
  // a context at the model's rate: the browser resamples what the device gives
  const context = new AudioContext({ sampleRate: rate });
  const raw = { echoCancellation: false, noiseSuppression: false, autoGainControl: false, channelCount: 1 };
  const stream = await navigator.mediaDevices.getUserMedia({ audio: raw }).catch((error) => {
    context.close();
    throw new Error(`no microphone: ${error.message}`);
  });
  const end = () => {
    stop = () => {};
    stream.getTracks().forEach((track) => track.stop());
    context.close();
    $("microphone").textContent = "Microphone";
  };
  try {
    await context.audioWorklet.addModule(new URL("frames.js", import.meta.url));
    const node = new AudioWorkletNode(context, "frames", {
      numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit", processorOptions: { hop },
    });
    context.createMediaStreamSource(stream).connect(node); // some browsers refuse a rate unlike the device's
    node.port.onmessage = ({ data }) => arrive(data);
    await context.resume();
  } catch (error) {
    end();
    throw error;
  }
  const waiting = [];
  let busy = false;
  let lost = 0;
  let usual = 0; // running mean of the time of a step
  async function arrive(frame) {
    waiting.push(frame);
    if (waiting.length > LATE_SECONDS / dt) {
      lost += waiting.splice(0).length;
      model.reset(); // what comes next does not follow on what came before
    }
    if (busy) return;
    busy = true;
    while (waiting.length) {
      const spent = await timed(amplify(waiting.shift()));
      usual += (spent - usual) * (usual ? 0.02 : 1);
    }
    busy = false;
  }
  played = null;
  $("play").disabled = true;
  $("save").disabled = false;
  $("microphone").textContent = "Stop";
  model.reset();
  const mine = (trace = new Trace(Math.round(LIVE_SECONDS / dt), true));
  let said = 0;
  const follow = (now) => {
    if (trace !== mine || context.state === "closed") return;
    redraw();
    if (now - said > 500 && usual) {
      said = now;
      say(`${Math.floor(mine.frames * dt)} s. ${speed(usual)}${lost ? `. Too slow: ${lost} frames left out` : ""}`);
    }
    requestAnimationFrame(follow);
  };
  stop = end;
  requestAnimationFrame(follow);
}

// -- Chosen neurons, controls --------------------------------------------------------------------------------

function choose(neuron) {
  chosen = chosen.includes(neuron) ? chosen.filter((n) => n !== neuron) : [...chosen, neuron].slice(-COLOURS.length);
  showChosen();
}

function showChosen() {
  const add = new Option("Add a neuron …", "", true, true);
  const menu = document.createElement("select");
  menu.setAttribute("aria-label", "Add a neuron");
  menu.append(add, ...neurons.map((name, n) => new Option(`${n}  ${name}`, n)));
  menu.onchange = () => choose(Number(menu.value));
  const buttons = chosen.map((neuron, place) => {
    const button = document.createElement("button");
    button.innerHTML = `<i style="background: ${COLOURS[place]}"></i><span></span> ×`;
    button.querySelector("span").textContent = neurons[neuron];
    button.title = `Remove ${neurons[neuron]}`;
    button.onclick = () => choose(neuron);
    return button;
  });
  $("chosen").replaceChildren(...buttons, menu);
  redraw();
}

function saveRates() {
  const quoted = neurons.map((name) => `"${String(name).replaceAll('"', '""')}"`);
  const lines = [["time_s", ...quoted].join(",")];
  for (let t = trace.first; t < trace.frames; t++) {
    const slot = (t % trace.kept) * neurons.length;
    lines.push([(t * dt).toFixed(6), ...trace.rates.subarray(slot, slot + neurons.length)].join(","));
  }
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv" }));
  link.download = "rates.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

const running = (label) => $(label).textContent === "Stop";
const attempt = (action) => Promise.resolve().then(action).catch((error) => say(error.message, true));
$("microphone").onclick = () => attempt(running("microphone") ? stop : listen);
$("play").onclick = () => attempt(running("play") ? stop : play);
$("save").onclick = saveRates;
$("file").onchange = ({ target }) => target.files.length && attempt(() => openFile(target.files[0]));
$("gain").oninput = ({ target }) => (target.nextElementSibling.value = `${target.value} dB`);
$("gain").onchange = () => played && attempt(() => (stop(), computeFile("the sound")));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  if (event.dataTransfer.files.length) attempt(() => openFile(event.dataTransfer.files[0]));
});
new ResizeObserver(redraw).observe($("plot"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

$("about").textContent =
  `${neurons.length} neurons, sound at ${rate / 1000} kHz, a rate every ${1000 * dt} ms, ${Math.round(latency)} ms after its sound` +
  `${unit ? `, in ${unit}` : ""}. ` +
  "Speak, play, or open a sound; click a row of the picture to see that neuron below.";
$("microphone").disabled = $("file").disabled = false;
showChosen();
