// Masks: COCO's compressed run lengths to pixels, and how they are painted. Knows no network.

const LONGEST_SIDE = 1600; // of what is shown; downloads have the image's own size

// Pixels of a mask, scaled to (width, height): 1 inside, row by row.
export function decodeMask(rle, width, height) {
  const [rows, columns] = rle.size;
  const stored = new Uint8Array(rows * columns); // column by column, as COCO has it
  let place = 0, value = 0;
  for (const run of runLengths(rle.counts)) {
    if (value) stored.fill(1, place, place + run);
    place += run;
    value = 1 - value;
  }
  const pixels = new Uint8Array(width * height);
  for (let y = 0; y < height; y++) {
    const row = Math.floor(((y + 0.5) * rows) / height);
    for (let x = 0; x < width; x++) {
      const column = Math.floor(((x + 0.5) * columns) / width);
      pixels[y * width + x] = stored[column * rows + row];
    }
  }
  return pixels;
}

function runLengths(text) {
  const counts = [];
  let at = 0;
  while (at < text.length) {
    let count = 0, shift = 0, more = true, code = 0;
    while (more) {
      code = text.charCodeAt(at++) - 48;
      count |= (code & 0x1f) << (5 * shift++);
      more = (code & 0x20) !== 0;
    }
    if (code & 0x10) count |= -1 << (5 * shift);
    if (counts.length > 2) count += counts[counts.length - 2];
    counts.push(count);
  }
  return counts;
}

// The size at which an image is shown.
export function viewSize(width, height) {
  const scale = Math.min(1, LONGEST_SIDE / Math.max(width, height));
  return [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
}

// What is painted of a segment: its area and its rim, each one colour on nothing.
export function buildLayer(segment, width, height) {
  const pixels = decodeMask(segment.segmentation, width, height);
  const thickness = Math.max(1, Math.round(Math.max(width, height) / 400));
  const color = [1, 3, 5].map((at) => parseInt(segment.color.slice(at, at + 2), 16));
  return {
    pixels, width, height,
    area: fill(pixels, width, height, color, () => true),
    rim: fill(pixels, width, height, color, (x, y) => isRim(pixels, width, height, x, y, thickness)),
  };
}

function isRim(pixels, width, height, x, y, thickness) {
  const inside = (column, row) =>
    column >= 0 && row >= 0 && column < width && row < height && pixels[row * width + column];
  return !inside(x - thickness, y) || !inside(x + thickness, y)
    || !inside(x, y - thickness) || !inside(x, y + thickness);
}

function fill(pixels, width, height, color, wanted) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at++) {
      if (pixels[at] && wanted(x, y)) image.data.set([...color, 255], at * 4);
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

// Paint an image with the masks of an answer.
// choice: opacity 0..1, outlines, labels, only (index or null), lit (index or null)
export function paint(context, image, segments, layers, choice) {
  const { width, height } = context.canvas;
  context.clearRect(0, 0, width, height);
  context.drawImage(image, 0, 0, width, height);
  const shown = segments.filter((one) => choice.only === null || one.index === choice.only);
  if (choice.only !== null || choice.lit !== null) {
    context.fillStyle = "rgb(0 0 0 / 0.35)"; // the rest steps back
    context.fillRect(0, 0, width, height);
    const bright = choice.lit === null ? choice.only : choice.lit;
    const layer = layers[bright];
    if (layer) context.drawImage(cutOut(image, layer), 0, 0);
  }
  for (const one of shown) {
    const layer = layers[one.index];
    const dim = choice.lit !== null && choice.lit !== one.index;
    context.globalAlpha = choice.opacity * (dim ? 0.4 : 1);
    context.drawImage(layer.area, 0, 0);
    context.globalAlpha = dim ? 0.4 : 1;
    if (choice.outlines) context.drawImage(layer.rim, 0, 0);
    context.globalAlpha = 1;
  }
  if (choice.labels) for (const one of shown) paintLabel(context, one);
}

function cutOut(image, layer) {
  const canvas = document.createElement("canvas");
  canvas.width = layer.width;
  canvas.height = layer.height;
  const context = canvas.getContext("2d");
  context.drawImage(layer.area, 0, 0);
  context.globalCompositeOperation = "source-in";
  context.drawImage(image, 0, 0, layer.width, layer.height);
  return canvas;
}

function paintLabel(context, segment) {
  if (!segment.area) return;
  const { width, height } = context.canvas;
  const [rows, columns] = segment.segmentation.size;
  const [x, y, w, h] = segment.bbox;
  const size = Math.max(11, Math.round(Math.max(width, height) / 45));
  context.font = `600 ${size}px system-ui, sans-serif`;
  const text = shorten(context, `${segment.index + 1}  ${segment.label}`, width * 0.6);
  const boxWidth = context.measureText(text).width + size, boxHeight = size * 1.6;
  const clamp = (value, most) => Math.max(0, Math.min(value, most));
  const left = clamp(((x + w / 2) * width) / columns - boxWidth / 2, width - boxWidth);
  const top = clamp(((y + h / 2) * height) / rows - boxHeight / 2, height - boxHeight);
  context.fillStyle = segment.color;
  context.beginPath();
  context.roundRect(left, top, boxWidth, boxHeight, size / 3);
  context.fill();
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(segment.color.slice(at, at + 2), 16));
  context.fillStyle = 0.299 * red + 0.587 * green + 0.114 * blue > 120 ? "#141414" : "#ffffff";
  context.textBaseline = "middle";
  context.fillText(text, left + size / 2, top + boxHeight / 2);
}

function shorten(context, text, width) {
  let kept = text;
  while (kept.length > 4 && context.measureText(kept).width > width) kept = kept.slice(0, -2);
  return kept === text ? text : `${kept.trimEnd()}\u2026`;
}
