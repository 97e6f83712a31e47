// Runs on the audio thread: gathers blocks of 128 samples into whole frames, and posts each frame once.
class Frames extends AudioWorkletProcessor {
  constructor({ processorOptions }) {
    super();
    this.frame = new Float32Array(processorOptions.hop);
    this.filled = 0;
  }

  process([channels]) {
    for (let i = 0; channels.length && i < channels[0].length; i++) {
      this.frame[this.filled++] = channels[0][i];
      if (this.filled === this.frame.length) {
        this.port.postMessage(this.frame); // a copy is sent
        this.filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("frames", Frames);
