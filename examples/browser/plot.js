// The picture: the sound, the rates of all neurons, and the chosen ones, over one axis of time.

export const COLOURS = ["#0a84c6", "#d9632a", "#12996b", "#c25b9a", "#c28a00", "#7a68c9"];

const LEFT = 54, RIGHT = 10, TOP = 8, GAP = 14, AXIS = 40;
const SOUND = 62, LANE = 74;

export class Plot {
  constructor(canvas, neurons, picked) {
    Object.assign(this, { canvas, neurons, context: canvas.getContext("2d") });
    this.image = document.createElement("canvas");
    this.population = Math.min(260, Math.max(70, 3 * neurons.length));
    canvas.onclick = ({ offsetX, offsetY }) => {
      const row = Math.floor(((offsetY - this.imageTop) / this.population) * neurons.length);
      if (offsetX >= LEFT && row >= 0 && row < neurons.length) picked(neurons.length - 1 - row);
    };
  }

  get imageTop() {
    return TOP + SOUND + GAP;
  }

  draw(trace, chosen) {
    const { canvas, context: c } = this;
    const height = this.imageTop + this.population + chosen.length * (LANE + GAP) + AXIS;
    const width = canvas.clientWidth;
    const scale = devicePixelRatio || 1;
    canvas.style.height = `${height}px`;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    c.setTransform(scale, 0, 0, scale, 0, 0);
    c.font = "12px system-ui, sans-serif";
    const style = getComputedStyle(canvas);
    this.colour = (name) => style.getPropertyValue(`--${name}`).trim();

    const view = this.view(trace, width);
    this.sound(trace, view);
    this.rows(trace, view, chosen, scale);
    chosen.forEach((neuron, place) => this.lane(trace, view, neuron, place));
    this.time(trace, view, height - AXIS);
  }

  // Seconds at the two ends of the axis, and where a second lies.
  view(trace, width) {
    const length = trace ? trace.kept * trace.dt : 6;
    const from = trace?.live ? Math.max(0, trace.frames * trace.dt - length) : 0;
    const pixels = width - LEFT - RIGHT;
    return { from, to: from + length, pixels, x: (second) => LEFT + ((second - from) / length) * pixels };
  }

  *frames(trace) {
    for (let t = trace?.first ?? 0; t < (trace?.frames ?? 0); t++) yield [t, t % trace.kept];
  }

  sound(trace, view) {
    const { context: c } = this;
    const middle = TOP + SOUND / 2;
    let loudest = 1e-9;
    for (const [, slot] of this.frames(trace)) loudest = Math.max(loudest, trace.high[slot], -trace.low[slot]);
    c.beginPath();
    for (const [t, slot] of this.frames(trace)) {
      const x = view.x((t + 0.5) * trace.dt);
      c.moveTo(x, middle - (trace.high[slot] / loudest) * (SOUND / 2) - 0.4);
      c.lineTo(x, middle - (trace.low[slot] / loudest) * (SOUND / 2) + 0.4);
    }
    c.strokeStyle = this.colour("faint");
    c.lineWidth = Math.min(2, Math.max(0.6, view.pixels / (trace?.kept ?? 1)));
    c.stroke();
    this.label("sound", middle);
  }

  // One row per neuron: pale at a rate of 0 or less, full colour at its highest rate in view.
  rows(trace, view, chosen, scale) {
    const { context: c, neurons, imageTop: top, population } = this;
    const count = neurons.length;
    const columns = Math.max(1, Math.round(view.pixels * scale));
    const peak = new Float32Array(columns * count).fill(-Infinity);
    for (const [t, slot] of this.frames(trace)) {
      const first = Math.max(0, Math.floor(((view.x(t * trace.dt) - LEFT) / view.pixels) * columns));
      const last = Math.min(columns, Math.ceil(((view.x((t + 1) * trace.dt) - LEFT) / view.pixels) * columns));
      for (let n = 0; n < count; n++) {
        const rate = trace.rates[slot * count + n];
        const row = (count - 1 - n) * columns;
        for (let k = row + first; k < row + last; k++) if (rate > peak[k]) peak[k] = rate;
      }
    }
    const ink = this.colour("blue").match(/\w\w/g).map((pair) => parseInt(pair, 16));
    const pixels = new ImageData(columns, count);
    for (let row = 0; row < count; row++) {
      let highest = 1e-9;
      for (let k = row * columns; k < (row + 1) * columns; k++) highest = Math.max(highest, peak[k]);
      for (let k = row * columns; k < (row + 1) * columns; k++) {
        const shade = Math.max(0, peak[k]) / highest;
        for (let i = 0; i < 3; i++) pixels.data[4 * k + i] = ink[i];
        pixels.data[4 * k + 3] = 255 * shade;
      }
    }
    Object.assign(this.image, { width: columns, height: count });
    this.image.getContext("2d").putImageData(pixels, 0, 0);
    c.imageSmoothingEnabled = false;
    c.drawImage(this.image, LEFT, top, view.pixels, population);
    this.frame(view, top, population);
    this.label("neuron", top + population / 2, true);
    this.tick(`${count - 1}`, top + 5);
    if (count > 1) this.tick("0", top + population - 5);
    chosen.forEach((neuron, place) => {
      const y = top + population * (1 - (neuron + 0.5) / count);
      c.fillStyle = COLOURS[place];
      c.beginPath();
      c.moveTo(LEFT - 1, y);
      c.lineTo(LEFT - 9, y - 5);
      c.lineTo(LEFT - 9, y + 5);
      c.fill();
    });
  }

  lane(trace, view, neuron, place) {
    const { context: c } = this;
    const top = this.imageTop + this.population + GAP + place * (LANE + GAP);
    const count = this.neurons.length;
    let low = 0, high = 1e-9;
    for (const [, slot] of this.frames(trace)) {
      low = Math.min(low, trace.rates[slot * count + neuron]);
      high = Math.max(high, trace.rates[slot * count + neuron]);
    }
    const y = (rate) => top + LANE - ((rate - low) / (high - low)) * (LANE - 18);
    c.strokeStyle = this.colour("rule");
    c.lineWidth = 1;
    c.beginPath();
    c.moveTo(LEFT, y(0));
    c.lineTo(LEFT + view.pixels, y(0));
    c.stroke();
    c.beginPath();
    for (const [t, slot] of this.frames(trace)) c.lineTo(view.x((t + 0.5) * trace.dt), y(trace.rates[slot * count + neuron]));
    c.strokeStyle = COLOURS[place];
    c.lineWidth = 1.6;
    c.lineJoin = "round";
    c.stroke();
    this.tick("0", y(0));
    if (trace?.frames) this.tick(high.toPrecision(2), y(high));
    this.label("rate", top + LANE / 2 + 6, true);
    c.fillStyle = this.colour("faint");
    c.textAlign = "left";
    c.textBaseline = "middle";
    c.fillText(shortened(c, `${neuron}  ${this.neurons[neuron]}`, view.pixels - 12), LEFT + 6, top + 6);
  }

  time(trace, view, top) {
    const { context: c } = this;
    const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60].find((s) => ((view.to - view.from) / s) * 45 <= view.pixels) ?? 120;
    c.fillStyle = this.colour("faint");
    c.strokeStyle = this.colour("rule");
    c.lineWidth = 1;
    c.textAlign = "center";
    c.textBaseline = "top";
    for (let k = Math.ceil(view.from / step); k * step <= view.to + 1e-9; k++) {
      const x = view.x(k * step);
      c.beginPath();
      c.moveTo(x, top);
      c.lineTo(x, top + 5);
      c.stroke();
      c.fillText(`${Number((k * step).toFixed(1))}`, x, top + 8);
    }
    c.fillText("time (s)", LEFT + view.pixels / 2, top + 24);
    if (trace?.playhead == null) return;
    c.strokeStyle = this.colour("warm");
    c.beginPath();
    c.moveTo(view.x(trace.playhead), TOP);
    c.lineTo(view.x(trace.playhead), top);
    c.stroke();
  }

  frame(view, top, height) {
    this.context.strokeStyle = this.colour("rule");
    this.context.lineWidth = 1;
    this.context.strokeRect(LEFT - 0.5, top - 0.5, view.pixels + 1, height + 1);
  }

  tick(text, y) {
    Object.assign(this.context, { fillStyle: this.colour("faint"), textAlign: "right", textBaseline: "middle" });
    this.context.fillText(text, LEFT - 12, y);
  }

  label(text, y, upright = false) {
    const { context: c } = this;
    Object.assign(c, { fillStyle: this.colour("faint"), textAlign: upright ? "center" : "right", textBaseline: "middle" });
    if (!upright) return c.fillText(text, LEFT - 12, y);
    c.save();
    c.translate(9, y);
    c.rotate(-Math.PI / 2);
    c.fillText(text, 0, 0);
    c.restore();
  }
}

function shortened(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  while (text && context.measureText(text + "…").width > width) text = text.slice(0, -1);
  return text + "…";
}
