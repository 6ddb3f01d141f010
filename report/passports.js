// Shows the passport of the chosen row: numbers, kernel, strongest patches; a patch, its whole image.
function element(tag, text) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  return made;
}

const SIDE = 88;

function cut(place, y0, x0, y1, x1) {
  const {data, width, height} = pictures[place];
  const made = element("div");
  made.className = "cut";
  const w = (x1 - x0) * width, h = (y1 - y0) * height, scale = SIDE / Math.max(w, h, 1e-6);
  Object.assign(made.style, {
    width: `${w * scale}px`, height: `${h * scale}px`,
    backgroundImage: data ? `url(${data})` : "none",
    backgroundSize: `${width * scale}px ${height * scale}px`,
    backgroundPosition: `${-x0 * width * scale}px ${-y0 * height * scale}px`,
  });
  return made;
}

function whole(place, y0, x0, y1, x1) {  // opened without any script: the page's text is plain HTML
  const {name, data} = pictures[place];
  const made = element("details"), frame = element("div"), box = element("div");
  made.append(element("summary", "whole image"));
  const picture = element("img");
  picture.src = data;
  picture.style.maxWidth = "320px";
  picture.style.display = "block";
  Object.assign(frame.style, {position: "relative", display: "inline-block", width: "max-content"});
  Object.assign(box.style, {
    position: "absolute", outline: "2px solid #fff", border: "1px solid #000",
    left: `${100 * x0}%`, top: `${100 * y0}%`, width: `${100 * (x1 - x0)}%`, height: `${100 * (y1 - y0)}%`,
  });
  frame.append(picture, box);
  made.append(frame, element("div", name));
  return made;
}

function shown(number) {
  return String(Number(number.toPrecision(4))).replace("-", "\u2212");
}

const row = source.selected.indices[0];
if (row !== undefined) {
  const box = element("div");
  box.append(element("b", `${source.data.layer[row]}, filter ${source.data.filter[row]}`));
  const table = element("table"), top = element("tr"), line = element("tr");
  for (const name of header.slice(2)) {
    const value = source.data[name][row];
    const number = typeof value === "number";
    if (value === "" || (number && Number.isNaN(value))) continue;
    top.append(element("th", name));
    line.append(element("td", number ? shown(value) : value));
  }
  table.append(top, line);
  box.append(table);
  for (const text of lines[row]) box.append(element("div", text));
  const strip = element("div");
  strip.className = "strip";
  if (kernels[row]) {
    const one = element("div"), picture = element("img");
    picture.src = kernels[row];
    picture.style.width = picture.style.height = `${SIDE}px`;
    picture.style.imageRendering = "pixelated";
    one.append(picture, element("div", "kernel"));
    strip.append(one);
  }
  for (const [place, y0, x0, y1, x1, score, label] of patches[row]) {
    const one = element("div");
    one.append(cut(place, y0, x0, y1, x1), element("div", `${shown(score)} ${label}`));
    if (pictures[place].data) one.append(whole(place, y0, x0, y1, x1));
    strip.append(one);
  }
  box.append(strip);
  said.text = box.outerHTML;
}
