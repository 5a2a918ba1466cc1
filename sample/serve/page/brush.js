// A mask that is painted over a picture, by pointer or by keyboard.

const STEP = 0.03; // of a side, for an arrow key

export class Brush {
  constructor(canvas, onChange) {
    this.canvas = canvas;
    this.pen = canvas.getContext("2d", { willReadFrequently: true });
    this.onChange = onChange;
    this.size = 0.16; // of a side
    this.erasing = false;
    this.past = [];
    this.last = null;
    this.cursor = { x: 0.5, y: 0.5 };
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => this.up());
    canvas.addEventListener("keydown", (event) => this.keyed(event));
    canvas.addEventListener("blur", () => this.show());
  }

  // Begin with nothing painted, at the picture's own size.
  begin(width, height) {
    this.canvas.width = width;
    this.canvas.height = height;
    this.mask = new OffscreenCanvas(width, height);
    this.ink = this.mask.getContext("2d", { willReadFrequently: true });
    this.past = [];
    this.cursor = { x: 0.5, y: 0.5 };
    this.show();
    this.onChange();
  }

  get side() { return Math.min(this.canvas.width, this.canvas.height); }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
  }

  down(event) {
    event.preventDefault();
    this.canvas.setPointerCapture(event.pointerId);
    this.remember();
    this.last = this.place(event);
    this.stroke(this.last, this.last);
  }

  move(event) {
    if (!this.last) return;
    for (const each of event.getCoalescedEvents?.() || [event]) {
      const next = this.place(each);
      this.stroke(this.last, next);
      this.last = next;
    }
  }

  up() {
    this.last = null;
    this.onChange();
  }

  keyed(event) {
    const moves = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] };
    const move = moves[event.key];
    if (!move && event.key !== " ") return;
    event.preventDefault();
    const before = { ...this.cursor };
    if (move) {
      this.cursor.x = Math.min(1, Math.max(0, this.cursor.x + move[0]));
      this.cursor.y = Math.min(1, Math.max(0, this.cursor.y + move[1]));
    }
    if (event.key === " " || event.shiftKey) {
      this.remember();
      this.stroke(before, this.cursor);
      this.onChange();
    }
    this.show(true);
  }

  stroke(from, to) {
    const { width, height } = this.canvas;
    this.ink.globalCompositeOperation = this.erasing ? "destination-out" : "source-over";
    this.ink.lineCap = this.ink.lineJoin = "round";
    this.ink.lineWidth = this.size * this.side;
    this.ink.strokeStyle = "#000";
    this.ink.beginPath();
    this.ink.moveTo(from.x * width, from.y * height);
    this.ink.lineTo(to.x * width + 0.01, to.y * height);
    this.ink.stroke();
    this.show();
  }

  remember() {
    this.past.push(this.ink.getImageData(0, 0, this.mask.width, this.mask.height));
    if (this.past.length > 12) this.past.shift();
  }

  undo() {
    const before = this.past.pop();
    if (before) this.ink.putImageData(before, 0, 0);
    this.show();
    this.onChange();
  }

  wipe() {
    this.remember();
    this.ink.clearRect(0, 0, this.mask.width, this.mask.height);
    this.show();
    this.onChange();
  }

  invert() {
    this.remember();
    this.ink.globalCompositeOperation = "xor";
    this.ink.fillStyle = "#000";
    this.ink.fillRect(0, 0, this.mask.width, this.mask.height);
    this.show();
    this.onChange();
  }

  // The mask in the page's accent, with stripes; the cursor where keys paint.
  show(withCursor = false) {
    const { pen, canvas } = this;
    const accent = getComputedStyle(canvas).getPropertyValue("--mask") || "#d4552f";
    pen.globalCompositeOperation = "source-over";
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(this.mask, 0, 0);
    pen.globalCompositeOperation = "source-in";
    pen.fillStyle = accent;
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.globalCompositeOperation = "source-atop";
    pen.strokeStyle = "rgb(255 255 255 / 0.28)";
    pen.lineWidth = this.side / 110;
    pen.beginPath();
    for (let x = -canvas.height; x < canvas.width; x += this.side / 28) {
      pen.moveTo(x, canvas.height);
      pen.lineTo(x + canvas.height, 0);
    }
    pen.stroke();
    if (!withCursor) return;
    pen.globalCompositeOperation = "source-over";
    pen.strokeStyle = "#fff";
    pen.lineWidth = this.side / 200;
    pen.beginPath();
    pen.arc(this.cursor.x * canvas.width, this.cursor.y * canvas.height, (this.size * this.side) / 2, 0, 7);
    pen.stroke();
  }

  get isEmpty() {
    const alphas = this.ink.getImageData(0, 0, this.mask.width, this.mask.height).data;
    for (let at = 3; at < alphas.length; at += 4) if (alphas[at] > 127) return false;
    return true;
  }

  // A PNG that is transparent where to paint, as OpenAI's API wants it.
  async file() {
    const sheet = new OffscreenCanvas(this.mask.width, this.mask.height);
    const pen = sheet.getContext("2d");
    pen.fillStyle = "#000";
    pen.fillRect(0, 0, sheet.width, sheet.height);
    pen.globalCompositeOperation = "destination-out";
    pen.drawImage(this.mask, 0, 0);
    return sheet.convertToBlob({ type: "image/png" });
  }
}
