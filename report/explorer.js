// Draws the map of the chosen class, and lists the scores with the position under the pointer occluded.
// The arithmetic is that of `cnnviz occlude`: see occlusion/maps.py.
const [H, W] = size;
const TOP = 5;
const boxOf = (p) => [0, 1, 2, 3].map((edge) => boxes[4 * p + edge]);
const state = said._cnnviz ?? (said._cnnviz = {});

function half(bits) {  // IEEE 754 binary16
  const exponent = (bits >> 10) & 31, fraction = bits & 1023;
  const value = exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15);
  return bits & 32768 ? -value : value;
}
function kept(row, k) {  // log-odds, or values; row 0 is the original image
  return base[k] - half(halves[row * classes + k]);
}
function reading(row, k) {
  const value = kept(row, k);
  return head === "none" ? value : 1 / (1 + Math.exp(-value));
}
function loss(value) {  // -log p
  return Math.max(-value, 0) + Math.log1p(Math.exp(-Math.abs(value)));
}
function scored(row, k) {
  const value = kept(row, k);
  if (head === "none") return value;
  if (score.value === "probability") return reading(row, k);
  if (score.value === "loss") return loss(value);
  return score.value === "log-odds" || head === "sigmoid" || given ? value : sums[row] - loss(value);
}
function harm(row, k) {
  const change = scored(0, k) - scored(row, k);
  return score.value === "loss" && head !== "none" ? -change : change;
}
const which = Number(mask.value);
let start = 0;
for (let m = 0; m < which; m++) start += grids[m][0] * grids[m][1];
const count = grids[which][0] * grids[which][1];
const k = Number(of.value);

const middle = (p, a) => (boxes[4 * p + a] + boxes[4 * p + a + 2]) / 2;

function smoothed(pixels) {  // two means over a square of one step between positions, for display
  const [nr, nc] = grids[which];
  const steps = [nr > 1 ? middle(start + nc, 0) - middle(start, 0) : 1, nc > 1 ? middle(start + 1, 1) - middle(start, 1) : 1];
  let now = pixels;
  for (let pass = 0; pass < 4; pass++) {
    const down = pass % 2 === 0, reach = Math.round(steps[down ? 0 : 1] / 2);
    const [length, lines, next, skip] = down ? [H, W, W, 1] : [W, H, 1, W];
    const after = new Float32Array(now.length);
    for (let line = 0; line < lines; line++) {
      const sums = new Float64Array(length + 1);
      for (let i = 0; i < length; i++) sums[i + 1] = sums[i] + now[line * skip + i * next];
      for (let i = 0; i < length; i++) {
        const low = Math.max(i - reach, 0), high = Math.min(i + reach + 1, length);
        after[line * skip + i * next] = (sums[high] - sums[low]) / (high - low);
      }
    }
    now = after;
  }
  return now;
}

function draw() {
  const sum = new Float64Array((H + 1) * (W + 1)), over = new Float64Array((H + 1) * (W + 1));
  const rows = W + 1;
  for (let p = start; p < start + count; p++) {
    const [y0, x0, y1, x1] = boxOf(p), value = harm(p + 1, k);
    for (const [y, x, sign] of [[y0, x0, 1], [y1, x1, 1], [y0, x1, -1], [y1, x0, -1]]) {
      sum[y * rows + x] += sign * value;
      over[y * rows + x] += sign;
    }
  }
  for (const table of [sum, over]) {
    for (let y = 0; y <= H; y++) for (let x = 1; x <= W; x++) table[y * rows + x] += table[y * rows + x - 1];
    for (let y = 1; y <= H; y++) for (let x = 0; x <= W; x++) table[y * rows + x] += table[(y - 1) * rows + x];
  }
  let pixels = values.data.image[0];
  let most = 1, largest = 1e-12;
  for (let y = 0; y < H; y++) for (let x = 0; x < W; x++) most = Math.max(most, over[y * rows + x]);
  for (let y = 0; y < H; y++) for (let x = 0; x < W; x++) {
    const covering = Math.round(over[y * rows + x]);
    const value = covering ? sum[y * rows + x] / (density ? most : covering) : 0;
    pixels[(H - 1 - y) * W + x] = value;  // Bokeh's first row is the lowest
  }
  if (display.value === "smooth") pixels.set(smoothed(pixels));
  for (const value of pixels) largest = Math.max(largest, Math.abs(value));
  mapper.palette = palettes[colours.value];
  mapper.low = -largest;
  mapper.high = largest;
  shown.glyph.global_alpha = opacity.value;
  cells.glyph.fill_alpha = opacity.value;
  values.change.emit();
  drawWinners();
}

const OTHER = "#8c8c8c";
const HUES = ["#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#000000", "#8C6D46"];  // as label.png

function drawWinners() {
  const often = new Map();
  for (let p = start; p < start + count; p++) often.set(winner[p + 1], (often.get(winner[p + 1]) ?? 0) + 1);
  const others = [...often.keys()].filter((c) => c !== winner[0]).sort((a, b) => often.get(b) - often.get(a));
  const hue = new Map([[winner[0], "#00000000"], ...others.map((c, n) => [c, HUES[n] ?? OTHER])]);
  const [nr, nc] = grids[which];
  const l = [], r = [], b = [], t = [], colour = [];
  const edges = (n, axis, step) => {  // a position's cell ends half way to the next one's middle
    const mids = Array.from({length: n}, (_, i) => middle(start + i * step, axis));
    const inner = mids.slice(1).map((m, i) => (m + mids[i]) / 2);
    return [0, ...inner, axis === 0 ? H : W];
  };
  const ys = edges(nr, 0, nc), xs = edges(nc, 1, 1);
  for (let i = 0; i < nr; i++) for (let j = 0; j < nc; j++) {
    l.push(xs[j]); r.push(xs[j + 1]); t.push(H - ys[i]); b.push(H - ys[i + 1]);
    colour.push(hue.get(winner[start + i * nc + j + 1]));
  }
  winners.data = {l, r, b, t, colour};
  const list = document.createElement("div");
  if (head !== "none") {
    const shares = others.map((c) => [c, often.get(c) / count]);
    const what = head === "softmax" ? "prediction" : "strongest class";
    list.append(element("span", others.length ? `Right: ${what} with each region occluded, where it changes: ` : `Right: the ${what} stays ${labels[winner[0]]} wherever the image is occluded.`));
    for (const [c, share] of shares) {
      const entry = element("span"), patch = element("span", " \u00a0\u00a0\u00a0 ");
      entry.style.whiteSpace = "nowrap";
      patch.style.background = hue.get(c);
      entry.append(patch, ` ${labels[c]} ${(100 * share).toFixed(1)} %`);
      list.append(entry, " \u2002");
    }
  }
  names.text = list.outerHTML;
}

function element(tag, text) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  return made;
}

function tell(p) {
  const [y0, x0, y1, x1] = boxOf(p);
  outline.data = {l: [x0], r: [x1], t: [H - y0], b: [H - y1]};
  const order = [...Array(classes).keys()].sort((a, b) => reading(p + 1, b) - reading(p + 1, a));
  const rows = [...new Set([k, ...order.slice(0, TOP)])];
  const box = element("div");
  const flipped = head === "softmax" && winner[p + 1] !== winner[0];
  const text = `rows ${y0} to ${y1}, columns ${x0} to ${x1} occluded` + (flipped ? `: the prediction becomes ${labels[winner[p + 1]]}` : "");
  box.append(element("b", text));
  const table = element("table"), top = element("tr");
  for (const name of [head === "none" ? "output" : "class", "original", "occluded", "change"]) top.append(element("th", name));
  table.append(top);
  for (const c of rows) {
    const line = element("tr"), was = reading(0, c), now = reading(p + 1, c);
    const fixed = (value) => value.toFixed(head === "none" ? 4 : 3).replace("-", "\u2212");
    for (const cell of [labels[c], fixed(was), fixed(now), (now - was >= 0 ? "+" : "") + fixed(now - was)]) line.append(element("td", cell));
    if (c === k) line.style.fontWeight = "600";
    table.append(line);
  }
  box.append(table);
  said.text = box.outerHTML;
}

function rest() {
  outline.data = {l: [], r: [], t: [], b: []};
  const values = Array.from({length: count}, (_, i) => harm(start + i + 1, k));
  const largest = values.indexOf(Math.max(...values));
  const [y0, x0, y1, x1] = boxOf(start + largest);
  const box = element("div");
  box.append(element("b", "Hover over the image to occlude a region. "));
  box.append(element("span", `${labels[k]}: ${reading(0, k).toFixed(3)} → ${reading(start + largest + 1, k).toFixed(3)} with the most harmful region occluded (rows ${y0} to ${y1}, columns ${x0} to ${x1}).`));
  said.text = box.outerHTML;
}

const event = cb_obj.event_name;
if (event === "mousemove" || event === "tap") {
  if (cb_obj.x < 0 || cb_obj.x > W || cb_obj.y < 0 || cb_obj.y > H) return;
  const x = cb_obj.x, y = H - cb_obj.y;
  let best = start, least = Infinity;
  for (let p = start; p < start + count; p++) {
    const dy = (boxes[4 * p] + boxes[4 * p + 2]) / 2 - y, dx = (boxes[4 * p + 1] + boxes[4 * p + 3]) / 2 - x;
    if (dx * dx + dy * dy < least) [best, least] = [p, dx * dx + dy * dy];
  }
  if (state.place !== best || state.of !== k) tell(best);
  state.place = best;
  state.of = k;
} else if (event === "mouseleave") {
  state.place = undefined;
  rest();
} else {
  draw();
  rest();
}
