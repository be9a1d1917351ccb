// Rows against keys; in a long text several tokens share a point, which shows the strongest.

const MOST_POINTS = 720;
const BAND = 8;

class Matrix {
  constructor(canvas, { onPick, onLook }) {
    this.canvas = canvas;
    this.base = document.createElement("canvas");
    canvas.addEventListener("pointermove", (event) => this.#at(event, onLook));
    canvas.addEventListener("pointerleave", () => onLook(null));
    canvas.addEventListener("click", (event) => this.#at(event, onPick));
  }

  show({ spans, edges, theme, width, first, last }) {
    this.n = last - first + 1;
    Object.assign(this, { first, theme, spans: spans.slice(first, last + 1) });
    this.side = Math.min(width - BAND, Math.max(320, Math.min(MOST_POINTS, this.n * 14)));
    this.points = Math.min(this.n, MOST_POINTS);
    const n = this.#fill(edges);
    return { n, drawn: n };
  }

  choose({ token, look }) {
    const size = this.side + BAND;
    const context = sizedCanvas(this.canvas, size, size);
    context.imageSmoothingEnabled = false;
    context.drawImage(this.base, BAND, BAND, this.side, this.side);
    const step = this.side / this.n;
    this.spans.forEach((span, place) => {
      context.fillStyle = css(this.theme[SPAN_COLOURS[span]]);
      context.fillRect(BAND + place * step, 0, Math.max(0.6, step), BAND - 2);
      context.fillRect(0, BAND + place * step, BAND - 2, Math.max(0.6, step));
    });
    context.strokeStyle = css(this.theme.faint);
    const answer = BAND + this.spans.indexOf(5) * step;
    if (this.spans.includes(5)) this.#cross(context, answer, answer);
    if (token === null) return;
    context.strokeStyle = css(this.theme.graph);
    context.lineWidth = Math.max(1, Math.min(2, step));
    context.strokeRect(BAND, BAND + (token - this.first) * step, this.side - 1, Math.max(1, step));
    if (look === null || look < this.first) return;
    context.strokeStyle = css(this.theme.probe);
    context.strokeRect(BAND + (look - this.first) * step, BAND, Math.max(1, step), this.side - 1);
  }

  #cross(context, x, y) {
    context.lineWidth = 1;
    context.beginPath();
    context.moveTo(x, BAND);
    context.lineTo(x, BAND + this.side);
    context.moveTo(BAND, y);
    context.lineTo(BAND + this.side, y);
    context.stroke();
  }

  #fill(edges) {
    const { points, n, first } = this;
    this.base.width = this.base.height = points;
    const context = plainContext(this.base);
    const image = context.createImageData(points, points);
    const strongest = new Float32Array(points * points);
    let drawn = 0;
    for (let place = 0; place < edges.shares.length; place++) {
      const row = Math.floor(((edges.rows[place] - first) * points) / n);
      const key = Math.floor(((edges.keys[place] - first) * points) / n);
      if (key < 0 || row >= points) continue;
      drawn += 1;
      strongest[row * points + key] = Math.max(strongest[row * points + key], edges.shares[place]);
    }
    const packed = (rgb) => (255 << 24) | (rgb[2] << 16) | (rgb[1] << 8) | rgb[0];
    const colours = Int32Array.from({ length: 257 }, (_, level) => packed(weightColour(this.theme, level / 256)));
    const later = packed(this.theme.raised);
    const pixels = new Int32Array(image.data.buffer);
    for (let row = 0, place = 0; row < points; row++) {
      for (let key = 0; key < points; key++, place++) {
        pixels[place] = key > row ? later : colours[Math.min(256, Math.ceil(256 * strongest[place]))];
      }
    }
    context.putImageData(image, 0, 0);
    return drawn;
  }

  #at(event, act) {
    const place = (offset) => Math.floor(((offset - BAND) * this.n) / this.side);
    const row = place(event.offsetY);
    const key = place(event.offsetX);
    const isInside = row >= 0 && row < this.n && key >= 0 && key < this.n;
    act(isInside ? this.first + row : null, isInside ? this.first + key : null);
  }
}
